"""The reference handler's own rules, without a network: what a real one has to do, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.forwarder.reference_handler import Cut, Habits, ReferenceHandler
from ottoscaler.proto.log_streaming_pb2 import LogEntry, LoggingConfig, LogResponse, WorkerRegistration

ACK, RETRY, DROP = LogResponse.ACK, LogResponse.RETRY, LogResponse.DROP


def made(folder: Path | None = None, **habits: Any) -> ReferenceHandler:
    """A handler with these habits."""
    return ReferenceHandler(LoggingConfig(max_batch=500), Habits(**habits), folder=folder, show=lambda *_: None)


def registered(handler: ReferenceHandler, worker: str = "w-1", task: str = "t-1") -> tuple[str, int]:
    """Status and last sequence of a registration."""
    response = handler.register(WorkerRegistration(worker_id=worker, task_id=task))
    return type(response).Status.Name(response.status), response.last_sequence


def sent(handler: ReferenceHandler, *sequences: int) -> list[tuple[int, int]]:
    """Status and sequence of the answers to one message."""
    entries = [LogEntry(worker_id="w-1", sequence=number, message=str(number)) for number in sequences]
    return [(answer.status, answer.sequence) for answer in handler.receive("w-1", entries)]


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        ("message", [(ACK, 3)]),
        ("entry", [(ACK, 1), (ACK, 2), (ACK, 3)]),
        ("position", [(ACK, 0), (ACK, 0), (ACK, 0)]),
    ],
)
def test_a_message_is_answered(answer: str, answers: Sequence[tuple[int, int]]) -> None:
    """Once, per entry, or by position."""
    assert sent(made(answer=answer), 1, 2, 3) == answers


def test_what_was_seen_is_acknowledged_and_not_stored_twice() -> None:
    """The sender may not know that it is here."""
    handler = made()
    sent(handler, 1, 2)
    assert sent(handler, 1, 2, 3) == [(ACK, 3)]
    log = handler.workers["w-1"]
    assert [entry.sequence for entry in log.lines] == [1, 2, 3]
    assert (log.received, log.doubled) == (5, 2)


def test_a_refused_entry_is_missing_until_it_comes_again() -> None:
    """Later ones are stored; the registration gives the sequence before it."""
    handler = made(retry_every=2)
    assert sent(handler, 1, 2, 3) == [(RETRY, 2), (ACK, 3)]
    assert registered(handler) == ("ALREADY_REGISTERED", 1)
    handler.habits = Habits()
    assert sent(handler, 2) == [(ACK, 2)]
    assert registered(handler) == ("ALREADY_REGISTERED", 3)


def test_the_other_habits() -> None:
    """Each of them on the entries that it is about."""
    assert sent(made(drop_every=2), 1, 2, 3) == [(DROP, 2), (ACK, 3)]
    assert sent(made(lose_answer_every=3), 1, 2, 3) == [(ACK, 2)]
    handler = made(cut_every=2)
    with pytest.raises(Cut):
        sent(handler, 1, 2, 3)
    assert registered(handler) == ("ALREADY_REGISTERED", 1)


def test_registrations_are_refused_on_request() -> None:
    """For now, or for good."""
    handler = made(full_first=1)
    assert [registered(handler)[0] for _ in range(3)] == ["SERVER_FULL", "SUCCESS", "ALREADY_REGISTERED"]
    assert registered(made(invalid=True))[0] == "INVALID_REQUEST"
    handler = made(max_workers=1)
    assert [registered(handler, worker)[0] for worker in ("a", "b", "a")] == [
        "SUCCESS",
        "SERVER_FULL",
        "ALREADY_REGISTERED",
    ]


@pytest.mark.parametrize("worker", ["", "../x", "a/b", "a" * 254, ".hidden", "a\n"])
def test_a_worker_id_has_to_be_a_name(worker: str) -> None:
    """It becomes the name of a file."""
    assert registered(made(), worker)[0] == "INVALID_REQUEST"
    assert registered(made(), "w-1", "")[0] == "INVALID_REQUEST"


def test_a_new_handler_goes_on_from_the_folder(tmp_path: Path) -> None:
    """Also when the last line of the file was half written."""
    handler = made(tmp_path, retry_every=2)
    sent(handler, 1, 2, 3)
    path = tmp_path / "w-1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"sequence": 4, "mess')
    again = made(tmp_path)
    assert registered(again) == ("SUCCESS", 1)
    assert sent(again, 2, 3, 4) == [(ACK, 4)]
    stored = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [each["sequence"] for each in stored] == [1, 3, 2, 4]


def test_only_the_last_lines_are_kept_in_memory() -> None:
    """As many as asked for."""
    handler = made(keep=2)
    registered(handler)
    sent(handler, *range(1, 100))
    assert [entry.sequence for entry in handler.workers["w-1"].lines] == [98, 99]


def test_no_lines_are_written_where_no_folder_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where another worker's file is."""
    monkeypatch.chdir(tmp_path)
    sent(made(), 1)
    assert list(tmp_path.iterdir()) == []
