"""From the stream to the ledger: read, check, accept, hand over. What was read and not accepted is read again.

The reader takes only as many events as the ledger has room for: the rest stays in Redis for other replicas. Control
uses `accept_entries` too, for what lies before a scale_down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Protocol, TypeVar

from ottoscaler import logs
from ottoscaler.core.events import (
    BadEvent,
    DeadReason,
    EventType,
    ScaleEvent,
    content_digest,
    ignored_fields_warning,
    parse,
    readable_ids,
    too_large_event,
)
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, record_nothing
from ottoscaler.core.policy import Rules
from ottoscaler.core.verdicts import MAX_TRIES
from ottoscaler.errors import ReadTooLarge, Stopping, Unavailable
from ottoscaler.flow.dead_letters import contain_defects, report
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock, Entry, EventLog, OpenTask
from ottoscaler.retries import Retries

#: How often what was read and not accepted is looked for, seconds: a lost answer of a read shows only there.
PENDING_EVERY_S: Final = 30.0
#: How long the reader waits for room before it looks at the stop again, seconds.
ROOM_WAIT_S: Final = 0.5
BATCH: Final = 100
#: What is checked and accepted at once, bytes of the entries. Each is in memory as an event and as several JSON texts
#: meanwhile, in which a control character takes six bytes.
ACCEPT_BYTES: Final = 512 * 1024

_T = TypeVar("_T")
_log = logs.get(__name__)


class _CallPolicy(Protocol):
    """How a call is made: repeated until it is answered, or once."""

    def __call__(self, what: str, call: Callable[[], _T], /) -> _T: ...


@dataclass(frozen=True, slots=True)
class _ValidEntry:
    """An entry that is an event."""

    entry: Entry
    event: ScaleEvent
    digest: str
    fields: Mapping[bytes, bytes]


class Intake:
    """Checks and accepts entries, and hands the tasks over. Any thread."""

    def __init__(
        self, *, event_log: EventLog, ledger: Ledger, inbox: ScaleDownInbox, retries: Retries, metrics: Metrics,
        max_pods: int, rules: Callable[[], Rules] = Rules, record_event: RecordKubeEvent = record_nothing,
    ) -> None:  # fmt: skip
        """The ledger gets the workers, the inbox what older events have to be ended for. `max_pods`: of one event.
        `rules` returns what events may override.
        """
        self._record_event = record_event
        self._event_log = event_log
        self._ledger = ledger
        self._inbox = inbox
        self._retries = retries
        self._metrics = metrics
        self._max_pods = max_pods
        self._rules = rules
        self._lock = threading.Lock()
        self._tried: set[str] = set()  # guarded by _lock: entries that this process has counted a try for

    def accept_entries(self, entries: Sequence[Entry], *, patient: bool = True) -> None:
        """Accept these entries, or bury them, however long Redis is away. Raises Stopping.

        Both are repeated until they are answered: if the acceptance was stored and the answer lost, no other process
        would find the task before its lease runs out. A caller that is not `patient` looks for such tasks itself, and
        gets Unavailable.
        """
        retry: _CallPolicy = self._retries.retry_forever if patient else _call_once
        try:
            for part in _parts(entries):
                good: list[_ValidEntry] = []
                for entry in part:
                    self._check(entry, good, retry)
                self._accept(good, retry)
        except (Unavailable, Stopping):
            with self._lock:  # that they are not accepted is not their fault
                self._tried.update(entry.stream_id for entry in entries)
            raise
        with self._lock:
            self._tried.difference_update(entry.stream_id for entry in entries)

    def accept_pending_entries(self, entries: Sequence[Entry], *, patient: bool = True) -> None:
        """The same with entries that were read before and not accepted, each for itself and counted.

        One of them may be why a process died, and those behind it are not to blame for that. Each process counts one
        try, and none for what it could not accept because Redis was away.
        """
        for entry in entries:
            with self._lock:
                counted = entry.stream_id in self._tried
                self._tried.add(entry.stream_id)
            tries = 1 if counted else self._event_log.count_try(entry.stream_id)
            if tries >= MAX_TRIES and entry.fields is not None:
                detail = f"read {tries} times, and each time the controller ended before it was accepted"
                self._dead_letter(entry, _poison(entry, detail), _call_once)
            else:
                self.accept_entries([entry], patient=patient)

    def open_task(self, task: OpenTask) -> None:
        """This process owns the task now, accepted or taken over: notify the ledger and the control thread.

        If our own code fails on it, it is left to run out of its lease: it is taken up again, and if that never goes
        better it ends as Poison (`Stream.take_over`), while all others go on.
        """
        event = task.event
        with contain_defects(event.event_id) as defect:
            # The ledger comes first: where control fails on the task it drops it from there. If it were added only
            # then, its lease would be renewed without end, and each later scale_down would wait for its choice.
            if event.type is EventType.SCALE_UP:
                self._ledger.add(task)
            if event.type is EventType.SCALE_DOWN or not task.superseded:
                self._inbox.submit(task)
        if defect.name:
            self._ledger.drop(event.event_id, task.owner)

    def _check(self, entry: Entry, good: list[_ValidEntry], retry: _CallPolicy) -> None:
        """Onto the good ones, or buried."""
        if entry.fields is None:
            self._dead_letter(
                entry, BadEvent(DeadReason.TRIMMED, "the entry was trimmed away before it was accepted"), retry
            )
            return
        if entry.size:
            self._dead_letter(entry, too_large_event(entry.stream_id, entry.fields, entry.size), retry)
            return
        parsed: ScaleEvent | BadEvent | None = None
        with contain_defects(entry.stream_id) as defect:
            parsed = parse(entry.stream_id, entry.fields, self._max_pods, self._rules())
            if isinstance(parsed, ScaleEvent):
                good.append(_ValidEntry(entry, parsed, content_digest(entry.fields), entry.fields))
        if defect.name:
            parsed = _poison(entry, f"the controller cannot read this event: {defect.name}")
        if isinstance(parsed, BadEvent):
            self._dead_letter(entry, parsed, retry)

    def _accept(self, good: Sequence[_ValidEntry], retry: _CallPolicy) -> None:
        if not good:
            return
        pairs, raws = [(one.event, one.digest) for one in good], [one.fields for one in good]
        ask = _RepeatableCall(lambda: self._event_log.accept(pairs, raws))
        answers: Sequence[OpenTask | BadEvent | None] = ()
        with contain_defects(good[0].event.event_id if len(good) == 1 else f"(one of {len(good)})") as defect:
            answers = retry("accept events", ask)
        if defect.name:
            self._accept_singly(good, defect.name, retry)
            return
        for one, answer in zip(good, answers, strict=True):
            if isinstance(answer, BadEvent):
                report(self._metrics, answer, one.entry.stream_id, self._record_event)
                self._metrics.events_received.inc(one.event.type, "dead")
            elif answer is None:
                self._metrics.events_received.inc(one.event.type, "known")
            else:
                if ask.repeated or not answer.already_accepted:
                    self._received(one)
                self.open_task(answer)

    def _accept_singly(self, good: Sequence[_ValidEntry], defect: str, retry: _CallPolicy) -> None:
        """Which of them it is about shows only one by one."""
        if len(good) > 1:
            for one in good:
                self._accept([one], retry)
            return
        entry = good[0].entry
        self._dead_letter(entry, _poison(entry, f"the controller cannot accept this event: {defect}"), retry)

    def _dead_letter(self, entry: Entry, bad: BadEvent, retry: _CallPolicy) -> None:
        ask, written = _RepeatableCall(lambda: self._event_log.dead_letter(entry, bad)), None
        with contain_defects(entry.stream_id) as defect:
            written = retry("write a dead letter", ask)
        if defect.name:  # then without its fields, rather than never
            bare = replace(entry, fields=None)
            written = retry("write a dead letter", lambda: self._event_log.dead_letter(bare, bad))
        if written is None and ask.repeated:  # the answer that said so was lost
            written = bad
        if written is not None:
            report(self._metrics, written, entry.stream_id, self._record_event)
            self._metrics.events_received.inc(_type_of(entry), "dead")

    def _received(self, one: _ValidEntry) -> None:
        event = one.event
        self._metrics.events_received.inc(event.type, "accepted")
        count = event.pod_count or "all"
        _log.info(
            "event.received", "Received scaling event: %s (PodCount: %s)", event.type, count,
            event_id=event.event_id, task_id=event.task_id, type=event.type.value, pod_count=event.pod_count or None,
            stream_id=event.stream_id,
        )  # fmt: skip
        if sentence := ignored_fields_warning(one.fields):
            _log.warning("event.ignored", "Ignored: %s", sentence, event_id=event.event_id, task_id=event.task_id)


def _parts(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """The same entries in parts of ACCEPT_BYTES, or one by one where they are larger."""
    part: list[Entry] = []
    room = ACCEPT_BYTES
    for entry in entries:
        size = sum(len(name) + len(value) for name, value in (entry.fields or {}).items())
        if part and size > room:
            yield part
            part, room = [], ACCEPT_BYTES
        part.append(entry)
        room -= size
    if part:
        yield part


def _type_of(entry: Entry) -> str:
    """What an entry says that it is, as it was sent."""
    return (entry.fields or {}).get(b"type", b"").decode("ascii", "replace")


def _poison(entry: Entry, detail: str) -> BadEvent:
    """An event on which the controller fails. A result is published as well if at least its ids can be read."""
    ids = ("", "")
    with contain_defects(entry.stream_id):
        ids = readable_ids(entry.stream_id, entry.fields or {})
    return BadEvent(DeadReason.POISON, detail, *ids)


class _RepeatableCall(Generic[_T]):
    """A call that may have to be repeated, because its answer was lost. One thread."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self._times = 0

    def __call__(self) -> _T:
        self._times += 1
        return self._call()

    @property
    def repeated(self) -> bool:
        """May the answer to an earlier call have been lost?"""
        return self._times > 1


def _call_once(what: str, call: Callable[[], _T]) -> _T:
    """Once, whatever comes of it."""
    return call()


class StreamReader:
    """Reads the stream. `run` is the body of one thread."""

    def __init__(
        self, *, event_log: EventLog, intake: Intake, ledger: Ledger, retries: Retries, stop: StopSignal,
        heartbeat: Heartbeat,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._event_log = event_log
        self._intake = intake
        self._ledger = ledger
        self._retries = retries
        self._stop = stop
        self._heartbeat = heartbeat
        self._clock = clock
        self._recover_at = 0.0

    def run(self) -> None:
        """Until the stop. Raises Stopping."""
        while not self._stop.is_set():
            self._retries.retry_forever("read the event stream", self.step)
            self._heartbeat.beat()

    def step(self, wait_s: float = ROOM_WAIT_S) -> None:
        """Take up what an earlier read left, where that is due; otherwise read and accept as much as there is room for,
        waiting at most so long for room. Raises RedisUnavailable.

        Not both in one step: a step that succeeds ends the count of tries. If a link died after each recovery, and the
        recovery did not count, the pauses between the tries would grow although Redis answers.
        """
        try:
            if self._clock.now() >= self._recover_at:
                self._recover()
                return
            room = self._ledger.wait_for_room(wait_s)
            if room and not self._stop.is_set():
                self._intake.accept_entries(self._event_log.read(min(room, BATCH)))
        except ReadTooLarge:
            self._recover_at = 0.0
        except Unavailable:
            self._recover_at = 0.0
            raise

    def _recover(self) -> None:
        """At the start, after every error and every PENDING_EVERY_S: read again what this consumer has read and not
        accepted. The lease thread does so for the entries of other consumers.
        """
        self._event_log.ensure_group()
        entries = self._event_log.claim_pending(own=True, min_idle_s=0)
        self._intake.accept_pending_entries(entries)
        if not entries:  # otherwise there may be more: one read returns a bounded number of bytes
            self._recover_at = self._clock.now() + PENDING_EVERY_S
