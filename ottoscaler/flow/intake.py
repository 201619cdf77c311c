"""From the stream to the ledger: read, check, accept, hand over. What was read and not accepted is read again.

The reader takes only as many events as the ledger has room for: the rest stays in Redis for other replicas. Control
uses `absorb` too, for what lies before a scale_down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from ottoscaler import logs
from ottoscaler.core.events import BadEvent, DeadReason, EventType, ScaleEvent, digest, parse
from ottoscaler.errors import Unavailable
from ottoscaler.flow.parts import Parts
from ottoscaler.ports import Entry, OpenTask

#: How often what was read and not accepted is looked for, seconds: a lost answer of a read shows only there.
PENDING_EVERY_S: Final = 30.0
#: How long the reader waits for room before it looks at the stop again, seconds.
ROOM_WAIT_S: Final = 0.5
BATCH: Final = 100

_T = TypeVar("_T")
_log = logs.get(__name__)


class Intake:
    """Checks and accepts entries, and hands the tasks over. Any thread."""

    def __init__(self, parts: Parts) -> None:
        self._stream = parts.stream
        self._ledger = parts.ledger
        self._metrics = parts.metrics
        self._retries = parts.retries
        self._max_pods = parts.settings.flow.max_pods_per_event
        self._pump: Callable[[], None] = lambda: None
        self._control: Callable[[OpenTask], None] = lambda task: None

    def connect(self, *, pump: Callable[[], None], control: Callable[[OpenTask], None]) -> None:
        """Where work goes: `pump` gives threads to new workers, `control` takes scale_downs and superseding events."""
        self._pump = pump
        self._control = control

    def absorb(self, entries: Sequence[Entry], *, patient: bool = True) -> None:
        """Accept these entries, or bury them, however long Redis is away. Raises Stopping.

        Both are repeated until they are answered: of a task whose acceptance was stored and never answered nobody else
        would hear before its lease runs out. Who is not `patient` looks for such tasks himself, and gets Unavailable.
        """
        retry = self._retries.forever if patient else _at_once
        good: list[tuple[ScaleEvent, str]] = []
        raws = []
        for entry in entries:
            parsed = self._parse(entry)
            if isinstance(parsed, BadEvent):
                retry("write a dead letter", partial(self._bury, entry, parsed))
            elif entry.fields is not None:
                good.append((parsed, digest(entry.fields)))
                raws.append(entry.fields)
        if not good:
            return
        tasks = retry("accept events", lambda: self._stream.accept(good, raws))
        for (event, _), task in zip(good, tasks, strict=True):
            self._received(event)
            if task is not None:
                self.open(task)
        self._pump()

    def open(self, task: OpenTask) -> None:
        """A task is ours now, accepted or taken over: whoever has to know is told."""
        if task.event.type is EventType.SCALE_DOWN or not task.superseded:
            self._control(task)
        if task.event.type is EventType.SCALE_UP:
            self._ledger.add(task)

    def _parse(self, entry: Entry) -> ScaleEvent | BadEvent:
        if entry.fields is None:
            return BadEvent(DeadReason.TRIMMED, "the entry was trimmed away before it was accepted")
        try:
            return parse(entry.stream_id, entry.fields, self._max_pods)
        except Exception as error:  # a defect of ours: the event must not stop all others, nor be lost in silence
            _log.exception(
                "event.poison", "Our own code failed on event %s: %s", entry.stream_id, error, event_id=entry.stream_id
            )
            return BadEvent(DeadReason.POISON, f"the controller cannot read this event: {type(error).__name__}")

    def _bury(self, entry: Entry, bad: BadEvent) -> None:
        self._stream.bury(entry, bad)
        self._metrics.dead_letters.inc(bad.reason)
        event_id = bad.event_id or entry.stream_id
        _log.warning(
            "event.dead",
            "Dead letter %s: %s (%s)",
            event_id,
            bad.reason,
            bad.detail,
            event_id=event_id,
            stream_id=entry.stream_id,
        )

    def _received(self, event: ScaleEvent) -> None:
        self._metrics.events_received.inc(event.type)
        count = event.pod_count or "all"
        _log.info(
            "event.received", "Received scaling event: %s (PodCount: %s)", event.type, count,
            event_id=event.event_id, task_id=event.task_id, stream_id=event.stream_id,
        )  # fmt: skip


def _at_once(what: str, call: Callable[[], _T]) -> _T:
    """Once, whatever comes of it."""
    return call()


class Reader:
    """Reads the stream. `run` is the body of one thread."""

    def __init__(self, parts: Parts, intake: Intake) -> None:
        self._stream = parts.stream
        self._intake = intake
        self._ledger = parts.ledger
        self._retries = parts.retries
        self._stop = parts.stop
        self._clock = parts.clock
        self._pulse = parts.pulse
        self._recover_at = 0.0

    def run(self) -> None:
        """Until the stop. Raises Stopping."""
        while not self._stop.is_set():
            self._retries.forever("read the event stream", self.step)
            self._pulse.beat()

    def step(self, wait_s: float = ROOM_WAIT_S) -> None:
        """Read and accept as much as there is room for, waiting at most so long for room. Raises StreamUnavailable."""
        try:
            self._recover()
            room = self._ledger.wait_for_room(wait_s)
            if room and not self._stop.is_set():
                self._intake.absorb(self._stream.read(min(room, BATCH)))
        except Unavailable:
            self._recover_at = 0.0
            raise

    def _recover(self) -> None:
        """At the start, after every error and now and then: what we have read and not accepted.
        The lease thread sees to what others have.
        """
        if self._clock.now() < self._recover_at:
            return
        self._stream.ensure_group()
        self._intake.absorb(self._stream.pending(own=True, min_idle_s=0))
        self._recover_at = self._clock.now() + PENDING_EVERY_S
