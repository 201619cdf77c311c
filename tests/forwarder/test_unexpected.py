"""An error that no one expects ends no log in silence: the controller would wait for its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ottoscaler.forwarder import process
from ottoscaler.forwarder.account import Account
from ottoscaler.forwarder.follower import Follower
from ottoscaler.forwarder.process import LogForwarder
from ottoscaler.log_forwarder_messages import Ended, GiveUp, MessageBuffer, Notice


class Failing:
    """Stands for a Follower: each run ends with the next of these errors; after the last one the log is over."""

    def __init__(self, *errors: BaseException, done: bool = False) -> None:
        self.errors = list(errors)
        self.follow = SimpleNamespace(pod="p-1")
        self.delivery = SimpleNamespace(stream=SimpleNamespace(done=done, account=Account(3, 0, 9, 0, ended=True)))

    async def run(self) -> None:
        """One run."""
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.delivery.stream.done = True


def sent_by(follower: Failing) -> list[object]:
    """What the forwarder sends to the controller while it carries this log on."""
    written = bytearray()
    forwarder = cast("Any", LogForwarder.__new__(LogForwarder))
    forwarder._writer = SimpleNamespace(write=written.extend, is_closing=lambda: False)
    forwarder._noticed = {}

    async def carry_on() -> None:
        task = asyncio.ensure_future(forwarder._run("uid-1", cast("Follower", follower)))
        forwarder._followers, forwarder._tasks = {"uid-1": follower}, {"uid-1": task}
        await asyncio.wait_for(task, 20)

    asyncio.run(carry_on())
    assert (forwarder._followers, forwarder._tasks) == ({}, {})
    return list(MessageBuffer().feed(bytes(written)))


@pytest.mark.parametrize("error", [RuntimeError("odd"), asyncio.CancelledError()])
@pytest.mark.parametrize("done", [False, True])
def test_the_end_of_the_log_is_reported_all_the_same(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, done: bool
) -> None:
    """After another try, unless all was acknowledged."""
    monkeypatch.setattr(process, "RESTART_S", 0.01)
    *notices, end = sent_by(Failing(error, error, done=done))
    assert end == Ended("uid-1", acknowledged=True, lines=3, dropped=0)
    assert len(notices) == (not done)
    assert all(isinstance(one, Notice) and one.pod == "p-1" for one in notices)


def test_nothing_is_sent_to_a_controller_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio warns of the fifth write to a connection that is lost, on the output of the controller."""

    async def send() -> None:
        ours, its = socket.socketpair()
        with ours:
            _, writer = await asyncio.open_connection(sock=its)
            forwarder = cast("Any", LogForwarder.__new__(LogForwarder))
            forwarder._writer = writer
            forwarder._send(Notice("before"))
            assert ours.recv(4096)
        for number in range(20):
            forwarder._send(Notice(str(number)))
            await asyncio.sleep(0)
        writer.close()

    with caplog.at_level(logging.WARNING, "asyncio"):
        asyncio.run(send())
    assert caplog.messages == []


def test_a_log_that_is_given_up_ends_at_once() -> None:
    """That cancellation is asked for."""

    async def give_up() -> None:
        forwarder = cast("Any", LogForwarder.__new__(LogForwarder))
        task = asyncio.ensure_future(forwarder._run("uid-1", SimpleNamespace(run=asyncio.Event().wait)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())


def test_a_log_that_is_given_up_ends_though_a_cancellation_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves alone what follows the same log by then."""
    monkeypatch.setattr(process, "CANCEL_AGAIN_S", 0.01)
    runs = 0

    class Stubborn(Failing):
        async def run(self) -> None:
            nonlocal runs
            while runs < 3:
                runs += 1
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)

    async def give_up() -> tuple[bytes, Any, object]:
        written = bytearray()
        forwarder = cast("Any", LogForwarder.__new__(LogForwarder))
        forwarder._writer = SimpleNamespace(write=written.extend, is_closing=lambda: False)
        forwarder._endings = set()
        first, second = Stubborn(done=True), object()
        task = asyncio.ensure_future(forwarder._run("uid-1", cast("Follower", first)))
        forwarder._followers, forwarder._tasks = {"uid-1": first}, {"uid-1": task}
        await asyncio.sleep(0.01)
        forwarder.handle(GiveUp("uid-1"))
        forwarder._followers["uid-1"] = second
        async with asyncio.timeout(20):
            await asyncio.wait([task])
            await asyncio.gather(*forwarder._endings)
        return bytes(written), forwarder._followers, second

    written, followers, second = asyncio.run(give_up())
    assert written == b""
    assert followers == {"uid-1": second}
    assert runs == 3


def test_a_task_that_loses_a_cancellation_does_not_keep_the_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cancelled again, until it has ended."""
    monkeypatch.setattr(process, "CANCEL_AGAIN_S", 0.01)
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    async def end() -> None:
        tasks = [asyncio.ensure_future(stubborn()), asyncio.ensure_future(asyncio.sleep(60))]
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await process.cancel_all(tasks)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(end())
    assert lost == 2
