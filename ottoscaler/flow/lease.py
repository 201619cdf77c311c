"""The lease thread: keeps our tasks ours, takes over those of the dead, and writes down now and then how workers stand.

It talks to Redis only, over a connection of its own with short time-outs, so that no slow API server can cost a lease.
After any trouble with Redis it takes nothing over for one LEASE_S: a Redis that was paused must not make everybody
steal from everybody.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from ottoscaler import logs
from ottoscaler.core.events import BadEvent
from ottoscaler.core.names import process_of
from ottoscaler.errors import Replaced, Unavailable
from ottoscaler.flow.burial import contained, tell
from ottoscaler.flow.control import Control
from ottoscaler.flow.intake import Intake
from ottoscaler.flow.parts import Parts
from ottoscaler.flow.pool import Pool

TICK_S: Final = 0.25
#: How often what the dead have left is looked for, seconds: it changes hands within LEASE_S + 2 s, so this and a tick
#: must leave room for the taking.
TAKE_EVERY_S: Final = 1.0
#: Tasks taken over in one step: more would keep the renewals waiting.
TAKE_AT_ONCE: Final = 200
#: Pause after Redis could not be reached, seconds.
OUTAGE_PAUSE_S: Final = 1.25

_log = logs.get(__name__)


class Lease:
    """Renews, takes over, hands over. `run` is the body of one thread; `release` is for the main thread, after it."""

    def __init__(self, parts: Parts, control: Control, intake: Intake, pool: Pool, me: str) -> None:
        """`me` is `<consumer>/<boot>`: how owner tokens of this process begin."""
        self._stream = parts.stream
        self._ledger = parts.ledger
        self._control = control
        self._intake = intake
        self._pool = pool
        self._metrics = parts.metrics
        self._stop = parts.stop
        self._clock = parts.clock
        self._pulse = parts.pulse
        self._lease_s = parts.lease_s
        self._ttl_s = parts.settings.keys.task_ttl_s
        self._consumer, self._boot = me.rsplit("/", 1)
        self._seldom = logs.Seldom()
        self._renew_at = 0.0
        self._renewed_at = self._clock.now()
        self._take_at = 0.0
        self._calm_at = 0.0
        self._announced = False
        self._own_taken = False
        self._sure = True  # of what we have taken: no answer was lost
        self._turn = threading.Lock()  # held during each step: no renewal may come after the release

    def run(self) -> None:
        """Until the stop. Raises Replaced when another process runs under our consumer name."""
        self._renewed_at = self._clock.now()  # the start may have been long, and is no outage
        while not self._stop.wait(self.step()):
            pass

    def step(self) -> float:
        """What is due now; returns the pause before the next, seconds. Raises Replaced."""
        pause_s = TICK_S
        try:
            with self._turn:
                self._step()
            self._pulse.beat()
        except Unavailable as error:
            self._sure = False
            self._calm_at = self._clock.now() + self._lease_s
            if self._seldom.is_due(str(error)):
                _log.warning("lease.outage", "Cannot renew our leases: %s", error, error=str(error))
            self._pulse.missed(f"cannot renew our leases: {error}")
            pause_s = OUTAGE_PAUSE_S
        self._pool.pump()
        return pause_s

    def release(self) -> None:
        """A clean hand-over: whoever else runs goes on at once. Raises StreamUnavailable.

        There is none when a part of ours failed: whoever takes the tasks then counts that, and one that makes every
        process fail ends as Poison.
        """
        if self._stop.cause is not None:
            return
        with self._turn:
            self._stream.release(self._ledger.owners() | self._control.owners())

    def _step(self) -> None:
        if self._stop.is_set():
            return
        now = self._clock.now()
        if not self._announced:
            self._stream.announce()
            self._announced = True
        if now >= self._renew_at:
            self._renew(now)
        if not self._sure:
            self._take_unheard()
        if not self._own_taken:
            self._take_own()
        elif now >= self._take_at and now >= self._calm_at:
            more = self._take_expired()
            self._take_at = now if more else now + TAKE_EVERY_S
        self._write_notes()

    def _renew(self, now: float) -> None:
        late = now - self._renewed_at > self._lease_s
        # after so long, what Redis does not know was finished by somebody else and has expired
        stale = now - self._renewed_at > self._ttl_s
        owners = self._ledger.owners() | self._control.owners()
        renewal = self._stream.renew(owners, self._ledger.failed_on())
        if renewal.replaced:
            raise self._replaced()
        if late:
            self._calm_at = (
                self._clock.now() + self._lease_s
            )  # counted from the answer: the request may have waited long
        self._renewed_at, self._renew_at = now, now + self._lease_s / 3
        for event_id, owner in renewal.lost.items():
            self._lost(event_id, owners[event_id], owner)
        for event_id in renewal.forgotten:
            if stale:
                self._lost(event_id, owners[event_id], "")
            else:
                with contained(event_id):
                    self._restore(event_id, owners[event_id])
        if changed := self._ledger.newly_cancelled(renewal.cancels):
            self._control.reload(changed)

    def _lost(self, event_id: str, ours: str, theirs: str) -> None:
        """A task without an owner has just been finished; one with another was taken from us."""
        consumer, boot = process_of(theirs)
        if consumer == self._consumer and boot != self._boot:
            raise self._replaced()
        if theirs:
            _log.warning("task.lost", "Task %s was taken over by %s", event_id, theirs, event_id=event_id)
        self._ledger.drop(event_id, ours)
        self._control.drop(event_id, ours)

    def _replaced(self) -> Replaced:
        return Replaced(
            f"another process was started as consumer {self._consumer} and takes our tasks:"
            " REDIS_CONSUMER must be unique per process"
        )

    def _restore(self, event_id: str, owner: str) -> None:
        """Redis was wiped: what we know of the task is stored again, and its workers go on undisturbed."""
        task = self._ledger.recall(event_id) or self._control.recall(event_id)
        if task is None or task.owner != owner:
            return
        _log.warning(
            "task.restored", "Redis does not know event %s any more: storing it again", event_id, event_id=event_id
        )
        self._stream.restore(task)

    def _take_own(self) -> None:
        """What an earlier boot of this consumer left: taken at once, for there cannot be two of us."""
        left = self._stream.expired(same_consumer=True)
        for event_id in left[:TAKE_AT_ONCE]:
            self._take(event_id, same_consumer=True)
        self._own_taken = len(left) <= TAKE_AT_ONCE

    def _take_unheard(self) -> None:
        """What became ours by a call whose answer was lost: nobody else would take it before its lease runs out."""
        self._sure = not self._take_unknown(self._stream.owned())

    def _take_expired(self) -> bool:
        """Tasks of the dead, and what they read and did not live to accept. Returns whether there are more."""
        more = self._take_unknown(self._stream.expired(same_consumer=False))
        self._intake.absorb_again(self._stream.pending(own=False, min_idle_s=self._lease_s), patient=False)
        return more

    def _take_unknown(self, event_ids: Sequence[str]) -> bool:
        """Of these, take some of which we know nothing. Returns whether there are more."""
        ours = self._ledger.owners().keys() | self._control.owners().keys()
        due = [event_id for event_id in event_ids if event_id not in ours]
        for event_id in due[:TAKE_AT_ONCE]:
            self._take(event_id, same_consumer=False)
        return len(due) > TAKE_AT_ONCE

    def _take(self, event_id: str, *, same_consumer: bool) -> None:
        task = None
        with contained(event_id):  # one that cannot be read: its tries are counted
            task = self._stream.take(event_id, same_consumer=same_consumer)
        if isinstance(task, BadEvent):
            tell(self._metrics, task)
        elif task is not None:
            _log.info(
                "task.taken", "Taking over task %s", task.event.task_id, event_id=event_id, task_id=task.event.task_id
            )
            self._intake.open(task)

    def _write_notes(self) -> None:
        for task, states, why in self._ledger.take_notes():
            self._stream.note_states(task.event.event_id, task.owner, states)
            if why is not None:
                self._stream.note_why(task.event.event_id, task.owner, why, "")
