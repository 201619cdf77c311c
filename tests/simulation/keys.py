"""What must hold of concurrency keys at every step of the simulation."""

from __future__ import annotations

from tests.fakes.server import order
from tests.simulation.audit import Audit


def check_limits(audit: Audit) -> None:
    """No key has more holders than the least of their limits. Less is promised where Redis was wiped."""
    if audit.flushes:
        return
    for key, holding in audit.redis.places.by_key().items():
        least = min((event.concurrency_limit for event in holding), default=0)
        if len(holding) > least:
            audit.complain(f"{key} is held by {[event.event_id for event in holding]}, and the limit is {least}")
        started = [
            task.event for task in audit.redis.tasks.values()
            if task.event is not None and task.event.concurrency_key == key and task.owner and task.state == "running"
        ]  # fmt: skip
        if len(started) > least:
            audit.complain(f"{[event.event_id for event in started]} of {key} have started, and the limit is {least}")


def check_turn(audit: Audit, event_id: str) -> None:
    """A worker's attempt is stored. Nothing that is older and of the same key waits."""
    check_limits(audit)
    redis = audit.redis
    event = redis.tasks[event_id].event
    if audit.flushes or event is None or not event.concurrency_key:
        return
    if not redis.places.holds(event):
        audit.complain(f"{event_id} starts without a place of its key")
    limit, group = order(event.stream_id), redis.group
    older = [
        other for other, task in redis.tasks.items()
        if task.event is not None and task.event.concurrency_key == event.concurrency_key and task.owner
        and order(task.event.stream_id) < limit and not redis.places.holds(task.event)
    ]  # fmt: skip
    key = event.concurrency_key.encode()
    older += [
        name for name in group.pending if group is not None and order(name) < limit
        and redis.entries.get(name, {}).get(b"concurrency_key") == key
        and redis.entries[name].get(b"event_id", name.encode()).decode() not in redis.tasks
    ] if group is not None else []  # fmt: skip
    if older:
        audit.complain(f"{event_id} starts before {older}, which are older and of its key")
