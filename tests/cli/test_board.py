"""What commands read of Redis, beyond what `send` and `status` show."""

from __future__ import annotations

import time

import pytest
import redis

from ottoscaler.adapters import board as board_module
from ottoscaler.adapters.board import Board, Mark
from ottoscaler.core.verdicts import Reason
from ottoscaler.settings import Settings
from tests.cli.conftest import Controller

UP = {"type": "scale_up", "pod_count": "2", "task_id": "task-7"}


def test_a_task_is_found_by_its_event_id(controller: Controller, board: Board) -> None:
    """Which is the entry's id for an event that has none of its own."""
    event_id = board.send(UP)
    controller.take()
    assert board.find(event_id) == [event_id]


def test_open_tasks_are_found_by_their_task_id(controller: Controller, board: Board) -> None:
    """Several events may bear it; the oldest comes first."""
    sent = [board.send(UP), board.send(UP)]
    for _ in sent:
        controller.take()
    board.send({"type": "scale_up"})
    controller.take()
    assert board.find("task-7") == sent


def test_a_finished_task_is_found_by_its_task_id(controller: Controller, board: Board) -> None:
    """As long as it is remembered."""
    event_id = board.send(UP)
    controller.carry_out(Reason.COMPLETED, Reason.COMPLETED)
    assert board.find("task-7") == [event_id]


def test_what_is_not_known_is_not_found(board: Board) -> None:
    """Neither as an event nor as a task."""
    assert board.find("task-7") == []
    assert board.task("task-7") is None


def test_a_worker_has_its_state_and_then_its_outcome(controller: Controller, board: Board) -> None:
    """Attempt and pod while it is on its way, reason and message when it has ended."""
    event_id = board.send(UP)
    task = controller.take()
    assert task is not None
    controller.end(task, Reason.OOM_KILLED, exit_code="137")
    controller.start(task, 2)
    found = board.task(event_id)
    assert found is not None
    ended, begun = found.workers[1], found.workers[2]
    assert (ended.state, ended.outcome, ended.reason, ended.exit_code) == ("finished", "failed", "OOMKilled", "137")
    assert (begun.state, begun.attempt, begun.pod) == ("creating", 1, "otto-agent-x-2")
    assert (found.failed, found.finished) == (1, False)


@pytest.mark.parametrize("count", [0, 4, 5, 6, 10, 13])
def test_the_backlog_is_counted_to_its_end(board: Board, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """In chunks, a last one that is full included."""
    monkeypatch.setattr(board_module, "_COUNT_CHUNK", 5)
    for _ in range(count):
        board.send(UP)
    assert (board.backlog().unread, board.backlog().exact) == (count, True)


@pytest.mark.parametrize(("count", "exact"), [(9, True), (10, False), (14, False)])
def test_a_long_backlog_is_counted_up_to_a_bound(
    board: Board, monkeypatch: pytest.MonkeyPatch, count: int, exact: bool
) -> None:
    """From there on it is only known to be at least so long."""
    monkeypatch.setattr(board_module, "_COUNT_CHUNK", 5)
    monkeypatch.setattr(board_module, "COUNT_LIMIT", 10)
    for _ in range(count):
        board.send(UP)
    assert (board.backlog().unread >= min(count, 10), board.backlog().exact) == (True, exact)


def test_its_time_is_that_of_the_server(board: Board) -> None:
    """Which runs on this machine here."""
    before = time.time()
    assert before - 1 <= board.now() <= time.time() + 1


def test_news_begin_behind_the_mark(controller: Controller, board: Board) -> None:
    """What was there before is not told, what comes after is told once."""
    board.send(UP)
    controller.carry_out(Reason.COMPLETED, Reason.COMPLETED)
    mark = board.mark()
    board.send({"type": "scale_up", "task_id": "later"})
    controller.carry_out(Reason.COMPLETED)
    board.send({"type": "nothing"})
    controller.take()
    news = board.news(mark, 0)
    assert [(result["task_id"], result["kind"]) for result in news.results[:2]] == [
        ("later", "worker"),
        ("later", "task"),
    ]
    assert [letter.reason for letter in news.dead] == ["Invalid"]
    assert board.news(news.mark, 0).results == []


def test_news_are_waited_for_no_longer_than_said(board: Board) -> None:
    """And 0 is not for ever, as it is for Redis."""
    started = time.monotonic()
    assert board.news(Mark(), 0).results == []
    assert board.news(board.mark(), 0.2).results == []
    assert 0.15 < time.monotonic() - started < 5


def test_dead_letters_of_another_group_are_not_ours(board: Board, settings: Settings, client: redis.Redis) -> None:
    """It may refuse what our group carries out."""
    client.xadd(settings.keys.dead_letter_stream, {"dead_reason": "Invalid", "stream_id": "1-1", "group": "others"})
    assert board.news(Mark(), 0).dead == []
    assert board.dead_letter("1-1") is None


def test_a_dead_letter_is_found_behind_many_others(board: Board, settings: Settings, client: redis.Redis) -> None:
    """It is looked for from the entry's own time on."""
    stream_id = board.send({"type": "x"})
    pipe = client.pipeline(transaction=False)
    for number in range(1500):
        sid = stream_id if number == 1400 else f"1-{number}"
        pipe.xadd(
            settings.keys.dead_letter_stream,
            {"dead_reason": f"R{number}", "stream_id": sid, "group": settings.keys.group},
        )
    pipe.execute()
    found = board.dead_letter(stream_id)
    assert found is not None
    assert found.reason == "R1400"


@pytest.mark.parametrize("prefix", ["otto[1]:", "{otto}:*"])
def test_a_prefix_is_not_a_pattern(settings: Settings, board: Board, client: redis.Redis, prefix: str) -> None:
    """KEY_PREFIX may have characters that SCAN would understand in its own way."""
    keys = type(settings.keys)(consumer="c", prefix=f"{settings.keys.prefix}{prefix}")
    client.hset(f"{keys.prefix}task:e-1", mapping={"task_id": "t", "state": "finished"})
    own = Board(settings.redis, keys)
    assert own.find("t") == ["e-1"]
    own.close()
