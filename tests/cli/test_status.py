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
from ottoscaler.core.verdicts import EndReason
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import Settings
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
        "event_id task_id type state received_at age_s pod_count workers succeeded failed cancelled owner why next_at"
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


def test_a_table_is_no_longer_than_helps(controller: Controller) -> None:
    """The oldest tasks are shown, and how many there are."""
    for number in range(42):
        main(["send", "type=scale_up", f"task_id=t-{number:02}"])
        controller.take()
    terminal = Terminal("status")
    terminal.end()
    assert "42 unfinished tasks" in terminal.screen
    assert "t-39" in terminal.screen
    assert "t-40" not in terminal.screen
    assert "and 2 more" in terminal.screen


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
    assert capsys.readouterr().out.rstrip().endswith("QuotaExceeded, again at 2030-01-01T00:00:00.000Z")


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
