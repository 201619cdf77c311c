"""The controller's side of the log forwarder, without a forwarder: what is asked for, kept, handled and sent again."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import pytest

from ottoscaler.adapters import log_forwarder
from ottoscaler.adapters.log_forwarder import LogForwarderProcess
from ottoscaler.core.log_figures import LogFigures
from ottoscaler.core.log_progress import LogProgress
from ottoscaler.log_forwarder_messages import (
    Acknowledged,
    Ended,
    Figures,
    Follow,
    GiveUp,
    Message,
    MessageBuffer,
    Notice,
    PodEnded,
    Start,
    encode_message,
)
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines

START = Start(KubeSettings(), LogHandlerSettings(), [1], [])  # as it is read from a message
FOLLOW = Follow(LogProgress("u-1"), "pod-1", "t", "n-1", {"a": "b"})


class Reported:
    """What the controller gets, and the process object."""

    def __init__(self) -> None:
        self.progress: list[LogProgress] = []
        self.ended: list[tuple[str, bool, int, int]] = []
        self.figures: list[LogFigures] = []
        self.beats = 0
        self.process = LogForwarderProcess(
            START,
            on_progress=self.progress.append,
            on_end=lambda *facts: self.ended.append(facts),
            on_figures=self.figures.append,
            beat=self._beat,
        )

    def _beat(self) -> None:
        self.beats += 1

    def follow(self, uid: str = "u-1") -> None:
        self.process.follow(LogProgress(uid), pod="pod-1", task_id="t", node="n-1", labels={"a": "b"})

    def outgoing(self) -> list[Message]:
        """What would be sent now."""
        return list(MessageBuffer().feed(self.process._take_outgoing()))

    def woken(self) -> bool:
        """Was the thread woken since the last time?"""
        try:
            return bool(os.read(self.process._wake_reader, 65536))
        except BlockingIOError:
            return False


@pytest.fixture
def reported() -> Reported:
    """One of which nothing was asked."""
    return Reported()


@pytest.fixture
def log() -> Lines:
    """The program's log, in memory."""
    return Lines()


def test_each_request_is_sent_once_and_wakes_the_thread(reported: Reported) -> None:
    """What is not followed has no end; and a second end is none."""
    assert not reported.woken()
    reported.process.pod_ended("u-1")
    reported.process.give_up("u-1")
    assert reported.outgoing() == []
    reported.woken()
    steps: list[tuple[Callable[[], None], list[Message], bool]] = [
        (reported.follow, [FOLLOW], True),
        (lambda: reported.process.pod_ended("u-1"), [PodEnded("u-1")], True),
        (lambda: reported.process.pod_ended("u-1"), [], False),
        (lambda: reported.process.give_up("u-1"), [GiveUp("u-1")], True),
        (lambda: reported.process.pod_ended("u-1"), [], False),
    ]
    for step, sent, woken in steps:
        step()
        assert (reported.outgoing(), reported.woken()) == (sent, woken)
    assert reported.process._follows == {}


def test_what_was_answered_is_kept_and_passed_on(reported: Reported, log: Lines) -> None:
    """Of logs that are followed; a further forwarder is asked from there, and of those that are over it is not."""
    reported.follow("u-1")
    reported.follow("u-2")
    reported.process.pod_ended("u-1")
    further = [LogProgress("u-1", sequence=7), LogProgress("u-9", sequence=8), LogProgress("u-2", sequence=9)]
    reported.process._handle(Acknowledged(further))
    assert reported.progress == [further[0], further[2]]
    kept = reported.process._follows
    assert {uid: (each.progress.sequence, each.ended) for uid, each in kept.items()} == {
        "u-1": (7, True),
        "u-2": (9, False),
    }
    reported.process._handle(Ended("u-1", True, 5, 1))
    reported.process._handle(Ended("u-9", False, 0, 2))
    assert reported.ended == [("u-1", True, 5, 1), ("u-9", False, 0, 2)]
    assert set(kept) == {"u-2"}
    reported.process._handle(Figures(LogFigures(lines=3)))
    assert reported.figures == [LogFigures(lines=3)]
    reported.process._handle(Notice("the handler is away", "pod-1"))
    (line,) = log.lines("logs.trouble")
    assert (line["message"], line["pod"], line["level"]) == ("the handler is away", "pod-1", "WARNING")


@pytest.mark.parametrize("amount", [1, 200])
def test_messages_go_both_ways_without_a_wait(reported: Reported, monkeypatch: pytest.MonkeyPatch, amount: int) -> None:
    """Each wakes the thread, which looks up by itself only after a while; and the exchange ends with the connection."""
    monkeypatch.setattr(log_forwarder, "LOOK_S", 50.0)
    ours, its = socket.socketpair()
    received: list[Message] = []
    buffer = MessageBuffer()
    with ThreadPoolExecutor(1) as pool, ours:
        with its:
            its.settimeout(20)
            thread = pool.submit(reported.process._exchange, ours, lambda _: False, ())
            for number in range(amount):
                reported.follow(f"u-{number}")
            while len(received) < amount:
                received += buffer.feed(its.recv(4096))
            its.sendall(encode_message(Ended("u-0", True)))
            eventually(lambda: reported.ended, what="the answer")
            reported.process.give_up("u-0")
            reported.process.pod_ended(f"u-{amount - 1}")
            if amount > 1:
                received += buffer.feed(its.recv(4096))
                assert received[amount:] == [PodEnded(f"u-{amount - 1}")]
        thread.result(20)
    assert [cast("Follow", each).progress.uid for each in received[:amount]] == [f"u-{n}" for n in range(amount)]
    assert reported.beats > 0


@contextmanager
def exchange_of_many(reported: Reported, amount: int) -> Iterator[socket.socket]:
    """The other side of an exchange with so many requests to send, over a socket that takes little at once. It is ended
    behind the block.
    """
    ours, its = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    its.settimeout(20)
    for number in range(amount):
        reported.follow(f"u-{number}")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool, ours, its:
        thread = pool.submit(reported.process._exchange, ours, lambda _: stop.is_set(), ())
        try:
            yield its
        finally:
            stop.set()
            reported.process._wake()
        thread.result(20)


def test_more_than_a_socket_takes_arrives_whole(reported: Reported) -> None:
    """In parts, each behind the one before."""
    received: list[Message] = []
    buffer = MessageBuffer()
    with exchange_of_many(reported, 2000) as its:
        while len(received) < 2000:
            received += buffer.feed(its.recv(65536))
    assert [cast("Follow", each).progress.uid for each in received] == [f"u-{number}" for number in range(2000)]


def test_what_comes_is_handled_while_the_other_side_takes_nothing(reported: Reported) -> None:
    """It may take something only after we have taken what it has."""
    with exchange_of_many(reported, 5000) as its:
        for number in range(3):
            its.sendall(encode_message(Ended(f"u-{number}", True)))
            eventually(lambda: len(reported.ended) > number, what="the message")  # noqa: B023


def run(
    reported: Reported, monkeypatch: pytest.MonkeyPatch, lives_s: Sequence[float], waits: Callable[[float], bool]
) -> list[float]:
    """Let forwarders live so long, one after the other; returns the pauses between them."""
    now, lives, pauses = [0.0], iter(lives_s), list[float]()
    monkeypatch.setattr(log_forwarder.time, "monotonic", lambda: now[0])

    def live(_wait: object) -> int:
        now[0] += next(lives)
        return 3

    def wait(_wait: object, seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == len(lives_s)

    monkeypatch.setattr(reported.process, "_run_one", live)
    monkeypatch.setattr(reported.process, "_wait", wait)
    reported.process.run(waits)
    return pauses


def test_the_pause_before_the_next_forwarder_grows_until_one_has_lived_long(
    reported: Reported, monkeypatch: pytest.MonkeyPatch, log: Lines
) -> None:
    """Up to half a minute; the line has the code and the pause."""
    lives = [1.0] * 8 + [60.0, 60.5, 1.0]
    pauses = run(reported, monkeypatch, lives, lambda _: False)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 0.5, 1.0]
    lines = log.of("logs.forwarder_ended")
    assert lines[2] == "The log forwarder has ended with code 3; starting it again in 2 s"
    assert len(lines) == len(lives)


@pytest.mark.parametrize(("stop_at", "lived"), [(1, 0), (2, 1)])
def test_none_is_started_after_the_stop(
    reported: Reported, monkeypatch: pytest.MonkeyPatch, log: Lines, stop_at: int, lived: int
) -> None:
    """And its end is then no fault."""
    asked: list[float] = []

    def waits(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) >= stop_at

    assert run(reported, monkeypatch, [1.0, 1.0], waits) == []
    assert asked == [0.0] * stop_at
    assert log.of("logs.forwarder_ended") == []
    assert lived == stop_at - 1


@pytest.mark.parametrize(
    ("seconds", "stop_at", "parts"),
    [(0.6, 9, [0.25, 0.25, 0.1]), (0.25, 9, [0.25]), (0.0, 9, []), (10.0, 2, [0.25, 0.25])],
)
def test_a_pause_is_a_sign_of_life_and_ends_with_the_stop(
    reported: Reported, seconds: float, stop_at: int, parts: list[float]
) -> None:
    """In parts: a long one would look like a thread that hangs."""
    asked: list[float] = []

    def wait(part_s: float) -> bool:
        asked.append(round(part_s, 6))
        return len(asked) == stop_at

    assert reported.process._wait(wait, seconds) is (stop_at < 9)
    assert asked == parts
    assert reported.beats == len(parts)


class Child:
    """A process that ends by itself, or only when it is killed."""

    def __init__(self, ends: bool) -> None:
        self.ends, self.killed, self.pid, self.limits = ends, False, 4711, list[float | None]()

    def wait(self, timeout: float | None = None) -> int:
        self.limits.append(timeout)
        if self.ends:
            return 0
        if self.killed:
            return -9
        raise subprocess.TimeoutExpired("x", timeout or 0)

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(("ends", "code", "limits"), [(True, 0, [2.0]), (False, -9, [2.0, None])])
def test_a_forwarder_begins_with_all_that_was_asked_for_and_is_ended_with_its_connection(
    reported: Reported, monkeypatch: pytest.MonkeyPatch, ends: bool, code: int, limits: list[float | None]
) -> None:
    """What was meant for the one before it is not sent again, nor what has been over since."""
    child, sent, started = Child(ends), list[Message](), list[tuple[list[str], dict[str, Any]]]()

    def start(command: list[str], **options: Any) -> Child:
        started.append((command, options))
        return child

    def exchange(ours: socket.socket, _wait: object, _masks: object) -> None:
        assert ours.fileno() >= 0
        sent.extend(reported.outgoing())

    monkeypatch.setattr(log_forwarder.subprocess, "Popen", start)
    monkeypatch.setattr(reported.process, "_exchange", exchange)
    reported.follow("u-1")
    reported.follow("u-2")
    reported.process.give_up("u-2")
    assert reported.process.pid == 0
    assert reported.process._run_one(lambda _: False) == code
    assert sent == [START, FOLLOW]
    assert (reported.process.pid, child.limits, child.killed) == (4711, limits, not ends)
    assert reported.figures == [LogFigures()]
    ((command, options),) = started
    assert command[1:3] == ["-m", "ottoscaler.forwarder.process"]
    assert [int(command[3])] == options["pass_fds"]
    assert options["start_new_session"]
    assert options["stdin"] == subprocess.DEVNULL
    assert (options["cwd"] / "ottoscaler" / "forwarder" / "process.py").is_file()
