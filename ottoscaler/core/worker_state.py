"""The state of one worker, and what it says of it: core/lifecycle.py has the rules by which it changes."""

from __future__ import annotations

from typing import Final

import msgspec

from ottoscaler.core.effects import (
    AwaitPod,
    CreatePod,
    DeleteOldPod,
    DeletePod,
    Effect,
    EndLifecycle,
    GetPod,
    KeepPod,
    ListPodEvents,
    PauseUntil,
    RecordResult,
    StoreAttempt,
    StoreRefusal,
)
from ottoscaler.core.pod_timeline import EMPTY_TIMELINE, PodTimeline
from ottoscaler.core.pods import PodSnapshot, StartTrouble
from ottoscaler.core.termination import RetryCause, Termination
from ottoscaler.core.verdicts import Verdict

_BEFORE_CREATE: Final = (StoreAttempt, PauseUntil, DeleteOldPod, CreatePod)
_WITHOUT_POD: Final = (StoreAttempt, PauseUntil, StoreRefusal)
#: How many nodes a new attempt avoids at most: those of the latest attempts.
MAX_AVOIDED_NODES: Final = 10
_AFTER_END: Final = (RecordResult, DeletePod, KeepPod, EndLifecycle)


class Lifecycle(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one worker.

    `todo` is what its thread does next. `attempt` is the current one (from 1), `infra_used` how many of the earlier
    ones the platform failed, `oom_kills` how many of them ended as OOMKilled, `pod` the last that was seen of the
    attempt's pod, `old_pod` an earlier attempt's pod that is still to be deleted, `termination` why its pod is to be
    ended. `pending_verdict` is how the attempt ended, while a termination that had no part in it is cleared.
    `not_before` is the end of the last pause, `timeline` since when the pod has been seen in which state,
    `pod_was_seen` that an earlier process has stored that it saw the attempt's pod, `backoff` the number of pauses for
    back-pressure in a row, `retry_cause` why this attempt follows another, `avoided_nodes` those on which earlier
    attempts of this process failed by the node's fault, the latest last.
    """

    index: int
    todo: Effect
    attempt: int = 1
    infra_used: int = 0
    oom_kills: int = 0
    pod: PodSnapshot | None = None
    old_pod: PodSnapshot | None = None
    termination: Termination | None = None
    pending_verdict: Verdict | None = None
    not_before: float = 0.0
    timeline: PodTimeline = EMPTY_TIMELINE
    pod_was_seen: bool = False
    backoff: int = 0
    retry_cause: RetryCause | None = None
    avoided_nodes: tuple[str, ...] = ()

    @property
    def store_attempt(self) -> StoreAttempt:
        """The effect that stores its attempt."""
        return StoreAttempt(self.attempt, self.infra_used, self.oom_kills)

    @property
    def needs_room(self) -> bool:
        """Its next steps create a pod, so it has to wait for capacity."""
        return isinstance(self.todo, _BEFORE_CREATE)

    def nodes_to_avoid(self, end: Verdict) -> tuple[str, ...]:
        """The nodes that the next attempt is to avoid, after this one ended so."""
        node = self.pod.node if self.pod is not None and end.blames_node else ""
        others = [one for one in self.avoided_nodes if one != node]
        return (*others, node)[-MAX_AVOIDED_NODES:] if node else self.avoided_nodes

    @property
    def has_no_pod(self) -> bool:
        """No pod of its attempt is there, and none is being created."""
        return isinstance(self.todo, _WITHOUT_POD)

    @property
    def may_have_unseen_pod(self) -> bool:
        """A pod of this worker may exist that was never seen: it uses room all the same."""
        match self.todo:
            case CreatePod() | DeleteOldPod():
                return True
            case GetPod(after=answer) if answer is not None:
                return True
            case GetPod() | StoreAttempt():
                return self.pod is None and self.not_before == 0.0
        return False

    @property
    def state(self) -> str:
        """The word that the task hash shows for it."""
        if isinstance(self.todo, _WITHOUT_POD):
            return "waiting"
        if self.termination is not None or isinstance(self.todo, _AFTER_END):
            return "ending"
        if self.pod is None:
            return "creating"
        if self.pod.agent_ended:
            return "ending"
        return "running" if self.pod.started_at is not None else "pending"

    @property
    def start_trouble_text(self) -> str:
        """Why its pod does not start, in the cluster's words; empty where nothing is wrong or its turn is over."""
        pod, forecast = self.pod, self.timeline.forecast
        if pod is None or pod.started_at is not None or not isinstance(self.todo, (AwaitPod, ListPodEvents)):
            return ""
        if pod.trouble is StartTrouble.UNSCHEDULABLE and forecast is not None and forecast.expected:
            return f"{pod.trouble_text}; {forecast.message}"
        return pod.trouble_text
