"""Events that come to no good: what is said of dead letters, and how a defect of ours that one event brings out is kept
from stopping all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ottoscaler import logs
from ottoscaler.core.events import BadEvent
from ottoscaler.errors import Stopping, Unavailable
from ottoscaler.metrics import Metrics

_log = logs.get(__name__)


@dataclass(slots=True)
class Defect:
    """What went wrong inside `contained`; empty if nothing did."""

    name: str = ""


@contextmanager
def contained(event_id: str) -> Iterator[Defect]:
    """Whatever is raised inside, but for what servers and the stop raise, is logged and told as a defect.

    The caller sees to it that the event ends all the same: as a dead letter, or by being taken up again and counted.
    """
    defect = Defect()
    try:
        yield defect
    except (Unavailable, Stopping):
        raise
    except Exception as error:  # the event must not stop all others, nor be lost in silence
        defect.name = type(error).__name__
        _log.exception("event.poison", "Our own code failed on event %s: %s", event_id, error, event_id=event_id)


def report(metrics: Metrics, bad: BadEvent, stream_id: str = "") -> None:
    """A dead letter was written just now, by us: one line and one count. `stream_id` is the event's entry, if known."""
    metrics.dead_letters.inc(bad.reason)
    event_id = bad.event_id or stream_id
    _log.warning(
        "event.dead", "Dead letter %s: %s (%s)", event_id, bad.reason, bad.detail,
        event_id=event_id, stream_id=stream_id or None,
    )  # fmt: skip
