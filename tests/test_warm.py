"""A command that is forked behaves as one that is started: what holds for the first is true of the second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.fakes.wait import eventually

LONG_S = 30
#: Prints all that a process has of its own, through the agent, which becomes this program.
OWN = "pwd; echo $$ $PPID $MARK; cat; echo err >&2; exit 7"
AGENT = [sys.executable, str(warm.SCRIPT), "agent", "--"]
HANDLER = [sys.executable, str(warm.SCRIPT), "handler", "--address", "127.0.0.1:0"]


@contextmanager
def started(start: type[subprocess.Popen[Any]], *arguments: Any, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that ends with the test, also with one that fails."""
    with start(*arguments, stdout=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def environ(**more: str) -> dict[str, str]:
    """An environment of a worker without a handler."""
    return {**os.environ, "LOG_HANDLER_ADDRESS": "", **more}


def is_forked(process: subprocess.Popen[Any]) -> bool:
    """By its command line: that of the Python that was forked, while it runs no other program."""
    return b"tests.warm" in Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("start", [warm.Popen, subprocess.Popen])
def test_a_process_has_its_own_of_everything(start: type[subprocess.Popen[Any]], tmp_path: Path) -> None:
    """Id, parent, folder, environment, streams and exit code are as `subprocess` gives them."""
    pipe = subprocess.PIPE
    command = [*AGENT, "sh", "-c", OWN]
    with start(command, cwd=tmp_path, env=environ(MARK="own"), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        output, errors = process.communicate(b"given\n", LONG_S)
    expected = [str(tmp_path.resolve()), f"{process.pid} {os.getpid()} own", "given"]
    assert output.decode().splitlines() == expected
    assert (errors, process.returncode) == (b"err\n", 7)


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--wrong"], ["plan", "pod_count=2"], ["none"]])
def test_the_output_is_the_same(arguments: list[str]) -> None:
    """Of what succeeds and of what fails."""
    command = [sys.executable, str(warm.SCRIPT), *arguments]
    first, second = (
        one(command, capture_output=True, text=True, timeout=LONG_S, check=False) for one in (warm.run, subprocess.run)
    )
    assert (first.returncode, first.stdout, first.stderr) == (second.returncode, second.stdout, second.stderr)


@pytest.mark.parametrize("session", [False, True])
def test_a_signal_reaches_it(session: bool) -> None:
    """It is a child, alone in its session if that is asked for, and is waited for as each other."""
    with started(warm.Popen, HANDLER, text=True, start_new_session=session) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Log handler listens")
        assert is_forked(process)
        assert (os.getsid(process.pid) == process.pid) is session
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait(LONG_S) == -signal.SIGKILL


def test_ctrl_c_ends_it() -> None:
    """The Python that is forked ignores it; its children do not, and leave it as it is to what they run."""
    command = [*AGENT, "sh", "-c", "echo ready; exec sleep 60"]
    with started(warm.Popen, command, env=environ()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == -signal.SIGINT


@pytest.mark.parametrize("given", [0, 1])
def test_it_has_no_descriptor_but_its_own_and_those_that_it_was_given(tmp_path: Path, given: int) -> None:
    """No socket of the tests: a test that waits for the end of a connection would wait in vain."""
    with (tmp_path / "given").open("wb") as file:
        counts = [sockets_and_files(start, [file.fileno()] * given) for start in (warm.Popen, subprocess.Popen)]
    assert counts[0] == counts[1]
    assert counts[0][1] >= given


def sockets_and_files(start: type[subprocess.Popen[Any]], passed: list[int]) -> tuple[int, int]:
    """How many sockets, and files of this test, a handler has open that listens."""
    with started(start, HANDLER, text=True, pass_fds=passed) as process:
        assert process.stdout is not None
        process.stdout.readline()
        folder = Path(f"/proc/{process.pid}/fd")
        targets = [os.readlink(path) for path in folder.iterdir()]
    return sum(one.startswith("socket:") for one in targets), sum(one.endswith("/given") for one in targets)


def test_an_interpreter_that_would_begin_differently_is_started() -> None:
    """With a variable that it reads at its start."""
    with started(warm.Popen, HANDLER, text=True, env=environ(PYTHONOPTIMIZE="1")) as process:
        eventually(lambda: b"handler" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), LONG_S, "its start")
        assert not is_forked(process)
