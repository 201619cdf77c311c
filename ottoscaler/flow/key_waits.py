"""The tasks of ours that wait for a place of their concurrency key: when they have one they go to the ledger's queues.

Redis alone gives the places, in the step that closes a task; this part only asks which tasks have one, by key and not
by task. A task that waits has its lease renewed like every other, and nothing else: no thread, no room, no
place in the read-ahead. If this process dies, the next owner of the task finds in Redis whether it has its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ottoscaler.core.status_codes import StatusCode
from ottoscaler.errors import Unavailable
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.owned_tasks import OwnedTask
from ottoscaler.ports import Attempts, Clock, KeyPlaces, Leases, StatusUpdate
from ottoscaler.stored import TaskNote

#: How long each key makes the pause between two looks, seconds: a look at thousands of keys must not keep Redis busy.
PAUSE_PER_KEY_S: Final = 0.0002
#: The longest pause, seconds: a place that is free is used within this and a tick of the thread.
LONGEST_PAUSE_S: Final = 0.75
#: How often places of tasks that are not open any more are looked for, seconds: only a person can have left one.
CHECK_EVERY_S: Final = 30.0
#: Positions that are shown. Those behind do not change with each task that ends, so they need not be written again.
SHOWN: Final = 20
#: What is written of them in one look.
NOTES_AT_ONCE: Final = 500


class KeyWaits:
    """Belongs to the take-over thread."""

    def __init__(self, *, leases: Leases, attempts: Attempts, ledger: Ledger, clock: Clock) -> None:
        self._leases = leases
        self._attempts = attempts
        self._ledger = ledger
        self._clock = clock
        self._reasons: dict[str, str] = {}  # event id -> what was last written of why it waits
        self._look_at = 0.0
        self._check_at = 0.0

    def look(self) -> None:
        """Let those start that have a place by now, and write down what the others wait for. Raises Unavailable."""
        tasks, now = self._ledger.tasks.waiting_for_key(), self._clock.now()
        if not tasks:
            self._reasons.clear()
            return
        if now < self._look_at:
            return
        keys = list(dict.fromkeys(task.event.concurrency_key for task in tasks))
        check_open = now >= self._check_at
        places = self._leases.admit(keys, shown=SHOWN, check_open=check_open)
        self._look_at = now + min(len(keys) * PAUSE_PER_KEY_S, LONGEST_PAUSE_S)
        self._check_at = now + CHECK_EVERY_S if check_open else self._check_at
        self._write(self._admit_tasks(tasks, places) + self._changed_wait_reasons(tasks, places))

    def _admit_tasks(self, tasks: Sequence[OwnedTask], places: Mapping[str, KeyPlaces]) -> list[StatusUpdate]:
        """Those that have a place. They may still wait for room, and no longer for another task."""
        holding = {event_id for each in places.values() for event_id in each.holding}
        admitted = [task for task in tasks if task.event.event_id in holding and self._ledger.admit(task)]
        return [StatusUpdate(task.event.event_id, task.owner, task=TaskNote("")) for task in admitted]

    def _changed_wait_reasons(self, tasks: Sequence[OwnedTask], places: Mapping[str, KeyPlaces]) -> list[StatusUpdate]:
        positions = {name: at for each in places.values() for at, name in enumerate(each.waiting, 1)}
        notes: list[StatusUpdate] = []
        known, self._reasons = self._reasons, {}
        for task in tasks:
            event = task.event
            if not task.waits:
                continue
            reason = _wait_reason_text(
                event.concurrency_key, places[event.concurrency_key], positions.get(event.event_id)
            )
            before = known.get(event.event_id)
            if reason != before and len(notes) < NOTES_AT_ONCE:
                note = TaskNote(reason, code=StatusCode.CONCURRENCY_KEY, since=task.received_at)
                notes.append(StatusUpdate(event.event_id, task.owner, task=note))
                before = reason
            if before is not None:
                self._reasons[event.event_id] = before
        return notes

    def _write(self, notes: Sequence[StatusUpdate]) -> None:
        if not notes:
            return
        try:
            self._attempts.write_status(notes)
        except Unavailable:
            self._reasons.clear()  # any of them may not be there
            raise


def _wait_reason_text(key: str, places: KeyPlaces, position: int | None) -> str:
    """What a task waits for, in words."""
    if not places.readable:
        return f"waits for {key}: what Redis has under the name of this concurrency key is something else"
    if position is None:
        return f"waits for {key}, position over {SHOWN}"
    if not places.holding:
        return f"waits for {key}, position {position}, until all older events are accepted"
    more = len(places.holding) - 1
    holder = f"task {places.first_task_id}" + (f" and {more} more, which hold" if more else ", which holds")
    return f"waits for {holder} {key}, position {position}"
