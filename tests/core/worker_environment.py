"""What is around one worker: Redis, the cluster and all other actors, answering each effect as the dice fall.

Every answer is one that the real adapters can give. While there are dice, they are as hostile as these say; after
the last one they are friendly, so that a life that does not end is a defect. What must never happen is asserted where
it would happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace as with_settings
from typing import Any, TypeVar

from msgspec.structs import replace

from ottoscaler.core import effects, observations
from ottoscaler.core.autoscaler import NO_FORECAST, NodeForecast
from ottoscaler.core.effects import Effect
from ottoscaler.core.lifecycle import Lifecycle, begin_lifecycle, resume_lifecycle, step
from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.observations import Observation
from ottoscaler.core.pod_timeline import EVENTS_EVERY_S
from ottoscaler.core.pods import Phase, PodSnapshot, StartTrouble
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason, Outcome, Verdict
from tests.core.builders import HASH, NOW, pod
from tests.core.drive import ANSWERS, LIMITS

T = TypeVar("T")

KILL = Termination(EndReason.SCALED_DOWN, "cancelled", by="e-2")
DRAIN = replace(KILL, drain=True)

#: What may happen to a pod that is there, by changes of its snapshot; the first is what a friendly environment does.
_PENDING: Sequence[dict[str, Any]] = (
    {"phase": Phase.RUNNING, "started_at": NOW, "trouble": StartTrouble.NONE, "node": "n-1"},
    {"trouble": StartTrouble.INVALID_IMAGE},
    {"trouble": StartTrouble.IMAGE_PULL, "trouble_text": "ErrImagePull: not found"},
    {"trouble": StartTrouble.IMAGE_PULL_TRANSIENT, "trouble_text": "ImagePullBackOff: Back-off"},
    {"trouble": StartTrouble.UNSCHEDULABLE},
    {"trouble": StartTrouble.START},
    {"trouble": StartTrouble.COMMAND},
    {"trouble": StartTrouble.GATED, "trouble_text": "scheduling gate a"},
)
_RUNNING: Sequence[dict[str, Any]] = (
    {"phase": Phase.SUCCEEDED, "agent_end_reason": "Completed", "exit_code": 0},
    {"phase": Phase.FAILED, "agent_end_reason": "Error", "exit_code": 1},
    {"phase": Phase.FAILED, "reason": "Evicted"},
    {"phase": Phase.FAILED, "agent_end_reason": "OOMKilled", "exit_code": 137},
    {"phase": Phase.UNKNOWN},
    {"agent_end_reason": "Completed", "exit_code": 0, "agent_outlived": True},
    {"agent_end_reason": "Error", "exit_code": 1, "agent_outlived": True},
)
_BLOWS: Sequence[dict[str, Any]] = (
    {"gone": True},
    {"deletion": True},
    {"disruption": EndReason.NODE_LOST, "deletion": True},
)


class WorkerEnvironment:
    """All that one worker meets. One thread, that of the test."""

    def __init__(self, dice: Sequence[int]) -> None:
        self._dice: Iterator[int] = iter(dice)
        self.now = NOW
        self.limits = with_settings(LIMITS, infra_retries=2, worker_retries=1, pending_timeout_s=60, deadline_s=60)
        self.ours = True
        self.stored = 0
        self.result: Verdict | None = None
        self.cancel: Termination | None = None
        self.termination: Termination | None = None
        self.pods: dict[int, PodSnapshot] = {}
        self.strangers: set[int] = set()
        self.names_used: list[int] = []
        self.intended = False
        self.known: set[int] = set()
        self.listed: dict[str, float] = {}
        self.keep_failed_s = self.roll(0, 0, 600)
        self.kept: list[int] = []
        self.life = self._begin()

    def run(self, steps: int = 400) -> Lifecycle:
        """Lead the life to its end; AssertionError if it has none."""
        for _ in range(steps):
            asked = self.life.todo
            if isinstance(asked, effects.EndLifecycle):
                return self.life
            if isinstance(asked, effects.PauseUntil):
                self.now = asked.until
            answer = self._answer(asked)
            assert isinstance(answer, ANSWERS[type(asked)])
            self.life = step(self.life, answer, self.now, self.limits)
        raise AssertionError(f"no end in sight: {self.life}")

    def roll(self, first: T, *others: T) -> T:
        """One of these, as the next die says; the first when there are no more dice."""
        options = (first, *others)
        return options[next(self._dice, 0) % len(options)]

    def _begin(self) -> Lifecycle:
        attempt = self.roll(0, 0, 1, 2)
        if not attempt:
            return begin_lifecycle(1)
        self.stored = attempt
        self.cancel = self.roll(None, None, KILL, DRAIN)
        self.termination = self.roll(None, None, Termination(EndReason.PENDING_TIMEOUT, "", attempt))
        made = self.roll(True, False)
        if made:
            self._make(attempt)
            self._befall(attempt)
        seen = self.roll(True, False)
        self.names_used = [attempt] if made or seen else []
        return resume_lifecycle(1, attempt, attempt - 1, self.cancel or self.termination, seen=seen)

    def _answer(self, asked: Effect) -> Observation:
        self._meddle()
        answers: dict[type, Callable[[Any], Observation]] = {
            effects.StoreAttempt: self._intend,
            effects.CreatePod: self._create,
            effects.StoreRefusal: lambda _: observations.EffectDone() if self.ours else observations.OwnershipLost(),
            effects.GetPod: self._look,
            effects.MarkPodSeen: lambda _: self._refusal() or observations.NoResultYet(self.cancel or self.termination),
            effects.AwaitPod: self._await,
            effects.ListPodEvents: self._list_events,
            effects.StoreTermination: self._store_termination,
            effects.ClearTermination: self._clear_termination,
            effects.DeletePodIfUnchanged: self._kill,
            effects.RecordResult: self._record,
            effects.DeletePod: self._delete,
            effects.KeepPod: self._keep,
            effects.DeleteOldPod: self._delete,
            effects.PauseUntil: lambda _: observations.TimedOut(),
        }
        return answers[type(asked)](asked)

    def _meddle(self) -> None:
        event = self.roll(*[""] * 30, "cancel", "drain", "lost", "recorded", "pod", "pod")
        if event == "lost":
            self.ours = False
        elif event == "recorded" and self.ours and self.stored:
            self.result = self.result or Verdict(EndReason.POISON)
        elif event == "cancel":
            self.cancel = KILL
        elif event == "drain":
            self.cancel = self.cancel or DRAIN
        elif event == "pod":
            self._befall(self.life.attempt)

    def _befall(self, attempt: int) -> PodSnapshot | None:
        """Something happens to the attempt's pod; returns it as it then is, gone or not."""
        now = self.pods.get(attempt)
        if now is None:
            return None
        change = self._change(now, may_go=attempt in self.known)
        if change.pop("deletion", False):
            change |= {"deletion_requested_at": self.now, "deletion_grace_s": 1.0}
        after = replace(now, resource_version=str(int(now.resource_version) + 1), **change)
        if after.gone:
            del self.pods[attempt]
        else:
            self.pods[attempt] = after
        return after

    def _change(self, now: PodSnapshot, *, may_go: bool) -> dict[str, Any]:
        blows = [blow for blow in _BLOWS if may_go or "gone" not in blow]
        if now.deleting:
            ends: tuple[dict[str, Any], ...] = ({"gone": True},) if may_go else ({},)
            over = {"phase": Phase.FAILED, "agent_outlived": False} if now.exit_code is not None else None
            last = ({}, {}) if now.finished else (over, over) if over else _RUNNING[:2]
            return dict(self.roll(*ends, {}, *last))
        if now.finished:
            return dict(self.roll({}, {}, *blows))
        if now.exit_code is not None:  # a sidecar lives on, or ends in whichever way
            return dict(self.roll({}, {}, {"phase": Phase.FAILED, "agent_outlived": False}, *blows))
        return dict(self.roll(*(_RUNNING if now.started_at is not None else _PENDING), *blows))

    def _refusal(self) -> observations.OwnershipLost | observations.HasResult | None:
        if not self.ours:
            return observations.OwnershipLost()
        return observations.HasResult() if self.result is not None else None

    def _intend(self, asked: effects.StoreAttempt) -> Observation:
        assert asked.infra_used <= self.limits.infra_retries
        assert asked.attempt - 1 - asked.infra_used <= self.limits.worker_retries
        if refusal := self._refusal():
            return refusal
        if self.cancel is not None:
            return observations.Cancelled(self.cancel, self.stored)
        assert asked.attempt >= self.stored, "attempts only rise"
        self.stored, self.termination, self.intended = asked.attempt, None, True
        return observations.AttemptStored()

    def _list_events(self, asked: effects.ListPodEvents) -> Observation:
        assert asked.pod.trouble is StartTrouble.UNSCHEDULABLE
        assert self.now >= self.listed.get(asked.pod.uid, 0.0) + EVENTS_EVERY_S, "at most once a minute"
        self.listed[asked.pod.uid] = self.now
        words = (NO_FORECAST, NodeForecast(True, "TriggeredScaleUp: b"), NodeForecast(False, "NotTriggerScaleUp: c"))
        listed: tuple[Observation, ...] = tuple(map(observations.PodEventsListed, words))
        return self.roll(*listed, observations.PodEventsUnknown())

    def _store_termination(self, asked: effects.StoreTermination) -> Observation:
        assert asked.termination.attempt == self.stored
        if refusal := self._refusal():
            return refusal
        if self.cancel is None:
            self.termination = asked.termination
        return observations.TerminationStored(self.cancel or asked.termination)

    def _clear_termination(self, asked: effects.ClearTermination) -> Observation:
        assert asked.termination.only_before_start
        if refusal := self._refusal():
            return refusal
        self.termination = None
        if self.cancel == asked.termination:
            self.cancel = None
        return observations.NoResultYet(self.cancel)

    def _record(self, asked: effects.RecordResult) -> Observation:
        if not self.ours:
            return observations.OwnershipLost()
        assert asked.attempt == self.stored
        for attempt, there in self.pods.items():
            assert there.finished or there.deleting, f"attempt {attempt} still runs when its result is stored"
        if asked.verdict.reason.outcome is Outcome.SUCCEEDED:
            assert asked.pod is not None
            assert asked.pod.phase is Phase.SUCCEEDED or asked.pod.exit_code == 0
        if asked.pod is not None and (asked.pod.phase is Phase.SUCCEEDED or self._did_its_work(asked.pod)):
            assert asked.verdict.reason is EndReason.COMPLETED, "success wins over everything"
        if asked.verdict.reason.outcome is Outcome.CANCELLED:
            assert self.cancel is not None
            by_itself = asked.pod is not None and asked.pod.started_at is not None and not asked.pod.deleting
            assert not (self.cancel.drain and by_itself), "a drain spares what has started, and ends by itself"
        self.result = self.result or asked.verdict
        return observations.EffectDone()

    def _did_its_work(self, last: PodSnapshot) -> bool:
        """`agent` ended well, and nothing that the platform forced on the pod says that it was not by itself."""
        return last.exit_code == 0 and not last.reason

    def _make(self, attempt: int) -> PodSnapshot:
        fresh = pod(
            key=AttemptKey(HASH, 1, attempt), uid=f"u-{attempt}", created_at=self.now, node="",
            keep_failed_s=self.keep_failed_s,
        )  # fmt: skip
        self.pods[attempt] = fresh
        return fresh

    def _create(self, asked: effects.CreatePod) -> Observation:
        assert self.intended, "an attempt is stored before each create"
        assert asked.attempt not in self.names_used, "a name is used once"
        self.intended = False
        answer = self.roll("made", "made", "refused", "rejected", "lost", "late", "stranger", "vanished")
        if answer in ("made", "lost", "vanished"):
            self.names_used.append(asked.attempt)
            self._make(asked.attempt)
        if answer == "made":
            self.known.add(asked.attempt)
            return observations.PodSeen(self.pods[asked.attempt])
        if answer == "stranger":
            self.strangers.add(asked.attempt)
            return observations.PodAlreadyExists()
        if answer == "vanished":
            del self.pods[asked.attempt]
            return observations.PodAlreadyExists()
        plain: dict[str, Observation] = {
            "refused": observations.CreateRefused("quota"),
            "rejected": observations.RejectedPod("no"),
        }
        return plain.get(answer, observations.CreateUnclear())

    def _look(self, asked: effects.GetPod) -> Observation:
        if asked.attempt in self.strangers:
            return observations.ForeignPod()
        there = self.pods.get(asked.attempt)
        if there is None:
            return observations.PodNotFound()
        self.known.add(asked.attempt)
        return observations.PodSeen(there)

    def _await(self, asked: effects.AwaitPod) -> Observation:
        if not self.ours:
            return observations.OwnershipLost()
        ways = ["seen", "seen", "missing", *([] if asked.until is None else ["late"])]
        there = self.pods.get(self.life.attempt)
        if there is not None and there.agent_outlived and not there.deleting:
            ways.insert(0, "late")  # a sidecar that never ends
        if self.cancel is not None and self.life.termination != self.cancel:
            return observations.TerminationStored(self.cancel)
        way = self.roll(*ways)
        if way == "late" and asked.until is not None:
            self.now = max(self.now, asked.until)
            return observations.TimedOut()
        after = self._befall(self.life.attempt) if way == "seen" else None
        return observations.PodNotListed() if after is None else observations.PodSeen(after)

    def _kill(self, asked: effects.DeletePodIfUnchanged) -> Observation:
        assert not self.ours or self.result or self.cancel or self.termination, "what is killed was terminated before"
        attempt = asked.pod.key.attempt
        if self.pods.get(attempt) != asked.pod:
            return observations.PodChanged()
        self.pods[attempt] = replace(
            asked.pod, resource_version="99", deletion_requested_at=self.now, deletion_grace_s=1.0
        )
        return observations.EffectDone()

    def _keep(self, asked: effects.KeepPod) -> Observation:
        assert self.result is not None
        assert self.result.reason.outcome is Outcome.FAILED, "only failed workers leave their pods"
        assert asked.pod.finished
        assert asked.pod.keep_failed_s
        self.kept.append(asked.pod.key.attempt)
        return observations.EffectDone()

    def _delete(self, asked: effects.DeletePod) -> Observation:
        attempt = asked.pod.key.attempt
        assert self.result is not None or self.stored > attempt, "no pod is deleted before its end is stored"
        assert attempt not in self.strangers, "what is not ours is not deleted"
        self.pods.pop(attempt, None)
        return observations.EffectDone()
