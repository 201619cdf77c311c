"""What commands read of Redis, beyond what `send` and `status` show."""

from __future__ import annotations

import json
import time

import pytest
import redis

from ottoscaler.adapters import status_reader
from ottoscaler.adapters.status_reader import StatusReader, StreamPositions
from ottoscaler.adapters.task_codec import decode_state
from ottoscaler.core.verdicts import EndReason
from ottoscaler.settings import Settings
from tests.cli.conftest import Controller

UP = {"type": "scale_up", "pod_count": "2", "task_id": "task-7"}


def test_a_task_is_found_by_its_event_id(controller: Controller, reader: StatusReader) -> None:
    """Which is the entry's id for an event that has none of its own."""
    event_id = reader.send(UP)
    controller.take()
    assert reader.find_event_ids(event_id) == [event_id]


def test_open_tasks_are_found_by_their_task_id(controller: Controller, reader: StatusReader) -> None:
    """Several events may bear it; the oldest comes first."""
    sent = [reader.send(UP), reader.send(UP)]
    for _ in sent:
        controller.take()
    reader.send({"type": "scale_up"})
    controller.take()
    assert reader.find_event_ids("task-7") == sent


def test_a_finished_task_is_found_by_its_task_id(controller: Controller, reader: StatusReader) -> None:
    """As long as it is remembered."""
    event_id = reader.send(UP)
    controller.carry_out(EndReason.COMPLETED, EndReason.COMPLETED)
    assert reader.find_event_ids("task-7") == [event_id]


def test_what_is_not_known_is_not_found(reader: StatusReader) -> None:
    """Neither as an event nor as a task."""
    assert reader.find_event_ids("task-7") == []
    assert reader.task("task-7") is None


def test_a_worker_has_its_state_and_then_its_outcome(controller: Controller, reader: StatusReader) -> None:
    """Attempt and pod while it is on its way, reason and message when it has ended."""
    event_id = reader.send(UP)
    task = controller.take()
    assert task is not None
    controller.end(task, EndReason.OOM_KILLED, exit_code="137")
    controller.start(task, 2)
    found = reader.task(event_id)
    assert found is not None
    ended, begun = found.workers[1], found.workers[2]
    assert (ended.state, ended.outcome, ended.reason, ended.exit_code) == ("finished", "failed", "OOMKilled", "137")
    assert (begun.state, begun.attempt, begun.pod) == ("creating", 1, "otto-agent-x-2")
    assert (found.failed, found.finished) == (1, False)


@pytest.mark.parametrize(
    ("kind", "stored", "tally"),
    [
        ("scale_up", {}, {"waiting": 3}),
        ("scale_up", {1: {"state": "running"}}, {"running": 1, "waiting": 2}),
        ("scale_up", {1: {"state": "waiting"}, 2: {"outcome": "failed"}}, {"waiting": 2, "failed": 1}),
        ("scale_up", {n: {"state": "running"} for n in (1, 2, 3)}, {"running": 3}),
        ("scale_down", {}, {}),
    ],
)
def test_a_worker_of_which_nothing_is_stored_is_waiting(
    kind: str, stored: dict[int, dict[str, str]], tally: dict[str, int]
) -> None:
    """A scale_down has no workers of its own, whatever its number is."""
    workers = {f"worker:{index}".encode(): json.dumps(worker).encode() for index, worker in stored.items()}
    state = decode_state("e-1", {b"type": kind.encode(), b"pod_count": b"3", **workers})
    assert state.count_workers() == tally


@pytest.mark.parametrize("count", [0, 4, 5, 6, 10, 13])
def test_the_backlog_is_counted_to_its_end(reader: StatusReader, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """In chunks, a last one that is full included."""
    monkeypatch.setattr(status_reader, "_COUNT_CHUNK", 5)
    for _ in range(count):
        reader.send(UP)
    assert (reader.backlog().unread, reader.backlog().exact) == (count, True)


@pytest.mark.parametrize(("count", "exact"), [(9, True), (10, False), (14, False)])
def test_a_long_backlog_is_counted_up_to_a_bound(
    reader: StatusReader, monkeypatch: pytest.MonkeyPatch, count: int, exact: bool
) -> None:
    """From there on it is only known to be at least so long."""
    monkeypatch.setattr(status_reader, "_COUNT_CHUNK", 5)
    monkeypatch.setattr(status_reader, "COUNT_LIMIT", 10)
    for _ in range(count):
        reader.send(UP)
    assert (reader.backlog().unread >= min(count, 10), reader.backlog().exact) == (True, exact)


def test_its_time_is_that_of_the_server(reader: StatusReader) -> None:
    """Which runs on this machine here."""
    before = time.time()
    assert before - 1 <= reader.now() <= time.time() + 1


def test_news_begin_behind_the_mark(controller: Controller, reader: StatusReader) -> None:
    """What was there before is not returned, what comes after is returned once."""
    reader.send(UP)
    controller.carry_out(EndReason.COMPLETED, EndReason.COMPLETED)
    mark = reader.position()
    reader.send({"type": "scale_up", "task_id": "later"})
    controller.carry_out(EndReason.COMPLETED)
    reader.send({"type": "nothing"})
    controller.take()
    news = reader.new_entries(mark, 0)
    assert [(result["task_id"], result["kind"]) for result in news.results[:2]] == [
        ("later", "worker"),
        ("later", "task"),
    ]
    assert [letter.reason for letter in news.dead] == ["Invalid"]
    assert reader.new_entries(news.position, 0).results == []


def test_news_are_waited_for_no_longer_than_said(reader: StatusReader) -> None:
    """And 0 does not mean without limit, as it does for Redis."""
    started = time.monotonic()
    assert reader.new_entries(StreamPositions(), 0).results == []
    assert reader.new_entries(reader.position(), 0.2).results == []
    assert 0.15 < time.monotonic() - started < 5


def test_dead_letters_of_another_group_are_not_ours(
    reader: StatusReader, settings: Settings, client: redis.Redis
) -> None:
    """It may refuse what our group carries out."""
    client.xadd(settings.keys.dead_letter_stream, {"dead_reason": "Invalid", "stream_id": "1-1", "group": "others"})
    assert reader.new_entries(StreamPositions(), 0).dead == []
    assert reader.dead_letter("1-1") is None


def test_a_dead_letter_is_found_behind_many_others(
    reader: StatusReader, settings: Settings, client: redis.Redis
) -> None:
    """It is looked for from the entry's own time on."""
    stream_id = reader.send({"type": "x"})
    pipe = client.pipeline(transaction=False)
    for number in range(1500):
        sid = stream_id if number == 1400 else f"1-{number}"
        pipe.xadd(
            settings.keys.dead_letter_stream,
            {"dead_reason": f"R{number}", "stream_id": sid, "group": settings.keys.group},
        )
    pipe.execute()
    found = reader.dead_letter(stream_id)
    assert found is not None
    assert found.reason == "R1400"


@pytest.mark.parametrize("prefix", ["otto[1]:", "{otto}:*"])
def test_a_prefix_is_not_a_pattern(settings: Settings, reader: StatusReader, client: redis.Redis, prefix: str) -> None:
    """KEY_PREFIX may have characters that SCAN would understand in its own way."""
    keys = type(settings.keys)(consumer="c", prefix=f"{settings.keys.prefix}{prefix}")
    client.hset(f"{keys.prefix}task:e-1", mapping={"task_id": "t", "state": "finished"})
    own = StatusReader(settings.redis, keys)
    assert own.find_event_ids("t") == ["e-1"]
    own.close()
