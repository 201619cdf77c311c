"""What a log handler does with registrations and entries, and the bad habits that a test may give it. No network here.

It is the model for a real one: it acknowledges what it has stored, drops what it has seen already, and remembers which
entries it has refused. With a folder it goes on after a restart where it was.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ottoscaler.proto.log_streaming_pb2 import LoggingConfig, LogResponse, RegistrationResponse

#: Names that are safe as names of files.
_WORKER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
#: Which entries an answer speaks of.
ANSWERS: Final = ("message", "entry", "position")


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How the handler behaves. Immutable: any thread. A number is "each n-th entry", and 0 is never."""

    keep: int = 1000
    """Lines kept in memory for each worker."""
    max_workers: int = 1000
    """More are refused with SERVER_FULL."""
    answer: str = "message"
    """One answer for each message (cumulative), for each entry, or for each entry without its sequence."""
    delay_s: float = 0.0
    """Pause after each message."""
    full_first: int = 0
    """The number of registrations that are refused with SERVER_FULL."""
    invalid: bool = False
    """Whether all registrations are refused with INVALID_REQUEST."""
    retry_every: int = 0
    drop_every: int = 0
    lose_answer_every: int = 0
    """The answer is not sent."""
    cut_every: int = 0
    """The stream is ended behind it, without its answer."""


@dataclass(slots=True)
class WorkerLog:
    """What the handler has of one worker."""

    lines: deque[Any]
    last: int = 0
    """The highest sequence that was stored."""
    missing: set[int] = field(default_factory=set)
    """Sequences that were refused and have not come again."""
    received: int = 0
    """Entries, repeated ones included."""
    doubled: int = 0
    end: Any = None

    @property
    def last_sequence(self) -> int:
        """Up to this one everything is here: what is sent next comes after it."""
        return min(self.missing, default=self.last + 1) - 1

    def has(self, sequence: int) -> bool:
        """Whether an entry was stored, or dropped on purpose, before."""
        return 0 < sequence <= self.last and sequence not in self.missing


class Cut(Exception):
    """The stream has to be ended now: a habit."""


class ReferenceHandler:
    """Keeps, prints and stores the lines of workers. Not thread-safe: one event loop."""

    def __init__(
        self, config: LoggingConfig, habits: Habits, *, folder: Path | None, show: Callable[[str, Any], None]
    ) -> None:
        """Arguments: what senders are asked for; how it behaves; where lines are stored; what prints an entry."""
        self._config = config
        self.habits = habits
        self._folder = folder
        self._show = show
        self._full = habits.full_first
        self._entries = 0
        self._unstored: list[bytes] = []
        self.workers: dict[str, WorkerLog] = {}

    def register(self, registration: Any) -> Any:
        """The RegistrationResponse to a WorkerRegistration."""
        answer, worker_id = RegistrationResponse, registration.worker_id
        if self.habits.invalid:
            return answer(status=answer.INVALID_REQUEST, message="this handler was started with --invalid")
        if not _WORKER_ID.fullmatch(worker_id) or not registration.task_id:
            return answer(status=answer.INVALID_REQUEST, message="worker_id has to be a pod's name, and task_id set")
        if self._full > 0 or (worker_id not in self.workers and len(self.workers) >= self.habits.max_workers):
            self._full -= 1
            return answer(status=answer.SERVER_FULL, message=f"{len(self.workers)} workers are registered")
        known = worker_id in self.workers
        log = self._log(worker_id)
        status = answer.ALREADY_REGISTERED if known else answer.SUCCESS
        return answer(status=status, session_id=worker_id, config=self._config, last_sequence=log.last_sequence)

    def receive(self, worker_id: str, entries: Iterable[Any]) -> list[Any]:
        """Take the entries of one message; returns the answers. Raises Cut."""
        try:
            return self._received(self._log(worker_id), entries)
        finally:
            self._store(worker_id)  # before the answers: what is acknowledged is forgotten by the sender

    def _received(self, log: WorkerLog, entries: Iterable[Any]) -> list[Any]:
        answers: list[Any] = []
        stored = LogResponse(status=LogResponse.ACK)
        for entry in entries:
            self._entries += 1
            if self._is_due(self.habits.cut_every):
                raise Cut
            status = self._store_entry(log, entry)
            if self._is_due(self.habits.lose_answer_every):
                continue
            if self.habits.answer == "position":
                answers.append(LogResponse(status=status))
            elif status == LogResponse.ACK and self.habits.answer == "message":
                stored.sequence = max(stored.sequence, entry.sequence)
            else:
                answers.append(LogResponse(status=status, sequence=entry.sequence))
        return [*answers, stored] if stored.sequence else answers

    def _store_entry(self, log: WorkerLog, entry: Any) -> Any:
        """Store an entry unless it is here already; returns the status of the answer."""
        log.received += 1
        if log.has(entry.sequence):
            log.doubled += 1
            return LogResponse.ACK
        if self._is_due(self.habits.retry_every):
            # What comes after it may be stored, so the highest sequence alone would say that it is here.
            log.missing.add(entry.sequence)
            log.last = max(log.last, entry.sequence)
            return LogResponse.RETRY
        log.missing.discard(entry.sequence)
        log.last = max(log.last, entry.sequence)
        if self._is_due(self.habits.drop_every):
            return LogResponse.DROP
        log.lines.append(entry)
        if entry.HasField("end"):
            log.end = entry.end
        if self._folder is not None:
            self._unstored.append(_as_json(entry))
        self._show(entry.worker_id, entry)
        return LogResponse.ACK

    def _is_due(self, every: int) -> bool:
        return bool(every) and self._entries % every == 0

    def _log(self, worker_id: str) -> WorkerLog:
        if worker_id not in self.workers:
            self.workers[worker_id] = self._stored(worker_id)
        return self.workers[worker_id]

    def _path(self, worker_id: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{worker_id}.jsonl"

    def _store(self, worker_id: str) -> None:
        if self._unstored:
            with self._path(worker_id).open("ab") as file:
                file.write(b"".join(self._unstored))
            self._unstored.clear()

    def _stored(self, worker_id: str) -> WorkerLog:
        """What the folder has of a worker; a line that was half written when the handler was killed is removed."""
        log = WorkerLog(deque(maxlen=self.habits.keep))
        if self._folder is None or not self._path(worker_id).exists():
            return log
        path = self._path(worker_id)
        content = path.read_bytes()
        whole = content.rpartition(b"\n")[0]
        if len(whole) + 1 < len(content):
            path.write_bytes(whole + b"\n" if whole else b"")
        sequences = {int(json.loads(line)["sequence"]) for line in whole.splitlines()}
        log.last = max(sequences, default=0)
        log.missing = set(range(1, log.last + 1)) - sequences
        return log


def _as_json(entry: Any) -> bytes:
    """A line of a worker's file."""
    fields = {name: getattr(entry, name) for name in ("sequence", "timestamp", "level", "source", "message")}
    fields |= {"metadata": dict(entry.metadata)} if entry.metadata else {}
    fields |= {"raw": base64.b64encode(entry.raw).decode()} if entry.raw else {}
    if entry.HasField("end"):
        end = entry.end
        fields["end"] = {"lines": end.lines, "bytes": end.bytes, "dropped": end.dropped, "gaps": end.gaps}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
