"""The lease thread: keeps our tasks ours. A renewal waits for nothing but its own answer.

It talks to Redis only, over a connection of its own with short time-outs, so that neither a slow API server nor another
request to Redis can cost a lease. Taking over, storing again and notes are done by another thread (takeover.py), which
learns from here what it has to know.
"""

from __future__ import annotations

import threading
from typing import Final

from ottoscaler import logs
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, record_nothing
from ottoscaler.errors import ConsumerReplaced, Unavailable
from ottoscaler.flow.control import ScaleDownProcessor
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.takeover import TakeOver
from ottoscaler.flow.task_losses import report_loss
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock, EventLog, Leases
from ottoscaler.stored import split_owner_token

TICK_S: Final = 0.25
#: Pause after Redis could not be reached, seconds.
OUTAGE_PAUSE_S: Final = 1.25

_log = logs.get(__name__)


class LeaseKeeper:
    """Renews and hands over. `run` is the body of one thread; `release` is for the main thread, after the stop."""

    def __init__(
        self, *, event_log: EventLog, leases: Leases, ledger: Ledger, control: ScaleDownProcessor,
        inbox: ScaleDownInbox,
        takeover: TakeOver, metrics: Metrics, stop: StopSignal,
        heartbeat: Heartbeat, clock: Clock, lease_s: float, ttl_s: float, me: str,
        record_event: RecordKubeEvent = record_nothing,
    ) -> None:  # fmt: skip
        """`me` is `<consumer>/<incarnation>`: how owner tokens of this process begin. `ttl_s`: how long Redis keeps a
        finished task, seconds.
        """
        self._event_log = event_log
        self._leases = leases
        self._ledger = ledger
        self._control = control
        self._inbox = inbox
        self._takeover = takeover
        self._metrics = metrics
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._lease_s = lease_s
        self._ttl_s = ttl_s
        self._record_event = record_event
        self._consumer, self._incarnation = me.rsplit("/", 1)
        self._limited = logs.RateLimited()
        self._renew_at = 0.0
        self._renewed_at = self._clock.now()
        self._announced = False
        self._opened: set[str] = set()  # tasks that were taken over, until they were seen at rest
        self._turn = threading.Lock()  # held during each step: no renewal may come after the release

    def run(self) -> None:
        """Until the stop. Raises ConsumerReplaced when another process runs under our consumer name."""
        self._renewed_at = self._clock.now()  # the start may have been long, and is no outage
        while not self._stop.wait(self.step()):
            pass

    def step(self) -> float:
        """What is due now; returns the pause before the next, seconds. Raises ConsumerReplaced."""
        pause_s = TICK_S
        try:
            with self._turn:
                self._step()
            self._heartbeat.beat()
        except Unavailable as error:
            self._takeover.on_call_failed()
            if self._limited.is_due(str(error)):
                _log.warning("lease.outage", "Cannot renew our leases", error=str(error))
            self._heartbeat.report_failure(f"cannot renew our leases: {error}")
            pause_s = OUTAGE_PAUSE_S
        return pause_s

    def release(self, *, all_: bool = True) -> None:
        """A clean hand-over: other replicas go on at once, with our tasks and with what we read and did not accept.
        Without `all_` the tasks of which a thread carries on a worker stay ours for now. Raises RedisUnavailable.

        There is none when a part of ours failed: the next owner counts the take-over, so a task that makes every
        process fail ends as Poison.
        """
        if self._stop.cause is not None:
            return
        with self._turn:
            busy = set() if all_ else self._ledger.tasks.worked_on()
            owners = self._ledger.tasks.owners() | self._control.owners()
            self._leases.release({event_id: owner for event_id, owner in owners.items() if event_id not in busy})
            self._event_log.release_pending()

    def _step(self) -> None:
        if self._stop.is_set():
            return
        now = self._clock.now()
        if not self._announced:
            self._leases.announce()
            self._announced = True
            self._takeover.on_announced()
        if now >= self._renew_at or self._ledger.tasks.expires(now):
            self._renew(now)
        self._renew_idle_tasks()

    def _renew(self, now: float) -> None:
        late = now - self._renewed_at > self._lease_s
        # after TASK_TTL_S, a task that Redis does not know was finished by another process and has expired
        stale = now - self._renewed_at > self._ttl_s
        owners = self._ledger.tasks.owners() | self._control.owners()
        renewal = self._leases.renew(owners, self._at_work())
        if renewal.replaced:
            raise self._consumer_replaced()
        if late:
            self._takeover.suspend()  # counted from the answer: the request may have waited long
        self._renewed_at, self._renew_at = now, now + self._lease_s / 3
        self._takeover.on_renewed()  # after `suspend`: a take-over that looks in between must not take tasks
        for event_id, owner in renewal.lost.items():
            self._drop_lost_task(event_id, owners[event_id], owner)
        if stale:
            for event_id in renewal.forgotten:
                self._drop_lost_task(event_id, owners[event_id], "")
        else:
            self._takeover.restore_later({event_id: owners[event_id] for event_id in renewal.forgotten})
        self._ledger.tasks.set_expiries(owners, renewal.left_s, now)
        if changed := self._ledger.tasks.newly_cancelled(renewal.cancel_counts):
            self._inbox.submit_cancel_marked(changed)

    def _renew_idle_tasks(self) -> None:
        """Tasks taken over that only wait by now: noted at once, and not with the next renewal, so that a process that
        is killed soon after its start has not failed on them.
        """
        self._opened |= self._takeover.take_opened()
        if not self._opened:
            return
        owners = self._ledger.tasks.owners() | self._control.owners()
        self._opened &= owners.keys()
        resting = {event_id: owners[event_id] for event_id in self._opened - self._at_work()}
        if resting:
            self._leases.renew(resting)
            self._opened -= resting.keys()

    def _at_work(self) -> set[str]:
        return self._ledger.at_work() | self._control.at_work()

    def _drop_lost_task(self, event_id: str, ours: str, theirs: str) -> None:
        """A task without an owner has just been finished; one with another was taken from us."""
        consumer, incarnation = split_owner_token(theirs)
        if consumer == self._consumer and incarnation != self._incarnation:
            raise self._consumer_replaced()
        if theirs:
            report_loss(self._metrics, event_id, theirs, self._record_event)
        self._ledger.drop(event_id, ours)
        self._control.forget_taken_over(event_id, ours)

    def _consumer_replaced(self) -> ConsumerReplaced:
        return ConsumerReplaced(
            f"another process was started as consumer {self._consumer} and takes our tasks:"
            " REDIS_CONSUMER must be unique per process"
        )
