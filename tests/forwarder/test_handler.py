"""The command `handler`: what it refuses to begin with, and what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ottoscaler.cli.main import main
from tests import warm
from tests.forwarder.processes import LONG_S, SCRIPT, agent_command, agent_environ, handler


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        (["--address", "0.0.0.0:0"], ["--address='0.0.0.0:0': others reach it"]),
        (["--address", "x"], ["--address='x': expected host:port"]),
        (["--address", ":1"], ["--address=':1': expected host:port"]),
        (["--cert-file", __file__], ["--cert-file and --key-file: expected both", "--cert-file="]),
        (["--client-ca-file", "/nowhere"], ["--client-ca-file: expected --cert-file", "--client-ca-file='/nowhere'"]),
        (["--token-file", "/nowhere", "--store", "/nowhere"], ["--token-file='/nowhere'", "--store='/nowhere'"]),
    ],
)
def test_faults_are_reported_together(
    capsys: pytest.CaptureFixture[str], arguments: list[str], faults: list[str]
) -> None:
    """One line each, exit code 2."""
    assert main(["handler", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(faults)
    assert all(line.startswith(fault) for line, fault in zip(lines, faults, strict=True))


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "9999999999"])
def test_a_number_has_to_be_one(capsys: pytest.CaptureFixture[str], value: str) -> None:
    """The sentence names it."""
    assert main(["handler", f"--max-batch={value}"]) == 2
    assert f"'{value}' is no whole number from 0 to 999999999" in capsys.readouterr().err


def test_without_grpc_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence and exit code 2."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    for name in [name for name in sys.modules if name.startswith("ottoscaler.adapters.log_")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["handler"]) == 2
    assert "-m pip install --require-hashes -r ottoscaler/forwarder/requirements.txt" in capsys.readouterr().err


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    """In one sentence."""
    with handler(tmp_path) as opened:
        command = [sys.executable, str(SCRIPT), "handler", "--address", f"127.0.0.1:{opened.port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"--address='127.0.0.1:{opened.port}': cannot listen there")


@pytest.mark.contract("1.handler")
def test_it_prints_what_workers_send() -> None:
    """One line each, what does not print escaped; at the end, what it has had of each worker."""
    command = [sys.executable, str(SCRIPT), "handler", "--address", "127.0.0.1:0"]
    with warm.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        port = int(first.split()[4].rpartition(":")[2])
        line = "printf 'one\\n\\033[31mtwo\\n'; echo three >&2"
        warm.run(agent_command("sh", "-c", line), env=agent_environ(port), timeout=LONG_S, check=True)
        process.terminate()
        rest = process.communicate(timeout=LONG_S)[0].splitlines()
    assert first.endswith(" (plaintext)\n")
    assert sorted(rest[:3]) == ["w-1 stderr: three", r"w-1 stdout: \x1b[31mtwo", "w-1 stdout: one"]
    assert rest[3:] == [
        "w-1 stdout: end of log: 3 lines, 0 dropped",
        "w-1: 4 entries received, 0 of them again; log 3 lines, 0 dropped",
    ]
