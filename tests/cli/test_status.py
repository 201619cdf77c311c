"""`status`: everything that Redis knows, for people and for programs."""

from __future__ import annotations

import json
import select
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from ottoscaler.cli.main import main
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.verdicts import EndReason
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import Settings
from ottoscaler.stored import StatusUpdate, TaskNote
from tests.adapters.streams import note_why
from tests.cli.conftest import LONG_S, Controller, Terminal, child
from tests.schemas import faults, schema

pytestmark = pytest.mark.contract("1.status")

UP = ("type=scale_up", "pod_count=3", "task_id=task-123", "event_id=e-1")


def status(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The object of --json, which is as deploy/schemas says."""
    capsys.readouterr()
    assert main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    assert faults("status", found) == []
    return found


@pytest.mark.usefixtures("names")
def test_without_anything_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Also before there is a stream or a group."""
    found = status(capsys)
    del found["at"]
    nothing = {"unread": 0, "unread_is_exact": True, "pending": 0}
    assert found == {"tasks": [], "finished": [], "backlog": nothing, "dead_letters": 0}


def test_a_task_is_shown_with_its_workers(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """One that succeeded, one that is being created, one without any report; and the replica that owns the task."""
    main(["send", *UP])
    task = controller.take()
    assert task is not None
    controller.end(task, EndReason.COMPLETED)
    controller.start(task, 2)
    note_why(controller.stream, "e-1", task.owner, "QuotaExceeded", "2030-01-01T00:00:00.000Z")
    (found,) = status(capsys)["tasks"]
    assert found["workers"] == {"succeeded": 1, "creating": 1, "waiting": 1}
    assert (found["state"], found["owner"], found["why"]) == ("running", "otto-0", "QuotaExceeded")
    assert (found["succeeded"], found["failed"], found["cancelled"]) == (1, 0, 0)
    assert 0 <= found["age_s"] < LONG_S


def test_the_keys_of_json_are_stable(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs read them."""
    main(["send", *UP])
    controller.take()
    main(["send", "type=scale_up"])
    controller.carry_out(EndReason.COMPLETED)
    found = status(capsys)
    assert list(found) == ["at", "tasks", "finished", "backlog", "dead_letters"]
    first = (
        "event_id task_id type state received_at age_s pod_count workers succeeded failed cancelled owner why next_at "
        "code since attention"
    )
    assert " ".join(found["tasks"][0]) == first
    assert list(found["finished"][0]) == ["event_id", "task_id", "kind", "outcome", "reason", "finished_at"]
    described = schema("status")["properties"]
    assert (found.keys(), found["backlog"].keys()) == (described.keys(), described["backlog"]["properties"].keys())
    for part in ("tasks", "finished"):
        assert found[part][0].keys() == described[part]["items"]["properties"].keys()


def test_what_finished_last_comes_first(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks only, with their outcome."""
    for number, reason in enumerate((EndReason.COMPLETED, EndReason.ERROR)):
        main(["send", "type=scale_up", f"task_id=t-{number}"])
        controller.carry_out(reason)
    finished = status(capsys)["finished"]
    assert [(result["task_id"], result["outcome"]) for result in finished] == [("t-1", "failed"), ("t-0", "succeeded")]


def test_the_backlog_is_what_no_task_knows(
    controller: Controller, settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unread entries and those read but not accepted; right also where Redis's own lag is not known any more."""
    sent = [str(client.xadd(settings.keys.stream, {"type": "scale_up"})) for _ in range(5)]
    controller.stream.read(2)
    client.xdel(settings.keys.stream, sent[3])
    assert client.xinfo_groups(settings.keys.stream)[0]["lag"] is None
    assert status(capsys)["backlog"] == {"unread": 2, "unread_is_exact": True, "pending": 2}


def test_a_large_backlog_is_not_counted_to_its_end(
    settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that there are at least so many."""
    pipe = client.pipeline(transaction=False)
    for _ in range(10_500):
        pipe.xadd(settings.keys.stream, {"type": "scale_up"})
    pipe.execute()
    assert status(capsys)["backlog"] == {"unread": 10_000, "unread_is_exact": False, "pending": 0}
    main(["status"])
    assert "backlog: at least 10000 unread events" in capsys.readouterr().out


def test_dead_letters_are_counted(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """Each refused event is one; its result is among those that finished."""
    main(["send", "type=scale_up", "pod_count=lots", "--force"])
    controller.take()
    found = status(capsys)
    assert found["dead_letters"] == 1
    assert found["finished"][0]["reason"] == "Rejected"


def test_without_a_terminal_it_is_lines(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """One for the whole, then one for each task: for grep."""
    main(["send", *UP])
    controller.take()
    capsys.readouterr()
    assert main(["status"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1 unfinished task; backlog: 0 unread events, 0 pending; 0 dead letters"
    assert second.startswith("e-1: task task-123, waiting, for ")
    assert second.endswith("3 waiting, owner otto-0")


def test_an_unfinished_scale_down_is_shown(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """It has no workers of its own."""
    main(["send", "type=scale_down", "task_id=task-123"])
    controller.take()
    capsys.readouterr()
    main(["status"])
    assert "task task-123, waiting" in capsys.readouterr().out
    assert status(capsys)["tasks"][0]["workers"] == {}


def test_what_came_from_outside_cannot_move_the_cursor(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    """An escape sequence is shown, not obeyed."""
    main(["send", *UP])
    task = controller.take()
    assert task is not None
    note_why(controller.stream, "e-1", task.owner, "\x1b[2J", "")
    capsys.readouterr()
    main(["status"])
    assert "\\x1b[2J" in capsys.readouterr().out


def test_watch_shows_each_change(controller: Controller) -> None:
    """Off a terminal: a block of lines when something is new, and not for the ages alone."""
    with child("status", "--watch") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("0 unfinished tasks")
        main(["send", *UP])
        controller.take()
        blocks = [watching.stdout.readline() for _ in range(2)]
        while "e-1: " not in blocks[-1]:
            blocks.append(watching.stdout.readline())
        assert select.select([watching.stdout], [], [], 2.5)[0] == []
        watching.send_signal(signal.SIGINT)
        watching.wait(LONG_S)
    assert "task task-123" in blocks[-1]


def test_watch_on_a_terminal_redraws(controller: Controller) -> None:
    """Until Ctrl-C; what comes meanwhile is seen."""
    terminal = Terminal("status", "--watch")
    terminal.until("0 unfinished tasks")
    main(["send", *UP])
    controller.take()
    assert "task-123" in terminal.until("task-123")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130


def send_and_take(controller: Controller, count: int) -> None:
    """That many tasks, t-00 the oldest."""
    for number in range(count):
        main(["send", "type=scale_up", f"task_id=t-{number:02}", f"event_id=e-{number:02}"])
        controller.take()


def test_a_table_fits_the_terminal(controller: Controller) -> None:
    """Its 40 lines; how many more tasks there are is said, and what has ended keeps some lines."""
    for number in range(12):
        main(["send", "type=scale_up", f"task_id=done-{number:02}"])
        controller.carry_out(EndReason.COMPLETED)
    send_and_take(controller, 42)
    terminal = Terminal("status")
    terminal.end()
    lines = terminal.screen.splitlines()
    assert 35 <= len(lines) < 40
    assert "42 unfinished tasks" in terminal.screen
    tasks = sum(" t-" in line for line in lines)
    assert sum("done-" in line for line in lines) == 3
    assert f"and {42 - tasks} more" in terminal.screen


def test_on_a_large_terminal_what_has_ended_is_shown_too(controller: Controller) -> None:
    """Nothing gives way where there is room."""
    send_and_take(controller, 2)
    for number in range(12):
        main(["send", "type=scale_up", f"task_id=done-{number:02}"])
        controller.carry_out(EndReason.COMPLETED)
    terminal = Terminal("status")
    terminal.end()
    assert sum("done-" in line for line in terminal.screen.splitlines()) == 10
    assert "more" not in terminal.screen


@pytest.mark.parametrize(("count", "says"), [(1, "1 task needs attention"), (2, "2 tasks need attention")])
def test_what_needs_somebody_comes_first(
    controller: Controller, capsys: pytest.CaptureFixture[str], count: int, says: str
) -> None:
    """However new it is, and with the command that says what to do."""
    for number in range(3):
        main(["send", "type=scale_up", f"event_id=e-{number}"])
        task = controller.take()
        assert task is not None
        if number >= 3 - count:
            note = TaskNote("the quota is used up: pods=3", code=StatusCode.QUOTA.value, since="2026-01-01T00:00:00Z")
            controller.stream.write_status([StatusUpdate(f"e-{number}", task.owner, task=note)])
    capsys.readouterr()
    main(["status"])
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("3 unfinished tasks")
    worst = f"e-{3 - count}"
    assert second == f"{says}: ottoscaler.py explain {worst} says what to do"
    assert third.startswith(f"{worst}: ")
    assert third.endswith("quota: the quota is used up: pods=3")
    found = {task["event_id"]: task for task in status(capsys)["tasks"]}
    assert [each["attention"] for each in found.values()] == [False] * (3 - count) + [True] * count
    assert (found[worst]["code"], found[worst]["since"]) == ("quota", "2026-01-01T00:00:00Z")


def test_a_lease_that_no_replica_renews_needs_somebody(
    controller: Controller, client: redis.Redis, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """The task's own notes are those of its last owner, which is gone."""
    main(["send", *UP])
    controller.take()
    client.zadd(f"{settings.keys.prefix}open", {"e-1": 1000})
    capsys.readouterr()
    main(["status"])
    _, second, third = capsys.readouterr().out.splitlines()
    assert second == "1 task needs attention: ottoscaler.py explain e-1 says what to do"
    assert "lease_expired: no replica renews the lease of this task: its owner was otto-0" in third


def test_a_dead_letter_is_pointed_at(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """With the command that says why."""
    main(["send", "--force", "type=scale_up", "pod_count=0"])
    controller.take()
    capsys.readouterr()
    main(["status"])
    assert "dead letters are events that were refused: ottoscaler.py dead list says why" in capsys.readouterr().out


def test_why_nothing_moves_is_shown_with_the_next_time(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the reader does not have to guess how long to wait."""
    main(["send", *UP])
    task = controller.take()
    assert task is not None
    note_why(controller.stream, "e-1", task.owner, "QuotaExceeded", "2030-01-01T00:00:00.000Z")
    capsys.readouterr()
    main(["status"])
    assert capsys.readouterr().out.rstrip().endswith("QuotaExceeded; next at 2030-01-01T00:00:00.000Z")
    note = TaskNote("the worker runs", code="running", next_at="2030-01-01T00:00:00.000Z")
    controller.stream.write_status([StatusUpdate("e-1", task.owner, {}, note)])
    main(["status"])
    assert capsys.readouterr().out.rstrip().endswith("the worker runs; its deadline is at 2030-01-01T00:00:00.000Z")


def test_a_terminal_gets_a_table(controller: Controller) -> None:
    """With headings, the tasks that run and those that have ended."""
    main(["send", "type=scale_up", "task_id=task-122"])
    controller.carry_out(EndReason.COMPLETED)
    main(["send", *UP])
    controller.take()
    terminal = Terminal("status")
    assert terminal.end() == 0
    assert "1 unfinished task" in terminal.screen
    assert "e-1" in terminal.screen
    assert "3 waiting" in terminal.screen
    assert "last finished" in terminal.screen
    assert "task-122" in terminal.screen


def test_watch_outlives_an_absence_of_redis(tmp_path: Path) -> None:
    """The command goes on, to show that Redis is back: the sentence takes the place of the lines meanwhile."""
    server = EmbeddedRedis(tmp_path)
    server.start()
    with child("status", "--watch", REDIS_HOST=server.host, REDIS_PORT=str(server.port)) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("0 unfinished tasks")
        server.close()
        assert watching.stdout.readline() == "\n"
        assert "cannot be reached" in watching.stdout.readline()
        with closing(EmbeddedRedis(tmp_path, port=server.port)) as again:
            again.start()
            assert watching.stdout.readline() == "\n"
            assert watching.stdout.readline().startswith("0 unfinished tasks")
            watching.send_signal(signal.SIGINT)
            watching.wait(LONG_S)


def test_looking_changes_nothing(
    controller: Controller,
    server: EmbeddedRedis,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A user who may only read may look at everything."""
    main(["send", *UP])
    controller.take()
    client.execute_command(
        "ACL", "SETUSER", "viewer", "reset", "on", ">viewer-password", "~*", "-@all", "+@read", "+time"
    )
    monkeypatch.setenv("REDIS_USERNAME", "viewer")
    monkeypatch.setenv("REDIS_PASSWORD", "viewer-password")
    assert main(["status"]) == 0
