"""The agent: a command ends as it would without it, and its output gets to the handler whatever that does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.cli.main import main
from tests import warm
from tests.cli.conftest import printed_by
from tests.conftest import require
from tests.fakes.wait import eventually
from tests.forwarder.processes import (
    LONG_S,
    HandlerProcess,
    agent_command,
    agent_environ,
    certificates,
    handler,
    run_agent,
)

contract = pytest.mark.contract
#: Nothing listens there.
NOWHERE = 1
FIVE = "for i in 1 2 3 4 5; do echo line $i; done"


class Worker:
    """A worker of its own at a handler that several tests share."""

    def __init__(self, opened: HandlerProcess, name: str) -> None:
        self.name, self._opened = name, opened

    def environ(self, **more: str) -> Mapping[str, str]:
        """The environment of its agent."""
        return agent_environ(self._opened.port, OTTO_POD_NAME=self.name, **more)

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command under its agent, to its end."""
        return run_agent(self._opened.port, *command, OTTO_POD_NAME=self.name, **more)

    def entries(self) -> list[dict[str, Any]]:
        """What the handler has stored of it."""
        return self._opened.entries(self.name)

    def lines(self, source: str | None = None) -> list[str]:
        """Its lines, by sequence."""
        return self._opened.lines(source, self.name)

    def end(self) -> dict[str, int] | None:
        """The account in its end entry."""
        return self._opened.end(self.name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandlerProcess]:
    """A handler without habits: started once, since its start takes longer than most tests."""
    with handler(tmp_path_factory.mktemp("plain")) as opened:
        yield opened


@pytest.fixture
def worker(plain: HandlerProcess) -> Worker:
    """A worker that only this test has."""
    return Worker(plain, f"w-{uuid.uuid4().hex[:8]}")


@contract("1.agent")
@pytest.mark.parametrize("port", ["here", "nowhere"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 3", 3),
        ("kill -9 $$", 137),
        pytest.param("exit 0", 0, marks=pytest.mark.full),
        pytest.param("kill -15 $$", 143, marks=pytest.mark.full),
    ],
)
def test_the_exit_code_is_the_commands(worker: Worker, port: str, command: str, code: int) -> None:
    """Also when the handler is away; both outputs are printed, apart from each other."""
    line = f"echo out; echo err >&2; {command}"
    if port == "nowhere":
        done = run_agent(NOWHERE, "sh", "-c", line, LOG_DRAIN_S="0")
        assert b"lines did not get to the log handler" in done.stderr
    else:
        done = worker.run("sh", "-c", line)
        assert (worker.lines("stdout"), worker.lines("stderr")) == (["out"], ["err"])
        assert worker.end() == {"lines": 2, "bytes": 6, "dropped": 0, "gaps": 0}
        assert done.stderr == b"err\n"
    assert (done.returncode, done.stdout) == (code, b"out\n")
    assert done.stderr.startswith(b"err\n") or b"\nerr\n" in done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", ""])
@pytest.mark.parametrize(("program", "code"), [("/nowhere/at-all", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_run_gives_the_code_of_a_shell(address: str, program: str, code: int) -> None:
    """In one sentence."""
    done = run_agent(NOWHERE, program, LOG_HANDLER_ADDRESS=address)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(f"ottoscaler agent: Cannot run '{program}': ".encode())


@pytest.mark.parametrize("arguments", [[], ["--"], ["true"], ["-x", "--", "true"]])
def test_wrong_usage_is_explained(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """With exit code 2, and nothing is run."""
    assert main(["agent", *arguments]) == 2
    assert capsys.readouterr().err == "usage: ottoscaler.py agent -- COMMAND [ARGUMENT...]\n"


def test_without_an_address_the_command_takes_the_agents_place() -> None:
    """No process stands between, and its standard input is its own."""
    done = warm.run(
        agent_command("sh", "-c", "cat; echo $$"),
        input=b"in\n",
        env=agent_environ(NOWHERE, LOG_HANDLER_ADDRESS=""),
        capture_output=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.stdout.startswith(b"in\n")


def test_a_wrong_configuration_costs_the_log_and_not_the_command() -> None:
    """Each fault is one line."""
    done = run_agent(NOWHERE, "sh", "-c", "echo out; exit 4", LOG_HANDLER_ADDRESS="nonsense", LOG_DRAIN_S="soon")
    assert (done.returncode, done.stdout) == (4, b"out\n")
    first, second, third = done.stderr.decode().splitlines()
    assert first == "ottoscaler agent: LOG_HANDLER_ADDRESS='nonsense': expected host:port"
    assert second.startswith("ottoscaler agent: LOG_DRAIN_S='soon': expected a whole number")
    assert third.endswith("the configuration of the log handler is wrong.")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        pytest.param(signal.SIGHUP, marks=pytest.mark.full),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.full),
    ],
)
def test_a_signal_is_passed_on(worker: Worker, number: signal.Signals) -> None:
    """The command ends as it likes, and its output after that arrives."""
    line = f"trap 'echo caught; exit 9' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    process = warm.Popen(
        agent_command("sh", "-c", line), env=worker.environ(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(LONG_S) == 9
    assert worker.lines() == ["ready", "caught"]


def test_a_process_left_behind_does_not_keep_the_agent(worker: Worker) -> None:
    """It holds the output open, and would for a minute."""
    begin = time.monotonic()
    done = worker.run("sh", "-c", "sleep 50 & echo $!; exit 5")
    assert time.monotonic() - begin < LONG_S / 2
    assert done.returncode == 5
    os.kill(int(done.stdout), signal.SIGKILL)
    assert worker.lines() == [done.stdout.decode().strip()]


def test_values_of_the_named_variables_are_masked(worker: Worker) -> None:
    """In what is printed and in what is sent, over two writes as well; other values are not."""
    line = "printf 'a s3c'; sleep 0.2; printf 'ret-1 b\\n'; echo $TWO >&2; echo $THREE; printf s3cre"
    secrets = {"ONE": "s3cret-1", "TWO": "other-secret", "THREE": "seen", "OTTO_MASK_ENV": "ONE, TWO NONE"}
    done = worker.run("sh", "-c", line, **secrets)
    assert (done.stdout, done.stderr) == (b"a *** b\nseen\ns3cre", b"***\n")
    assert worker.lines("stdout") == ["a *** b", "seen", "s3cre"]
    assert worker.lines("stderr") == ["***"]
    assert run_agent(NOWHERE, "sh", "-c", "echo $ONE", LOG_HANDLER_ADDRESS="", **secrets).stdout == b"***\n"


def test_secrets_with_a_known_form_are_not_sent(worker: Worker) -> None:
    """What is printed is the worker's own business."""
    token = "ghp_" + "a1B2" * 9
    assert worker.run("echo", f"token {token}").stdout == f"token {token}\n".encode()
    assert worker.lines() == ["token ***"]


HABITS = {
    "slow": ("--delay-ms", "20", "--max-batch", "50"),
    "full at first": ("--full-first", "2"),
    "RETRY": ("--retry-every", "7"),
    "RETRY of each entry alone": ("--retry-every", "7", "--answer", "entry"),
    "RETRY by position": ("--retry-every", "7", "--answer", "position", "--max-batch", "1"),
    "cuts": ("--cut-every", "150"),
    "cuts single entries": ("--cut-every", "150", "--max-batch", "1"),
    "loses answers": ("--lose-answer-every", "50", "--max-batch", "1"),
    "small messages": ("--max-message-size", "1024", "--include-metadata"),
    "small window": ("--buffer-size", "3", "--max-batch", "2"),
    "rate": ("--rate-limit", "1000"),
    "by position": ("--answer", "position", "--max-batch", "1"),
}
#: One for each rule of the protocol; the others are noticed only after ANSWER_TIMEOUT_S, or are variants of these.
ALWAYS = {"RETRY of each entry alone", "cuts", "small messages", "slow", "by position"}


@pytest.mark.parametrize(
    "habit", [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.full]) for name in HABITS]
)
def test_a_handler_with_a_bad_habit_gets_each_line_once(tmp_path: Path, habit: str) -> None:
    """In order, and with the right account."""
    with handler(tmp_path, *HABITS[habit]) as opened:
        done = run_agent(opened.port, "seq", "600", LOG_DRAIN_S="30")
        assert done.returncode == 0
        assert opened.lines() == [str(number) for number in range(1, 601)], done.stderr
        assert opened.end() == {"lines": 600, "bytes": 1692, "dropped": 0, "gaps": 0}


@pytest.mark.full
def test_a_handler_that_cuts_often_fills_no_log(tmp_path: Path) -> None:
    """One line, however often it happens within a minute."""
    with handler(tmp_path, "--cut-every", "50") as opened:
        said = run_agent(opened.port, "seq", "300", LOG_DRAIN_S="30").stderr.decode().splitlines()
        assert opened.lines() == [str(number) for number in range(1, 301)]
    assert len(said) == len(set(said)) >= 1


def test_lines_that_the_handler_drops_are_counted(tmp_path: Path) -> None:
    """Each tenth entry, and the last one is among the others."""
    with handler(tmp_path, "--drop-every", "10") as opened:
        done = run_agent(opened.port, "seq", "95")
        assert len(opened.lines()) == 86
        assert opened.end() == {"lines": 95, "bytes": 181, "dropped": 9, "gaps": 0}
        assert done.stderr.decode().endswith("Log: 9 of 95 lines did not get to the log handler\n")


def test_a_handler_that_wants_no_logs_is_left_alone(tmp_path: Path) -> None:
    """One line says why, and the agent ends at once."""
    with handler(tmp_path, "--invalid") as opened:
        command, environ = agent_command("seq", "3"), agent_environ(opened.port)
        done = subprocess.run(command, env=environ, capture_output=True, timeout=LONG_S, check=False)
        assert (done.returncode, opened.entries()) == (0, [])
        first, second = done.stderr.decode().splitlines()
        assert first.endswith("wants no logs of this worker: this handler was started with --invalid")
        assert second.endswith("3 of 3 lines did not get to the log handler")


@pytest.mark.full
def test_a_handler_killed_in_mid_run_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """It comes back twice, on the same port and folder."""
    opened = HandlerProcess(tmp_path)
    opened.start()
    line = "for i in $(seq 300); do echo $i; sleep 0.01; done"
    process = warm.Popen(
        agent_command("sh", "-c", line), env=agent_environ(opened.port, LOG_DRAIN_S="30"), stdout=subprocess.DEVNULL
    )
    with process:
        for count in (20, 60):
            eventually(lambda count=count: len(opened.entries()) > count, LONG_S, "lines")  # type: ignore[misc]
            opened.kill()
            opened.start()
        assert process.wait(LONG_S) == 0
    opened.kill()
    assert opened.lines() == [str(number) for number in range(1, 301)]
    assert opened.end() == {"lines": 300, "bytes": 792, "dropped": 0, "gaps": 0}


def test_a_handler_that_is_away_holds_a_command_up_for_a_bounded_time() -> None:
    """Far more lines than are kept; all are printed."""
    begin = time.monotonic()
    done = run_agent(NOWHERE, "seq", "100000", LOG_DRAIN_S="0")
    assert done.stdout.count(b"\n") == 100_000
    assert time.monotonic() - begin < LONG_S / 2
    assert done.stderr.decode().endswith("Log: 100000 of 100000 lines did not get to the log handler\n")


#: Both outputs at full speed, each line with random bytes, none of which is a newline.
FLOOD = """
import os, sys
def write(fd, data):
    while data:
        data = data[os.write(fd, data):]
for block in range(250):
    for fd in (1, 2):
        lines = [b"%d " % (block * 200 + i) + os.urandom(40).replace(b"\\n", b"-") for i in range(200)]
        write(fd, b"".join(line + b"\\n" for line in lines))
"""


@pytest.mark.full
@pytest.mark.timeout(180)
def test_a_flood_with_random_bytes_arrives_whole(worker: Worker) -> None:
    """100,000 lines on two outputs at full speed: received and dropped are all there are, and their order is kept."""
    done = worker.run(sys.executable, "-c", FLOOD)
    assert done.returncode == 0
    for source in ("stdout", "stderr"):
        assert [int(text.split()[0]) for text in worker.lines(source)] == list(range(50_000))
    end = worker.end()
    assert end is not None
    assert (end["lines"], end["dropped"]) == (100_000, 0)
    assert sum("raw" in entry for entry in worker.entries()) > 90_000


# -- security


def secured(folder: Path, *options: str) -> HandlerProcess:
    """A handler with TLS, its certificates made."""
    certificates(folder, "handler", "client")
    files = ("--cert-file", str(folder / "handler.crt"), "--key-file", str(folder / "handler.key"))
    return HandlerProcess(folder, *files, *options)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"CA_FILE": "ca.crt", "CERT_FILE": "client.crt", "KEY_FILE": "client.key", "TOKEN_FILE": "token"}, ""),
        ({"CA_FILE": "other/ca.crt", "CERT_FILE": "client.crt", "KEY_FILE": "client.key"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"CA_FILE": "ca.crt", "CERT_FILE": "client.crt", "KEY_FILE": "client.key"}, "UNAUTHENTICATED"),
        pytest.param(
            {"CA_FILE": "ca.crt", "CERT_FILE": "client.crt", "KEY_FILE": "client.key", "TOKEN_FILE": "wrong"},
            "UNAUTHENTICATED",
            marks=pytest.mark.full,
        ),
        pytest.param({"CA_FILE": "ca.crt", "TOKEN_FILE": "token"}, "UNAVAILABLE", marks=pytest.mark.full),
        pytest.param({"TOKEN_FILE": "token"}, "UNAVAILABLE", marks=pytest.mark.full),
    ],
)
def test_only_the_right_certificates_and_token_get_through(tmp_path: Path, given: dict[str, str], problem: str) -> None:
    """Anything wrong is one clear line, and the command's result is the same."""
    require("openssl")
    (tmp_path / "other").mkdir()
    certificates(tmp_path / "other")
    (tmp_path / "token").write_text("s3cret\n", encoding="utf-8")
    (tmp_path / "wrong").write_text("s3cret-2\n", encoding="utf-8")
    ca, token = str(tmp_path / "ca.crt"), str(tmp_path / "token")
    opened = secured(tmp_path, "--client-ca-file", ca, "--token-file", token)
    opened.start()
    try:
        files = {f"LOG_HANDLER_{name}": str(tmp_path / file) for name, file in given.items()}
        done = run_agent(opened.port, "echo", "out", **files, LOG_DRAIN_S="30" if not problem else "1")
        assert (done.returncode, done.stdout) == (0, b"out\n")
        assert opened.lines() == ([] if problem else ["out"]), done.stderr
        assert problem in done.stderr.decode()
        assert b"s3cret" not in done.stderr
    finally:
        opened.kill()


def test_a_token_that_is_rotated_takes_effect(tmp_path: Path) -> None:
    """Without a restart of the worker: the file is read for each attempt."""
    (tmp_path / "ours").write_text("old", encoding="utf-8")
    (tmp_path / "theirs").write_text("new", encoding="utf-8")
    with handler(tmp_path, "--token-file", str(tmp_path / "theirs")) as opened:
        environ = agent_environ(opened.port, LOG_HANDLER_TOKEN_FILE=str(tmp_path / "ours"), LOG_DRAIN_S="30")
        process = warm.Popen(agent_command("echo", "out"), env=environ, stderr=subprocess.PIPE)
        with process:
            assert process.stderr is not None
            assert b"UNAUTHENTICATED" in process.stderr.readline()
            (tmp_path / "ours").write_text("new", encoding="utf-8")
            assert process.wait(LONG_S) == 0
        assert opened.lines() == ["out"]


# -- what is imported

COMMANDS_WITHOUT_GRPC = ("run", "send", "plan", "status", "dead", "agent", "handler")


def test_no_command_imports_grpc_before_it_is_needed() -> None:
    """With logs off neither its memory nor its threads are there."""
    program = f"""
import importlib, sys
for command in {COMMANDS_WITHOUT_GRPC}:
    importlib.import_module("ottoscaler.cli." + command)
    print(command, [name for name in sys.modules if name in ("grpc", "google.protobuf")])
"""
    assert printed_by(program) == "".join(f"{name} []\n" for name in COMMANDS_WITHOUT_GRPC)
