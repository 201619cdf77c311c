"""`demo`, as it is run: the whole system for a few seconds, and nothing left of it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from ottoscaler.cli.demo import DEADLINE_S
from ottoscaler.cli.demo_logs import DemoLogs
from tests.cli.conftest import LONG_S, Terminal, child
from tests.cli.processes import below, controller, left, using
from tests.fakes.wait import eventually

pytestmark = pytest.mark.contract("1.demo")

#: The demo's own deadline, and what clean-up may take.
DEMO_S = 75


@pytest.mark.timeout(DEMO_S + 15)
def test_the_demo_ends_as_it_should_and_cleans_up(tmp_path: Path) -> None:
    """Nine events, each with the workers that it should have; no file stays, and no process."""
    odd = {"MAX_PODS_PER_EVENT": "1", "REDIS_HOST": "elsewhere", "NAMESPACE": "other"}
    with child("demo", TMPDIR=str(tmp_path), **odd) as demo:
        out, err = demo.communicate(timeout=DEMO_S)
    assert (demo.returncode, err) == (0, "")
    rows = [line.split()[0] for line in out.splitlines() if line.split() and line.split()[0] in ("ok", "NO")]
    assert rows == ["ok"] * 9
    assert "2: Error, exit code 3" in out
    assert "9 of 9 events ended as they should" in out
    took_s = float(re.findall(r"the whole demo took ([0-9.]+) s", out)[0])
    assert took_s < DEADLINE_S, "the demo did not see the ends of the logs, and waited in vain"
    lines = re.findall(r"^otto-agent-[0-9a-f]{10}-[1-9] \| (.*)$", out, re.MULTILINE)
    assert lines.count("mine") == 1
    assert sorted(line for line in lines if line.endswith("demo-three")) == [
        f"worker {number} of 3 of demo-three" for number in (1, 2, 3)
    ]
    assert not any(line.startswith("end of log") for line in lines)
    assert list(tmp_path.iterdir()) == []
    assert using(str(tmp_path)) == []


@pytest.mark.full
@pytest.mark.timeout(DEMO_S + 15)
def test_a_demo_fails_and_keeps_its_log_if_the_controller_dies(tmp_path: Path) -> None:
    """It says so at once and does not wait for its deadline."""
    with child("demo", TMPDIR=str(tmp_path)) as demo:
        os.kill(eventually(lambda: controller(demo.pid), LONG_S, "the controller"), signal.SIGKILL)
        _, err = demo.communicate(timeout=LONG_S)
    assert demo.returncode == 1
    assert "the controller ended with exit code 137" in err
    (log,) = tmp_path.iterdir()
    assert f"The controller's log: {log}\n" in err


@pytest.mark.full
def test_a_demo_that_is_ended_cleans_up(tmp_path: Path) -> None:
    """Also by SIGTERM."""
    with child("demo", TMPDIR=str(tmp_path)) as demo:
        eventually(lambda: controller(demo.pid), LONG_S, "the controller")
        family = below(demo.pid)
        demo.terminate()
        assert demo.wait(LONG_S) == 130
    assert list(tmp_path.iterdir()) == []
    assert left(family) == []


@pytest.mark.full
def test_the_demo_shows_itself_live_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is drawn again and again; it is ended as soon as it has been seen."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    terminal = Terminal("demo")
    assert "task with a failing worker" in terminal.until("not sent")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130, terminal.screen


def test_lines_are_shown_when_they_are_whole(tmp_path: Path) -> None:
    """Each once, and not the handler's own."""
    lines = DemoLogs(tmp_path)
    assert lines.new_lines() == []
    output = tmp_path / "handler.log"
    output.write_bytes(b"Log handler listens on 127.0.0.1:1 (plaintext)\notto-1 combined: a combined: b\notto-2 comb")
    assert lines.new_lines() == ["otto-1 | a combined: b"]
    assert lines.new_lines() == []
    with output.open("ab") as file:
        file.write(b"ined: \xff\notto-1 stdout: end of log: 1 line, 0 dropped\notto-2 combined: end of log: soon\n")
    assert lines.new_lines() == ["otto-2 | \N{REPLACEMENT CHARACTER}", "otto-2 | end of log: soon"]
    assert lines.ended == {"otto-1"}


def test_without_grpc_the_demo_goes_on_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler is started, and the controller streams nothing."""
    monkeypatch.setattr("ottoscaler.cli.log_forwarding._NEEDED", ("no_such_package",))
    with DemoLogs(tmp_path) as lines:
        assert (lines.is_on, lines.environ) == (False, {})
        assert lines.advice.startswith("The workers' lines are not shown: no_such_package is not installed")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_takes_no_arguments() -> None:
    """A mistyped command must not start a whole system."""
    with child("demo", "--fast") as demo:
        _, err = demo.communicate(timeout=LONG_S)
    assert (demo.returncode, err) == (2, "usage: ottoscaler.py demo (it takes no arguments)\n")
