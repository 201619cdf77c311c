"""The seam of the trace exporter: what it needs of the world beside `ports`.

`ResultLog` raises RedisUnavailable when Redis does not answer or refuses, and never Stopping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ottoscaler.core.spans import Span, StoredTimes
from ottoscaler.stored import WorkerAttempt


class ResultLog(Protocol):
    """The result stream, as the trace exporter reads it: by a group of its own, in which an entry that was read stays
    pending until it is acknowledged. For the exporter's thread.
    """

    def begin_results(self, *, from_start: bool = False) -> None:
        """Create the group, if it is not there: at the stream's end, so that what was recorded without traces gets
        none, or at its beginning.
        """

    def read_results(self, count: int) -> Sequence[tuple[str, Mapping[str, str]]]:
        """Up to `count` new results, each with the id of its entry and those of its fields that are in
        spans.RESULT_FIELDS; they are pending for this consumer. Does not block.
        """

    def claim_results(self, min_idle_s: float, count: int) -> tuple[Sequence[tuple[str, Mapping[str, str]]], int]:
        """Some results that were pending for so long, for any consumer: they are ours by this. Also how many more of
        them had been trimmed away.
        """

    def renew_results(self, entry_ids: Sequence[str]) -> None:
        """Results that are pending for us count as read just now."""

    def acknowledge_results(self, entry_ids: Sequence[str]) -> None:
        """These results are done with."""

    def stored_times(self, workers: Sequence[WorkerAttempt]) -> Sequence[StoredTimes | None]:
        """What is stored of each, in their order; None for a task that is not known: another group's, or expired."""

    def store_gone_time(self, workers: Sequence[WorkerAttempt]) -> Sequence[int]:
        """The pods of these workers are seen to be gone: store when, once. Returns what is stored of each, in their
        order, ms since the epoch by the clock of Redis; 0 for a task that is not known.
        """


class SpanSink(Protocol):
    """The trace collector. For one thread, for which nothing else waits: a call may hang in the name server."""

    def send(self, spans: Sequence[Span]) -> int:
        """Hand over spans. Returns how many of them the collector has refused. Raises CollectorUnavailable, after which
        the same spans are sent again, and CollectorRejected, after which they are not.
        """
