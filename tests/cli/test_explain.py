"""`explain`: for each stuck situation the exact code, what happens next, and what can be done, on a real Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

import pytest
import redis

from ottoscaler.cli.explain import local_time
from ottoscaler.cli.main import main
from ottoscaler.core.results import rfc3339
from ottoscaler.core.status_codes import WORKER_CODES, StatusCode
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim, VictimRequest
from ottoscaler.ports import OpenTask, StatusUpdate
from ottoscaler.settings import Settings
from ottoscaler.stored import TaskNote, WorkerNote
from tests.cli.conftest import Controller
from tests.schemas import faults

pytestmark = pytest.mark.contract("1.explain")

UP: Final = ("type=scale_up", "task_id=task-123", "event_id=e-1")


def explained(capsys: pytest.CaptureFixture[str], name: str, code: int = 0) -> list[dict[str, Any]]:
    """The events of --json, which is as its schema says."""
    capsys.readouterr()
    assert main(["explain", name, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert faults("explain", found) == []
    events: list[dict[str, Any]] = found["events"]
    return events


def shown(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """What a person reads."""
    capsys.readouterr()
    assert main(["explain", name]) == 0
    return capsys.readouterr().out


def taken(controller: Controller, *fields: str) -> OpenTask:
    """An event, accepted."""
    assert main(["send", *(fields or UP)]) == 0
    task = controller.take()
    assert task is not None
    return task


def note(controller: Controller, task: OpenTask, code: StatusCode, index: int = 1, state: str = "") -> None:
    """What the owner writes of a worker with this code, and of its task."""
    facts, next_at = code.facts, rfc3339(time.time() + 60)
    worker = WorkerNote(
        state or facts.state, 1, f"pod-{index}", code=code, detail="the cluster's words", since=rfc3339(time.time()),
        next_at=next_at,
    )  # fmt: skip
    of_task = TaskNote(facts.why("the cluster's words"), code=code, since=worker.since, next_at=next_at)
    controller.stream.write_status([StatusUpdate(task.event.event_id, task.owner, {index: worker}, of_task)])


@pytest.mark.parametrize("code", WORKER_CODES)
def test_a_worker_has_its_code(controller: Controller, capsys: pytest.CaptureFixture[str], code: StatusCode) -> None:
    """With the cluster's words, the next step with its time, and the side that has to act."""
    task = taken(controller)
    note(controller, task, code)
    (found,) = explained(capsys, "e-1")
    (group,) = found["groups"]
    assert (found["code"], group["code"], group["workers"]) == (code, code, [1])
    assert (found["actor"], found["attention"]) == (code.facts.actor, code.facts.attention)
    assert found["next"] == code.facts.next_step(found["next_at"])
    text = shown(capsys, "e-1")
    why = code.facts.why("the cluster's words")
    assert f"{code}: {why}" in text
    assert ("  to do  " in text) is bool(code.facts.advice)
    assert len(text.splitlines()) < 12


def _dead(controller: Controller) -> None:
    main(["send", "type=scale_up", "pod_count=lots", "event_id=e-1", "--force"])
    assert controller.take() is None


def _finished(controller: Controller) -> None:
    main(["send", *UP])
    controller.carry_out(EndReason.ERROR, exit_code="3")


def _late(controller: Controller) -> None:
    main(["send", *UP])
    controller.carry_out(EndReason.NOT_AFTER)


def _scale_down(controller: Controller) -> None:
    of = taken(controller, "type=scale_up", "task_id=t")
    main(["send", "type=scale_down", "task_id=t", "event_id=e-1"])
    task = controller.take()
    assert task is not None
    _choose(controller, task, of)


def _choose(controller: Controller, task: OpenTask, of: OpenTask) -> None:
    termination = Termination(EndReason.SCALED_DOWN, by=task.event.event_id)
    victims = [Victim(of.event.event_id, 1, "pod-1")]
    controller.stream.select_victims(task.event.event_id, task.owner, VictimRequest(termination, victims))


def _waits_for_older(controller: Controller) -> None:
    main(["send", "type=scale_down", "task_id=t", "event_id=e-1"])
    task = controller.take()
    assert task is not None
    why = TaskNote("waits for event d-1, which was sent before it", code=StatusCode.OLDER_EVENT)
    controller.stream.write_status([StatusUpdate("e-1", task.owner, task=why)])


def _unread(controller: Controller) -> None:
    main(["send", "type=scale_up"])
    main(["send", *UP])


def _unaccepted(controller: Controller) -> None:
    main(["send", *UP])
    assert controller.stream.read(1)


def _fresh(controller: Controller) -> None:
    taken(controller)


def _created(controller: Controller) -> None:
    controller.start(taken(controller), 1)


SITUATIONS: Final[dict[str, tuple[Callable[[Controller], None], StatusCode, str]]] = {
    "dead letter": (_dead, StatusCode.DEAD_LETTER, "pod_count"),
    "failed": (_finished, StatusCode.FINISHED, "failed: 0 of 1 workers completed"),
    "too late": (_late, StatusCode.EXPIRED, "workers completed"),
    "scale_down": (_scale_down, StatusCode.VICTIMS, "waits until its victims have ended"),
    "older event": (_waits_for_older, StatusCode.OLDER_EVENT, "waits for event d-1"),
    "unread": (_unread, StatusCode.UNREAD, "1 events come before it"),
    "read": (_unaccepted, StatusCode.UNACCEPTED, "otto-0 read it"),
    "accepted": (_fresh, StatusCode.TURN, "waits for its turn"),
    "no note yet": (_created, StatusCode.CREATING, "is being created"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_has_its_code(controller: Controller, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Whatever keeps the event, and whichever of its ids is asked for."""
    begin, code, words = SITUATIONS[name]
    begin(controller)
    (found,) = explained(capsys, "e-1")
    assert (found["code"], words in found["why"]) == (code, True), found
    assert words in shown(capsys, "e-1")


def test_a_lease_that_ran_out_is_the_worst(
    controller: Controller, settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its owner wrote last: no replica works on the task."""
    task = taken(controller)
    note(controller, task, StatusCode.RUNNING)
    assert explained(capsys, "e-1")[0]["code"] == "running"
    client.zadd(f"{settings.keys.prefix}open", {"e-1": 1000})
    (found,) = explained(capsys, "e-1")
    assert (found["code"], found["owner"], found["since"]) == ("lease_expired", "otto-0", "1970-01-01T00:00:01.000Z")
    assert "its owner was otto-0; before that: the worker runs" in found["why"]


def test_the_worst_worker_comes_first(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """And equal ones are one line."""
    task = taken(controller, *UP, "pod_count=40")
    for index in range(1, 31):
        note(controller, task, StatusCode.RUNNING, index)
    for index in range(31, 36):
        note(controller, task, StatusCode.QUOTA, index)
    (found,) = explained(capsys, "task-123")
    assert [(group["code"], group["count"]) for group in found["groups"]] == [("quota", 5), ("running", 30)]
    assert found["workers"] == {"waiting": 10, "running": 30}
    text = shown(capsys, "task-123")
    assert "workers 31, 32, 33, 34, 35: quota: the quota is used up" in text
    assert len(text.splitlines()) < 24


def test_the_failed_workers_of_a_finished_task_are_named(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    """With reason, message and exit code."""
    _finished(controller)
    assert "  worker 1: failed: Error: so it was; exit code 3" in shown(capsys, "e-1")


def test_a_dead_letter_says_how_to_send_it_again(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """Under each of its ids."""
    _dead(controller)
    (found,) = explained(capsys, "e-1")
    dead_id = found["dead_letter"]
    assert f"`dead redrive {dead_id} FIELD=VALUE`" in found["advice"]
    assert explained(capsys, dead_id) == [found]


def test_a_dead_letter_is_found_by_the_task_id_of_its_event(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is all that most producers know. Other events of which a field has that text are not meant."""
    for fields in (("pod_count=lots", "task_id=build-7"), ("pod_count=many", "task_id=other", "reason=build-7")):
        assert main(["send", "type=scale_up", *fields, "--force"]) == 0
        assert controller.take() is None
    (found,) = explained(capsys, "build-7")
    assert found["code"] == "dead_letter"
    assert "lots" in found["why"]


def test_an_id_that_is_not_known(names: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A clear sentence, and exit code 1."""
    assert names
    assert main(["explain", "no-such"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("Redis knows no event, task or dead letter 'no-such': look at the id, and at ")
    assert explained(capsys, "no-such", code=1) == []


def test_several_events_of_one_task(controller: Controller, capsys: pytest.CaptureFixture[str]) -> None:
    """The worst first; a screen has some of them."""
    for number in range(5):
        task = taken(controller, "type=scale_up", "task_id=t", f"event_id=e-{number}")
        note(controller, task, StatusCode.QUOTA if number == 3 else StatusCode.RUNNING)
    first, *_ = explained(capsys, "t")
    assert first["event_id"] == "e-3"
    assert "and 2 more events of this task" in shown(capsys, "t")


def test_times_are_of_the_readers_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unambiguous: with the zone, with the day where it is another, and with how far away it is."""
    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    now = 1714557600.0  # 2024-05-01T10:00:00Z
    assert local_time("2024-05-01T10:00:04.000Z", now) == "19:00:04 KST (in 4 s)"
    assert local_time("2024-05-01T08:00:00.000Z", now) == "17:00:00 KST (2 h 0 min ago)"
    assert local_time("2024-04-30T10:00:00.000Z", now) == "2024-04-30 19:00:00 KST (1 d 0 h ago)"
    assert local_time("", now) == ""
    monkeypatch.undo()
    time.tzset()


def test_what_came_from_outside_cannot_move_the_cursor(
    controller: Controller, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences are shown, and not sent to the terminal."""
    task = taken(controller)
    controller.stream.write_status([StatusUpdate("e-1", task.owner, task=TaskNote("\x1b[2J", code="node"))])
    assert "\\x1b[2J" in shown(capsys, "e-1")


def test_redis_has_little_to_do(
    controller: Controller, settings: Settings, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """With thousands of open tasks, and entries in each stream, at most 100 ms of its time; no SCAN."""
    pipe = client.pipeline(transaction=False)
    prefix = settings.keys.prefix
    for number in range(5000):
        pipe.hset(
            f"{prefix}task:o-{number}", mapping={"task_id": f"t-{number}", "type": "scale_up", "state": "running"}
        )
        pipe.zadd(f"{prefix}open", {f"o-{number}": 10**13})
        pipe.xadd(settings.keys.result_stream, {"kind": "task", "event_id": f"r-{number}", "task_id": f"q-{number}"})
    pipe.execute()
    assert controller
    for name in ("t-4000", "q-4999", "no-such"):
        client.config_resetstat()
        main(["explain", name])
        stats: Any = client.info("commandstats")
        spent = {command: one["usec"] for command, one in stats.items() if command != "cmdstat_config|resetstat"}
        assert "cmdstat_scan" not in spent
        assert sum(spent.values()) < 100_000, (name, spent)
    capsys.readouterr()
