"""What a script that has not done what was asked of it means for the life of a worker."""

from __future__ import annotations

import pytest

from ottoscaler.core.lifecycle import IllegalStep
from ottoscaler.core.observations import Cancelled, HasResult, NewerAttemptStored, Observation, OwnershipLost
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.flow.script_answers import refusal
from ottoscaler.ports import ScriptReply, ScriptStatus

TERMINATION = Termination(EndReason.SCALED_DOWN, "enough", 2)


@pytest.mark.parametrize(
    ("answer", "observation"),
    [
        (ScriptReply(ScriptStatus.NOT_OURS), OwnershipLost()),
        (ScriptReply(ScriptStatus.HAS_RESULT), HasResult()),
        (ScriptReply(ScriptStatus.OLD_ATTEMPT), NewerAttemptStored()),
        (ScriptReply(ScriptStatus.CANCELLED, termination=TERMINATION, attempt=2), Cancelled(TERMINATION, 2)),
    ],
)
def test_each_refusal_is_an_observation(answer: ScriptReply, observation: Observation) -> None:
    """The one that the life of a worker knows."""
    assert refusal(answer) == observation


@pytest.mark.parametrize("status", [ScriptStatus.OK, ScriptStatus.CANCELLED])
def test_an_answer_that_is_no_refusal_is_a_defect(status: ScriptStatus) -> None:
    """It must not be taken for one."""
    with pytest.raises(IllegalStep):
        refusal(ScriptReply(status))
