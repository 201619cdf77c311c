"""`logs`: the output of a task's workers, on the local system with its controller."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import urllib3

from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.cli.log_output import LogPrinter, harmless
from ottoscaler.cli.main import main
from ottoscaler.cli.system import LocalSystem
from ottoscaler.core.manifest import event_hash
from ottoscaler.forwarder.lines import Line
from tests import warm
from tests.cli.conftest import LONG_S, SCRIPT, Controller, Terminal
from tests.fakes.wait import eventually

pytestmark = [pytest.mark.contract("1.logs"), pytest.mark.timeout(240)]
#: The start of everything, on a machine that is busy.
_START_S = 120

#: What a worker runs is a field of its event. It waits for a file where a test decides how long it runs.
RUNS = 'eval "$OTTO_SCRIPT"'
POLICY = """
version: 1
max: {keep_failed_s: 600, retries: 3}
default_profile: plain
profiles:
  plain: {overrides: [keep_failed_s, retries]}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """The local system."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "policy.yaml").write_text(POLICY)
    environ = {
        "OTTO_AGENT_COMMAND": json.dumps(["/bin/sh", "-c", RUNS]),
        "POLICY_FILE": str(folder / "policy.yaml"),
        "REDIS_BLOCK_MS": "200",
        "TERMINATION_GRACE_S": "1",
    }
    with LocalSystem(folder / "system", environ) as started:
        started.start_controller(folder / "log")
        eventually(lambda: "controller.started" in (folder / "log").read_text(), _START_S, "the controller")
        yield started


@pytest.fixture
def reader(system: LocalSystem, monkeypatch: pytest.MonkeyPatch) -> Iterator[StatusReader]:
    """What the commands read; the environment is that of a person beside the system."""
    for name, value in system.overrides.items():
        monkeypatch.setenv(name, value)
    opened = StatusReader(system.settings.redis, system.settings.keys)
    yield opened
    opened.close()


def send(reader: StatusReader, task_id: str, script: str, **fields: str) -> str:
    """Send an event, and return when the controller has taken it. Returns its id."""
    event_id = reader.send({"type": "scale_up", "task_id": task_id, "script": script, **fields})
    eventually(lambda: reader.task(event_id), LONG_S, "the event to be taken")
    return event_id


def wait_for_state(reader: StatusReader, event_id: str, *states: str) -> None:
    """Return when all workers are in one of these states, or have one of these outcomes."""

    def reached() -> bool:
        task = reader.task(event_id)
        return task is not None and bool(counts := task.count_workers()) and set(counts) <= set(states)

    eventually(reached, LONG_S, f"all workers to be {states}")


def logs(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], list[str]]:
    """The lines on standard output and on standard error of a command that succeeds."""
    capfd.readouterr()
    assert main(["logs", *arguments]) == 0
    printed = capfd.readouterr()
    return printed.out.splitlines(), printed.err.splitlines()


def test_each_line_has_its_worker_in_front(reader: StatusReader, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a running task, by task id and by event id; a single worker's lines are as they were written."""
    event_id = send(
        reader, "running", "echo one; echo $OTTO_WORKER_INDEX; trap 'exit 1' TERM; sleep 60 & wait", pod_count="2"
    )
    wait_for_state(reader, event_id, "running")
    expected = ["1 | one", "1 | 1", "2 | one", "2 | 2"]
    eventually(lambda: logs(capfd, "running")[0] == expected, LONG_S, "both logs")
    assert logs(capfd, event_id) == (expected, [])
    assert logs(capfd, "running", "--worker", "2") == (["one", "2"], [])
    (line, _), _ = logs(capfd, "running", "--worker", "1", "--timestamps")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}\S+ one", line)
    reader.send({"type": "scale_down", "task_id": "running"})
    wait_for_state(reader, event_id, "cancelled")


def test_a_task_is_followed_over_its_attempts_to_its_end(
    reader: StatusReader, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lines of all workers as they come; the second attempt is announced; the command ends with the task."""
    go = tmp_path / "go"
    script = f"""
        echo attempt $OTTO_ATTEMPT; while [ ! -e {go} ]; do sleep 0.05; done
        echo ends; sleep 0.5; [ $OTTO_WORKER_INDEX = 1 ] || [ $OTTO_ATTEMPT = 2 ]"""
    event_id = send(reader, "followed", script, pod_count="2", retries="1")
    wait_for_state(reader, event_id, "running")
    command = [sys.executable, str(SCRIPT), "logs", "followed", "--follow"]
    with warm.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        first = sorted(following.stdout.readline() for _ in range(2))
        assert first == ["1 | attempt 1\n", "2 | attempt 1\n"]  # while both run
        go.touch()
        out, err = following.communicate(timeout=LONG_S)
    assert following.returncode == 0
    assert sorted(out.splitlines()) == ["1 | ends", "2 | attempt 2", "2 | ends", "2 | ends"]
    pod = f"otto-agent-{event_hash('ottoscaler', event_id)}-2-r2"
    assert err == f"Worker 2: attempt 2, pod {pod}\n"


def test_a_kept_pod_still_has_its_log(reader: StatusReader, capfd: pytest.CaptureFixture[str]) -> None:
    """Followed, it ends at once."""
    event_id = send(reader, "kept", "printf 'a\\nb'; exit 3", keep_failed_s="600")
    wait_for_state(reader, event_id, "failed")
    assert logs(capfd, "kept") == (["1 | a", "1 | b"], [])
    assert logs(capfd, "kept", "-f") == (["1 | a", "1 | b"], [])


def test_where_the_output_of_a_deleted_pod_went(
    reader: StatusReader, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it ended, that its pod is deleted, the log handler if there is one, and the output in its result."""
    event_id = send(
        reader, "deleted", "echo lost; echo kept > $OTTO_OUTPUT; echo key AKIAABCDEFGHIJKLMNOP >> $OTTO_OUTPUT"
    )
    wait_for_state(reader, event_id, "succeeded")
    pod = f"otto-agent-{event_hash('ottoscaler', event_id)}-1"
    gone = eventually(lambda: (shown := logs(capfd, "deleted"))[1] and shown, LONG_S, "the pod to be deleted")
    assert gone[0] == ["1 | kept", "1 | key ***"]
    state = reader.task(event_id)
    assert state is not None
    assert gone[1] == [
        f"Worker 1: Completed, at {state.workers[1].finished_at}. Its pod {pod} was deleted after that, and its log "
        "with it. Its result has this output:"
    ]
    monkeypatch.setenv("LOG_HANDLER_ADDRESS", "handler:50051")
    out, (said,) = logs(capfd, "deleted", "--follow")
    assert out == gone[0]
    assert "What was streamed is at the log handler handler:50051." in said


def test_a_worker_without_a_pod_says_why(reader: StatusReader, capfd: pytest.CaptureFixture[str]) -> None:
    """One that waits, and one that was ended before it had one."""
    first = send(reader, "holds", "trap 'exit 1' TERM; sleep 60 & wait", concurrency_key="k")
    wait_for_state(reader, first, "running")
    second = send(reader, "waits", "true", concurrency_key="k")
    assert logs(capfd, "waits")[0] == []
    (said,) = logs(capfd, "waits")[1]
    assert said.startswith("Worker 1 has no log yet: it is waiting")
    reader.send({"type": "scale_down", "task_id": "waits"})
    wait_for_state(reader, second, "cancelled")
    (said,) = logs(capfd, "waits")[1]
    assert re.fullmatch(r"Worker 1: ScaledDown, at \S+\. It never had a pod\.", said)
    reader.send({"type": "scale_down", "task_id": "holds"})
    wait_for_state(reader, first, "cancelled")


def test_tasks_of_one_name_are_told_apart(reader: StatusReader, capfd: pytest.CaptureFixture[str]) -> None:
    """By the ids of their events; a scale_down of that name has no workers."""
    ids = [send(reader, "twice", f"echo {n}; exit 1", keep_failed_s="600") for n in (1, 2)]
    for event_id in ids:
        wait_for_state(reader, event_id, "failed")
    down = reader.send({"type": "scale_down", "task_id": "twice"})
    eventually(lambda: (task := reader.task(down)) and task.finished, LONG_S, "the scale_down to finish")
    assert logs(capfd, "twice") == ([f"{ids[0]}/1 | 1", f"{ids[1]}/1 | 2"], [])
    assert main(["logs", down]) == 1
    assert capfd.readouterr().err == f"'{down}' is a scale_down: it has no workers of its own\n"


@pytest.mark.usefixtures("reader")
def test_on_a_terminal_workers_have_colours_and_control_characters_do_nothing(reader: StatusReader) -> None:
    """What the worker wrote is seen; what it wanted of the terminal is not done."""
    event_id = send(
        reader,
        "hostile",
        "printf '\\033[31mred\\033[0m \\033[2J\\033]0;t\\a\\302\\233x\\r\\n'; exit 1",
        keep_failed_s="600",
    )
    wait_for_state(reader, event_id, "failed")
    terminal = Terminal("logs", "hostile")
    assert terminal.end() == 0
    assert terminal.screen == "\x1b[36m1 |\x1b[0m red \\x1b[2J\\x1b]0;t\\x07\\x9bx\r\n"


class TestErrors:
    """One sentence each, and exit code 1."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["nobody"], "Redis knows no task and no event 'nobody': it was not sent, not accepted yet, or finished"),
            (["single", "--worker", "2"], "'single' has 1 worker, and no worker 2"),
        ],
    )
    def test_of_what_is_not_there(
        self, reader: StatusReader, capfd: pytest.CaptureFixture[str], arguments: list[str], sentence: str
    ) -> None:
        send(reader, "single", "true")
        assert main(["logs", *arguments]) == 1
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(sentence)
        assert printed.err.count("\n") == 1

    def test_of_a_refused_event(self, reader: StatusReader, capfd: pytest.CaptureFixture[str]) -> None:
        """It has no workers, and its dead letter says why."""
        event_id = reader.send({"type": "scale_up", "pod_count": "lots"})
        eventually(lambda: reader.dead_letter(event_id), LONG_S, "the dead letter")
        assert main(["logs", event_id]) == 1
        detail = 'Invalid: field pod_count is "lots"; a whole number from 1 is expected'
        assert capfd.readouterr().err == f"'{event_id}' was refused ({detail}): it has no workers of its own\n"

    @pytest.mark.parametrize("follow", [[], ["--follow"]])
    def test_of_the_cluster(
        self, system: LocalSystem, reader: StatusReader, capfd: pytest.CaptureFixture[str], follow: list[str]
    ) -> None:
        """The right to read logs is missing, or the container is none of the pod's."""
        event_id = send(reader, "refused", "exit 1", keep_failed_s="600")
        wait_for_state(reader, event_id, "failed")
        rule = {"path_regex": "/log\\?", "status": 403, "reason": "Forbidden", "message": "pods is forbidden"}
        urllib3.request("POST", f"{system.url}/_emulator/faults", json=[rule])
        assert main(["logs", "refused", *follow]) == 1
        assert capfd.readouterr().err == (
            "No right to read logs: KUBECONFIG's user needs 'get' on 'pods/log' in namespace default "
            "(the Kubernetes API answered 403 to log: pods is forbidden)\n"
        )
        assert main(["logs", "refused", "--container", "db", *follow]) == 1
        assert capfd.readouterr().err.startswith("The pods have no container 'db' (")

    def test_of_no_cluster(
        self,
        system: LocalSystem,
        reader: StatusReader,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """The API server does not answer."""
        send(reader, "away", "true")
        text = system.kubeconfig.read_text().replace(system.url, "http://127.0.0.1:1")
        (tmp_path / "kubeconfig").write_text(text)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        assert main(["logs", "away"]) == 1
        assert capfd.readouterr().err.startswith("the Kubernetes API at http://127.0.0.1:1 does not answer (")

    @pytest.mark.parametrize("arguments", [[], ["t", "--worker", "0"], ["t", "--worker", "x"], ["t", "u"]])
    def test_of_the_arguments(self, arguments: list[str]) -> None:
        """Exit code 2, before anything is asked."""
        assert main(["logs", *arguments]) == 2


@pytest.mark.usefixtures("names")
def test_a_task_that_no_cluster_knows_is_still_looked_up(
    controller: Controller, capsys: pytest.CaptureFixture[str], reader_of_names: StatusReader
) -> None:
    """Without a kubeconfig: that is a fault of the configuration, exit code 2."""
    reader_of_names.send({"type": "scale_up", "task_id": "t"})
    assert controller.take() is not None
    assert main(["logs", "t"]) == 2
    assert "KUBECONFIG" in capsys.readouterr().err


@pytest.fixture
def reader_of_names(
    names: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[StatusReader]:
    """The reader of the other tests' server, with a kubeconfig that is none."""
    (tmp_path / "kubeconfig").write_text("{}")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    settings = LocalSystem(tmp_path, names, external=True).settings
    opened = StatusReader(settings.redis, settings.keys)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain", "plain"),
        ("안녕\u3000é\ttab".encode(), "안녕\u3000é\ttab"),
        (b"\x1b[1;31mbold\x1b[0m", "bold"),
        (b"\x1b[2J\x07\x7f", "\\x1b[2J\\x07\\x7f"),
        (b"50 %\r100 %\r", "50 %\\r100 %"),
        ("\u202egpj.exe\u2028".encode(), "\\u202egpj.exe\\u2028"),
        (b"\xff\xc3\xa9\xc2\x9b31m", "\\xffé\\x9b31m"),
        (b"\x1b\x1b[0m[2J", "\\x1b[2J"),
    ],
)
def test_what_a_terminal_gets(written: bytes, shown: str) -> None:
    """Text of any language, and nothing that acts."""
    assert harmless(written) == shown


def test_parts_of_a_long_line_are_put_together_where_nothing_can_come_between(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With prefixes each part is a line of its own."""
    for labels in ({("h", 1): ""}, {("h", 1): "1", ("h", 10): "10"}):
        printer = LogPrinter(labels, times=False, terminal=False)
        printer.line(("h", 1), Line("", "t", b"a\x1b", True))
        printer.line(("h", 1), Line("", "", b"b"))
        printer.flush()
    assert capfd.readouterr().out == "a\x1bb\n 1 | a\x1b\n 1 | b\n"
