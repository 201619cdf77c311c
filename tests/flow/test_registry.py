"""The registry: nothing that the watch reports is missed, nothing comes twice, nothing old undoes what is newer."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.observations import Observation, OwnershipLost, PodNotListed, PodSeen, TerminationStored, TimedOut
from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.errors import Stopping
from ottoscaler.flow.registry import PodRegistry, Waiter
from ottoscaler.ports import PodList
from tests.fakes.clock import START, ManualClock
from tests.fakes.wait import eventually
from tests.flow.pods import HASH, pod

TERMINATION_STORED = TerminationStored(Termination(EndReason.SCALED_DOWN))
PAST = START - 1


@pytest.fixture
def registry() -> PodRegistry:
    """An empty one, on a clock that stands still."""
    return PodRegistry(ManualClock())


@pytest.fixture
def waiter(registry: PodRegistry) -> Iterator[Waiter]:
    """The place of worker 1."""
    with registry.subscribe(HASH, 1) as place:
        yield place


@pytest.fixture
def helper(registry: PodRegistry) -> Iterator[ThreadPoolExecutor]:
    """Another thread; what still waits in the end is woken."""
    with ThreadPoolExecutor(2) as executor:
        yield executor
        registry.close()


def waiting(waiter: Waiter) -> bool:
    """Does its thread wait?"""
    return waiter.future is not None


class TestWaiting:
    """What a worker's thread receives."""

    def test_an_event_before_the_wait_is_not_missed(self, registry: PodRegistry, waiter: Waiter) -> None:
        """Subscribing comes before acting, so what happens in between is there when the thread asks."""
        registry.publish(pod(5, Phase.RUNNING))
        assert waiter.wait(1, PAST) == PodSeen(pod(5, Phase.RUNNING))

    def test_an_event_wakes_the_waiting_thread(
        self, registry: PodRegistry, waiter: Waiter, helper: ThreadPoolExecutor
    ) -> None:
        """The observation is the pod as the watch reported it."""
        seen = helper.submit(waiter.wait, 1, None)
        eventually(lambda: waiting(waiter))
        registry.publish(pod(5))
        assert seen.result(5) == PodSeen(pod(5))

    def test_only_a_change_of_stage_wakes(self, registry: PodRegistry, waiter: Waiter) -> None:
        """A pod that only got a new version is nothing to wake up for."""
        registry.publish(pod(5))
        waiter.wait(1, PAST)
        registry.publish(pod(6))
        assert waiter.wait(1, PAST) == TimedOut()

    def test_only_the_last_of_several_changes_is_reported(self, registry: PodRegistry, waiter: Waiter) -> None:
        """A slow thread sees the pod as it is, once."""
        registry.publish(pod(5, Phase.RUNNING))
        registry.publish(pod(6, Phase.SUCCEEDED))
        assert waiter.wait(1, PAST) == PodSeen(pod(6, Phase.SUCCEEDED))
        assert waiter.wait(1, PAST) == TimedOut()

    def test_an_older_version_is_ignored(self, registry: PodRegistry, waiter: Waiter) -> None:
        """A line that comes late does not turn a running pod into a pending one."""
        registry.publish(pod(7, Phase.RUNNING))
        registry.publish(pod(6))
        assert registry.get(pod(1).key) == pod(7, Phase.RUNNING)
        assert waiter.wait(1, PAST) == PodSeen(pod(7, Phase.RUNNING))

    def test_another_worker_or_attempt_does_not_wake(self, registry: PodRegistry, waiter: Waiter) -> None:
        """A thread is notified of its own attempt's pod only."""
        registry.publish(pod(5, index=2))
        registry.publish(pod(6, Phase.FAILED, attempt=1))
        assert waiter.wait(2, PAST) == TimedOut()

    def test_an_older_attempt_does_not_hide_the_current(self, registry: PodRegistry, waiter: Waiter) -> None:
        """The end of attempt 1 comes after attempt 2 has begun, and is not its end."""
        registry.publish(pod(5, attempt=2))
        registry.publish(pod(6, attempt=1, gone=True))
        assert waiter.wait(2, PAST) == PodSeen(pod(5, attempt=2))

    def test_a_waiter_about_to_be_answered_cannot_retract(self, registry: PodRegistry, waiter: Waiter) -> None:
        """Its time is over, and another thread has just taken its future to answer it."""
        future = registry.next_observation(waiter, 1)
        registry.notify(HASH, 1, TERMINATION_STORED)
        assert not registry.cancel_observation(waiter, future)
        assert future.result(0) == TERMINATION_STORED

    def test_what_happened_while_no_thread_waited_is_delivered(self, registry: PodRegistry) -> None:
        """A worker gave its thread back for a while: its pod has ended since, and no further event will say so."""
        registry.publish(pod(5))
        registry.publish(pod(6, Phase.SUCCEEDED))
        with registry.subscribe(HASH, 1, pod(5)) as waiter:
            assert waiter.wait(1, PAST) == PodSeen(pod(6, Phase.SUCCEEDED))
            assert waiter.wait(1, PAST) == TimedOut()

    def test_a_pod_that_went_while_no_thread_waited_is_missing(self, registry: PodRegistry) -> None:
        """A thread that comes back for it looks live."""
        registry.publish(pod(5))
        registry.publish(pod(6, gone=True))
        with registry.subscribe(HASH, 1, pod(5)) as waiter:
            assert waiter.wait(1, PAST) == PodNotListed()

    def test_a_worker_that_comes_back_to_an_unchanged_pod_gets_no_observation(self, registry: PodRegistry) -> None:
        """A newer version of the same stage is none of its business."""
        registry.publish(pod(6))
        with registry.subscribe(HASH, 1, pod(5)) as waiter:
            assert waiter.wait(1, PAST) == TimedOut()

    def test_a_wait_ends_at_its_time(self, waiter: Waiter) -> None:
        """With nothing to report, a deadline that has passed answers at once."""
        assert waiter.wait(1, PAST) == TimedOut()


class TestLearning:
    """What a create or a live look has shown."""

    def test_what_was_upserted_is_not_delivered_again(self, registry: PodRegistry, waiter: Waiter) -> None:
        """The thread itself has just created it."""
        registry.upsert(pod(5))
        registry.publish(pod(5))
        assert waiter.wait(1, PAST) == TimedOut()

    def test_it_is_not_undone_by_an_older_line(self, registry: PodRegistry, waiter: Waiter) -> None:
        """The watch may be behind a live look."""
        registry.upsert(pod(7, Phase.RUNNING))
        registry.publish(pod(6))
        assert registry.get(pod(1).key) == pod(7, Phase.RUNNING)
        assert waiter.wait(1, PAST) == TimedOut()

    def test_the_watch_may_have_been_faster(self, registry: PodRegistry, waiter: Waiter) -> None:
        """Then the create's answer is old, and the thread gets the newer state."""
        registry.publish(pod(7, Phase.RUNNING))
        registry.upsert(pod(5))
        assert waiter.wait(1, PAST) == PodSeen(pod(7, Phase.RUNNING))

    def test_a_pod_that_is_gone_stays_gone(self, registry: PodRegistry, waiter: Waiter) -> None:
        """An answer that comes late cannot bring it back."""
        registry.publish(pod(8, gone=True))
        registry.upsert(pod(7))
        registry.publish(pod(7, Phase.RUNNING))
        assert registry.snapshots() == []
        assert waiter.wait(1, PAST) == PodSeen(pod(8, gone=True))

    def test_a_pod_that_a_look_did_not_find_is_forgotten(self, registry: PodRegistry) -> None:
        """It uses no room any more."""
        registry.publish(pod(5))
        registry.delete(pod(5).key)
        assert registry.get(pod(5).key) is None


class TestLists:
    """A new list after the watch broke off."""

    def test_it_is_known_after_a_list_and_unknown_after_a_break(self, registry: PodRegistry) -> None:
        """Nothing is created on what may be old."""
        known = [registry.is_known]
        registry.replace(PodList([], "9"))
        known.append(registry.is_known)
        registry.mark_unknown()
        assert [*known, registry.is_known] == [False, True, False]

    def test_the_first_list_can_be_waited_for(self, registry: PodRegistry, helper: ThreadPoolExecutor) -> None:
        """And not without limit."""
        registry.wait_known(0.01)
        waiting = helper.submit(registry.wait_known, 10)
        registry.replace(PodList([], "9"))
        waiting.result(5)
        assert registry.is_known

    def test_what_is_listed_is_delivered(self, registry: PodRegistry, waiter: Waiter) -> None:
        """A change that happened while the link was down."""
        registry.publish(pod(5))
        registry.replace(PodList([pod(8, Phase.RUNNING)], "9"))
        assert waiter.wait(1, PAST) == PodSeen(pod(8, Phase.RUNNING))

    def test_a_pod_that_is_not_listed_is_missing(self, registry: PodRegistry, waiter: Waiter) -> None:
        """The thread has to look, since a list may be older than the pod: until then the pod uses room."""
        registry.count_as_ours(HASH)
        registry.upsert(pod(5))
        registry.replace(PodList([], "9"))
        assert waiter.wait(1, PAST) == PodNotListed()
        assert registry.owned_live_count == 1
        registry.delete(pod(5).key)
        assert registry.owned_live_count == 0

    def test_a_missing_pod_that_no_thread_follows_is_gone(self, registry: PodRegistry, waiter: Waiter) -> None:
        """Otherwise it would use room for good: a thread that goes on with it later looks for it."""
        registry.count_as_ours(HASH)
        registry.upsert(pod(5))
        registry.unsubscribe(waiter)
        registry.replace(PodList([], "9"))
        assert registry.owned_live_count == 0
        assert registry.subscribe(HASH, 1, pod(5)).wait(1, PAST) == PodNotListed()

    def test_a_thread_that_leaves_before_it_looks_keeps_no_room(self, registry: PodRegistry, waiter: Waiter) -> None:
        """Its worker has ended, or goes on with another thread, which looks."""
        registry.count_as_ours(HASH)
        registry.upsert(pod(5))
        registry.replace(PodList([], "9"))
        registry.unsubscribe(waiter)
        assert registry.owned_live_count == 0

    def test_a_list_older_than_the_pod_says_nothing(self, registry: PodRegistry, waiter: Waiter) -> None:
        """It was taken before the pod was created: the create was answered while the list was under way."""
        registry.begin_list()
        registry.upsert(pod(7))
        registry.replace(PodList([], "6"))
        assert waiter.wait(1, PAST) == TimedOut()
        assert registry.get(pod(7).key) == pod(7)
        registry.replace(PodList([], "6"))
        assert waiter.wait(1, PAST) == PodNotListed()

    def test_it_is_the_truth_after_a_restore(self, registry: PodRegistry, waiter: Waiter) -> None:
        """Versions have gone back: what was known before is not newer for that."""
        registry.publish(pod(500, Phase.RUNNING))
        registry.publish(pod(501, index=2))
        waiter.wait(1, PAST)
        registry.begin_list()
        registry.replace(PodList([pod(90)], "100"))
        assert registry.snapshots() == [pod(90)]
        assert waiter.wait(1, PAST) == PodSeen(pod(90))
        registry.publish(pod(101, Phase.SUCCEEDED))
        assert waiter.wait(1, PAST) == PodSeen(pod(101, Phase.SUCCEEDED))

    def test_a_pod_that_was_gone_is_back_after_a_restore(self, registry: PodRegistry) -> None:
        """With its UID of then."""
        registry.publish(pod(500))
        registry.publish(pod(510, gone=True))
        registry.replace(PodList([pod(90)], "100"))
        assert registry.get(pod(90).key) == pod(90)

    def test_a_pod_that_no_watch_shows_is_not_missing(self, registry: PodRegistry) -> None:
        """Its labels were changed: it counts until its worker finds that it is gone."""
        registry.count_as_ours(HASH)
        registry.upsert(pod(5, altered_label="the pod's label x was changed"))
        registry.replace(PodList([], "9"))
        assert registry.owned_live_count == 1
        registry.delete(pod(5).key)
        assert registry.owned_live_count == 0

    def test_a_pod_that_only_left_the_selection_comes_back(self, registry: PodRegistry) -> None:
        """The watch said that it was gone; a look, and a later line of the watch, say that it is there."""
        registry.publish(pod(5, Phase.RUNNING))
        registry.publish(pod(6, Phase.RUNNING, gone=True))
        registry.upsert(pod(5, Phase.RUNNING))
        assert registry.snapshots() == []
        registry.upsert(pod(6, Phase.RUNNING, altered_label="x"))
        assert registry.snapshots() == [pod(6, Phase.RUNNING, altered_label="x")]
        registry.publish(pod(8, Phase.RUNNING))
        registry.publish(pod(9, Phase.RUNNING, gone=True))
        assert registry.snapshots() == []


class TestTelling:
    """What another thread has to report to a worker's thread."""

    def test_it_reaches_a_waiting_worker(
        self, registry: PodRegistry, waiter: Waiter, helper: ThreadPoolExecutor
    ) -> None:
        """At once."""
        observed = helper.submit(waiter.wait, 1, None)
        eventually(lambda: waiting(waiter))
        assert registry.notify(HASH, 1, TERMINATION_STORED)
        assert observed.result(5) == TERMINATION_STORED

    def test_it_reaches_a_worker_that_does_not_wait_yet(self, registry: PodRegistry, waiter: Waiter) -> None:
        """In the order of the notifications, and before what the watch has."""
        registry.publish(pod(5))
        registry.notify(HASH, 1, TERMINATION_STORED)
        registry.notify(HASH, 1, OwnershipLost())
        assert [waiter.wait(1, PAST) for _ in range(3)] == [TERMINATION_STORED, OwnershipLost(), PodSeen(pod(5))]

    def test_it_says_whether_anybody_follows(self, registry: PodRegistry, waiter: Waiter) -> None:
        """A caller that notifies a worker that no thread follows has to act itself."""
        assert registry.followed(HASH, 1)
        assert not registry.notify(HASH, 2, TERMINATION_STORED)

    def test_a_waiter_that_loses_its_place_is_notified(
        self, registry: PodRegistry, waiter: Waiter, helper: ThreadPoolExecutor
    ) -> None:
        """There is one place for each worker: a thread left without one would wait without limit."""
        observed = helper.submit(waiter.wait, 1, None)
        eventually(lambda: waiting(waiter))
        with registry.subscribe(HASH, 1) as newer:
            assert observed.result(5) == OwnershipLost()
            registry.publish(pod(5))
            assert newer.wait(1, PAST) == PodSeen(pod(5))


class TestClosing:
    """The end of the process."""

    def test_all_waiters_stop(self, registry: PodRegistry) -> None:
        """Each thread gets its Stopping."""
        with ThreadPoolExecutor(20) as threads, ExitStack() as places:
            waiters = [places.enter_context(registry.subscribe(HASH, index)) for index in range(20)]
            ends = [threads.submit(waiter.wait, 1, None) for waiter in waiters]
            eventually(lambda: all(waiting(waiter) for waiter in waiters))
            registry.close()
            assert all(isinstance(end.exception(5), Stopping) for end in ends)

    def test_a_later_waiter_stops_too(self, registry: PodRegistry, waiter: Waiter) -> None:
        """There is no thread left to wake it."""
        registry.close()
        registry.close()
        with pytest.raises(Stopping):
            waiter.wait(1, None)


@pytest.fixture
def hostile() -> Iterator[None]:
    """Threads are switched as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hostile")
def test_the_race_of_a_timeout_with_an_event_loses_nothing_and_doubles_nothing() -> None:
    """Two threads, thousands of rounds: a notification while a wait ends arrives once, in this wait or in the next."""
    registry, rounds = PodRegistry(ManualClock()), 4000
    found = [TerminationStored(Termination(EndReason.SCALED_DOWN, str(number))) for number in range(rounds)]
    observed: list[Observation] = []

    def tell() -> None:
        for each in found:
            while place.future is None:  # only while it waits there is a race
                pass
            registry.notify(HASH, 1, each)

    publisher = threading.Thread(target=tell)
    with registry.subscribe(HASH, 1) as place:
        publisher.start()
        while publisher.is_alive():
            observed.append(place.wait(1, START + 1e-5))
        while (last := place.wait(1, PAST)) != TimedOut():
            observed.append(last)
    assert [each for each in observed if each != TimedOut()] == found


@pytest.mark.usefixtures("hostile")
def test_the_race_of_a_timeout_with_the_watch_ends_in_the_last_state() -> None:
    """However the waits fall, versions only rise and the last one arrives."""
    registry, rounds = PodRegistry(ManualClock()), 4000

    def publish() -> None:
        for number in range(1, rounds + 1):
            while place.future is None:
                pass
            registry.publish(pod(number, uid=str(number)))

    publisher = threading.Thread(target=publish)
    observed: list[Observation] = []
    with registry.subscribe(HASH, 1) as place:
        publisher.start()
        while publisher.is_alive():
            observed.append(place.wait(1, START + 1e-5))
        observed.append(place.wait(1, PAST))
    versions = [_version(each.pod) for each in observed if isinstance(each, PodSeen)]
    assert versions == sorted(set(versions))
    assert versions[-1] == rounds


snapshots = st.builds(
    lambda version, index, hash_, phase, gone: pod(version, phase, index=index, hash_=hash_, gone=gone),
    st.integers(1, 30),
    st.integers(1, 3),
    st.sampled_from(["aaaaaaaaaa", "bbbbbbbbbb"]),
    st.sampled_from([Phase.PENDING, Phase.RUNNING, Phase.FAILED]),
    st.booleans(),
)
moves = st.one_of(
    st.tuples(st.sampled_from(["publish", "upsert"]), snapshots),
    st.tuples(st.sampled_from(["count_as_ours", "stop_counting"]), st.sampled_from(["aaaaaaaaaa", "bbbbbbbbbb"])),
    st.tuples(st.just("delete"), snapshots.map(lambda one: one.key)),
    st.tuples(st.just("replace"), st.lists(snapshots, max_size=3, unique_by=lambda one: one.key)),
)


@given(st.lists(moves, max_size=40))
def test_the_counts_equal_a_recount(steps: Sequence[tuple[str, Any]]) -> None:
    """After any sequence of whatever may happen, live pods of our tasks are as many as there are."""
    registry, owned = PodRegistry(ManualClock()), set[str]()
    for verb, what in steps:
        if verb == "replace":
            what = PodList([one for one in what if not one.gone], str(max((_version(one) for one in what), default=1)))
        getattr(registry, verb)(what)
        owned |= {what} if verb == "count_as_ours" else set()
        owned -= {what} if verb == "stop_counting" else set()
        live = [one for one in registry.snapshots() if one.live and one.key.event_hash in owned]
        assert registry.owned_live_count == len(live)


def _version(one: PodSnapshot) -> int:
    return int(one.resource_version)


def test_notifying_one_worker_costs_the_same_however_many_wait() -> None:
    """The watch thread is one for all: with 5,000 waiters a change costs what it costs with 10."""

    def cost(waiters: int) -> float:
        registry, laps = PodRegistry(ManualClock()), []
        with ExitStack() as places:
            for index in range(waiters):
                waiter = places.enter_context(registry.subscribe(HASH, index))
                registry.upsert(pod(1, index=index))
                registry.next_observation(waiter, 1)
            for version in range(2, 202):
                began = time.perf_counter()
                registry.publish(pod(version, index=version % 10))
                laps.append(time.perf_counter() - began)
        return sorted(laps)[len(laps) // 2]

    assert cost(5000) < 8 * min(cost(10) for _ in range(3)) + 20e-6


@pytest.mark.parametrize(
    ("change", "announced"),
    [
        (lambda registry: registry.publish(pod(3, Phase.RUNNING)), 0),
        (lambda registry: registry.publish(pod(3, Phase.SUCCEEDED)), 1),
        (lambda registry: registry.publish(pod(3, gone=True)), 1),
        (lambda registry: registry.delete(pod(2).key), 1),
        (lambda registry: registry.delete(pod(2, index=9).key), 0),
        (lambda registry: registry.replace(PodList([pod(2)], "5")), 1),
        (lambda registry: registry.upsert(pod(3, Phase.RUNNING)), 0),
    ],
    ids=["running", "ended", "gone", "not found", "not found, not known", "a list", "upserted"],
)
def test_what_may_make_room_is_announced(
    registry: PodRegistry, change: Callable[[PodRegistry], None], announced: int
) -> None:
    """To each listener, after it can be seen, and outside the lock: listeners ask the registry."""
    registry.begin_list()
    registry.publish(pod(2))
    found: list[int] = []
    for _ in range(2):
        registry.on_change(lambda: found.append(len(registry.snapshots())))
    change(registry)
    assert len(found) == 2 * announced
    assert set(found) <= {len(registry.snapshots())}


def test_a_node_makes_room_for_the_next_pod(registry: PodRegistry) -> None:
    """Reported when a pod gets its node, once, and outside the lock; neither before nor when it starts there."""
    found: list[int] = []
    registry.on_node(lambda: found.append(registry.without_node + len(registry.snapshots())))
    for version, changes in enumerate(({}, {"node": "n"}, {"node": "n", "phase": Phase.RUNNING}), 2):
        registry.publish(pod(version, **changes))  # type: ignore[arg-type]
    assert found == [1]
