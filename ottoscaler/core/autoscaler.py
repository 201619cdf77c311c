"""What an autoscaler says of a pod that no node takes: from the pod's Events to whether a node is on its way.

The reasons are those of cluster-autoscaler (processors/status/eventing_scale_up_processor.go) and of Karpenter
(pkg/controllers/provisioning/scheduling/events.go). Both write Events about the pod itself. No worker can write one: it
has no token, or one that its operator gave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

#: A node is on its way: cluster-autoscaler has enlarged a group of nodes, Karpenter has chosen a node for the pod.
_COMING: Final = frozenset({"TriggeredScaleUp", "Nominated"})
#: None is: the groups are at their maximum, in backoff after a failure, or of no use to this pod.
_NOT_COMING: Final = frozenset({"NotTriggerScaleUp"})
#: The scheduler's word for a pod that fits nowhere now, which says nothing of nodes to come. Karpenter uses the same
#: word for a pod that it can add no node for; on EKS Auto Mode it has the second name.
_FAILED: Final = "FailedScheduling"
_KARPENTER: Final = frozenset({"karpenter", "eks-auto-mode/compute"})
#: How much of an Event's message is kept, characters.
_SHOWN: Final = 500


class PodEvent(msgspec.Struct, frozen=True):
    """An Event about a pod. `component` wrote it. Of two in one list the one with the higher `version` was written
    later: an Event that happens again is written again.
    """

    reason: str
    message: str = ""
    component: str = ""
    version: int = 0


class NodeForecast(msgspec.Struct, frozen=True):
    """Is a node on its way for a pod, and what the autoscaler said of it; empty where there was no word of one."""

    expected: bool
    message: str = ""


#: No autoscaler has said anything.
NO_FORECAST: Final = NodeForecast(expected=False)


def node_forecast(events: Sequence[PodEvent]) -> NodeForecast:
    """What an autoscaler said last, by the order of the writes: times are those of several machines' clocks."""
    words = [event for event in events if _is_coming(event) is not None]
    if not words:
        return NO_FORECAST
    last = max(words, key=lambda event: event.version)
    return NodeForecast(_is_coming(last) is True, f"{last.reason}: {last.message[:_SHOWN]}")


def _is_coming(event: PodEvent) -> bool | None:
    """Does it say that a node is on its way? None: it speaks of nothing of the kind."""
    if event.reason in _COMING:
        return True
    if event.reason in _NOT_COMING or (event.reason == _FAILED and event.component in _KARPENTER):
        return False
    return None
