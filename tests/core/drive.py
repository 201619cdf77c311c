"""Leads one worker's life by hand: each effect is answered as the test says, and only as it may be answered."""

from __future__ import annotations

from typing import Final

from ottoscaler.core import acts
from ottoscaler.core.acts import Effect, Observation
from ottoscaler.core.lifecycle import Life, Stage, effect, step
from ottoscaler.settings import WorkerSettings
from tests.core.builders import NOW

LIMITS = WorkerSettings(
    deadline_s=3600, pending_timeout_s=900, image_pull_grace_s=30, infra_retries=3, worker_retries=0
)

#: What the docstrings of the effects promise: nothing else ever answers them.
ANSWERS: Final[dict[type, tuple[type, ...]]] = {
    acts.Intend: (acts.Intended, acts.Cancelled, acts.HasResult, acts.OldAttempt, acts.NotOurs),
    acts.Create: (acts.Seen, acts.AlreadyThere, acts.Refused, acts.RejectedPod, acts.Unclear),
    acts.NoteRefused: (acts.Done, acts.NotOurs),
    acts.Look: (acts.Seen, acts.Absent, acts.Foreign),
    acts.Check: (acts.Checked, acts.HasResult, acts.NotOurs),
    acts.Await: (acts.Seen, acts.Missing, acts.Marked, acts.TimedOut, acts.NotOurs),
    acts.Mark: (acts.Marked, acts.HasResult, acts.OldAttempt, acts.NotOurs),
    acts.Withdraw: (acts.Checked, acts.HasResult, acts.NotOurs),
    acts.Kill: (acts.Done, acts.Changed),
    acts.Record: (acts.Done, acts.OldAttempt, acts.NotOurs),
    acts.Delete: (acts.Done,),
}


class Drive:
    """One life, its clock and the effects that it asked for. One thread, that of the test."""

    def __init__(self, life: Life | None = None, *, limits: WorkerSettings = LIMITS) -> None:
        self.life = life or Life(index=1)
        self.limits = limits
        self.now = NOW
        self.asked: list[str] = []

    @property
    def next(self) -> Effect:
        """What is to be done next; asking changes nothing."""
        return effect(self.life, self.now)

    @property
    def stage(self) -> Stage:
        """Where the life stands."""
        return self.life.stage

    def tell(self, *observations: Observation) -> Effect:
        """Answer one effect after the other; returns the effect that follows."""
        for observation in observations:
            asked = self.next
            assert isinstance(observation, ANSWERS[type(asked)]), f"{observation} is no answer to {asked}"
            self.asked.append(type(asked).__name__)
            self.life = step(self.life, observation, self.now, self.limits)
        return self.next

    def wait(self, seconds: float) -> Effect:
        """Let time pass; returns the effect that follows."""
        self.now += seconds
        return self.next
