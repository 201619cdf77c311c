"""Signals at any moment: the first one stops in order, the second one ends the process at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from ottoscaler.cli.signals import Signals
from ottoscaler.flow.stop import StopSignal
from tests.cli.conftest import LONG_S, SCRIPT, printed_by
from tests.fakes.wait import eventually

pytestmark = pytest.mark.contract("1.run")

#: The main thread does what the controller's does, and a process of its own hits it with a signal at a random moment.
ROUNDS = """
import os, random, signal, threading, time
from ottoscaler.cli.signals import Signals
from ottoscaler.flow.stop import StopSignal

asked, asking = os.pipe()
target = os.getpid()
if os.fork() == 0:
    os.close(asking)
    while os.read(asked, 1):
        at = time.perf_counter() + random.uniform(0, 0.0003)
        while time.perf_counter() < at:
            pass
        os.kill(target, random.choice((signal.SIGTERM, signal.SIGINT)))
    os._exit(0)

for turn in range({rounds}):
    stop, forced = StopSignal(), threading.Event()
    with Signals(stop.set, 30, forced.set):
        for until in (stop, forced):
            os.write(asking, b"?")
            end = time.monotonic() + 10
            while not until.is_set() and time.monotonic() < end:
                {work}
            if not until.is_set():
                raise SystemExit(f"round {{turn}}: a signal was lost")
print("all")
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rounds", [30, pytest.param(500, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "work",
    [
        "stop.wait(0.0001)",
        "stop.is_set()",
        "stop.set() if stop.is_set() else stop.wait(0)",
        "print(end='', flush=True)",
    ],
)
def test_a_signal_at_any_moment_is_received(work: str, rounds: int) -> None:
    """Also inside the lock of the event on which the main thread waits, time after time."""
    assert printed_by(ROUNDS.format(rounds=rounds, work=work)) == "all\n"


def test_a_stop_that_hangs_ends_by_force() -> None:
    """After its time, and some spare: the sender of the first signal need not send a second one."""
    stop, forced = StopSignal(), threading.Event()
    with Signals(stop.set, -4.9, forced.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(LONG_S)
        assert forced.wait(LONG_S)


def test_other_signals_do_not_count() -> None:
    """A handler from outside the program shares the pipe."""
    stop, forced, seen = StopSignal(), threading.Event(), threading.Event()
    old = signal.signal(signal.SIGUSR1, lambda *_: seen.set())
    try:
        with Signals(stop.set, 30, forced.set):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert seen.wait(LONG_S)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(LONG_S)
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert not forced.is_set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
        return bool(answer.status)
    return False


def _fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    for size in (4096, 1):  # a page more than there is room for is not written in part
        with suppress(BlockingIOError):
            while True:
                os.write(pipe, b"x" * size)
    os.set_blocking(pipe, True)


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
users: [{name: none, user: {}}]
current-context: none
"""


def test_the_second_signal_ends_it_at_once_while_its_output_is_not_read(tmp_path: Path) -> None:
    """The main thread is in the middle of a log line and stays there."""
    reading, writing = os.pipe()
    _fill(writing)
    port, kubeconfig = _free_port(), tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    settings = {"REDIS_PORT": str(_free_port()), "HTTP_PORT": str(port), "SHUTDOWN_GRACE_S": "600"}
    environ = {**os.environ, **settings, "KUBECONFIG": str(kubeconfig)}
    with subprocess.Popen([sys.executable, str(SCRIPT), "run"], stdout=writing, env=environ) as process:
        try:
            eventually(lambda: _answers(port), LONG_S, "a sign of life")
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG_S) == 1
            assert time.monotonic() - begun < 2
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)
