"""What must hold of the logs in the end: what the handler has stored is held against what the workers have written.

Pure: lists in, sentences out, one for each violation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.torture.kubelet import Run
from tests.torture.log_handler import DRAIN_S
from tests.torture.pod_logs import written

#: Beside LOG_DRAIN_S, seconds: looks of the threads that wait for logs, and a loaded machine.
SLACK_S: Final = 4.0
#: Times without a log handler, of which at least one has to see a worker end.
MANY: Final = 5
#: Until all controllers that were started at the end follow what there is, seconds.
START_S: Final = 10.0


@dataclass(frozen=True)
class LogHistory:
    """All that is known in the end."""

    book: Sequence[Run]
    entries: Mapping[str, Sequence[Mapping[str, Any]]]
    """Pod -> what the handler has stored of it, in the order in which it came."""
    given_up: Collection[str]
    """Pods of which a controller reports that their log was not acknowledged within LOG_DRAIN_S."""
    recorded: Mapping[str, float]
    """UID -> when the result was stored, seconds since the epoch."""
    away: Sequence[tuple[float, float]]
    settled_at: float

    def lines(self, run: Run) -> list[str]:
        """The lines of a pod that the handler has, without its own entries, by sequence."""
        found = sorted(self.entries[run.name], key=lambda entry: entry["sequence"])
        return [entry["message"] for entry in found if entry["message"].startswith(f"{run.name} ")]

    def end(self, run: Run) -> Mapping[str, int] | None:
        """The account at the end of its log."""
        ends = [entry["end"] for entry in self.entries[run.name] if "end" in entry]
        return ends[-1] if ends else None


def doubled(history: LogHistory) -> Iterator[str]:
    """Each line that was received was written, once, and its place is behind the line before it."""
    for run in history.book:
        sequences = [entry["sequence"] for entry in history.entries[run.name]]
        if len(set(sequences)) != len(sequences):
            yield f"{run.name} has an entry twice"
        place = {text: number for number, (_, text) in enumerate(written(run, run.ended_at))} if run.ended_at else {}
        received = [place.get(text, -1) for text in history.lines(run)] if run.ended_at else []
        if -1 in received:
            yield f"{run.name} has never written a line that was received"
        if received != sorted(set(received)):
            yield f"lines of {run.name} came twice, or not in their order: {received}"


def lost(history: LogHistory) -> Iterator[str]:
    """A line that is missing is counted in the account at the end, or is in a gap. Without an end a controller has said
    that it gave the log up, or the pod was ended by us and is gone.
    """
    for run in history.book:
        if not (run.started_at and run.ended_at):
            continue
        end = history.end(run)
        if end is None:
            if run.name not in history.given_up and not _is_ended_by_us(run):
                yield f"{run.name} ({run.phase}, {run.reason}) has no end, and no controller has given its log up"
            continue
        missing = len(written(run, run.ended_at)) - len(history.lines(run))
        if missing != end["dropped"] and not end["gaps"]:
            yield f"{run.name} has written {missing} lines more than were received, and the end says {end}"


def _is_ended_by_us(run: Run) -> bool:
    """Its pod was to be deleted while it ran, and it is gone as soon as its program has ended."""
    return bool(run.deleted_at) and run.deleted_at <= run.ended_at + 0.05


def late(history: LogHistory) -> Iterator[str]:
    """With controllers that live, no pod stays longer than LOG_DRAIN_S behind its result."""
    for run in history.book:
        recorded = history.recorded.get(run.uid, 0.0)
        if recorded > history.settled_at + START_S and run.deleted_at - recorded > DRAIN_S + SLACK_S:
            yield f"{run.name} was deleted {run.deleted_at - recorded:.1f} s behind its result"


def held_up(history: LogHistory) -> Iterator[str]:
    """While the handler is away, results come as ever."""
    ends = {run.uid: run.ended_at for run in history.book}
    came = [
        uid
        for uid, at in history.recorded.items()
        if any(begin < ends.get(uid, 0.0) and at < end for begin, end in history.away)
    ]
    if len(history.away) >= MANY and not came:
        yield f"no worker ended and had its result in the {len(history.away)} times without a log handler"


def account(history: LogHistory) -> str:
    """A line for the report."""
    ended = [run for run in history.book if run.started_at and run.ended_at]
    ends = [end for run in ended if (end := history.end(run)) is not None]
    lines = sum(len(written(run, run.ended_at)) for run in ended)
    received = sum(len(history.lines(run)) for run in ended)
    dropped, gaps = (sum(end[what] for end in ends) for what in ("dropped", "gaps"))
    return (
        f"logs: {len(ends)} of {len(ended)} to their end, {len(history.given_up)} given up; {received} of {lines} "
        f"lines received, {dropped} dropped and counted, {gaps} gaps"
    )


#: What must not be, in the words of the table.
RULES: Sequence[tuple[str, Callable[[LogHistory], Iterable[str]]]] = (
    ("no line of a log is received twice", doubled),
    ("no line of a log is lost in silence", lost),
    ("no pod waits longer than LOG_DRAIN_S for its log", late),
    ("no result waits for a log handler that is away", held_up),
)
