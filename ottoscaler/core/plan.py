"""Which workers a scale_down ends first, and which it spares.

First those that cost least: workers not yet created, then those waiting for a new attempt, then pods that have not
started, then the youngest running ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ottoscaler.core.events import ScaleDownMode, ScaleEvent
from ottoscaler.core.pods import PodSnapshot


class WorkerStage(IntEnum):
    """How far a worker has come; the least far are ended first. ENDED: its pod has, and it may be tried again."""

    NOT_CREATED = 0
    WAITING = 1
    PENDING = 2
    RUNNING = 3
    ENDED = 4


@dataclass(frozen=True, slots=True)
class VictimCandidate:
    """A worker without a result. `pod` is the last that was seen of its current attempt,
    `attempt` 0 where none was ever stored.
    """

    event: ScaleEvent
    index: int
    attempt: int
    pod: PodSnapshot | None

    @property
    def stage(self) -> WorkerStage:
        """How far it has come."""
        if self.pod is not None and self.pod.agent_ended:
            return WorkerStage.ENDED
        if self.pod is not None:
            return WorkerStage.RUNNING if self.pod.started_at is not None else WorkerStage.PENDING
        return WorkerStage.WAITING if self.attempt else WorkerStage.NOT_CREATED


def rank_victims(
    candidates: Sequence[VictimCandidate], mode: ScaleDownMode
) -> tuple[list[VictimCandidate], list[VictimCandidate]]:
    """The workers that may be ended, those that cost least first, and those that are spared whatever happens.

    Arguments: all workers that a scale_down is about, and whether started ones are spared (drain). How many are ended,
    and whether each still can be, the choice in Redis decides (`Stream.select_victims`).
    """
    ordered = sorted(candidates, key=_youngest_first)
    spared = [one for one in ordered if mode is ScaleDownMode.DRAIN and one.stage is WorkerStage.RUNNING]
    kept = {id(one) for one in spared}
    return [one for one in ordered if id(one) not in kept], spared


def is_older(stream_id: str, than: str) -> bool:
    """Was this entry added before that one?"""
    return stream_sort_key(stream_id) < stream_sort_key(than)


def _youngest_first(one: VictimCandidate) -> tuple[int, float, tuple[int, int], int]:
    # by its creation, which the API server wrote for all of them: each node has its own idea of when a pod started
    created = one.pod.created_at if one.pod is not None and one.pod.created_at is not None else 0.0
    milliseconds, number = stream_sort_key(one.event.stream_id)
    return one.stage, -created, (-milliseconds, -number), -one.index


def stream_sort_key(stream_id: str) -> tuple[int, int]:
    """By what entries are in order: their ids as numbers."""
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds), int(number or 0)
