"""The seam: what the threads need of the world, as Protocols over plain values.

Above this file no module knows a Redis reply or a Kubernetes object, below it none decides. Each port has one contract
suite in tests/adapters that every implementation passes: the fake, the embedded server and the real one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from ottoscaler.core.autoscaler import PodEvent
from ottoscaler.core.events import BadEvent, ScaleEvent
from ottoscaler.core.log_progress import LogProgress
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.victim_selection import BlockingEvent, VictimRequest, VictimSelection
from ottoscaler.core.victim_selection import Victim as Victim
from ottoscaler.stored import Entry as Entry
from ottoscaler.stored import KeyPlaces as KeyPlaces
from ottoscaler.stored import OpenTask as OpenTask
from ottoscaler.stored import Renewal as Renewal
from ottoscaler.stored import ScriptReply as ScriptReply
from ottoscaler.stored import ScriptStatus as ScriptStatus
from ottoscaler.stored import StatusUpdate as StatusUpdate
from ottoscaler.stored import StoredWorker as StoredWorker
from ottoscaler.stored import StreamLevels as StreamLevels
from ottoscaler.stored import TaskView as TaskView


class Clock(Protocol):
    """How long something has lasted is measured by `now`, which cannot be set. Times of other machines, and
    `wall_time`, are for display: their clocks may be wrong, and may be set at any moment.
    """

    def now(self) -> float:
        """Monotonic, in seconds from an origin without a meaning: only differences count."""

    def wall_time(self, at: float) -> float:
        """What the wall clock shows at the moment `at` of `now`, as far as it is known now; seconds since the epoch."""


# -- Redis: four ports in the order of a worker's life, and what is asked before the first event is read
#
# Every write is one script: atomic, idempotent, safe to repeat after a lost answer. All of them raise RedisUnavailable
# when Redis does not answer or refuses, and when it does not know the task that a write is about: Redis was wiped, and
# the owner is about to restore the task. They never raise Stopping. Safe to call from any thread, but for `read` and
# `peek`, which belong to one thread each.


class EventLog(Protocol):
    """The event stream and its consumer group: what is read, and what becomes a task of it. For reader and control."""

    def ensure_group(self) -> None:
        """Create the consumer group at the stream's beginning, and the stream, if they are not there."""

    def read(self, count: int) -> Sequence[Entry]:
        """Up to `count` new entries for this consumer; blocks at most REDIS_BLOCK_MS. Raises ReadTooLarge if they are
        too large to be brought at once: they are pending then.
        """

    def read_now(self, count: int) -> Sequence[Entry]:
        """Up to `count` new entries for this consumer, without blocking (control, to get at what lies before a
        scale_down). Raises ReadTooLarge like `read`.
        """

    def peek(self, after: str, count: int, *, block: bool) -> Sequence[Entry]:
        """Some entries behind an id, at most `count`, without the group; with `block` waits at most REDIS_BLOCK_MS for
        one.
        """

    def last_delivered_id(self) -> str:
        """The last id that was delivered to the group."""

    def stream_levels(self) -> StreamLevels:
        """How much the streams hold now. It reads a few entries at most, however long they are."""

    def interrupt_reads(self) -> None:
        """End the blocking reads that are under way, as if nothing had come. A read that begins at the same time may
        be missed: call it again until the readers have ended.
        """

    def claim_pending(self, *, own: bool, min_idle_s: float) -> Sequence[Entry]:
        """Some entries that were read but not accepted: our own, or those of any consumer idle for so long, which
        become ours by this. No more than fit into memory: ask again when these are dealt with.
        """

    def count_try(self, stream_id: str) -> int:
        """Count one more try at an entry that was read and not accepted, before it is made. Returns the number of tries
        with it and with the first reading; 0 if the entry is not pending any more.
        """

    def release_pending(self) -> None:
        """Give up what this consumer has read and not accepted: `claim_pending` gives it to other replicas at once."""

    def accept(
        self, events: Sequence[tuple[ScaleEvent, str]], raws: Sequence[Mapping[bytes, bytes]]
    ) -> Sequence[OpenTask | BadEvent | None]:
        """Store events (with their digests) as open tasks of ours and acknowledge their entries; atomic for each.

        Returns for each the task; why it is a dead letter now (in conflict, too old); or None where there is nothing
        to be done, since it was known.
        """

    def dead_letter(self, entry: Entry, bad: BadEvent) -> BadEvent | None:
        """Write a dead letter, a `Rejected` task result where an event id could be read, and acknowledge the entry;
        once, however often it is called. Returns what the dead letter says (it may be a `Conflict`), None if it was
        there before.
        """

    def remove_consumers(self, gone_s: float) -> Sequence[str]:
        """Remove consumers, besides ours, that have nothing pending and neither read nor renewed for so long, seconds.
        Returns their names.
        """

    def trim(self, keep: int) -> int:
        """Remove the oldest events that every group has acknowledged, about down to `keep`; returns how many."""


class Leases(Protocol):
    """Which replica owns a task, and for how long. For the lease thread, the take-over and the reconciler."""

    def announce(self) -> None:
        """From now on this process is its consumer: an earlier process of that name learns it at its next renewal."""

    def renew(self, owners: Mapping[str, str], at_work: Collection[str] = ()) -> Renewal:
        """Extend the leases of tasks (event id -> owner token). Asks Redis even if there are none. Marks the workers
        that have not started by their event's not_after, by the clock of Redis, with a termination that spares a
        worker which has started.

        A death of ours is counted against the tasks that we are `at_work` on, and those on which our own code has
        failed. The tries of the others are forgotten.
        """

    def release(self, owners: Mapping[str, str]) -> None:
        """Hand over in order: end the leases of our tasks (event id -> owner token) at once."""

    def expired(self, *, same_consumer: bool) -> Sequence[str]:
        """Event ids of open tasks with a lease that ran out; with `same_consumer` those of an earlier incarnation of
        this consumer, whatever their lease.
        """

    def owned(self) -> Sequence[str]:
        """Event ids of the open tasks that are ours by Redis: also those of which the answer was lost."""

    def take_over(self, event_id: str, *, same_consumer: bool) -> OpenTask | BadEvent | None:
        """Take a task over: a new epoch of ours, if its lease has run out (or it was an earlier incarnation's).

        Returns the task, also if it is ours already, since the answer may have been lost; None if it is not to be had;
        or why it became a dead letter by this: then it may be taken again at once, if there is something left to be
        ended.
        """

    def admit(self, keys: Sequence[str], *, shown: int, check_open: bool) -> Mapping[str, KeyPlaces]:
        """Give places of these concurrency keys to tasks that wait for them, as far as the limits allow, in the order
        of the stream; returns how each key stands then, with the first `shown` that wait. With `check_open` tasks that
        are not open any more lose their places.
        """

    def known_tasks(self, event_ids: Sequence[str]) -> Mapping[str, tuple[str, Mapping[int, StoredWorker]]]:
        """For each event id that Redis knows, finished ones included: its state and its workers."""

    def rebuild_from_pods(self, event: ScaleEvent, attempts: Mapping[int, int]) -> None:
        """Redis was wiped: store a task again from what its pods carry (index -> highest attempt seen), with a lease
        that has run out, so that `take_over` gets it. Indices without a pod have no retries left. Does nothing if the
        task is known.
        """

    def restore(self, task: OpenTask) -> None:
        """Redis was wiped: store a task of ours again, as we know it, under the token we have, with a new lease. No
        result is published again. Does nothing if the task is known.
        """


class Attempts(Protocol):
    """One attempt of one worker, from the intent to its result. For the worker's thread."""

    def store_attempt(
        self, event_id: str, owner: str, index: int, *, attempt: int, infra_used: int, pod: str, oom_kills: int = 0,
        traced: str = "",
    ) -> ScriptReply:  # fmt: skip
        """Store an attempt before its pod is created, with how many earlier ones ended as OOMKilled. OK, HAS_RESULT,
        CANCELLED (with termination and stored attempt; also after the event's not_after, by the clock of Redis),
        OLD_ATTEMPT, NOT_OURS. With `traced` (`spans.encode_ended`) also when this was, and how the last attempt ended.
        """

    def store_refusal(self, event_id: str, owner: str, index: int, attempt: int) -> ScriptReply:
        """Store that an intended pod was refused and is not there. OK, NOT_OURS."""

    def mark_pod_seen(self, event_id: str, owner: str, index: int, attempt: int) -> ScriptReply:
        """The attempt's pod is there: stores that it was seen. OK with the termination if there is one, HAS_RESULT,
        NOT_OURS.
        """

    def store_termination(self, event_id: str, owner: str | None, index: int, termination: Termination) -> ScriptReply:
        """Store why a pod is to be ended. A cancel (`termination.attempt` 0) may come from any replica (`owner` None)
        and overrides other terminations.

        OK with the termination that holds now, HAS_RESULT, OLD_ATTEMPT, NOT_OURS.
        """

    def clear_termination(self, event_id: str, owner: str, index: int, termination: Termination) -> ScriptReply:
        """Clear exactly this termination, because the pod has started.
        OK with the termination that holds now, HAS_RESULT, NOT_OURS.
        """

    def record_result(
        self, event_id: str, owner: str, index: int, *, attempt: int, fields: Mapping[str, str]
    ) -> ScriptReply:
        """Store a worker's result (`core.results.worker_result`), once, and with the last one the task's. OK, KNOWN,
        OLD_ATTEMPT, NOT_OURS.

        The stored termination wins over an outcome that is not a success, but for one that spares a worker that has
        started. With OK comes the termination that has won.
        """

    def write_status(self, notes: Sequence[StatusUpdate]) -> None:
        """Show how tasks and workers stand; many in one trip. Ignored for workers that have a result, and for tasks
        that are not the owner's any more.
        """


class ScaleDowns(Protocol):
    """The choice of victims, how they stand, and the result of a scale_down. For control."""

    def blocker(self, stream_id: str) -> BlockingEvent | None:
        """What has to come before the choice of the event with this stream id: an older entry that is unread, or read
        and not accepted, by any consumer; otherwise an older event that is accepted and has not chosen its victims.
        None if there is neither, and then there never will be.
        """

    def open_scale_ups(self) -> Sequence[TaskView]:
        """All open scale_up tasks of the group, of all owners."""

    def select_victims(self, event_id: str, owner: str, claim: VictimRequest) -> VictimSelection | BlockingEvent | None:
        """Choose the victims of a scale_down, or of an event that supersedes others, and store their terminations:
        once, in one step.

        A candidate becomes a victim if its task is open, it has no result, and no earlier choice has it. Returns the
        choice that holds, which may be an earlier one (of an event that supersedes others the victims are returned
        by the first call only); a BlockingEvent while an older event comes first; None if the task is not ours.
        """

    def reload_task(self, event_id: str) -> OpenTask | None:
        """The task as it is stored now, of any owner; None if it is unknown or finished."""

    def stored_workers(self, victims: Sequence[Victim]) -> Sequence[StoredWorker | None]:
        """What is stored of each of these workers; None where the task is unknown, or has finished without it: then
        no replica will ever store a result of this worker.
        """

    def finish(self, event_id: str, owner: str, fields: Mapping[str, str]) -> ScriptReply:
        """Store a scale_down's result (`core.results.scale_down_result`), once. OK, KNOWN, NOT_OURS."""


class Preflight(Protocol):
    """What the start asks of Redis before the first event is read."""

    def reserve_prefix(self) -> str:
        """The group that the keys of KEY_PREFIX belong to: ours from now on, unless another came first."""

    def bind_queue_to_cluster(self, cluster: str) -> str:
        """The cluster (`Cluster.cluster_id`) that the queue belongs to: this one from now on, unless another came
        first.
        """

    def key_problems(self) -> Sequence[str]:
        """One sentence for each key of ours that is of another type or on which we lack rights; empty if all is well.
        Changes nothing.
        """

    def server_warnings(self) -> Sequence[str]:
        """Sentences on how this Redis is set up dangerously for us (no append-only file, eviction, too old); empty if
        it is not, or if we may not see it.
        """


class RedisPorts(EventLog, Leases, Attempts, ScaleDowns, Preflight, Protocol):
    """All of them in one object."""


# -- cluster


class WatchEventType(Enum):
    """What a watch reports."""

    UPDATED = auto()
    DELETED = auto()
    BOOKMARK = auto()


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of a pod; `pod` is None for a bookmark and for pods that are not workers of ours."""

    change: WatchEventType
    resource_version: str
    pod: PodSnapshot | None


@dataclass(frozen=True, slots=True)
class PodList:
    """All worker pods of this instance, and the version to watch from."""

    pods: Sequence[PodSnapshot]
    resource_version: str


class CreateOutcome(Enum):
    """What a create request came to, when it did not create the pod."""

    ALREADY_THERE = auto()


class Cluster(Protocol):
    """The Kubernetes API, as far as worker pods go. Safe to call from any thread; `close` wakes a blocked watch.

    Raises ClusterUnavailable (try again; `unclear` says whether the request may have been carried out) and
    ClusterRejected (do not).
    """

    def list(self) -> PodList:
        """All pods of this instance."""

    def watch(self, resource_version: str) -> Iterator[WatchEvent]:
        """Changes from a version on. Ends by itself when the server's time is over; raises Expired when the version is
        too old, ClusterUnavailable for any other error, a silent link included.
        """

    def create(self, body: bytes) -> PodSnapshot | CreateOutcome:
        """Create a pod. ALREADY_THERE for 409. ClusterUnavailable with `unclear` False for quota and back-pressure."""

    def get(self, name: str) -> PodSnapshot | None:
        """The pod as it is now; None if there is none. One that is not a worker of ours has an empty `event_id`."""

    def annotated_event(self, name: str) -> ScaleEvent | None:
        """The event that a pod carries in its annotation; None if the pod or a readable event is not there."""

    def delete(self, name: str, uid: str, resource_version: str | None = None, *, grace_s: int | None = None) -> bool:
        """Delete a pod if it has that UID (and version). Its containers have `grace_s` seconds between SIGTERM and
        SIGKILL, None: what its spec gives them. True if the request was accepted or the pod is gone; False if it is
        another or has changed.
        """

    def pod_events(self, uid: str) -> Sequence[PodEvent]:
        """The Events about the pod with that UID. ClusterRejected where our user may not list Events."""

    def cluster_id(self) -> str:
        """Which cluster and namespace this is, `<namespace>/<uid>`; empty where our user may not read its namespace."""

    def server_version(self) -> tuple[int, int]:
        """Major and minor version of the API server; (0, 0) where it does not say so."""

    def missing_rights(self) -> Sequence[str]:
        """Sentences that name each verb on a resource in the namespace that we need and do not have;
        empty if all is well.
        """

    def close(self) -> None:
        """End the watch and every call in flight."""


class KubeEvents(Protocol):
    """Kubernetes Events in the namespace of the workers, as they are written. For one thread.

    Raises ClusterUnavailable (try again) and ClusterRejected (do not).
    """

    def create(self, name: str, body: bytes) -> None:
        """Create the Event of that name, unless it is there."""

    def patch(self, name: str, body: bytes) -> bool:
        """Change an Event by a merge patch; False where it is not there."""

    def pod_uid(self, name: str) -> str:
        """The UID of a pod; empty where there is none of that name."""

    def missing_rights(self) -> Sequence[str]:
        """Sentences that name each verb that we need and do not have; empty if all is well."""


# -- log forwarder


class LogForwarder(Protocol):
    """Streams the logs of pods to the log handler, in a process of its own. Any thread; no call waits, and none fails:
    a forwarder that dies is started again and asked again.
    """

    def follow(self, progress: LogProgress, *, pod: str, task_id: str, node: str, labels: Mapping[str, str]) -> None:
        """Follow the log of the pod with that UID from a place on."""

    def pod_ended(self, uid: str) -> None:
        """The pod has ended: read what is left, and send the end of the log."""

    def give_up(self, uid: str) -> None:
        """Follow this log no longer."""
