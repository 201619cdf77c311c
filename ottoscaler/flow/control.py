"""The lane of scale_down: it takes effect at once, no matter how full the pool is, how long the backlog is and which
replica owns the task.

Control reads the stream ahead of the group. When it sees a scale_down it accepts, as waiting tasks, everything before
it. When no older event is unread, pending, or has its own victims still to choose, on any replica, it chooses the
victims and marks them, in one script, once. From then on only that list is acted on: any replica that sees a victim's
pod ends it; the owner of the task records the result. The result is written when all victims have theirs and their pods
are gone. `supersedes` is a drain of the older tasks of the same key: chosen in the same way, followed by their own
tasks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ottoscaler.core.events import EventType
from ottoscaler.core.plan import is_older, stream_sort_key
from ottoscaler.errors import ReadTooLarge, Unavailable
from ottoscaler.flow.dead_letters import contain_defects
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.intake import Intake
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.scale_down import ScaleDown, ScaleDownSteps
from ottoscaler.flow.stop import StopSignal
from ottoscaler.ports import Clock, Entry, EventLog, OpenTask
from ottoscaler.retries import Retries

#: Pause between two looks at open scale_downs, seconds: the first after something has changed, and doubled from there
#: on to the longest. What is seen without Redis (a pod that ends, a task that comes) ends a pause.
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
BATCH: Final = 100
PEEK: Final = 100


class ScaleDownProcessor:
    """Carries out scale_downs and superseding events.

    `run` is the body of one thread, which looks ahead in the stream; `carry_out` of another, which does what is to be
    done, so that neither waits for what the other waits for. What it is to look at comes by the inbox.
    """

    def __init__(
        self, *, event_log: EventLog, registry: PodRegistry, ledger: Ledger, inbox: ScaleDownInbox, intake: Intake,
        scale_downs: ScaleDownSteps, retries: Retries, stop: StopSignal, heartbeat: Heartbeat, clock: Clock,
        lease_s: float,
    ) -> None:  # fmt: skip
        self._event_log = event_log
        self._ledger = ledger
        self._inbox = inbox
        self._intake = intake
        self._scale_downs = scale_downs
        self._retries = retries
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._lease_s = lease_s
        # The lease threads ask what is open while the carrying-out thread opens and closes scale_downs. It is never
        # held during a call to Redis: a renewal would wait for that call.
        self._lock = threading.Lock()
        self._open: dict[str, ScaleDown] = {}  # guarded by _lock; changed by the carrying-out thread and by `drop`
        self._advancing: set[str] = set()  # guarded by _lock: the one that the carrying-out thread is at
        self._after = ""  # the thread's that looks ahead
        self._pause_s = FIRST_PAUSE_S  # the rest is the carrying-out thread's
        self._claim_at = 0.0
        stop.wake_on_stop(inbox.wake)
        registry.on_change(self._pods_changed)

    def _pods_changed(self) -> None:
        if self._open:  # a wake-up for each pod that ends would cost more than the pod
            self._inbox.wake.set()

    def owners(self) -> dict[str, str]:
        """Event id -> owner token of the scale_downs that are ours."""
        # The inbox comes first: a task is removed from there only when it is open here. The other way round, one that
        # is just being opened would be in neither, and its lease would not be renewed.
        tasks = list(self._inbox.tasks())
        with self._lock:
            tasks += [one.task for one in self._open.values()]
        return {task.event.event_id: task.owner for task in tasks if task.event.type is EventType.SCALE_DOWN}

    def at_work(self) -> set[str]:
        """The scale_downs that have not chosen yet, and what is just being carried on."""
        fresh = {task.event.event_id for task in self._inbox.tasks()}
        with self._lock:
            return fresh | {name for name, one in self._open.items() if one.victims is None} | self._advancing

    def task_to_restore(self, event_id: str) -> OpenTask | None:
        """A scale_down of ours that Redis has forgotten, to be stored again; None if it is not open here."""
        submitted = next((task for task in self._inbox.tasks() if task.event.event_id == event_id), None)
        with self._lock:
            scale_down = self._open.get(event_id)
            if scale_down is None:
                return submitted
            return replace(scale_down.task, victims=scale_down.victims, survivors=scale_down.survivors)

    def forget_taken_over(self, event_id: str, owner: str) -> None:
        """Another replica owns the scale_down now."""
        with self._lock:
            if event_id in self._open and self._open[event_id].task.owner == owner:
                del self._open[event_id]

    def run(self) -> None:
        """Look ahead in the stream until the stop. Raises Stopping."""
        while not self._stop.is_set():
            self._retries.retry_forever("look ahead in the stream", self.look_ahead)
            self._heartbeat.beat()

    def carry_out(self) -> None:
        """Carry out scale_downs until the stop. Raises Stopping."""
        woken = True
        while not self._stop.is_set():
            self._retries.retry_forever("carry out scale_downs", lambda: self.step(due=not woken))  # noqa: B023
            self._heartbeat.beat()
            woken = self._inbox.wake.wait(self._pause_s)
            # Before the look, not after it: what comes during the look would be waited for until the pause is over.
            self._inbox.wake.clear()

    def look_ahead(self) -> None:
        """Wait for new entries, and accept all up to a scale_down. Raises Unavailable."""
        try:
            if not self._after:
                self._event_log.ensure_group()
                # What was read before the error and not accepted. The reader had no error, so it would not look for
                # that at once.
                self._accept_own_pending()
                self._after = self._event_log.last_delivered_id()
            self._look_ahead(self._event_log.peek(self._after, PEEK, block=True))
        except Unavailable:
            # A Redis that was out of reach may have come back with less: the position is asked for again.
            self._after = ""
            raise

    def step(self, *, due: bool = True) -> None:
        """One look at what is open. Redis is asked if the pause is over (`due`), or something has changed that is seen
        without it. Raises Unavailable.
        """
        changed, soon = self._open_new(), self._inbox.take_look_request()
        due = due or soon
        with self._lock:
            opened = sorted(self._open.items(), key=lambda item: stream_sort_key(item[1].task.event.stream_id))
        blocked = False
        for event_id, scale_down in opened:
            if not scale_down.victims_selected and blocked:
                continue  # behind one that has to choose first
            if not due and not changed and not self._has_news(scale_down):
                blocked = blocked or not scale_down.victims_selected
                continue
            self._pause_s = min(self._pause_s, FIRST_PAUSE_S) if not due else self._pause_s
            if self._is_over(scale_down):
                # The lock is not held while it is carried on: `owners` is asked meanwhile, and must not wait for Redis.
                with self._lock:
                    self._open.pop(event_id, None)
            elif not scale_down.victims_selected:
                blocked = True
        if soon:
            self._pause_s = FIRST_PAUSE_S
        elif due:
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def _has_news(self, scale_down: ScaleDown) -> bool:
        """Has something changed that can be seen without Redis?"""
        signs = self._scale_downs.victim_fingerprint(scale_down) if scale_down.victims_selected else ()
        changed, scale_down.victim_fingerprint = signs != scale_down.victim_fingerprint, signs
        return changed

    def _open_new(self) -> bool:
        """Take in what has come; returns whether anything has."""
        tasks, changed = self._inbox.tasks(), self._inbox.take_cancel_marked()
        with self._lock:
            for task in tasks:
                known = self._open.get(task.event.event_id)
                if known is None or known.task.owner != task.owner:  # otherwise it was accepted twice
                    self._open[task.event.event_id] = ScaleDown(task)
        self._inbox.remove_opened(tasks)  # only now that they are open: otherwise `owners` would miss them for a moment
        try:
            for event_id in changed:
                with contain_defects(event_id):  # the reconciler ends what is marked, too
                    self._scale_downs.apply_cancel_marks(event_id)
        except Unavailable:
            self._inbox.submit_cancel_marked(changed)  # these marks are reported once only
            raise
        return bool(tasks or changed)

    def _look_ahead(self, entries: Sequence[Entry]) -> None:
        """Behind the first scale_down nothing is looked at before all before it is accepted."""
        for entry in entries:
            kind = (entry.fields or {}).get(b"type")
            if kind == b"scale_down":
                self._accept_up_to(entry.stream_id)
            self._after = entry.stream_id

    def _accept_up_to(self, stream_id: str) -> None:
        while is_older(self._event_log.last_delivered_id(), stream_id):
            try:
                entries = self._event_log.read_now(BATCH)
            except ReadTooLarge:
                self._accept_own_pending()
                continue
            if not entries:
                return
            self._intake.accept_entries(entries)

    def _accept_own_pending(self) -> None:
        """What we have read and not accepted; one read returns a bounded number of bytes."""
        while entries := self._event_log.claim_pending(own=True, min_idle_s=0):
            self._intake.accept_pending_entries(entries)

    def _is_over(self, scale_down: ScaleDown) -> bool:
        """Carry it on. If our own code fails on it, it is left to run out of its lease and to be taken up again; that
        is counted, so it ends as Poison if it never goes better (`Stream.take_over`), and the others go on meanwhile.
        """
        over = False
        with contain_defects(scale_down.task.event.event_id) as defect:
            with self._lock:
                self._advancing = {scale_down.task.event.event_id}
            over = self._advance_scale_down(scale_down)
        with self._lock:
            self._advancing = set()
        if defect.name and not scale_down.victims_selected:
            # The ledger would renew the lease of an event that supersedes others, and all later choices wait for that.
            self._ledger.drop(scale_down.task.event.event_id, scale_down.task.owner)
        return over or bool(defect.name)

    def _advance_scale_down(self, scale_down: ScaleDown) -> bool:
        """One look at an open scale_down; returns whether it is over."""
        over = self._scale_downs.advance(scale_down)
        if scale_down.blocker is not None and not scale_down.blocker.owner:
            self._help_older()
        return over

    def _help_older(self) -> None:
        """Take over an older event that another consumer read and did not accept, if that consumer is gone."""
        now = self._clock.now()
        if now >= self._claim_at:
            self._claim_at = now + 1.0
            self._intake.accept_pending_entries(self._event_log.claim_pending(own=False, min_idle_s=self._lease_s))
