"""The take-over thread: takes the tasks of the dead, stores again what a wiped Redis forgot, writes down how workers
stand, and tidies the stream. All that may take long; no renewal waits for it (lease.py).

After any error of Redis it takes nothing over for one LEASE_S. Otherwise a pause of Redis, in which all leases run out,
would make each replica take the tasks of all others.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ottoscaler import logs
from ottoscaler.core.events import BadEvent, EventType
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, record_nothing
from ottoscaler.core.shares import EQUAL_SHARES, Shares
from ottoscaler.errors import Unavailable
from ottoscaler.flow.control import ScaleDownProcessor
from ottoscaler.flow.dead_letters import contain_defects, report
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.intake import Intake
from ottoscaler.flow.key_waits import KeyWaits
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.status_writer import StatusWriter
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Attempts, Clock, EventLog, Leases
from ottoscaler.settings import WorkerSettings

TICK_S: Final = 0.2
#: How often what the dead have left is looked for, seconds: it changes hands within LEASE_S + 2 s, and what a stopping
#: process hands over within one, so this and a tick must leave room for the stop and for the taking.
TAKE_EVERY_S: Final = 0.2
#: Tasks taken over in one step: between two steps notes are written.
TAKE_AT_ONCE: Final = 200
#: Pause after Redis could not be reached, seconds.
OUTAGE_PAUSE_S: Final = 1.25
#: How often it is noted why workers wait for room, seconds.
EXPLAIN_EVERY_S: Final = 1.0
#: How often consumers that are gone are removed and old entries are trimmed, seconds.
TIDY_EVERY_S: Final = 600.0
#: How often the levels of the queue are read for the metrics, seconds: no more than Prometheus asks for them.
LEVELS_EVERY_S: Final = 10.0
#: A consumer that was not seen for so long is gone, seconds: longer than any lease, and than any pause of a process.
CONSUMER_GONE_S: Final = 6 * 3600.0

_log = logs.get(__name__)


class TakeOver:
    """`run` is the body of one thread; all other public methods are for the lease thread."""

    def __init__(
        self, *, event_log: EventLog, leases: Leases, attempts: Attempts, ledger: Ledger, control: ScaleDownProcessor,
        inbox: ScaleDownInbox, intake: Intake, metrics: Metrics,
        stop: StopSignal, heartbeat: Heartbeat, clock: Clock, lease_s: float, events_keep: int, worker: WorkerSettings,
        shares: Callable[[], Shares] = lambda: EQUAL_SHARES, record_event: RecordKubeEvent = record_nothing,
    ) -> None:  # fmt: skip
        """`events_keep`: entries that the event stream is trimmed to, 0 for never. `shares` returns what each tenant
        may have by the policy in force, `worker` is what all workers share.
        """
        self._event_log = event_log
        self._leases = leases
        self._ledger = ledger
        self._control = control
        self._inbox = inbox
        self._intake = intake
        self._metrics = metrics
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._lease_s = lease_s
        self._events_keep = events_keep
        self._shares = shares
        self._record_event = record_event
        self._status = StatusWriter(
            attempts=attempts, ledger=ledger, clock=clock, worker=worker, record_event=record_event
        )
        self._key_waits = KeyWaits(leases=leases, attempts=attempts, ledger=ledger, clock=clock)
        self._limited = logs.RateLimited()
        self._lock = threading.Lock()
        self._missing_tasks: dict[str, str] = {}  # guarded by _lock
        self._opened: set[str] = set()  # guarded by _lock: tasks taken over
        self._announced = False  # the rest is written by either thread, whole: no reader sees half of a float
        self._renewed_at = -math.inf
        self._calm_at = 0.0
        self._no_answer_lost = True  # of what we have taken: no answer was lost
        self._take_at = 0.0
        self._tidy_at = 0.0
        self._explain_at = 0.0
        self._levels_at = 0.0
        self._own_taken = False

    def on_announced(self) -> None:
        """We have announced ourselves: an earlier incarnation of our consumer sees it, so its tasks may be taken."""
        self._announced = True

    def on_renewed(self) -> None:
        """A renewal was answered: this process is not just waking up from a pause, in which others took its tasks."""
        self._renewed_at = self._clock.now()

    def suspend(self) -> None:
        """For one LEASE_S nothing is taken over: others could not renew either."""
        self._calm_at = self._clock.now() + self._lease_s

    def on_call_failed(self) -> None:
        """A call failed: its answer may be lost, and others may have been unable to renew."""
        self._no_answer_lost = False
        self.suspend()

    def take_opened(self) -> set[str]:
        """The tasks that were taken over and opened since the last call."""
        with self._lock:
            opened, self._opened = self._opened, set()
            return opened

    def restore_later(self, owners: Mapping[str, str]) -> None:
        """These tasks of ours (event id -> owner token) are unknown to Redis: they are to be stored again."""
        with self._lock:
            self._missing_tasks.update(owners)

    def run(self) -> None:
        """Until the stop."""
        while not self._stop.wait(self.step()):
            pass

    def step(self) -> float:
        """What is due now; returns the pause before the next, seconds."""
        pause_s = TICK_S
        try:
            self._step()
            self._heartbeat.beat()
        except Unavailable as error:
            self.on_call_failed()
            self._metrics.set_stream_levels(None)  # the last reading says nothing about now
            if self._limited.is_due(str(error)):
                _log.warning("takeover.outage", "Cannot look for tasks of the dead", error=str(error))
            self._heartbeat.report_failure(f"cannot look for tasks of the dead: {error}")
            pause_s = OUTAGE_PAUSE_S
        return pause_s

    def _step(self) -> None:
        if self._stop.is_set() or not self._announced:
            return
        self._restore_forgotten()
        if not self._no_answer_lost:
            self._no_answer_lost = True  # before the look: what the lease thread reports meanwhile counts again
            self._no_answer_lost = not self._take_unknown(self._leases.owned()) and self._no_answer_lost
        now = self._clock.now()
        if not self._own_taken:
            self._take_own()
        elif now >= self._take_at and now >= self._calm_at and now - self._renewed_at <= self._lease_s:
            more = self._take_expired()
            self._take_at = now if more else now + TAKE_EVERY_S
        self._key_waits.look()
        if now >= self._explain_at:
            self._explain_at = now + EXPLAIN_EVERY_S
            self._ledger.room_waits.set_shares(self._shares())
            self._ledger.room_waits.explain()
        self._status.write()
        if now >= self._levels_at:
            self._levels_at = now + LEVELS_EVERY_S
            self._read_levels()
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_EVERY_S
            self._tidy()

    def _restore_forgotten(self) -> None:
        """Redis was wiped: what we know of the tasks is stored again, and their workers go on undisturbed."""
        while not self._stop.is_set():
            with self._lock:
                event_id, owner = next(iter(self._missing_tasks.items()), ("", ""))
            if not event_id:
                return
            with contain_defects(event_id):
                self._restore(event_id, owner)
            with self._lock:  # only now: where Redis did not answer it is tried again
                self._missing_tasks.pop(event_id, None)

    def _restore(self, event_id: str, owner: str) -> None:
        task = self._ledger.task_to_restore(event_id) or self._control.task_to_restore(event_id)
        if task is None or task.owner != owner:
            return
        _log.warning(
            "task.restored", "Redis does not know event %s any more: storing it again", event_id, event_id=event_id
        )
        self._leases.restore(task)
        if task.selection_pending and task.event.type is EventType.SCALE_UP:
            # It is stored as one that has older events to supersede still. Later choices wait for that, and only this
            # process can do it: no replica takes over the task of a living owner.
            self._inbox.submit(task)

    def _take_own(self) -> None:
        """What an earlier incarnation of this consumer left: taken at once, for there cannot be two of us."""
        left = self._leases.expired(same_consumer=True)
        for event_id in left[:TAKE_AT_ONCE]:
            self._take(event_id, same_consumer=True)
        self._own_taken = len(left) <= TAKE_AT_ONCE

    def _take_expired(self) -> bool:
        """Tasks of the dead, and what they read and did not live to accept. Returns whether there are more."""
        more = self._take_unknown(self._leases.expired(same_consumer=False))
        self._intake.accept_pending_entries(
            self._event_log.claim_pending(own=False, min_idle_s=self._lease_s), patient=False
        )
        return more

    def _take_unknown(self, event_ids: Sequence[str]) -> bool:
        """Of these, take some of which we know nothing. Returns whether there are more."""
        ours = self._ledger.tasks.owners().keys() | self._control.owners().keys()
        due = [event_id for event_id in event_ids if event_id not in ours]
        for event_id in due[:TAKE_AT_ONCE]:
            self._take(event_id, same_consumer=False)
        return len(due) > TAKE_AT_ONCE

    def _take(self, event_id: str, *, same_consumer: bool) -> None:
        if self._stop.is_set():  # what is taken now would have to be handed over again
            return
        task = None
        with contain_defects(event_id):  # one that cannot be read: its tries are counted
            task = self._leases.take_over(event_id, same_consumer=same_consumer)
        if isinstance(task, BadEvent):
            report(self._metrics, task, "", self._record_event)
        elif task is not None:
            _log.info(
                "task.taken", "Taking over task %s", task.event.task_id, event_id=event_id, task_id=task.event.task_id
            )
            self._metrics.takeovers.inc()
            self._intake.open_task(task)
            self._status.write_again(event_id)
            with self._lock:
                self._opened.add(event_id)

    def _read_levels(self) -> None:
        """How the queue stands. If the server refuses that (a key of another type), all other work goes on."""
        try:
            self._metrics.set_stream_levels(self._event_log.stream_levels())
        except Unavailable as error:
            if error.unclear:
                raise
            self._metrics.set_stream_levels(None)
            if self._limited.is_due(str(error)):
                _log.warning("queue.unread", "Cannot read how long the streams are", error=str(error))

    def _tidy(self) -> None:
        """Remove leftovers. If the server refuses that (a missing right), all other work goes on."""
        try:
            gone = self._event_log.remove_consumers(CONSUMER_GONE_S)
            trimmed = self._event_log.trim(self._events_keep) if self._events_keep else 0
        except Unavailable as error:
            if error.unclear:
                raise
            _log.warning("stream.untidied", "Cannot tidy the event stream", error=str(error))
            return
        if gone or trimmed:
            _log.info(
                "stream.tidied", "Removed %d consumers that are gone and %d entries", len(gone), trimmed,
                consumers=len(gone), entries=trimmed,
            )  # fmt: skip
