"""What the answers of scripts mean for the life of a worker."""

from __future__ import annotations

from ottoscaler.core import lifecycle, observations
from ottoscaler.core.observations import Observation
from ottoscaler.ports import ScriptReply, ScriptStatus


def refusal(answer: ScriptReply) -> Observation:
    """What a script says that has not done what was asked of it."""
    match answer.status:
        case ScriptStatus.NOT_OURS:
            return observations.OwnershipLost()
        case ScriptStatus.HAS_RESULT:
            return observations.HasResult()
        case ScriptStatus.OLD_ATTEMPT:
            return observations.NewerAttemptStored()
        case ScriptStatus.CANCELLED if answer.termination is not None:
            return observations.Cancelled(answer.termination, answer.attempt)
    raise lifecycle.IllegalStep(f"no script answers {answer} here")
