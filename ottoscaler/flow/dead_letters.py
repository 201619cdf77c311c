"""Dead letters: how one is reported, and how a defect that one event brings out is kept from stopping all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ottoscaler import logs
from ottoscaler.core.events import BadEvent
from ottoscaler.core.outgoing_kube_events import RecordKubeEvent, dead_letter_event
from ottoscaler.errors import Stopping, Unavailable
from ottoscaler.metrics import Metrics

_log = logs.get(__name__)


@dataclass(slots=True)
class Defect:
    """What went wrong inside `contain_defects`; empty if nothing did."""

    name: str = ""


@contextmanager
def contain_defects(event_id: str) -> Iterator[Defect]:
    """Log an exception raised inside as a defect; Unavailable and Stopping pass through.

    The caller makes sure that the event still ends: as a dead letter, or by a counted retry.
    """
    defect = Defect()
    try:
        yield defect
    except (Unavailable, Stopping):
        raise
    except Exception as error:  # one event must neither stop all others nor be lost silently
        defect.name = type(error).__name__
        _log.exception("event.poison", "Our own code failed on event %s", event_id, event_id=event_id)


def report(metrics: Metrics, bad: BadEvent, stream_id: str, record_event: RecordKubeEvent) -> None:
    """Log and count a dead letter that this process has just written. `stream_id` is the event's entry, empty where it
    is not known.
    """
    metrics.dead_letters.inc(bad.reason)
    event_id = bad.event_id or stream_id
    _log.warning(
        "event.dead", "Dead letter %s: %s (%s)", event_id, bad.reason, bad.detail,
        event_id=event_id, stream_id=stream_id or None, reason=bad.reason.value,
    )  # fmt: skip
    record_event(dead_letter_event(event_id, bad))
