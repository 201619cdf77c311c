"""Threads and their end: one that dies takes the process with it, and the first cause is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType

import pytest

from ottoscaler.errors import Stopping
from ottoscaler.flow import control, pod_terminator
from ottoscaler.flow import stop as stop_module
from ottoscaler.flow.stop import StopSignal
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import SimulatedController


def joined(stop: StopSignal, seconds: float = 5) -> list[str]:
    """The threads that have not ended by then."""
    clock = SystemClock()
    return stop.join(clock, clock.now() + seconds)


def test_a_thread_that_dies_stops_the_process(log: Lines) -> None:
    """Its error is the cause, and the log names the thread."""
    stop, error = StopSignal(), ValueError("broken")

    def die() -> None:
        raise error

    stop.spawn("reader", die)
    assert stop.wait(5)
    joined(stop)
    assert stop.cause is error
    assert "reader" in log.of("thread.died")[0]


def test_a_thread_that_returns_too_early_stops_the_process() -> None:
    """Half a controller is worse than none."""
    stop = StopSignal()
    stop.spawn("watch", lambda: None)
    assert stop.wait(5)
    joined(stop)
    assert "watch" in str(stop.cause)


def test_a_stop_that_was_asked_for_has_no_cause() -> None:
    """Threads end by Stopping, and that is no failure."""
    stop = StopSignal()

    def until_stopped() -> None:
        stop.wait()
        raise Stopping("asked to")

    stop.spawn("reader", until_stopped)
    stop.set()
    assert joined(stop) == []
    assert stop.cause is None


def test_the_first_cause_stays() -> None:
    """What comes after it is a consequence."""
    stop, first = StopSignal(), ValueError("first")
    stop.set(first)
    stop.set(ValueError("second"))
    assert stop.cause is first


def test_one_thread_may_outlive_the_others() -> None:
    """The one that answers probes is not waited for until all is done."""
    stop, release = StopSignal(), threading.Event()
    stop.spawn("reader", stop.wait)  # type: ignore[arg-type]
    stop.spawn("web", lambda: release.wait(30) and None)
    stop.set()
    clock = SystemClock()
    assert stop.join(clock, clock.now() + 5, besides="web") == []
    release.set()
    assert joined(stop) == []


def test_a_thread_that_is_not_vital_is_begun_again(log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it dies or returns, all others go on."""
    monkeypatch.setattr(stop_module, "RESTART_S", 0.01)
    stop, ends, again = StopSignal(), iter([ValueError("a defect"), None]), threading.Event()

    def run() -> None:
        end = next(ends, stop)
        if isinstance(end, ValueError):
            raise end
        if end is stop:
            again.set()
            stop.wait()
            raise RuntimeError("a connection is closed")

    stop.spawn("traces", run, vital=False)
    assert again.wait(20)
    assert not stop.is_set()
    stop.set()
    eventually(lambda: not [one for one in threading.enumerate() if one.name == "traces"])
    assert (stop.cause, log.of("thread.died")) == (None, ["Thread traces died"])


def test_the_stop_does_not_wait_for_a_thread_that_is_not_vital() -> None:
    """It may hang."""
    stop, release = StopSignal(), threading.Event()
    stop.spawn("traces", lambda: release.wait(30) and None, vital=False)
    stop.set()
    assert joined(stop, 20) == []
    assert [one.name for one in threading.enumerate() if one.name == "traces"] == ["traces"]
    release.set()


@pytest.mark.contract("2.SHUTDOWN_GRACE_S")
def test_threads_that_hang_are_named() -> None:
    """The process does not wait for them beyond the deadline."""
    stop, release = StopSignal(), threading.Event()

    def hang() -> None:
        release.wait(30)

    stop.spawn("stuck", hang)
    stop.set()
    assert joined(stop, 0.05) == ["stuck"]
    release.set()
    assert joined(stop) == []


@pytest.mark.parametrize("refusals", [1, 3])
def test_a_thread_that_the_machine_refuses_is_asked_for_again(
    refusals: int, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of pids: a restart would only find it again."""
    left, start = [refusals], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(stop_module, "THREAD_RETRY_S", 0.01)
    stop, ran = StopSignal(), threading.Event()

    def run() -> None:
        ran.set()
        stop.wait()

    stop.spawn("reader", run)
    assert ran.wait(5)
    stop.set()
    assert joined(stop) == []
    assert (stop.cause, len(log.of("thread.refused"))) == (None, refusals)


def test_a_stop_ends_the_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was begun, and nothing is left to be joined."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stop = StopSignal()
    stop.set()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Stopping):
        stop.spawn("reader", lambda: None)
    assert joined(stop) == []


@pytest.mark.parametrize(
    ("module", "pause", "loop"),
    [
        (pod_terminator, "LOOK_EVERY_S", lambda controller: controller.terminator.run),
        (control, "FIRST_PAUSE_S", lambda controller: controller.control.carry_out),
    ],
)
def test_a_loop_that_waits_for_news_is_woken_by_the_stop(
    module: ModuleType,
    pause: str,
    loop: Callable[[SimulatedController], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long its pause is: the grace period of the process is for the workers' results."""
    monkeypatch.setattr(module, pause, 600.0)
    began = threading.Event()
    with SimulatedController() as controller:
        monkeypatch.setattr(controller.heartbeat, "beat", began.set)
        controller.stop.spawn("loop", loop(controller))
        assert began.wait(20)
        controller.stop.set()
        assert joined(controller.stop, 20) == []
