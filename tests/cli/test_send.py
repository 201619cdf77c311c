"""`send`: what goes into the stream, and what `--wait` says of how it ended."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.cli.main import main
from ottoscaler.core.events import BadEvent, parse
from ottoscaler.core.verdicts import EndReason
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import Settings
from tests.cli.conftest import LONG_S, Controller, Terminal, child, entries
from tests.core.policies import EXAMPLE

pytestmark = pytest.mark.contract("1.send")

Meanwhile = Callable[..., Future[Any]]
UP = ("type=scale_up", "pod_count=3", "task_id=task-123")
#: Nothing here takes so long; a test that fails is not to wait without limit.
WAIT = ("--wait", "--timeout", "20")


def test_send_prints_the_id_of_the_entry_that_it_added(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entry has the fields as given, and its id is all that is printed."""
    assert main(["send", *UP, "note=a=b c"]) == 0
    expected = {"type": "scale_up", "pod_count": "3", "task_id": "task-123", "note": "a=b c"}
    assert entries(client, settings.keys.stream) == [(capsys.readouterr().out.strip(), expected)]


@pytest.mark.parametrize("wrong", ["pod_count", "=3", " =3", "task_id=twice", "note=\udcff"])
def test_an_argument_that_is_no_field_is_refused(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    """Nothing is sent: half an event would be another event."""
    assert main(["send", *UP, wrong]) == 2
    assert "error: " in capsys.readouterr().err
    assert entries(client, settings.keys.stream) == []


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "soon"])
@pytest.mark.usefixtures("names")
def test_a_timeout_is_a_number_of_seconds(capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    """Anything else would wait without limit, or not at all."""
    assert main(["send", *UP, "--wait", f"--timeout={wrong}"]) == 2
    assert "not a number of seconds above 0" in capsys.readouterr().err


#: Variables of the controller's that no command needs which only talks to Redis, with values that break a rule.
UNRELATED = {
    "KUBECONFIG": "/nowhere/kubeconfig",
    "NAMESPACE": "Not A Name",
    "OTTO_AGENT_IMAGE": "busy box",
    "OTTO_AGENT_COMMAND": "[]",
    "WORKER_CPU_LIMIT": "lots",
    "WORKER_NODE_SELECTOR": "{",
    "PENDING_TIMEOUT_S": "soon",
    "MAX_WORKERS": "0",
    "LEASE_S": "1",
    "KUBE_QPS": "x",
    "HTTP_PORT": "http",
    "LOG_LEVEL": "loud",
    "INSTANCE": "a:b",
    "REDIS_CONSUMER": "not one word",
    "REDIS_BLOCK_MS": "0",
    "RESULT_MAXLEN": "0",
    "TASK_TTL_S": "0",
}


@pytest.mark.parametrize("command", [["send", *UP], ["status"], ["dead", "list"]], ids=lambda command: command[0])
@pytest.mark.usefixtures("names")
def test_a_setting_that_a_command_does_not_use_is_no_concern_of_it(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them, and all at once."""
    for name, value in UNRELATED.items():
        with monkeypatch.context() as one:
            one.setenv(name, value)
            assert main(command) == 0, name
    for name, value in UNRELATED.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 0


@pytest.mark.parametrize("command", [["send", *UP], ["status"], ["dead", "list"]], ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("name", "value"), [("REDIS_PORT", "x"), ("REDIS_STREAM", "a b"), ("KEY_PREFIX", "a b"), ("REDIS_TLS", "perhaps")]
)
@pytest.mark.usefixtures("names")
def test_a_setting_that_it_uses_is(
    command: list[str], name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and the variable is named."""
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORKER_CPU_LIMIT", "lots")
    assert main(command) == 2
    assert [line.partition("=")[0] for line in capsys.readouterr().err.splitlines()] == [name]


@pytest.mark.contract("2.POLICY_FILE")
def test_send_asks_the_policy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What it does not allow is not sent."""
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(EXAMPLE))
    monkeypatch.setenv("POLICY_FILE", str(path))
    assert main(["send", *UP, "image=node:20"]) == 0
    assert main(["send", *UP, "image=nginx"]) == 1
    assert 'NotAllowed: field image is "nginx"' in capsys.readouterr().err


def test_only_send_needs_the_limit_of_an_event(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It refuses what is above it."""
    monkeypatch.setenv("MAX_PODS_PER_EVENT", "x")
    assert (main(["status"]), main(["send", *UP])) == (0, 2)
    monkeypatch.setenv("MAX_PODS_PER_EVENT", "2")
    capsys.readouterr()
    assert main(["send", *UP]) == 1
    assert "field pod_count is 3; at most 2 are allowed (MAX_PODS_PER_EVENT)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields",
    [
        ["type=scale_sideways"],
        ["pod_count=3"],
        ["type="],
        ["type=scale_up", "pod_count=lots"],
        ["type=scale_up", "pod_count=1001"],
        ["type=scale_up", "pod_count=1", "target_replicas=2"],
        ["type=scale_up", "task_id=no spaces"],
        ["type=scale_up", "event_id=12-3"],
        ["type=scale_up", "metadata=[]"],
        ["type=scale_up", "image=busybox"],
        ["type=scale_up", "podCount=3"],
        ["type=scale_up", "task-id=3"],
        ["type=scale_up", "worker_index=3"],
        ["type=scale_up", f"note={'x' * 70_000}"],
        ["type=scale_down"],
        ["type=scale_down", "task_id=t", "mode=stop"],
    ],
    ids=lambda fields: " ".join(fields)[:40],
)
def test_what_the_controller_would_refuse_is_not_sent(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str], fields: list[str]
) -> None:
    """In the same words, and there is no dead letter; with --force it is sent."""
    assert main(["send", *fields]) == 1
    raw = {name.encode(): value.encode() for name, _, value in (field.partition("=") for field in fields)}
    bad = parse("1-0", raw, settings.flow.max_pods_per_event)
    assert isinstance(bad, BadEvent)
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == f"Not sent, the controller would refuse it: {bad.reason}: {bad.detail}"
    assert (printed.out, entries(client, settings.keys.stream)) == ("", [])
    assert main(["send", *fields, "--force"]) == 0
    assert len(entries(client, settings.keys.stream)) == 1


@pytest.mark.parametrize(
    ("field", "warning"),
    [
        ("podcount=3", "field podcount is only passed on; did you mean pod_count?"),
        ("taskid=a", "field taskid is only passed on; did you mean task_id?"),
        (
            "traceparent=x",
            'field traceparent is "x"; a W3C trace context is expected, and the event goes on without one',
        ),
    ],
)
def test_a_slip_is_a_warning(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str], field: str, warning: str
) -> None:
    """The event is a good one: it is sent."""
    assert main(["send", "type=scale_up", field]) == 0
    assert capsys.readouterr().err == f"warning: {warning}\n"
    assert len(entries(client, settings.keys.stream)) == 1


def test_a_good_event_has_no_warning(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor has one with fields of its producer's."""
    assert main(["send", *UP, "job_id=7", "reason=why", "model=big", "branch=main"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("names")
def test_a_variable_that_is_nearly_ours_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The event may have gone to another Redis than was meant."""
    monkeypatch.setenv("REDIS_HOSTS", "elsewhere")
    assert main(["send", *UP]) == 0
    assert "warning: REDIS_HOSTS is set" in capsys.readouterr().err


def test_wait_gives_0_when_all_workers_succeeded(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options may stand between the fields."""
    meanwhile(controller.carry_out, EndReason.COMPLETED, EndReason.COMPLETED, EndReason.COMPLETED)
    assert main(["send", UP[0], *WAIT, *UP[1:]]) == 0
    assert capsys.readouterr().out.endswith("All 3 workers succeeded\n")


def test_wait_names_the_workers_that_failed(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which one, why, and with what exit code; the exit code of the command is 1."""
    meanwhile(controller.carry_out, EndReason.COMPLETED, EndReason.ERROR, EndReason.COMPLETED, exit_code="3")
    assert main(["send", *UP, *WAIT]) == 1
    out = capsys.readouterr().out
    assert "2 of 3 workers succeeded (2 succeeded, 1 failed)\n" in out
    assert "  worker 2 failed: Error, exit code 3: so it was\n" in out


def test_of_many_failed_workers_some_are_named(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str]
) -> None:
    """A screen full of the same sentence is no help."""
    meanwhile(controller.carry_out, *[EndReason.ERROR] * 12)
    assert main(["send", "type=scale_up", "pod_count=12", *WAIT]) == 1
    assert capsys.readouterr().out.endswith("  and 2 more\n")


def test_a_cancelled_worker_is_no_success(controller: Controller, meanwhile: Meanwhile) -> None:
    """Exit code 0 is for all workers succeeded and nothing else."""
    meanwhile(controller.carry_out, EndReason.COMPLETED, EndReason.SCALED_DOWN, EndReason.COMPLETED)
    assert main(["send", *UP, *WAIT]) == 1


def test_wait_shows_what_goes_on(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str], reader: StatusReader
) -> None:
    """On something that is no terminal, each change is a line."""
    future = meanwhile(controller.take)
    assert main(["send", *UP, "--wait", "--timeout", "1.2"]) == 1
    controller.end(future.result())
    lines = capsys.readouterr()
    assert lines.out.splitlines()[1:] == ["waiting (3 waiting)"]
    assert lines.err == "Not finished after 1.2 s: waiting (3 waiting). The task goes on; `status` shows it.\n"


def test_wait_prints_why_an_event_became_a_dead_letter(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str], client: redis.Redis
) -> None:
    """The reason, and the detail that names field and value."""
    meanwhile(controller.carry_out)
    assert main(["send", "type=scale_up", "pod_count=lots", "--force", *WAIT]) == 1
    sentence = capsys.readouterr().out.splitlines()[-1]
    assert "became a dead letter" in sentence
    assert 'Invalid: field pod_count is "lots"; a whole number from 1 is expected' in sentence


@pytest.mark.parametrize("event_id", ["12-3", "no spaces"])
def test_a_dead_letter_without_a_readable_event_id_is_seen(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str], event_id: str
) -> None:
    """It is known by its entry."""
    meanwhile(controller.carry_out)
    assert main(["send", *UP, f"event_id={event_id}", "--force", *WAIT]) == 1
    assert "Invalid: field event_id is " in capsys.readouterr().out


def test_a_refused_event_that_is_sent_again_gets_the_same_answer(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repeated one gets no dead letter of its own, and is not taken for a success."""
    bad = ["send", "type=scale_up", "pod_count=lots", "event_id=bad-1", "--force", *WAIT]
    for _ in range(2):
        meanwhile(controller.carry_out)
        assert main(bad) == 1
        assert "Invalid: field pod_count" in capsys.readouterr().out


@pytest.mark.parametrize(("reason", "code"), [(EndReason.COMPLETED, 0), (EndReason.ERROR, 1)])
def test_a_duplicate_of_a_finished_event_is_answered_at_once(
    controller: Controller, capsys: pytest.CaptureFixture[str], reason: EndReason, code: int
) -> None:
    """From what is stored; no controller need run."""
    same = ["send", "type=scale_up", "event_id=mine-1"]
    assert main(same) == 0
    controller.carry_out(reason)
    assert main([*same, *WAIT]) == code


def test_another_event_under_a_used_event_id_is_a_conflict(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str]
) -> None:
    """The success of the first is not the second's."""
    main(["send", "type=scale_up", "event_id=mine-2"])
    controller.carry_out(EndReason.COMPLETED)
    meanwhile(controller.carry_out)
    assert main(["send", "type=scale_up", "event_id=mine-2", "note=other", *WAIT]) == 1
    assert "Conflict: event_id mine-2 was used before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pods", "sentence"), [(("pod-1", "pod-2"), "2 workers ended: pod-1, pod-2"), ((), "0 workers ended")]
)
def test_a_scale_down_names_the_workers_that_it_ended(
    controller: Controller, meanwhile: Meanwhile, capsys: pytest.CaptureFixture[str], pods: tuple[str], sentence: str
) -> None:
    """Also when there was nothing to end, it succeeded."""
    main(["send", "type=scale_up", "pod_count=2"])
    running = controller.take()
    assert running is not None
    meanwhile(controller.scale_down, running, *pods)
    assert main(["send", "type=scale_down", "task_id=task-123", *WAIT]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"scale_down succeeded (Completed); {sentence}"


def test_a_finished_scale_down_is_known_by_its_result(controller: Controller, client: redis.Redis) -> None:
    """It may have failed, which the task hash does not show."""
    same = ["send", "type=scale_down", "task_id=task-123", "event_id=down-1"]
    main(same)
    task = controller.take()
    assert task is not None
    closing = {"kind": "scale_down", "event_id": "down-1", "outcome": "failed", "reason": "Poison"}
    controller.stream.finish("down-1", task.owner, closing)
    assert main([*same, *WAIT]) == 1


def test_redis_going_away_does_not_unsend_the_event(tmp_path: Path) -> None:
    """The sentence says that it went out, so the caller does not send it a second time."""
    server = EmbeddedRedis(tmp_path)
    server.start()
    with child("send", *UP, "--wait", REDIS_PORT=str(server.port), REDIS_HOST=server.host) as sending:
        assert sending.stdout is not None
        stream_id = sending.stdout.readline().strip()
        server.close()
        _, err = sending.communicate(timeout=LONG_S)
    assert sending.returncode == 1
    assert err.splitlines()[-1] == f"The event {stream_id} was sent all the same."


@pytest.mark.usefixtures("names")
def test_a_wait_without_progress_asks_whether_a_controller_runs() -> None:
    """After some seconds, once; and Ctrl-C ends the waiting with 130."""
    with child("send", *UP, "--wait") as sending:
        assert sending.stderr is not None
        assert sending.stderr.readline() == "No controller has taken the event yet; is one running?\n"
        sending.send_signal(signal.SIGINT)
        assert sending.wait(LONG_S) == 130


def test_a_terminal_gets_a_bar(controller: Controller) -> None:
    """It counts the workers that have ended, and goes away for the last sentence."""
    terminal = Terminal("send", *UP, *WAIT)
    task = controller.take()
    assert task is not None
    controller.end(task, EndReason.COMPLETED)
    assert "1/3" in terminal.until("1/3")
    controller.end(task, *[EndReason.COMPLETED] * 3)
    assert terminal.end() == 0
    assert terminal.screen.rstrip().endswith("All 3 workers succeeded")
