"""Which observation answers which effect: the table of the docstrings, held against the state machine for each pair."""

from __future__ import annotations

import re

import pytest

from ottoscaler.core.autoscaler import NO_FORECAST
from ottoscaler.core.effects import (
    AwaitPod,
    ClearTermination,
    CreatePod,
    DeleteOldPod,
    DeletePod,
    DeletePodIfUnchanged,
    Effect,
    EndLifecycle,
    GetPod,
    KeepPod,
    ListPodEvents,
    MarkPodSeen,
    PauseUntil,
    RecordResult,
    StoreAttempt,
    StoreRefusal,
    StoreTermination,
)
from ottoscaler.core.lifecycle import IllegalStep, Lifecycle, step
from ottoscaler.core.observations import (
    AttemptStored,
    Cancelled,
    CreateRefused,
    CreateUnclear,
    EffectDone,
    ForeignPod,
    HasResult,
    NewerAttemptStored,
    NoResultYet,
    Observation,
    OwnershipLost,
    PodAlreadyExists,
    PodChanged,
    PodEventsListed,
    PodEventsUnknown,
    PodNotFound,
    PodNotListed,
    PodSeen,
    RejectedPod,
    TerminationStored,
    TimedOut,
)
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from tests.core.builders import NOW, pod
from tests.core.drive import ANSWERS, LIMITS

contract = pytest.mark.contract

TERMINATION = Termination(EndReason.PENDING_TIMEOUT, "", 1)
#: One of each effect, and of each observation.
EFFECTS: tuple[Effect, ...] = (
    StoreAttempt(1, 0), PauseUntil(NOW), DeleteOldPod(pod()), CreatePod(1), StoreRefusal(1), GetPod(1), MarkPodSeen(1),
    AwaitPod(None),
    ListPodEvents(pod()), StoreTermination(TERMINATION), ClearTermination(TERMINATION), DeletePodIfUnchanged(pod()),
    RecordResult(1, TERMINATION.verdict, None), DeletePod(pod()), KeepPod(pod()), EndLifecycle("done"),
)  # fmt: skip
OBSERVATIONS: tuple[Observation, ...] = (
    EffectDone(), AttemptStored(), Cancelled(TERMINATION, 1), HasResult(), NewerAttemptStored(), OwnershipLost(),
    PodSeen(pod()), PodAlreadyExists(),
    CreateRefused("quota"), RejectedPod("no"), CreateUnclear(), PodNotFound(), ForeignPod(), PodNotListed(),
    NoResultYet(None), PodEventsListed(NO_FORECAST), PodEventsUnknown(),
    TerminationStored(TERMINATION), PodChanged(), TimedOut(),
)  # fmt: skip
OBSERVED = {type(observation).__name__ for observation in OBSERVATIONS}


@pytest.mark.parametrize("todo", EFFECTS, ids=lambda todo: type(todo).__name__)
@pytest.mark.parametrize("answer", OBSERVATIONS, ids=lambda answer: type(answer).__name__)
def test_an_effect_has_the_answers_that_its_docstring_names_and_no_others(todo: Effect, answer: Observation) -> None:
    """Any other is a defect: loud, not guessed at."""
    life = Lifecycle(index=1, todo=todo, pod=None if isinstance(todo, CreatePod) else pod())
    if isinstance(answer, ANSWERS[type(todo)]):
        assert isinstance(step(life, answer, NOW, LIMITS), Lifecycle)
    else:
        with pytest.raises(IllegalStep, match=type(todo).__name__):
            step(life, answer, NOW, LIMITS)


def test_the_docstrings_name_the_answers() -> None:
    """What this table says is what a reader of the effects finds there."""
    for todo, answers in ANSWERS.items():
        named = re.findall("[A-Z][a-zA-Z]+", (todo.__doc__ or "").partition("Answers: ")[2].partition(".")[0])
        assert {name for name in named if name in OBSERVED} == {answer.__name__ for answer in answers}, todo


@pytest.mark.parametrize(("todo", "answer"), [(MarkPodSeen(1), NoResultYet(None)), (AwaitPod(None), TimedOut())])
def test_a_state_that_lacks_its_pod_is_a_defect(todo: Effect, answer: Observation) -> None:
    """What was checked and awaited has been seen."""
    with pytest.raises(IllegalStep, match="without a pod"):
        step(Lifecycle(index=1, todo=todo), answer, NOW, LIMITS)


@contract("2.MAX_WORKERS")
@pytest.mark.parametrize("todo", EFFECTS, ids=lambda todo: type(todo).__name__)
def test_only_what_leads_to_a_create_waits_for_room(todo: Effect) -> None:
    """All other effects must go on even when the cluster is full."""
    assert Lifecycle(index=1, todo=todo).needs_room is isinstance(
        todo, StoreAttempt | PauseUntil | DeleteOldPod | CreatePod
    )
