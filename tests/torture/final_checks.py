"""What must hold in the end: the results are held against the events that were sent and the programs that were started.

Pure: lists in, sentences out, one for each violation.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ottoscaler.core.manifest import AttemptKey, event_hash, pod_name
from tests.torture.kubelet import Run, Worker
from tests.torture.producer import KEYS, Fields, Sent

#: The instance is named like the consumer group, which is the usual one.
INSTANCE = "ottoscaler"
#: New attempts after an error of the worker's own: the controllers are configured so.
WORKER_RETRIES = 1
#: Ends of workers that this run can lead to. PodLost is not among them: there are retries enough.
REASONS = frozenset({"Completed", "Error", "PendingTimeout", "ScaledDown", "Superseded"})


@dataclass(frozen=True)
class History:
    """All that is known in the end."""

    sent: Sequence[Sent]
    results: Sequence[Fields]
    dead: Sequence[Fields]
    book: Sequence[Run]
    pods: Sequence[str]
    open_ids: Sequence[str]
    pending: int

    def of(self, kind: str) -> Mapping[str, list[Fields]]:
        """The results of a kind, by event."""
        found: dict[str, list[Fields]] = defaultdict(list)
        for result in self.results:
            if result["kind"] == kind:
                found[result["event_id"]].append(result)
        return found

    def runs(self) -> Mapping[Worker, list[Run]]:
        """The pods of each worker with a started program, in the order of the starts."""
        found: dict[Worker, list[Run]] = defaultdict(list)
        for run in sorted(self.book, key=lambda run: run.started_at):
            if run.started_at:
                found[run.worker].append(run)
        return found


def lost(history: History) -> Iterator[str]:
    """Events and workers without a result."""
    closing, workers = {**history.of("task"), **history.of("scale_down")}, history.of("worker")
    for event in history.sent:
        if event.answered and not closing.get(event.event_id):
            yield f"{event.kind} {event.event_id} has no closing result"
        if event.kind == "scale_up":
            found = {result["index"] for result in workers.get(event.event_id, ())}
            missing = [index for index in range(1, event.pod_count + 1) if str(index) not in found]
            yield from (f"worker {index} of {event.event_id} has no result" for index in missing)


def published_twice(history: History) -> Iterator[str]:
    """Results that there are twice, or that no event asked for."""
    known = {event.event_id: event for event in history.sent}
    counts = Counter((result["kind"], result["event_id"], result.get("index", "")) for result in history.results)
    for (kind, event_id, index), count in counts.items():
        if count > 1:
            yield f"{kind} {event_id}/{index} is reported {count} times"
        if event_id not in known or (index and int(index) > known[event_id].pod_count):
            yield f"{kind} {event_id}/{index} is of no event"


def buried(history: History) -> Iterator[str]:
    """Bad events have one dead letter each, and no other event has one."""
    dead = Counter(letter["stream_id"] for letter in history.dead)
    bad = {event.entry_id: event for event in history.sent if event.bad}
    for entry_id, event in bad.items():
        if dead[entry_id] != 1:
            found = {name: str(value)[:40] for name, value in event.fields.items()}
            yield f"the bad event {entry_id} has {dead[entry_id]} dead letters: {found}"
    for letter in history.dead:
        if letter["stream_id"] not in bad:
            yield f"{letter['event_id']} is a dead letter: {letter['dead_reason']}, {letter['dead_detail']}"


def left(history: History) -> Iterator[str]:
    """Nothing is left to do, and nothing is left behind."""
    yield from (f"pod {name} is left" for name in history.pods)
    yield from (f"event {event_id} is still open" for event_id in history.open_ids)
    if history.pending:
        yield f"{history.pending} entries are still pending"


def started_twice(history: History) -> Iterator[str]:
    """A program is started again only after it has failed, and only as the next attempt."""
    for worker, runs in history.runs().items():
        errors = 0
        for earlier, later in pairwise(runs):
            failed = earlier.phase == "Failed" and not earlier.stopped and earlier.ended_at <= later.started_at
            errors += failed and earlier.reason != "Evicted"
            if not failed or later.attempt <= earlier.attempt or errors > WORKER_RETRIES:
                yield f"{worker[0]}/{worker[1]} was started as {_seen_as(earlier)} and again as {_seen_as(later)}"


def held_by_too_many(history: History) -> Iterator[str]:
    """Tasks of one concurrency key that ran side by side beyond its limit: each from its first program's start to its
    last one's end, retries included.
    """
    for key, limit in KEYS.items():
        spans = {event.event_id: span for event, span in _spans(history, key)}
        for event_id, (began, _) in spans.items():
            beside = [other for other, (first, last) in spans.items() if first <= began < last]
            if len(beside) > limit:
                yield f"{beside} of {key} run at once when {event_id} starts, and the limit is {limit}"


def out_of_order(history: History) -> Iterator[str]:
    """Tasks of one concurrency key that started although as many as may run at once, or more, are older and had not
    ended. Of an event that was sent twice the later entry may be the one that was accepted, so it is not known to be
    older.
    """
    for key, limit in KEYS.items():
        spans = list(_spans(history, key))
        for at, (event, (began, _)) in enumerate(spans):
            ahead = [older.event_id for older, (_, end) in spans[:at] if older.copies == 1 and end > began]
            if len(ahead) >= limit:
                yield f"{event.event_id} starts before {ahead}, which are older and of {key}, have ended"


def _spans(history: History, key: str) -> Iterator[tuple[Sent, tuple[float, float]]]:
    """The events of a concurrency key of which a program has started, in the order of the stream, and from when to when
    they had programs.
    """
    for event in sorted(history.sent, key=lambda event: _place(event.entry_id)):
        runs = [run for run in history.book if run.event_id == event.event_id and run.started_at]
        if event.concurrency_key == key and runs:
            began, last = min(run.started_at for run in runs), max(run.ended_at or math.inf for run in runs)
            yield event, (began, last)


def _place(entry_id: str) -> tuple[int, ...]:
    """Where an entry is in the stream."""
    return tuple(map(int, entry_id.split("-")))


def false(history: History) -> Iterator[str]:
    """Results that are not what happened."""
    runs = {run.uid: run for run in history.book}
    succeeded = {
        run.worker for run in history.book if run.phase == "Succeeded" and not run.stopped and not run.deleting
    }
    for results in history.of("worker").values():
        for result in results:
            name = f"{result['event_id']}/{result['index']} reported as {result['outcome']}, {result['reason']}"
            run = runs.get(result["pod_uid"])
            if result["reason"] not in REASONS:
                yield f"{name}: {result['message']}"
            if result["outcome"] == "succeeded" and (run is None or run.phase != "Succeeded"):
                yield f"{name}: {_seen_as(run) if run else 'there was no such pod'}"
            if result["reason"] == "Error" and (run is None or run.phase != "Failed" or run.stopped or run.reason):
                yield f"{name}: {_seen_as(run) if run else 'there was no such pod'}"
            if result["outcome"] != "succeeded" and (result["event_id"], int(result["index"])) in succeeded:
                yield f"{name}: its program has succeeded"


def miscounted(history: History) -> Iterator[str]:
    """Task results that do not add up to their workers' results."""
    workers = history.of("worker")
    for event_id, tasks in history.of("task").items():
        counts = Counter(result["outcome"] for result in workers.get(event_id, ()))
        for task in tasks:
            if any(int(task[outcome]) != counts[outcome] for outcome in ("succeeded", "failed", "cancelled")):
                yield f"task {event_id} says {task['message']!r}, its workers {dict(counts)}"


def ended_wrongly(history: History) -> Iterator[str]:
    """Workers ended by a scale_down that did not choose them, or by two; more of them than were asked for, and fewer
    although there were more.
    """
    ended: dict[str, set[str]] = defaultdict(set)
    for results in history.of("worker").values():
        for result in results:
            if result["reason"] == "ScaledDown":
                first = AttemptKey(event_hash(INSTANCE, result["event_id"]), int(result["index"]), 1)
                ended[result["message"].removeprefix("ended by scale_down ")].add(pod_name(first))
    found = {event_id: results[0] for event_id, results in history.of("scale_down").items()}
    of: dict[str, str] = {}
    for event in history.sent:
        if event.kind != "scale_down" or event.event_id not in found:
            continue
        victims = {_first_name(name) for name in json.loads(found[event.event_id]["victims"])}
        survivors = json.loads(found[event.event_id]["survivors"])
        if len(victims) < event.pod_count and survivors and event.fields.get("mode") != "drain":
            yield f"scale_down {event.event_id} of {event.pod_count} ended {victims}, and {survivors} stayed"
        for pod in victims:
            if of.setdefault(pod, event.event_id) != event.event_id:
                yield f"{pod} is a victim of {of[pod]} and of {event.event_id}"
        if len(victims) > event.pod_count or len(ended[event.event_id]) > event.pod_count:
            yield f"scale_down {event.event_id} of {event.pod_count} ended {victims | ended[event.event_id]}"
        yield from (f"scale_down {event.event_id} ended {pod}, no victim" for pod in ended[event.event_id] - victims)


def _first_name(pod: str) -> str:
    """The name of the pod of the same worker's first attempt."""
    return re.sub(r"-r[0-9]+$", "", pod)


def _seen_as(run: Run) -> str:
    how = "still runs" if not run.phase else f"{run.phase} {run.reason}{' when deleted' if run.stopped else ''}"
    return f"{run.name} ({run.uid[:8]}, started {run.started_at % 1000:.2f}, {how.strip()} {run.ended_at % 1000:.2f})"


#: What must not be, in the words of the table.
RULES: Sequence[tuple[str, Callable[[History], Iterable[str]]]] = (
    ("nothing is lost", lost),
    ("nothing is reported twice", published_twice),
    ("bad events are dead letters, once", buried),
    ("nothing is left over", left),
    ("no program is started twice", started_twice),
    ("no concurrency key is held by too many", held_by_too_many),
    ("tasks of a concurrency key start in the order of the stream", out_of_order),
    ("what is reported has happened", false),
    ("tasks add up to their workers", miscounted),
    ("a scale_down ends the workers that it chose", ended_wrongly),
)
