"""The sender's half of the protocol for the log of one worker: what is sent next, and what an answer means.

Pure: no clock, no I/O; each method is given the time (seconds of one monotonic clock) where it needs it. The promises
are those of ottoscaler/proto/log_streaming.proto. A line waits, is sent with the next sequence, and is forgotten when
it is acknowledged or counted as dropped:

    offer -> waiting -> take -> sent -> answered -> acknowledged, or dropped
                                 |  ^
                        RETRY or a cut: once more, with the same sequence
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from itertools import chain
from typing import Final

from ottoscaler.core.log_figures import LineDrop
from ottoscaler.core.log_progress import LogCursor, LogProgress
from ottoscaler.forwarder.account import Account, AccountKeeper
from ottoscaler.forwarder.entries import BATCH_OVERHEAD, EntryEncoder, WorkerIdentity
from ottoscaler.forwarder.limits import Limits, RateLimit
from ottoscaler.forwarder.lines import Gap, Line
from ottoscaler.forwarder.settled import Entry, Settled
from ottoscaler.forwarder.tally import LineTally
from ottoscaler.proto.log_streaming_pb2 import LogEnd

#: Text that waits, and entries that are unacknowledged, together 1 MiB: beyond that at most one line of 256 KiB each.
MAX_WAITING_BYTES: Final = 512 * 1024
MAX_UNACKNOWLEDGED_BYTES: Final = 512 * 1024
#: How often an entry is sent again after RETRY, and for how long, seconds.
MAX_RETRIES: Final = 5
MAX_RETRY_S: Final = 60.0
#: The first pause after RETRY, seconds; each further one is twice as long. Half of it is left to chance.
RETRY_PAUSE_S: Final = 0.2
#: Without any answer for this long, the stream counts as lost, seconds.
ANSWER_TIMEOUT_S: Final = 20.0


class Status(IntEnum):
    """The answers of a handler; an unknown one is taken as RETRY."""

    ACK = 0
    RETRY = 1
    DROP = 2


class WorkerStream:
    """The log of one worker on its way to the handler. Not thread-safe."""

    def __init__(
        self,
        worker: WorkerIdentity,
        *,
        random: Callable[[], float],
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        progress: LogProgress | None = None,
        tally: LineTally | None = None,
    ) -> None:
        """Arguments: the worker; a source of numbers from 0 to 1 for pauses; when a silent stream counts as lost; where
        the lines come from the log of a pod, which a new process reads again: behind what they come; what counts the
        lines of all workers. Lines that are read again get the same numbers, so those that the handler has already are
        not sent; from a remark on, which the earlier process may not have made, all is new.
        """
        self.tally = tally or LineTally()
        self._worker = worker
        self._random = random
        self._answer_timeout_s = answer_timeout_s
        self._limits = Limits()
        self._rate: RateLimit | None = None
        self._encoder = EntryEncoder(worker)
        self._open = self._finished = self._done = False
        start = progress or LogProgress("")
        self.settled = Settled(start)
        """How far a new process need not go back."""
        self._rereads = progress is not None
        self._stored_by_handler = 0  # of lines that are read again
        self._last = start.sequence  # the highest sequence that was given out, or that the handler has
        # in order: parts of a line that has begun, then the mark for lines that were dropped, then lines
        self._parts: deque[Line] = deque()
        self._missing, self._missing_at = 0, Gap("", "")
        self._missing_bytes = self._missing_gaps = 0
        self._missing_place: LogCursor | None = None
        self._waiting: deque[Line | Gap] = deque()
        self._waiting_bytes = 0
        self._again: deque[Entry] = deque()  # to be sent once more, by sequence, before anything new
        # Sent and not answered. What is sent again goes out when nothing else is on its way, so this is in the order of
        # sequence and in the order of the wire at once: a cumulative and a positional answer both speak of its front.
        self._sent: deque[Entry] = deque()
        self._sent_bytes = 0
        self._refused: list[Entry] = []  # answered by RETRY: no ACK of other entries speaks of these
        self._refused_until = self._answered_at = 0.0
        self._counts = AccountKeeper(start, self.tally)
        self._ended = False
        self._end_timestamp = ""

    # -- lines

    @property
    def has_room(self) -> bool:
        """Whether a line can be offered without another one being dropped for it."""
        return len(self._waiting) < self._limits.buffer and self._waiting_bytes < MAX_WAITING_BYTES

    @property
    def held_bytes(self) -> int:
        """Text in memory: what waits, and what is not acknowledged."""
        return self._waiting_bytes + self._sent_bytes

    def shrink(self, most: int) -> None:
        """Drop the oldest lines that were never sent until those that wait have at most this many bytes."""
        while self._waiting_bytes > most:
            self._drop_oldest()

    def offer(self, line: Line) -> None:
        """Add a line. Where there is no room, the oldest lines that were never sent are dropped for it."""
        if self._done:
            self._counts.drop(len(line.text), LineDrop.UNWANTED)
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line.text)
        while len(self._waiting) > self._limits.buffer or (
            self._waiting_bytes > MAX_WAITING_BYTES and len(self._waiting) > 1
        ):
            self._drop_oldest()

    def add_gap(self, gap: Gap) -> None:
        """Note that lines may be missing here that no one can count."""
        self._counts.add_gap()
        self._waiting.append(gap)

    def finish(self, timestamp: str) -> None:
        """No more lines come: when all others are answered, the end entry follows."""
        self._finished, self._end_timestamp = True, timestamp

    # -- connections

    @property
    def done(self) -> bool:
        """Whether nothing is left to be sent: the end entry is answered, or the handler wants no logs."""
        return self._done

    @property
    def account(self) -> Account:
        """What became of the lines so far."""
        return self._counts.account(ended=self._ended)

    @property
    def unacknowledged(self) -> int:
        """Entries that were sent, and are not answered or are to be sent again."""
        return len(self._sent) + len(self._refused) + len(self._again)

    @property
    def oldest_timestamp(self) -> str:
        """The time of the oldest line that is not answered; empty: there is none."""
        first = next(iter(self._parts or self._waiting), None)
        return self.settled.oldest_timestamp or (first.timestamp if first else "")

    def connected(self, limits: Limits, last_sequence: int, now: float) -> None:
        """A stream is open. The handler has all entries up to this sequence, apart from those that it has refused: for
        these only an answer counts.
        """
        self._limits = limits
        self._rate = RateLimit(limits.rate, now) if limits.rate else None
        self._encoder = EntryEncoder(self._worker, include_metadata=limits.include_metadata)
        self.cut()
        unknown = [entry for entry in self._again if entry.sequence > last_sequence or entry.retries]
        for entry in self._again:
            if entry.sequence <= last_sequence and not entry.retries:
                self._acknowledge(entry)
        self._again = deque(unknown)
        self.settled.move()
        if self._rereads:
            self._stored_by_handler = max(self._stored_by_handler, last_sequence)
        else:
            self._last = max(self._last, last_sequence)
        self._open, self._answered_at = True, now

    def cut(self) -> None:
        """The stream is lost: what is not answered is sent again on the next one."""
        self._open = False
        entries = chain(self._sent, self._refused, self._again)
        self._again = deque(sorted(entries, key=lambda entry: entry.sequence))
        self._sent.clear()
        self._sent_bytes = 0
        self._refused.clear()

    def give_up(self) -> None:
        """Count all that is left as dropped: the handler wants no logs of this worker, or the time is over."""
        self.cut()
        for entry in self._again:
            self._count_dropped(entry, LineDrop.UNWANTED)
        self._again.clear()
        for line in (*self._parts, *(line for line in self._waiting if isinstance(line, Line))):
            self._counts.drop(len(line.text), LineDrop.UNWANTED)
        self._parts.clear()
        self._waiting.clear()
        self._waiting_bytes = self._missing = 0
        self._done = True

    def is_overdue(self, now: float) -> bool:
        """Whether the handler has not answered for too long: the stream has to be opened again."""
        return bool(self._open and self._sent) and now - self._answered_at >= self._answer_timeout_s

    def next_at(self) -> float | None:
        """When `take` or `is_overdue` has to be asked again, if nothing happens before; None: not before."""
        times = []
        if self._sent:
            times.append(self._answered_at + self._answer_timeout_s)
        elif self._refused:
            times.append(self._refused_until)
        if self._rate and not self._refused and self._has_next and len(self._sent) < self._limits.buffer:
            times.append(self._rate.next_at())
        return min(times, default=None) if self._open else None

    # -- sending

    def take(self, now: float) -> list[bytes]:
        """The entries of the next message, which count as sent; empty: nothing may be sent now."""
        if not self._open or not self._may_send(now):
            return []
        count = min(self._limits.batch, self._limits.buffer - len(self._sent))
        if self._rate:
            count = min(count, self._rate.available(now))
        if not self._sent:
            self._answered_at = now
        taken: list[bytes] = []
        size = 0
        while len(taken) < count and self._has_next:
            entry = self._again[0] if self._again else self._next()
            if entry.sequence <= self._stored_by_handler and not entry.retries:
                self._acknowledge(self._again.popleft(), counts=False)
                continue
            size += len(entry.encoded) + BATCH_OVERHEAD
            if taken and size > self._limits.message:
                break
            self._again.popleft()
            self._sent.append(entry)
            self._sent_bytes += len(entry.encoded)
            taken.append(entry.encoded)
        if self._rate:
            self._rate.take(len(taken))
        self.settled.move()
        return taken

    def _may_send(self, now: float) -> bool:
        """After a RETRY the answers that are on their way come first, and then a pause."""
        if self._refused:
            # Otherwise an ACK of a later entry, sent by the handler before it sees the refused one again, would
            # look like one that includes it, and the line would be lost in silence.
            if self._sent or now < self._refused_until:
                return False
            self._again.extendleft(sorted(self._refused, key=lambda entry: -entry.sequence))
            self._refused.clear()
        return len(self._sent) < self._limits.buffer and self._sent_bytes < MAX_UNACKNOWLEDGED_BYTES

    @property
    def _has_next(self) -> bool:
        if self._sent_bytes >= MAX_UNACKNOWLEDGED_BYTES:
            return False
        if self._again or self._parts or self._missing or self._waiting:
            return True
        return self._finished and not self._done and not self._sent and not self._refused

    def _next(self) -> Entry:
        """Give the next entry its sequence. It is put in front of those to be sent, for it may not fit any more."""
        if not self._parts and (self._missing or (self._waiting and isinstance(self._waiting[0], Gap))):
            # The handler's entries are those that are read again only up to here: the earlier process may have sent
            # lines in the place of this remark. With their numbers, the remark and what follows it would count as
            # stored, and be lost in silence: the end of the log too, if nothing can be read any more.
            self._last = max(self._last, self._stored_by_handler)
        self._last += 1
        entry = self._encode(self._last)
        self.settled.add(entry)
        self._again.append(entry)
        return entry

    def _encode(self, sequence: int) -> Entry:
        encoder = self._encoder
        if not self._parts and self._missing:
            at = self._missing_at
            text = encoder.dropped(self._missing, timestamp=at.timestamp, source=at.source, sequence=sequence)
            marked = (self._missing, self._missing_bytes, self._missing_gaps)
            self._missing = self._missing_bytes = self._missing_gaps = 0
            return Entry(sequence, text, -1, at.timestamp, self._missing_place, *marked)
        if not self._parts and not self._waiting:
            account = self.account
            end = LogEnd(lines=account.lines, bytes=account.bytes, dropped=account.dropped, gaps=account.gaps)
            text = encoder.end(end, timestamp=self._end_timestamp, sequence=sequence)
            return Entry(sequence, text, -1, self._end_timestamp, is_end=True)
        if not self._parts:
            line = self._waiting.popleft()
            self._waiting_bytes -= len(line.text)
            if isinstance(line, Gap):
                text = encoder.gap(timestamp=line.timestamp, source=line.source, sequence=sequence)
                return Entry(sequence, text, -1, line.timestamp, marked_gaps=1)
            self._parts.extend(encoder.parts(line, self._limits.message))
        part = self._parts.popleft()
        return Entry(sequence, encoder.line(part, sequence), len(part.text), part.timestamp, part.place)

    # -- answers

    def answered(self, status: int, sequence: int, now: float) -> None:
        """An answer of the handler. Sequence 0: to the oldest entry that is not answered."""
        self._answered_at = now
        self._answer(status, sequence, now)
        self.settled.move()

    def _answer(self, status: int, sequence: int, now: float) -> None:
        if status == Status.ACK and sequence:
            while self._sent and self._sent[0].sequence <= sequence:
                self._acknowledge(self._pop_sent(0))
            return
        place = self._place(sequence)
        if place is None:  # answered already, or never sent
            return
        entry = self._pop_sent(place)
        if status == Status.ACK:
            self._acknowledge(entry)
        elif status == Status.DROP:
            self._count_dropped(entry, LineDrop.REFUSED)
        else:
            self._refuse(entry, now)

    def _place(self, sequence: int) -> int | None:
        if sequence == 0:
            return 0 if self._sent else None
        return next((place for place, entry in enumerate(self._sent) if entry.sequence == sequence), None)

    def _pop_sent(self, place: int) -> Entry:
        entry = self._sent[place]
        del self._sent[place]
        self._sent_bytes -= len(entry.encoded)
        return entry

    def _refuse(self, entry: Entry, now: float) -> None:
        if not entry.retries:
            entry.first_retry = now
        entry.retries += 1
        if entry.retries > MAX_RETRIES or now - entry.first_retry > MAX_RETRY_S:
            self._count_dropped(entry, LineDrop.RETRIES)
            return
        pause = RETRY_PAUSE_S * 2 ** (entry.retries - 1) * (0.5 + self._random() / 2)
        self._refused.append(entry)
        self._refused_until = max(self._refused_until, now + pause)

    def _acknowledge(self, entry: Entry, *, counts: bool = True) -> None:
        """`counts`: this process has sent it, and not an earlier one."""
        if entry.size >= 0:
            self._counts.acknowledge(entry.size, counts=counts)
        self._end_with(entry, acknowledged=True)

    def _count_dropped(self, entry: Entry, why: LineDrop) -> None:
        if entry.size >= 0:
            self._counts.drop(entry.size, why)
        self._end_with(entry, acknowledged=False)

    def _end_with(self, entry: Entry, *, acknowledged: bool) -> None:
        entry.acknowledged = acknowledged
        if entry.is_end:
            self._done = True
            self._ended = acknowledged

    def _drop_oldest(self) -> None:
        line = self._waiting.popleft()
        self._waiting_bytes -= len(line.text)
        self._missing_at = Gap(line.source, line.timestamp)
        if isinstance(line, Gap):  # counted when it was added; the mark for what is dropped around it covers it
            self._missing_gaps += 1
            return
        self._missing += 1
        self._missing_bytes += len(line.text)
        self._missing_place = line.place
        self._counts.drop(len(line.text), LineDrop.NO_ROOM)
