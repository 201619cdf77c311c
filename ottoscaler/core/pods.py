"""From a pod as the API server sends it to a `PodSnapshot`.

Only the container named `agent` counts, by its name and never by its position: all other containers of the pod
(sidecars that a webhook injected, ephemeral containers) neither starts nor ends a worker. Init containers count as far
as they keep `agent` from starting; those that are services of the profile are named so.

Times are of the machine that wrote them: the API server's (creation, scheduling, deletion) or the node's (start, end).
They are for display; two of them are compared only where one machine wrote both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final

import msgspec
from msgspec.structs import replace

from ottoscaler.core import manifest, startup
from ottoscaler.core.manifest import (
    CONTAINER,
    AttemptKey,
    key_from_annotation,
    key_from_labels,
    labels_of,
)
from ottoscaler.core.output import output
from ottoscaler.core.raw_pod import RawCondition, RawContainer, RawContainerStatus, RawRunning, RawState, RawTerminated
from ottoscaler.core.raw_pod import RawPod as RawPod
from ottoscaler.core.startup import START_REASONS
from ottoscaler.core.startup import StartTrouble as StartTrouble
from ottoscaler.core.verdicts import EndReason

#: How the text of a trouble begins that an init container has.
INIT_CONTAINER: Final = "init container "
#: Reasons of the condition DisruptionTarget
#: (https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions). One that is not here is
#: an eviction: the condition itself says that the platform ends the pod.
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": EndReason.PREEMPTED,
    "EvictionByEvictionAPI": EndReason.EVICTED,
    "TerminationByKubelet": EndReason.EVICTED,
    "DeletionByTaintManager": EndReason.NODE_LOST,
    "DeletionByPodGC": EndReason.NODE_LOST,
}


#: These pass into a wait for the next restart and back, so of a service that was restarted they say nothing new.
_OF_THE_RUNTIME: Final = (StartTrouble.START, StartTrouble.COMMAND)


class Phase(StrEnum):
    """status.phase of a pod."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


_PHASES: Final = {phase.value: phase for phase in Phase}
_SECONDS: Final = re.compile(r"[0-9]{1,9}")


class PodSnapshot(msgspec.Struct, frozen=True):
    """What is known of a pod at one resource version. Times are seconds since the epoch, None where not yet; the API
    server wrote `created_at`, `scheduled_at` and `deletion_requested_at`, the node `started_at` and `finished_at`.

    `reason` is the pod's own (`status.reason`). Of the container `agent`: `started_at`, `finished_at`, `exit_code`
    (None: it has not ended), `agent_end_reason` (why the runtime says it ended) and `start_error` (the runtime's
    message if it could not be started) and `output` (what it gives back; no verdict depends on it). `deadline_s` is the
    kubelet's, `node_clock_ahead_s` how far the node's clock is ahead of the API server's, as far as two of their times
    show. `ended_before_deadline`: the node's own times show that `agent` had ended before the deadline at which the
    kubelet ended the pod. `agent_outlived`: it has ended, and another container has not. `unknown_disruption` is the
    original word of a disruption that we do not know. `altered_label` says which of our labels was changed from
    outside: no watch shows such a pod. `finalizers` keep a pod there after its end. `keep_failed_s`: for how long it
    stays if its worker fails, seconds. `tenant`: what its annotation says.
    """

    key: AttemptKey
    name: str
    uid: str
    resource_version: str
    event_id: str
    instance: str
    phase: Phase
    created_at: float | None
    scheduled_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    deletion_requested_at: float | None = None
    deletion_grace_s: float = 0.0
    deadline_s: int = 0
    node_clock_ahead_s: float = 0.0
    exit_code: int | None = None
    agent_end_reason: str = ""
    ended_before_deadline: bool = False
    agent_outlived: bool = False
    start_error: str = ""
    output: str = ""
    reason: str = ""
    message: str = ""
    node: str = ""
    trouble: StartTrouble = StartTrouble.NONE
    trouble_text: str = ""
    disruption: EndReason | None = None
    unknown_disruption: str = ""
    altered_label: str = ""
    finalizers: tuple[str, ...] = ()
    keep_failed_s: int = 0
    tenant: str = ""
    gone: bool = False

    @property
    def finished(self) -> bool:
        """All of its containers have ended, and its phase says how."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)

    @property
    def agent_ended(self) -> bool:
        """The worker's own program has ended; other containers may keep the pod alive."""
        return self.exit_code is not None or self.finished

    @property
    def live(self) -> bool:
        """It uses capacity: there, and not finished."""
        return not self.gone and not self.finished

    @property
    def deleting(self) -> bool:
        """Its deletion was requested, by this controller or from outside."""
        return self.deletion_requested_at is not None

    @property
    def held_by_finalizers(self) -> bool:
        """Nothing runs in it any more, its deletion was asked for, and finalizers keep it there."""
        if self.gone or not self.deleting or not self.finalizers:
            return False
        return self.finished or self.scheduled_at is None

    @property
    def held_detail(self) -> str:
        """For people: why it is still there, where finalizers keep it."""
        state = "has ended" if self.finished else "is to be deleted, has never had a node"
        return f"pod {self.name} {state} and is kept by finalizer {', '.join(self.finalizers)}"

    @property
    def stage(self) -> tuple[object, ...]:
        """What a waiter cares about: it is woken only when this changes."""
        gates = self.trouble_text if self.trouble is StartTrouble.GATED else ""
        return (
            self.phase, self.trouble, gates, self.started_at is not None, self.exit_code is not None,
            self.deletion_requested_at is not None, self.finalizers, self.gone, self.uid, self.altered_label,
        )  # fmt: skip

    def as_gone(self) -> PodSnapshot:
        """The same pod, deleted: the last status stays, as in a DELETED event."""
        return replace(self, gone=True)


# each of a pod's times comes again with each of its changes, and many pods share a second
@lru_cache(maxsize=4096)
def epoch_seconds(stamp: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time of the API server; None for none.

    The kubelet writes 1970-01-01 as the start of a container that never started: that is none, too.
    """
    seconds = datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
    return seconds if seconds > 0 else None


def pod_snapshot(raw: RawPod, instance: str = "") -> PodSnapshot | None:
    """The snapshot of a pod of that instance (empty: of any), or None if it is not one of our workers."""
    meta = raw.metadata
    key = key_from_labels(meta.name, meta.labels)
    if key is not None and (not instance or _alteration(labels_of(key, instance), meta.labels) == ""):
        return _snapshot(raw, key, meta.labels.get(manifest.LABEL_INSTANCE, ""))
    key = key_from_annotation(meta.name, meta.annotations.event_id, instance)
    if key is None:
        return None
    return replace(_snapshot(raw, key, instance), altered_label=_alteration(labels_of(key, instance), meta.labels))


def created_pod_snapshot(raw: RawPod, asked: RawPod) -> PodSnapshot:
    """The snapshot of the pod that came of our create, whatever became of its labels and of its annotation. Raises
    ValueError if we asked for a pod that is no worker.
    """
    key, event_id = key_from_labels(asked.metadata.name, asked.metadata.labels), asked.metadata.annotations.event_id
    if key is None:
        raise ValueError(f"{asked.metadata.name} has not the labels of a worker")
    instance = asked.metadata.labels.get(manifest.LABEL_INSTANCE, "")
    changes = _alteration(labels_of(key, instance), raw.metadata.labels, (event_id, raw.metadata.annotations.event_id))
    return replace(_snapshot(raw, key, instance), event_id=event_id, altered_label=changes)


_NO_STATE: Final = RawState()


def _snapshot(raw: RawPod, key: AttemptKey, instance: str) -> PodSnapshot:
    meta, status = raw.metadata, raw.status
    state = _agent_state(raw)
    ended = state.terminated if state.terminated and state.terminated.exit_code is not None else None
    conditions = {condition.type: condition for condition in status.conditions}
    scheduled, disruption = conditions.get("PodScheduled"), conditions.get("DisruptionTarget")
    if disruption is not None and disruption.status != "True":
        disruption = None
    scheduled_at = epoch_seconds(scheduled.since) if scheduled is not None and scheduled.status == "True" else None
    began = epoch_seconds(status.kubelet_began)
    trouble, text = _trouble(raw, state, scheduled)
    asked = epoch_seconds(meta.deletion_timestamp)
    unstarted = ended is not None and ended.reason in START_REASONS
    running, containers = state.running or RawRunning(), len(raw.spec.containers) + len(raw.spec.init)
    started = None if unstarted else ended.started_at if ended else running.started_at
    return PodSnapshot(
        key=key,
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        event_id=meta.annotations.event_id,
        instance=instance,
        phase=_PHASES.get(status.phase, Phase.UNKNOWN),
        created_at=epoch_seconds(meta.creation_timestamp),
        scheduled_at=scheduled_at,
        started_at=epoch_seconds(started),
        finished_at=epoch_seconds(ended.finished_at) if ended else None,
        deletion_requested_at=None if asked is None else asked - (meta.deletion_grace_s or 0),
        deletion_grace_s=meta.deletion_grace_s or 0,
        deadline_s=raw.spec.deadline_s,
        node_clock_ahead_s=began - scheduled_at if began is not None and scheduled_at is not None else 0.0,
        exit_code=ended.exit_code if ended else None,
        agent_end_reason=ended.reason if ended else "",
        ended_before_deadline=_ended_first(raw, ended),
        agent_outlived=_outlived(raw, ended),
        start_error=ended.message if ended and unstarted else "",
        output=output(ended.message, containers) if ended and not unstarted else "",
        reason=status.reason,
        message=status.message,
        node=raw.spec.node,
        trouble=trouble,
        trouble_text=text,
        disruption=_DISRUPTIONS.get(disruption.reason, EndReason.EVICTED) if disruption else None,
        unknown_disruption=disruption.reason if disruption and disruption.reason not in _DISRUPTIONS else "",
        finalizers=meta.finalizers,
        keep_failed_s=_whole_seconds(meta.annotations.keep_failed_s),
        tenant=meta.annotations.tenant,
    )


def _agent_state(raw: RawPod) -> RawState:
    for one in raw.status.containers:
        if one.name == CONTAINER:
            return one.state
    return _NO_STATE


def _whole_seconds(text: str) -> int:
    """What the annotation says; 0 where it was changed to what is no such number."""
    return int(text) if _SECONDS.fullmatch(text) else 0


def foreign_pod_snapshot(raw: RawPod) -> PodSnapshot:
    """A pod that is not a worker of ours: it has neither a key nor an event."""
    return replace(_snapshot(raw, AttemptKey("", 0, 0), ""), event_id="")


def _ended_first(raw: RawPod, ended: RawTerminated | None) -> bool:
    """Do the node's own times (whole seconds) show that `agent` had ended before the kubelet's deadline for the pod?"""
    if ended is None or raw.status.reason != "DeadlineExceeded":
        return False
    finished, began = epoch_seconds(ended.finished_at), epoch_seconds(raw.status.kubelet_began)
    return finished is not None and began is not None and 0 <= finished - began < raw.spec.deadline_s


def _outlived(raw: RawPod, ended: RawTerminated | None) -> bool:
    """Has `agent` ended while another container runs, is to start, or is not reported yet? The kubelet reports nothing
    while it stops a pod, so `agent` had ended before that.
    """
    if ended is None:
        return False
    restarting = {one.name for one in raw.spec.init if one.restart_policy == "Always"}
    others = [*raw.status.containers, *(one for one in raw.status.init if one.name in restarting)]
    unreported = len(raw.status.containers) < len(raw.spec.containers)
    return unreported or any(one.state.terminated is None for one in others if one.name != CONTAINER)


def _trouble(raw: RawPod, agent: RawState, scheduled: RawCondition | None) -> tuple[StartTrouble, str]:
    """Why `agent` has not started: a gate, no node, its own image or configuration, or an init container's. `scheduled`
    is the scheduler's condition.
    """
    unscheduled = scheduled.reason if scheduled is not None and scheduled.status == "False" else ""
    if unscheduled == "SchedulingGated" or (raw.spec.gates and not raw.spec.node):
        gates = ", ".join(gate.name for gate in raw.spec.gates)
        return StartTrouble.GATED, f"scheduling gate {gates}" if gates else "a scheduling gate"
    if scheduled is not None and unscheduled == "Unschedulable":
        return StartTrouble.UNSCHEDULABLE, scheduled.message
    if agent.running is not None or agent.terminated is not None:
        return StartTrouble.NONE, ""
    own, waiting = (StartTrouble.NONE, ""), agent.waiting
    if waiting is not None:
        own = (
            startup.waiting_trouble(waiting.reason, waiting.message),
            startup.describe(waiting.reason, waiting.message),
        )
    if own[0] is not StartTrouble.NONE or not raw.status.init:
        return own
    # A native sidecar in a crash loop does not keep the pod from starting, so a trouble with a name comes first.
    found = [*_init_troubles(raw), own]
    return next((one for one in found if one[0] is not StartTrouble.NONE), found[0])


def _service_trouble(status: RawContainerStatus, name: str) -> tuple[StartTrouble, str]:
    """Why a service of the profile keeps `agent` from starting. One that has ended, or was restarted, before it was
    ready is the fault; that it starts again does not end that, or each of its tries would have a time of its own.
    """
    state, waiting = status.state, status.state.waiting
    if waiting is not None and (text := startup.describe(waiting.reason, waiting.message)):
        trouble = startup.waiting_trouble(waiting.reason, waiting.message)
        if trouble is not StartTrouble.NONE and (not status.restarts or trouble not in _OF_THE_RUNTIME):
            return trouble, f"{name}: {text}"
    if status.started or (state.running is None and not status.restarts and state.terminated is None):
        return StartTrouble.NONE, ""
    ended = state.terminated or status.last.terminated
    if ended is None:
        return StartTrouble.SERVICE_STARTING, f"{name}: it runs and is not ready yet"
    how = f"{ended.reason}: {ended.message}" if ended.reason in START_REASONS else f"exited with code {ended.exit_code}"
    return StartTrouble.SERVICE, f"{name}: {how} before it was ready, {status.restarts} restarts"


def _init_troubles(raw: RawPod) -> Iterator[tuple[StartTrouble, str]]:
    """What is wrong with init containers, in their order, each named with its image. One that restarts (a native
    sidecar) ends without harm.
    """
    declared, services = {one.name: one for one in raw.spec.init}, raw.metadata.annotations.services.split(",")
    for status in raw.status.init:
        spec = declared.get(status.name, RawContainer())
        if status.name in services:
            found = _service_trouble(status, f"service {status.name} (image {spec.image or status.image})")
            if found[0] is not StartTrouble.NONE:
                yield found
            continue
        name = f"{INIT_CONTAINER}{status.name} (image {spec.image or status.image})"
        waiting, ended = status.state.waiting, status.state.terminated
        if waiting is not None and (text := startup.describe(waiting.reason, waiting.message)):
            yield startup.waiting_trouble(waiting.reason, waiting.message), f"{name}: {text}"
        elif ended is not None and ended.exit_code and spec.restart_policy != "Always":
            unstarted = ended.reason in START_REASONS
            missing = unstarted and startup.cannot_execute(ended.message, ended.exit_code)
            how = f"{ended.reason}: {ended.message}" if unstarted else f"exited with code {ended.exit_code}"
            yield (StartTrouble.COMMAND if missing else StartTrouble.START), f"{name}: {how}"


def _alteration(asked: Mapping[str, str], found: Mapping[str, str], event_ids: tuple[str, str] = ("", "")) -> str:
    """One sentence on the first label that is not as it was asked for, or on the event id in the annotation (as asked
    for, as found); empty if all that we need is there. Other labels may be added, changed and removed.
    """
    wanted, there = event_ids
    if asked.items() <= found.items() and wanted == there:  # as good as always, and for each change of a pod
        return ""
    for name, value in asked.items():
        if found.get(name) != value:
            return _changed(f"label {name}", value, found.get(name))
    return _changed(f"annotation {manifest.ANNOTATION_EVENT_ID}", wanted, there or None)


def _changed(what: str, before: str, after: str | None) -> str:
    became = "was removed" if after is None else f"was changed from {before!r} to {after[:100]!r}"
    return f"the pod's {what} {became}, perhaps by an admission webhook; without it the pod cannot be watched"
