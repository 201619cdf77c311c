"""A worker's life in every environment that the dice make: what must never happen does not, and every life ends."""

from __future__ import annotations

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from ottoscaler.core.effects import EndLifecycle
from ottoscaler.core.kept_pods import may_stay
from ottoscaler.core.lifecycle import Lifecycle
from ottoscaler.core.verdicts import EndReason
from tests.core.worker_environment import WorkerEnvironment

dice = st.lists(st.integers(0, 59), max_size=60)


def lived(throws: list[int]) -> tuple[WorkerEnvironment, Lifecycle]:
    """The environment and the life that ended in it; the environment asserts all that must never happen on the way."""
    environment = WorkerEnvironment(throws)
    return environment, environment.run()


@settings(max_examples=1000)
@given(dice)
@example([])
def test_no_world_breaks_a_rule_or_holds_a_life_without_end(throws: list[int]) -> None:
    """No illegal step, no delete before a record, no create without an intent; attempts rise, names are used once."""
    environment, life = lived(throws)
    assert isinstance(life.todo, EndLifecycle)
    event(f"{life.todo.reason}: {environment.result.reason if environment.result else None}")


@settings(max_examples=500)
@given(dice)
def test_a_life_that_stays_ours_ends_with_a_result(throws: list[int]) -> None:
    """Nothing is lost, whatever happened to pods, answers and list."""
    environment, _ = lived(throws)
    assert environment.result is not None or not environment.ours


@settings(max_examples=500)
@given(dice)
def test_a_life_that_stays_ours_leaves_no_pod_behind(throws: list[int]) -> None:
    """Of no attempt: each is gone, or going, but for one that stays for inspection or that the reconciler looks at."""
    environment, _ = lived(throws)
    left = [attempt for attempt, there in environment.pods.items() if not (there.deleting or may_stay(there))]
    assert not environment.ours or not left
    assert len(environment.kept) <= 1


@settings(max_examples=500)
@given(dice)
def test_a_pod_that_is_not_to_stay_never_does(throws: list[int]) -> None:
    """Without the wish to keep it nothing is as it was not before."""
    environment, _ = lived([0, *throws])
    assert not environment.ours or all(left.deleting for left in environment.pods.values())


def test_a_friendly_world_lets_the_worker_complete() -> None:
    """One attempt, one name, one result."""
    environment, _ = lived([])
    assert environment.result is not None
    assert (environment.result.reason, environment.names_used, environment.pods) == (EndReason.COMPLETED, [1], {})
