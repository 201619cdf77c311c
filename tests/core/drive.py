"""Leads one worker's life by hand: each effect is answered as the test says, and only as it may be answered."""

from __future__ import annotations

from typing import Final

from ottoscaler.core import effects, observations
from ottoscaler.core.effects import Effect
from ottoscaler.core.lifecycle import Lifecycle, begin_lifecycle, step
from ottoscaler.core.observations import Observation
from ottoscaler.settings import WorkerSettings
from tests.core.builders import NOW

LIMITS = WorkerSettings(
    deadline_s=3600, pending_timeout_s=900, image_pull_grace_s=30, infra_retries=3, worker_retries=0
)

#: What the docstrings of the effects promise: no other observation ever answers them.
ANSWERS: Final[dict[type, tuple[type, ...]]] = {
    effects.StoreAttempt: (
        observations.AttemptStored,
        observations.Cancelled,
        observations.HasResult,
        observations.NewerAttemptStored,
        observations.OwnershipLost,
    ),
    effects.CreatePod: (
        observations.PodSeen,
        observations.PodAlreadyExists,
        observations.CreateRefused,
        observations.RejectedPod,
        observations.CreateUnclear,
    ),
    effects.StoreRefusal: (observations.EffectDone, observations.OwnershipLost),
    effects.GetPod: (observations.PodSeen, observations.PodNotFound, observations.ForeignPod),
    effects.MarkPodSeen: (observations.NoResultYet, observations.HasResult, observations.OwnershipLost),
    effects.AwaitPod: (
        observations.PodSeen,
        observations.PodNotListed,
        observations.TerminationStored,
        observations.TimedOut,
        observations.OwnershipLost,
    ),
    effects.ListPodEvents: (observations.PodEventsListed, observations.PodEventsUnknown),
    effects.StoreTermination: (
        observations.TerminationStored,
        observations.HasResult,
        observations.NewerAttemptStored,
        observations.OwnershipLost,
    ),
    effects.ClearTermination: (observations.NoResultYet, observations.HasResult, observations.OwnershipLost),
    effects.DeletePodIfUnchanged: (observations.EffectDone, observations.PodChanged),
    effects.RecordResult: (observations.EffectDone, observations.NewerAttemptStored, observations.OwnershipLost),
    effects.DeletePod: (observations.EffectDone,),
    effects.KeepPod: (observations.EffectDone,),
    effects.DeleteOldPod: (observations.EffectDone,),
    effects.PauseUntil: (observations.TimedOut,),
    effects.EndLifecycle: (),
}


class Drive:
    """One life, its clock and the effects that it asked for. One thread, that of the test."""

    def __init__(self, life: Lifecycle | None = None, *, limits: WorkerSettings = LIMITS) -> None:
        self.life = life or begin_lifecycle(1)
        self.limits = limits
        self.now = NOW
        self.asked: list[str] = []

    @property
    def next(self) -> Effect:
        """What is to be done next; asking changes nothing."""
        return self.life.todo

    def feed(self, *observations: Observation) -> Effect:
        """Answer one effect after the other; returns the effect that follows."""
        for observation in observations:
            asked = self.next
            assert isinstance(observation, ANSWERS[type(asked)]), f"{observation} is no answer to {asked}"
            self.asked.append(type(asked).__name__)
            self.life = step(self.life, observation, self.now, self.limits)
        return self.next

    def wait(self, seconds: float) -> Effect:
        """Let time pass, so that a pause may be over; returns the effect that follows."""
        self.now += seconds
        if isinstance(self.life.todo, effects.PauseUntil) and self.life.todo.until <= self.now:
            self.life = step(self.life, observations.TimedOut(), self.now, self.limits)
        return self.next
