"""Which workers a scale_down ends: first those with the cheapest end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.events import ScaleDownMode
from ottoscaler.core.plan import VictimCandidate, WorkerStage, is_older, rank_victims
from ottoscaler.core.pods import Phase, PodSnapshot
from tests.core.builders import NOW, event, failed, pod, running

contract = pytest.mark.contract


def worker(
    index: int = 1, *, attempt: int = 1, stream_id: str = "5-0", last: PodSnapshot | None = None
) -> VictimCandidate:
    """A worker without a result."""
    return VictimCandidate(event(stream_id=stream_id), index, attempt, last)


def order(*candidates: VictimCandidate, mode: ScaleDownMode = ScaleDownMode.KILL) -> list[VictimCandidate]:
    """The workers that may be ended, in order."""
    return rank_victims(candidates, mode)[0]


workers = st.builds(
    worker,
    st.integers(1, 5),
    attempt=st.integers(0, 2),
    stream_id=st.sampled_from(["5-0", "5-1", "10-0"]),
    last=st.sampled_from([None, pod(), running(), running(created_at=NOW + 9)]),
)
groups = st.lists(workers, max_size=8)


@pytest.mark.parametrize(
    ("candidate", "stage"),
    [
        (worker(attempt=0), WorkerStage.NOT_CREATED),
        (worker(attempt=1), WorkerStage.WAITING),
        (worker(last=pod()), WorkerStage.PENDING),
        (worker(last=pod(Phase.UNKNOWN)), WorkerStage.PENDING),
        (worker(last=running()), WorkerStage.RUNNING),
        (worker(last=failed()), WorkerStage.ENDED),
    ],
)
def test_progress_is_how_far_the_current_attempt_has_come(candidate: VictimCandidate, stage: WorkerStage) -> None:
    """Judged by what was last seen of its pod."""
    assert candidate.stage is stage


@contract("3.pod_count")
def test_those_that_have_come_least_far_are_ended_first() -> None:
    """What was never created costs nothing; what runs loses its work."""
    rows = [worker(1, last=running()), worker(2, last=pod()), worker(3), worker(4, attempt=0)]
    assert order(*rows) == rows[::-1]


@contract("3.task_id")
def test_of_the_running_ones_the_youngest_is_ended_first() -> None:
    """It loses the least work. Whatever the clock of its node says of its start."""
    old, young = worker(1, last=running()), worker(2, last=running(created_at=NOW + 9, started_at=NOW - 4200))
    assert order(old, young) == [young, old]


@contract("3.task_id")
@pytest.mark.parametrize(("older", "younger"), [("9-0", "10-0"), ("5-9", "5-10"), ("5-0", "6-0")])
def test_of_equals_the_younger_events_worker_is_ended_first(older: str, younger: str) -> None:
    """By number, not by letter."""
    first, second = worker(stream_id=older), worker(stream_id=younger)
    assert order(first, second) == [second, first]
    assert is_older(older, younger)
    assert not is_older(younger, older)


def test_of_one_event_the_highest_index_is_ended_first() -> None:
    """Worker 1 stays longest."""
    assert [one.index for one in order(worker(1), worker(3), worker(2))] == [3, 2, 1]


@contract("3.pod_count")
@given(groups)
def test_a_kill_may_end_all(group: list[VictimCandidate]) -> None:
    """It spares no worker."""
    victims, spared = rank_victims(group, ScaleDownMode.KILL)
    assert (len(victims), spared) == (len(group), [])


@contract("3.mode")
@given(groups)
def test_a_drain_spares_all_that_have_started(group: list[VictimCandidate]) -> None:
    """And no other worker."""
    victims, spared = rank_victims(group, ScaleDownMode.DRAIN)
    assert all(one.stage is not WorkerStage.RUNNING for one in victims)
    assert all(one.stage is WorkerStage.RUNNING for one in spared)


@contract("5.victims")
@contract("5.survivors")
@given(groups, st.sampled_from(ScaleDownMode))
def test_everybody_may_either_be_ended_or_is_spared(group: list[VictimCandidate], mode: ScaleDownMode) -> None:
    """No worker is in both lists, none is left out, also among workers that look alike."""
    victims, survivors = rank_victims(group, mode)
    assert sorted(map(id, [*victims, *survivors])) == sorted(map(id, group))


@given(st.permutations([worker(index, last=last) for index in (1, 2) for last in (None, pod(), running())]))
def test_the_choice_does_not_depend_on_the_order_of_asking(group: list[VictimCandidate]) -> None:
    """The victims are chosen once; any replica would have chosen the same."""
    assert order(*group)[:3] == order(*sorted(group, key=_by_index))[:3]


def _by_index(one: VictimCandidate) -> Any:
    return one.index, one.stage


@pytest.mark.parametrize("stream_id", ["5-0", "5"])
def test_an_entry_is_not_older_than_itself(stream_id: str) -> None:
    """An id without its second number means the first of that millisecond."""
    assert not is_older(stream_id, "5-0")
