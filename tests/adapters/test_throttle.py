"""The throttle limits the calls to the Kubernetes API: those in flight at once, and those per second."""

from __future__ import annotations

import threading
import time

import pytest

from ottoscaler.adapters.throttle import Throttle
from ottoscaler.errors import ClusterUnavailable
from tests.fakes.wait import eventually


def elapsed(throttle: Throttle, calls: int) -> float:
    """Seconds that the given number of calls, one after the other, take."""
    began = time.monotonic()
    for _ in range(calls):
        with throttle.slot():
            pass
    return time.monotonic() - began


@pytest.mark.contract("2.KUBE_INFLIGHT")
def test_no_more_calls_than_allowed_are_in_flight() -> None:
    """The third waits until one of two is over."""
    throttle, inside, release = Throttle(2, 0, 0), threading.Semaphore(0), threading.Event()

    def call() -> None:
        with throttle.slot():
            inside.release()
            release.wait(10)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert [inside.acquire(timeout=5) for _ in range(2)] == [True, True]
    assert not inside.acquire(timeout=0.05)
    release.set()
    assert inside.acquire(timeout=5)
    for thread in threads:
        thread.join(5)


@pytest.mark.contract("2.KUBE_QPS")
def test_each_call_beyond_the_bucket_waits_for_its_own_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4 a second, and 6 at once, the seventh waits for a quarter of a second and the eighth for a half. Tokens come
    back with the time, and never more than the bucket holds.
    """
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    throttle = Throttle(1, 4, 6)
    assert [throttle._reserve_s() for _ in range(8)] == [0.0] * 6 + [0.25, 0.5]
    now += 1.0
    assert [throttle._reserve_s() for _ in range(4)] == [0.0, 0.0, 0.25, 0.5]
    now += 1000.0
    assert [throttle._reserve_s() for _ in range(7)] == [0.0] * 6 + [0.25]


@pytest.mark.contract("2.KUBE_QPS")
@pytest.mark.parametrize(("qps", "burst", "at_once"), [(2, 0, 2), (2, 5, 5), (5, 2, 5)])
def test_the_bucket_holds_a_second_or_the_burst_if_that_is_more(
    monkeypatch: pytest.MonkeyPatch, qps: int, burst: int, at_once: int
) -> None:
    """That number of calls is made at once."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    throttle = Throttle(1, qps, burst)
    waits = [throttle._reserve_s() for _ in range(at_once + 1)]
    assert (waits[:-1], waits[-1] > 0) == ([0.0] * at_once, True)


@pytest.mark.contract("2.KUBE_QPS")
def test_the_rate_is_kept() -> None:
    """Ten calls more than the bucket holds, at 100 a second, take a tenth of a second."""
    assert elapsed(Throttle(4, 100, 0), 110) >= 0.08


@pytest.mark.contract("2.KUBE_BURST")
def test_a_burst_is_let_through() -> None:
    """As many calls as KUBE_BURST go at once, and only then the rate holds."""
    throttle = Throttle(4, 1, 50)
    assert elapsed(throttle, 50) < 0.5


@pytest.mark.contract("2.KUBE_QPS")
def test_without_a_rate_no_request_waits() -> None:
    """The server's own fairness rules."""
    assert elapsed(Throttle(4, 0, 0), 1000) < 1


def test_a_request_that_waits_for_the_rate_is_woken_by_the_end() -> None:
    """A shutdown does not wait for tokens."""
    throttle = Throttle(1, 1, 1)
    elapsed(throttle, 1)
    ended: list[str] = []

    def call() -> None:
        try:
            elapsed(throttle, 30)
        except ClusterUnavailable as error:
            ended.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    throttle.close()
    assert eventually(lambda: ended)
    thread.join(5)
