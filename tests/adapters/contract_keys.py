"""The contract of concurrency keys: who holds a place, who gets the next, and what never takes one away.

All implementations run it.
"""

from __future__ import annotations

import pytest

from ottoscaler.core.events import content_digest
from ottoscaler.core.verdicts import LAST_TRY, MAX_TRIES, EndReason
from ottoscaler.ports import OpenTask, RedisPorts, ScriptStatus
from tests.adapters.streams import (
    LATE_ID,
    StreamAdmin,
    accept,
    cancel,
    event_of,
    intend,
    opened,
    receive,
    record,
    send,
    taken_over,
)

__all__ = ["TestConcurrencyKeys", "TestPlacesAreKept", "TestPlacesOfTheLost"]


def keyed(
    stream: RedisPorts, admin: StreamAdmin, name: str, limit: str = "", key: str = "k", **fields: str
) -> OpenTask:
    """A new task of a key."""
    return opened(
        stream, admin, event_id=name, task_id=f"t-{name}", concurrency_key=key, concurrency_limit=limit, **fields
    )


def holding(stream: RedisPorts, key: str = "k", *, check_open: bool = False) -> list[str]:
    """Who holds a place."""
    return list(stream.admit([key], shown=100, check_open=check_open)[key].holding)


def waiting(stream: RedisPorts, key: str = "k") -> list[str]:
    """Who waits, in order."""
    return list(stream.admit([key], shown=100, check_open=False)[key].waiting)


def finish(stream: RedisPorts, task: OpenTask) -> None:
    """Its one worker is intended and recorded."""
    assert intend(stream, task).status is ScriptStatus.OK
    assert record(stream, task).status is ScriptStatus.OK


class TestConcurrencyKeys:
    """Places are given in the order of the stream, as many as the least limit allows."""

    def test_the_first_holds_and_the_second_waits(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """On whatever replica; the answer to the acceptance says so."""
        first, second = keyed(stream, admin, "e-1"), keyed(other, admin, "e-2")
        assert (first.holds, second.holds) == (True, False)
        assert (holding(stream), waiting(stream)) == (["e-1"], ["e-2"])

    def test_a_task_without_a_key_waits_for_nothing(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Nor does one of another key."""
        keyed(stream, admin, "e-1")
        assert opened(stream, admin).holds
        assert keyed(stream, admin, "e-2", key="K").holds

    def test_what_waits_cannot_start(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Whatever its owner believes."""
        keyed(stream, admin, "e-1")
        second = keyed(stream, admin, "e-2")
        assert intend(stream, second).status is ScriptStatus.NOT_OURS
        assert admin.task("e-2")["state"] == "waiting"

    def test_the_last_result_gives_the_place_to_the_next(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """In the same step, and only the last: not that of the first worker."""
        first = keyed(stream, admin, "e-1", pod_count="2")
        second, third = keyed(stream, admin, "e-2"), keyed(stream, admin, "e-3")
        intend(stream, first)
        record(stream, first)
        assert holding(stream) == ["e-1"]
        intend(stream, first, 2)
        record(stream, first, 2)
        assert intend(stream, third).status is ScriptStatus.NOT_OURS
        assert intend(stream, second).status is ScriptStatus.OK
        assert (holding(stream), waiting(stream)) == (["e-2"], ["e-3"])

    def test_a_retry_keeps_the_place(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """From the first start to the last result."""
        first, second = keyed(stream, admin, "e-1"), keyed(stream, admin, "e-2")
        for attempt in (1, 2, 3):
            assert intend(stream, first, attempt=attempt).status is ScriptStatus.OK
            assert intend(stream, second).status is ScriptStatus.NOT_OURS
        assert holding(stream) == ["e-1"]

    @pytest.mark.parametrize(
        ("limits", "held"), [("222", 2), ("333", 3), ("13", 1), ("31", 1), ("221", 2), ("3213", 2), ("1999", 1)]
    )
    @pytest.mark.contract("3.concurrency_limit")
    def test_the_smallest_limit_holds(self, stream: RedisPorts, admin: StreamAdmin, limits: str, held: int) -> None:
        """A task starts if with it there are no more than its own limit and those of all that hold a place."""
        tasks = [keyed(stream, admin, f"e-{number}", limit) for number, limit in enumerate(limits)]
        assert [task.holds for task in tasks] == [True] * held + [False] * (len(limits) - held)

    def test_a_blocked_head_blocks_its_key(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Strictly first come, first served: what stands behind a small limit waits with it."""
        first, second = keyed(stream, admin, "e-1", "3"), keyed(stream, admin, "e-2", "3")
        keyed(stream, admin, "e-3", "1")
        keyed(stream, admin, "e-4", "3")
        assert (holding(stream), waiting(stream)) == (["e-1", "e-2"], ["e-3", "e-4"])
        finish(stream, first)
        assert holding(stream) == ["e-2"]
        finish(stream, second)
        assert (holding(stream), waiting(stream)) == (["e-3"], ["e-4"])

    def test_one_end_may_give_several_places(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Where the one that ends had the smallest limit."""
        first = keyed(stream, admin, "e-1", "1")
        for name in ("e-2", "e-3", "e-4", "e-5"):
            keyed(stream, admin, name, "3")
        finish(stream, first)
        assert (holding(stream), waiting(stream)) == (["e-2", "e-3", "e-4"], ["e-5"])

    def test_an_older_entry_that_is_not_accepted_comes_first(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """It may have the same key: by the stream, not by who is faster."""
        send(admin, event_id="e-1", concurrency_key="k")
        entry = receive(other)
        second = keyed(stream, admin, "e-2")
        assert not second.holds
        assert holding(stream) == []
        first = accept(other, entry)
        assert first is not None
        assert not first.holds  # one waits already: they are put into their order by the next look
        assert (holding(stream), waiting(stream)) == (["e-1"], ["e-2"])

    def test_an_older_entry_of_no_key_delays_only_until_it_is_accepted(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """The next look gives the place."""
        send(admin, event_id="e-1")
        entry = receive(other)
        keyed(stream, admin, "e-2")
        accept(other, entry)
        assert holding(stream) == ["e-2"]

    def test_the_order_is_by_number(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """9-1 comes before 10-1."""
        ids = [f"9{LATE_ID[:-2]}-9", f"9{LATE_ID[:-2]}-10", f"10{LATE_ID[:-2]}-2"]
        for stream_id in ids:
            admin.add({"type": "scale_up", "concurrency_key": "k"}, stream_id)
            accept(stream, receive(stream))
        assert (holding(stream), waiting(stream)) == (ids[:1], ids[1:])

    def test_a_repeated_acceptance_says_the_same(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Its answer may have been lost."""
        keyed(stream, admin, "e-1")
        send(admin, event_id="e-2", concurrency_key="k")
        entry = receive(stream)
        answers = [accept(stream, entry) for _ in range(2)]
        assert [task and task.holds for task in answers] == [False, False]
        assert waiting(stream) == ["e-2"]

    def test_the_first_that_holds_is_named(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """For who asks what a task waits for; and only the first that wait are."""
        for name in ("e-1", "e-2", "e-3"):
            keyed(stream, admin, name)
        [places] = stream.admit(["k"], shown=1, check_open=False).values()
        assert (places.first_task_id, places.waiting) == ("t-e-1", ["e-2"])

    def test_many_keys_are_looked_at_at_once(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Each for itself."""
        names = [f"key-{number}" for number in range(300)]
        for name in ("key-3", "key-7"):
            keyed(stream, admin, f"e-{name}", key=name)
        found = stream.admit(names, shown=1, check_open=True)
        assert [key for key in names if found[key].holding] == ["key-3", "key-7"]

    def test_a_redriven_event_stands_at_the_end(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It is a new entry."""
        keyed(stream, admin, "e-1")
        keyed(stream, admin, "e-2")
        keyed(stream, admin, "redrive:1-1")
        assert waiting(stream) == ["e-2", "redrive:1-1"]


class TestPlacesAreKept:
    """No death and no time takes a place away."""

    def test_by_a_take_over(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """The new owner learns which it is."""
        first, second = keyed(stream, admin, "e-1"), keyed(stream, admin, "e-2")
        assert taken_over(other, admin, second).holds is False
        assert taken_over(other, admin, first).holds is True
        assert holding(stream) == ["e-1"]

    def test_by_leases_that_run_out(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """However long nobody has the task."""
        keyed(stream, admin, "e-1")
        keyed(stream, admin, "e-2")
        admin.expire_lease("e-1")
        assert holding(stream, check_open=True) == ["e-1"]

    def test_by_a_hand_over(self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin) -> None:
        """In order."""
        first = keyed(stream, admin, "e-1")
        keyed(stream, admin, "e-2")
        intend(stream, first)
        stream.release({"e-1": first.owner})
        assert holding(stream, check_open=True) == ["e-1"]
        taken = other.take_over("e-1", same_consumer=False)
        assert isinstance(taken, OpenTask)
        assert taken.holds

    def test_the_place_is_given_to_a_task_without_an_owner_that_lives(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Who takes it over finds it with its place."""
        first, second = keyed(stream, admin, "e-1"), keyed(other, admin, "e-2")
        finish(stream, first)
        taken = taken_over(stream, admin, second)
        assert taken.holds
        assert intend(stream, taken).status is ScriptStatus.OK

    def test_a_cancelled_task_that_waits_leaves_without_a_place(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A scale_down, an event that supersedes it: its result is stored, and those behind it move up."""
        keyed(stream, admin, "e-1")
        second = keyed(stream, admin, "e-2")
        keyed(stream, admin, "e-3")
        stream.store_termination("e-2", None, 1, cancel())
        assert intend(stream, second).status is ScriptStatus.CANCELLED
        record(stream, second, reason=EndReason.SCALED_DOWN)
        assert (holding(stream), waiting(stream)) == (["e-1"], ["e-3"])

    def test_poison_gives_the_place_up_when_it_is_over(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Not before: its pods have to be ended first."""
        keyed(stream, admin, "e-1")
        keyed(stream, admin, "e-2")
        for tries in range(LAST_TRY):
            if tries == MAX_TRIES + 1:
                assert holding(stream) == ["e-1"]
            if "e-1" in admin.open_ids():
                admin.expire_lease("e-1")
                stream.take_over("e-1", same_consumer=False)
        assert admin.open_ids() == {"e-2"}
        assert holding(stream) == ["e-2"]

    def test_of_another_type_is_a_conflict_of_the_event(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """A refused event is in no key."""
        send(admin, event_id="e-1", concurrency_key="k", reason="x")
        accept(stream, receive(stream))
        send(admin, event_id="e-1", concurrency_key="k", reason="y")
        entry = receive(stream)
        assert entry.fields is not None
        [answer] = stream.accept([(event_of(entry), content_digest(entry.fields))], [entry.fields])
        assert answer is not None
        assert holding(stream) == ["e-1"]
        assert waiting(stream) == []


class TestPlacesOfTheLost:
    """What is removed by accident does not stop a key."""

    def test_are_restored_with_the_tasks(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Redis was wiped: each task that held a place holds it again, and the others wait in their order."""
        tasks = [keyed(stream, admin, name) for name in ("e-1", "e-2", "e-3")]
        admin.flush()
        stream.ensure_group()
        for task in reversed(tasks):
            stream.restore(task)
        assert (holding(stream), waiting(stream)) == (["e-1"], ["e-2", "e-3"])
        assert intend(stream, tasks[1]).status is ScriptStatus.NOT_OURS

    def test_a_pod_that_is_taken_up_holds_its_place(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """It runs."""
        task = keyed(stream, admin, "e-1")
        admin.flush()
        stream.ensure_group()
        stream.rebuild_from_pods(task.event, {1: 1})
        assert holding(stream) == ["e-1"]

    def test_a_task_whose_hash_was_removed_gives_its_place_up(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """By the next look at what is open."""
        keyed(stream, admin, "e-1")
        keyed(stream, admin, "e-2")
        keyed(stream, admin, "e-3")
        admin.remove_task("e-1")
        assert holding(stream) == ["e-1"]
        assert holding(stream, check_open=True) == ["e-2"]

    def test_a_waiting_task_whose_hash_was_removed_gets_no_place(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """The next one does."""
        first = keyed(stream, admin, "e-1")
        keyed(stream, admin, "e-2")
        keyed(stream, admin, "e-3")
        admin.remove_task("e-2")
        finish(stream, first)
        assert (holding(stream), waiting(stream)) == (["e-3"], [])

    def test_a_key_that_was_removed_is_written_again_by_a_renewal(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """Otherwise what waits would wait for as long as its owner lives."""
        tasks = [keyed(stream, admin, name) for name in ("e-1", "e-2")]
        intend(stream, tasks[0])
        admin.remove_key("k")
        stream.renew({task.event.event_id: task.owner for task in tasks})
        assert (holding(stream), waiting(stream)) == (["e-1"], ["e-2"])

    def test_a_key_that_was_removed_is_written_again(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """By the next owner: what has started holds a place."""
        first, second = keyed(stream, admin, "e-1"), keyed(stream, admin, "e-2")
        intend(stream, first)
        admin.remove_key("k")
        assert taken_over(other, admin, first).holds
        assert not taken_over(other, admin, second).holds
        assert (holding(stream), waiting(stream)) == (["e-1"], ["e-2"])
