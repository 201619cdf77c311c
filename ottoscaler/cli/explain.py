"""`explain EVENT_ID|TASK_ID`: why an event is where it is, what happens next and when, and what can be done.

It reads Redis only. The id of a dead letter is understood, too. `--json` prints one object, which
deploy/schemas/explain.schema.json describes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import Final

from ottoscaler.adapters.explain_reader import ExplainReader
from ottoscaler.cli.connection import load_checked
from ottoscaler.cli.explanation import NAMED, Explanation, WorkerGroup, as_json, explain
from ottoscaler.cli.table import duration, printable, tally_text
from ottoscaler.core.verdicts import FaultOrigin
from ottoscaler.core.wording import count_text

EXIT_UNKNOWN: Final = 1
#: At most a screen: events of one task id, groups of workers, and characters of one reason.
_EVENTS: Final = 3
_GROUPS: Final = 8
_WHY: Final = 400
_ACTORS: Final = {
    FaultOrigin.NONE: "",
    FaultOrigin.USER: " (the sender of the event)",
    FaultOrigin.CONFIG: " (the operator of Ottoscaler)",
    FaultOrigin.INFRA: " (the operator of the cluster)",
}


def main(arguments: Sequence[str]) -> int:
    """Print why. Returns 0; 1 for an id that Redis does not know. Raises ConfigError, RedisUnavailable."""
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py explain", description="Why an event is where it is, and what happens next."
    )
    parser.add_argument("id", metavar="EVENT_ID|TASK_ID", help="of the event, of its task, or of its dead letter")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    settings = load_checked()
    with closing(ExplainReader(settings.redis, settings.keys)) as reader:
        found, now = explain(reader, options.id), reader.now()
    if options.json:
        print(json.dumps({"at": now, "id": options.id, "events": [as_json(one) for one in found]}))
    elif found:
        print("\n\n".join("\n".join(map(printable, lines(one, now))) for one in found[:_EVENTS]))
        if len(found) > _EVENTS:
            print(f"\nand {count_text(len(found) - _EVENTS, 'more event')} of this task: --json has all")
    else:
        print(_unknown_text(options.id, settings.keys.task_ttl_s), file=sys.stderr)
    return 0 if found else EXIT_UNKNOWN


def lines(one: Explanation, now: float) -> list[str]:
    """What a person reads of one event. `now` is the time of Redis, seconds since the epoch."""
    facts = one.code.facts
    known = [f"task {one.task_id}" if one.task_id else "", one.type, one.outcome or one.state]
    said = [f"{one.event_id}: {', '.join(filter(None, known))}", f"{one.code}: {_cut(one.why)}"]
    if one.since:
        said.append(f"  since  {local_time(one.since, now)}")
    if not one.outcome:
        said.append(f"  next   {facts.next_step(local_time(one.next_at, now))}")
    if advice := one.advice or facts.advice:
        said.append(f"  to do  {advice}{_ACTORS[facts.actor]}")
    if one.owner:
        said.append(f"  owner  {one.owner}")
    if one.workers:
        said.append(f"  workers: {tally_text(one.workers)}")
    said += [_group_line(group, now) for group in one.groups[:_GROUPS]]
    if len(one.groups) > _GROUPS:
        said.append(f"  and {count_text(len(one.groups) - _GROUPS, 'further reason')}: --json has all")
    return said


def local_time(stamp: str, now: float) -> str:
    """An RFC 3339 time in the zone of the reader, with how far away it is; empty for none."""
    try:
        at = datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return stamp
    here, today = datetime.fromtimestamp(at).astimezone(), datetime.fromtimestamp(now).astimezone()
    day = "" if here.date() == today.date() else f"{here:%Y-%m-%d} "
    away = f"{duration(now - at)} ago" if at <= now else f"in {duration(at - now)}"
    return f"{day}{here:%H:%M:%S %Z} ({away})"


def _group_line(group: WorkerGroup, now: float) -> str:
    first, count = group.first, len(group.indices)
    named = ", ".join(map(str, group.indices[:NAMED]))
    which = f"worker{'s' if count > 1 else ''} {named}{', ...' if count > NAMED else ''}"
    facts = [f"{first.outcome or group.code}: {_cut(first.why)}"]
    if first.exit_code not in ("", "0"):
        facts.append(f"exit code {first.exit_code}")
    if first.pod and not first.outcome:
        facts.append(first.pod)
    if first.next_at and not first.outcome:
        facts.append(group.code.facts.next_step(local_time(first.next_at, now)))
    return f"  {which}: {'; '.join(facts)}"


def _cut(text: str) -> str:
    return text if len(text) <= _WHY else f"{text[:_WHY]}..."


def _unknown_text(name: str, ttl_s: float) -> str:
    return (
        f"Redis knows no event, task or dead letter {printable(name)!r}: look at the id, and at REDIS_STREAM and"
        f" KEY_PREFIX; a finished task is forgotten after {duration(ttl_s)} (TASK_TTL_S)"
    )
