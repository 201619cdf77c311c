"""Which observation answers which effect: the table of the docstrings, held against the state machine for each pair."""

from __future__ import annotations

import re

import pytest

from ottoscaler.core.effects import (
    Await,
    Check,
    ClearTermination,
    Create,
    Delete,
    DeleteIfUnchanged,
    DeleteOld,
    Effect,
    End,
    Intend,
    Later,
    Look,
    NoteRefused,
    Record,
    StoreTermination,
)
from ottoscaler.core.lifecycle import IllegalStep, Life, step
from ottoscaler.core.observations import (
    Absent,
    AlreadyThere,
    Cancelled,
    Changed,
    Checked,
    Done,
    Foreign,
    HasResult,
    Intended,
    Missing,
    NotOurs,
    Observation,
    OldAttempt,
    Refused,
    RejectedPod,
    Seen,
    TerminationStored,
    TimedOut,
    Unclear,
)
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from tests.core.builders import NOW, pod
from tests.core.drive import ANSWERS, LIMITS

contract = pytest.mark.contract

TERMINATION = Termination(Reason.PENDING_TIMEOUT, "", 1)
#: One of each effect, and of each observation.
EFFECTS: tuple[Effect, ...] = (
    Intend(1, 0), Later(NOW), DeleteOld(pod()), Create(1), NoteRefused(1), Look(1), Check(1), Await(None),
    StoreTermination(TERMINATION), ClearTermination(TERMINATION), DeleteIfUnchanged(pod()),
    Record(1, TERMINATION.verdict, None), Delete(pod()), End("done"),
)  # fmt: skip
OBSERVATIONS: tuple[Observation, ...] = (
    Done(), Intended(), Cancelled(TERMINATION, 1), HasResult(), OldAttempt(), NotOurs(), Seen(pod()), AlreadyThere(),
    Refused("quota"), RejectedPod("no"), Unclear(), Absent(), Foreign(), Missing(), Checked(None),
    TerminationStored(TERMINATION), Changed(), TimedOut(),
)  # fmt: skip
OBSERVED = {type(observation).__name__ for observation in OBSERVATIONS}


@pytest.mark.parametrize("todo", EFFECTS, ids=lambda todo: type(todo).__name__)
@pytest.mark.parametrize("answer", OBSERVATIONS, ids=lambda answer: type(answer).__name__)
def test_an_effect_has_the_answers_that_its_docstring_names_and_no_others(todo: Effect, answer: Observation) -> None:
    """Any other is a defect: loud, not guessed at."""
    life = Life(index=1, todo=todo, pod=None if isinstance(todo, Create) else pod())
    if isinstance(answer, ANSWERS[type(todo)]):
        assert isinstance(step(life, answer, NOW, LIMITS), Life)
    else:
        with pytest.raises(IllegalStep, match=type(todo).__name__):
            step(life, answer, NOW, LIMITS)


def test_the_docstrings_name_the_answers() -> None:
    """What this table says is what a reader of the effects finds there."""
    for todo, answers in ANSWERS.items():
        named = re.findall("[A-Z][a-zA-Z]+", (todo.__doc__ or "").partition("Answers: ")[2].partition(".")[0])
        assert {name for name in named if name in OBSERVED} == {answer.__name__ for answer in answers}, todo


@pytest.mark.parametrize(("todo", "answer"), [(Check(1), Checked(None)), (Await(None), TimedOut())])
def test_a_state_that_lacks_its_pod_is_a_defect(todo: Effect, answer: Observation) -> None:
    """What was checked and awaited has been seen."""
    with pytest.raises(IllegalStep, match="without a pod"):
        step(Life(index=1, todo=todo), answer, NOW, LIMITS)


@contract("2.MAX_WORKERS")
@pytest.mark.parametrize("todo", EFFECTS, ids=lambda todo: type(todo).__name__)
def test_only_what_leads_to_a_create_waits_for_room(todo: Effect) -> None:
    """All other effects must go on even when the cluster is full."""
    assert Life(index=1, todo=todo).needs_room is isinstance(todo, Intend | Later | DeleteOld | Create)
