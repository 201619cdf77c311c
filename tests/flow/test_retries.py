"""The one retry layer: bounded, ended by the stop, respectful, logged and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ottoscaler.errors import ClusterRejected, ClusterUnavailable, RedisUnavailable, Stopping, Unavailable
from ottoscaler.metrics import Metrics
from ottoscaler.retries import MAX_ASKED_S, MAX_PAUSE_S, Retries
from tests.flow.conftest import Lines


class Pauses(threading.Event):
    """A stop event that notes how long it is waited on, and never waits."""

    def __init__(self, stop_after: int = 10_000) -> None:
        super().__init__()
        self.seen: list[float] = []
        self._stop_after = stop_after

    def wait(self, timeout: float | None = None) -> bool:
        self.seen.append(timeout or 0.0)
        if len(self.seen) >= self._stop_after:
            self.set()
        return self.is_set()


def failing(times: int, error: Exception) -> Callable[[], str]:
    """Fails the given number of times, then answers."""
    left = [error] * times

    def attempt() -> str:
        if left:
            raise left.pop()
        return "answer"

    return attempt


def call(retries: Retries, attempt: Callable[[], str], times: int = 4) -> str:
    """As the thread of a worker does: the first try is its own."""
    try:
        return attempt()
    except Unavailable as error:
        return retries.try_again("do it", error, attempt, times=times)


def test_an_answer_after_failures_is_returned() -> None:
    """Three failures, then the fourth try."""
    assert call(Retries(Pauses(), Metrics()), failing(3, RedisUnavailable("away"))) == "answer"


def test_the_number_of_tries_is_bounded() -> None:
    """After the last one the error itself comes out."""
    with pytest.raises(RedisUnavailable, match="away"):
        call(Retries(Pauses(), Metrics()), failing(4, RedisUnavailable("away")), times=4)


def test_only_unavailable_is_tried_again() -> None:
    """A refusal stays a refusal."""
    pauses = Pauses()
    with pytest.raises(ClusterRejected):
        call(Retries(pauses, Metrics()), failing(1, ClusterRejected("no", status=422, reason="Invalid")))
    assert pauses.seen == []


def test_what_the_server_asks_for_is_respected() -> None:
    """Retry-After is the least that is waited."""
    pauses = Pauses()
    call(Retries(pauses, Metrics()), failing(1, ClusterUnavailable("full", retry_after_s=7)))
    assert pauses.seen[0] >= 7


def test_what_the_server_asks_for_is_respected_within_a_limit() -> None:
    """The pause holds a thread: a server that asks for an hour gets it for a quarter of a minute."""
    pauses = Pauses()
    Retries(pauses, Metrics()).retry_forever("do it", failing(1, ClusterUnavailable("full", retry_after_s=3600)))
    assert pauses.seen == [MAX_ASKED_S]


def test_each_failed_try_is_reported() -> None:
    """So that a thread that tries without limit is seen to be alive."""
    received: list[str] = []
    Retries(Pauses(), Metrics(), received.append).retry_forever("do it", failing(3, RedisUnavailable("away")))
    assert received == ["cannot do it: away"] * 3


def test_pauses_grow_up_to_a_limit() -> None:
    """A server that is back is used within two seconds, however long it was away."""
    pauses = Pauses()
    Retries(pauses, Metrics()).retry_forever("do it", failing(20, RedisUnavailable("away")))
    assert pauses.seen[0] < 0.5
    assert max(pauses.seen) <= MAX_PAUSE_S < 2


def test_the_stop_ends_it() -> None:
    """No thread tries without limit in a process that is to end."""
    with pytest.raises(Stopping):
        Retries(Pauses(stop_after=3), Metrics()).retry_forever("do it", failing(100, RedisUnavailable("away")))


def test_retries_are_counted_by_server() -> None:
    """Redis and Kubernetes apart."""
    metrics = Metrics()
    call(Retries(Pauses(), metrics), failing(2, ClusterUnavailable("away")))
    assert b'ottoscaler_retries_total{reason="unreachable",target="kubernetes"} 2.0' in metrics.render()


def test_a_long_outage_does_not_fill_the_log(log: Lines) -> None:
    """Tries 1, 2, 4, 8 … are logged."""
    Retries(Pauses(), Metrics()).retry_forever("read", failing(100, RedisUnavailable("away")))
    assert len(log.of("retry.scheduled")) == 7


def test_a_retry_names_its_target_and_the_try_that_failed(log: Lines) -> None:
    """In fields, so that retries can be counted by server; the error is in its own field alone."""
    retries = Retries(Pauses(), Metrics())
    retries.retry_forever("read", failing(2, RedisUnavailable("gone away")))
    retries.retry_forever("list pods", failing(1, ClusterUnavailable("gone away")))
    lines = log.lines("retry.scheduled")
    assert [(line["target"], line["try_number"]) for line in lines] == [("redis", 1), ("redis", 2), ("kubernetes", 1)]
    assert [line["message"] for line in lines] == [
        "Cannot read, trying again (try 1)", "Cannot read, trying again (try 2)",
        "Cannot list pods, trying again (try 1)",
    ]  # fmt: skip
    assert {line["error"] for line in lines} == {"gone away"}


def test_an_outage_that_many_threads_meet_is_logged_at_a_limited_rate(log: Lines) -> None:
    """A hundred workers of which each tries four times: a line for the first, the second, the fourth, the eighth …"""
    retries = Retries(Pauses(), Metrics())
    for _ in range(100):
        with pytest.raises(RedisUnavailable):
            call(retries, failing(4, RedisUnavailable("away")))
    assert len(log.of("retry.scheduled")) == 9
