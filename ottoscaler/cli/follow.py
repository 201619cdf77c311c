"""Following one event from its sending to its end, for `send --wait` and `demo`.

Results and dead letters wake the follower; the task hash is what it believes, because a result may have been trimmed
away and a task may have been finished before it was asked for (the producer's duplicate).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ottoscaler.adapters.status_reader import DeadLetter, StatusReader, StreamPositions
from ottoscaler.adapters.task_codec import TaskState
from ottoscaler.cli.table import printable, tally_text
from ottoscaler.core.events import content_digest
from ottoscaler.core.wording import count_text

#: The hash of a task with a thousand workers is half a megabyte: it is read this often while no result comes in,
#: seconds...
READ_EVERY_S: Final = 1.0
#: ... and at most this often while results come in.
READ_GAP_S: Final = 0.25
#: At most this many failed workers are listed one by one.
MAX_LISTED_WORKERS: Final = 10


@dataclass(frozen=True, slots=True)
class EventProgress:
    """What is known of an event at one moment; `closing_result` is the result of a finished scale_down, empty if
    trimmed.
    """

    task: TaskState | None = None
    dead_letter: DeadLetter | None = None
    closing_result: Mapping[str, str] | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more happens. A poisoned task is a dead letter first, and then its workers end."""
        return self.task.finished if self.task is not None else self.dead_letter is not None

    @property
    def succeeded(self) -> bool:
        """Whether all of it ended well: every worker, or the scale_down itself."""
        if self.dead_letter is not None or self.task is None or not self.task.finished:
            return False
        if self.task.event_type == "scale_down":
            return (self.closing_result or {}).get("outcome", "succeeded") == "succeeded"
        return self.task.event_type == "scale_up" and self.task.succeeded == self.task.pod_count


class Follower:
    """Sends one event and looks what becomes of it. One thread; raises RedisUnavailable like the reader."""

    def __init__(self, reader: StatusReader, fields: Mapping[str, str]) -> None:
        self._reader = reader
        self._fields = fields
        # as text, so it compares with the digest that the controller makes of the entry's bytes
        self._digest = content_digest({name.encode(): value.encode() for name, value in fields.items()})
        self._position = StreamPositions()
        self._due = 0.0
        self._seen = EventProgress()
        self.stream_id = ""
        self.event_id = ""

    def send(self) -> str:
        """Send the event; returns its entry's id, which is also its event id unless it has one of its own."""
        self._position = self._reader.position()
        self.stream_id = self._reader.send(self._fields)
        self.event_id = self._fields.get("event_id") or self.stream_id
        return self.stream_id

    def poll(self, wait_s: float) -> EventProgress:
        """What is known now; waits up to `wait_s` seconds for news first, unless it was never looked before."""
        now = time.monotonic()
        news = self._reader.new_entries(self._position, min(wait_s, max(0.0, self._due - now)))
        self._position = news.position
        dead = next((letter for letter in news.dead if letter.stream_id == self.stream_id), self._seen.dead_letter)
        ours = [result for result in news.results if result.get("event_id") == self.event_id]
        closing = next((result for result in ours if result.get("kind") != "worker"), None)
        now = time.monotonic()
        if ours:
            self._due = min(self._due, now + READ_GAP_S)
        if closing is not None or dead is not self._seen.dead_letter or now >= self._due:
            self._due = now + READ_EVERY_S
            self._seen = self._read(dead)
        return self._seen

    def _read(self, dead: DeadLetter | None) -> EventProgress:
        task = self._reader.task(self.event_id)
        if task is None or not self._is_our_event(task):
            return EventProgress(None, dead)
        if not task.finished:
            return EventProgress(task, dead)
        if task.event_type == "scale_down":
            # only the result says how it ended
            return EventProgress(task, dead, self._reader.result(task.event_id, task.stream_id) or {})
        if task.event_type == "" and dead is None:
            # the same event was refused before; a repeated one gets no dead letter of its own
            dead = self._reader.dead_letter(task.stream_id) or DeadLetter(
                "", "Rejected", "", task.event_id, task.stream_id
            )
        return EventProgress(task, dead)

    def _is_our_event(self, task: TaskState) -> bool:
        """Whether the hash is about this event, and not about another one that used its event id: a conflict.

        A task that was taken up again after Redis was wiped has no digest.
        """
        return task.stream_id == self.stream_id or task.digest in ("", self._digest)


def describe_end(progress: EventProgress) -> Sequence[str]:
    """How an event ended that is done, in lines for people."""
    if progress.dead_letter is not None:
        detail = f": {progress.dead_letter.detail}" if progress.dead_letter.detail else ""
        return [
            printable(
                f"The event became a dead letter {progress.dead_letter.id}: {progress.dead_letter.reason}{detail}"
            )
        ]
    task = progress.task
    if task is None:
        return []
    if task.event_type == "scale_down":
        names = f": {', '.join(task.victims)}" if task.victims else ""
        reason = (progress.closing_result or {}).get("reason", "")
        what = f"scale_down {'succeeded' if progress.succeeded else 'failed'} ({reason or 'finished'})"
        return [printable(f"{what}; {count_text(len(task.victims), 'worker')} ended{names}")]
    if progress.succeeded:
        return [
            f"All {count_text(task.pod_count, 'worker')} succeeded" if task.pod_count > 1 else "The worker succeeded"
        ]
    bad = [worker for worker in task.workers.values() if worker.outcome not in ("", "succeeded")]
    lines = [
        f"{task.succeeded} of {count_text(task.pod_count, 'worker')} succeeded ({tally_text(task.count_workers())})"
    ]
    for worker in bad[:MAX_LISTED_WORKERS]:
        code = f", exit code {worker.exit_code}" if worker.exit_code else ""
        message = f": {worker.message}" if worker.message else ""
        lines.append(printable(f"  worker {worker.index} {worker.outcome}: {worker.reason}{code}{message}"))
    return [*lines, f"  and {len(bad) - MAX_LISTED_WORKERS} more"] if len(bad) > MAX_LISTED_WORKERS else lines
