"""Leases: our tasks stay ours, those of the dead are taken over, and a paused Redis makes nobody steal."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ottoscaler.errors import Replaced
from ottoscaler.flow.takeover import TAKE_AT_ONCE
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.rig import Rig, World

contract = pytest.mark.contract


@contract("2.LEASE_S")
def test_a_live_owner_keeps_its_tasks() -> None:
    """Renewed in time, however long a worker runs."""
    world = World()
    with Rig(world, threads=["watch", "lease"]) as rig, Rig(world, consumer="c2", threads=["watch", "lease"]) as other:
        event_id = rig.accept()
        rig.pod(event_id)
        for _ in range(10):
            renewals = world.redis.calls["renew"]
            rig.pass_time(rig.parts.lease_s / 3)
            eventually(lambda before=renewals: world.redis.calls["renew"] >= before + 2)  # type: ignore[misc]
        assert rig.ledger.has(event_id)
        assert not other.ledger.has(event_id)


@contract("2.LEASE_S")
def test_a_dead_owners_task_is_taken_over() -> None:
    """After LEASE_S its pod is adopted and its result recorded by the other."""
    world = World()
    with Rig(world, consumer="dead", threads=["watch"]) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.close(release=False)
    with Rig(world, threads=["watch", "lease"]) as rig:
        rig.wait_and_look(rig.parts.lease_s + 2)
        assert rig.pod(event_id) == pod
        rig.cluster.run(pod)
        rig.cluster.succeed(pod)
        assert rig.result()["pod"] == pod
        assert rig.calls("create") == 1


def test_what_a_dead_one_read_and_did_not_accept_is_taken_over() -> None:
    """After LEASE_S and not before: he may only be slow."""
    world = World()
    with Rig(world, consumer="dead") as dead:
        event_id = dead.send()
        dead.stream.read_now(1)
        dead.close(release=False)
    with Rig(world, threads=["watch", "lease"]) as rig:
        rig.wait_and_look(rig.parts.lease_s - 2)
        assert not rig.ledger.has(event_id)
        rig.wait_and_look(4)
        assert rig.pod(event_id)


def test_so_many_tasks_are_taken_over_that_notes_come_in_between() -> None:
    """The rest in the next steps."""
    world = World()
    with Rig(world, consumer="dead") as dead:
        for _ in range(TAKE_AT_ONCE + 1):
            dead.accept()
        dead.close(release=True)
    with Rig(world) as rig:
        rig.lease.step()
        rig.takeover._own_taken = True
        rig.takeover._step()
        assert len(rig.ledger.owners()) == TAKE_AT_ONCE
        rig.takeover._step()
        assert len(rig.ledger.owners()) == TAKE_AT_ONCE + 1


def test_a_clean_end_hands_over_at_once() -> None:
    """The next one does not wait for the lease to run out."""
    world = World()
    with Rig(world, consumer="old", threads=["watch"]) as first:
        event_id = first.accept()
        first.pod(event_id)
    with Rig(world, threads=["watch", "lease"]) as rig:
        assert rig.pod(event_id)


def test_what_was_read_and_not_accepted_is_handed_over_at_once() -> None:
    """A clean end leaves nothing that has to wait for a lease, and counts no try."""
    world = World()
    with Rig(world, consumer="old") as first:
        event_id = first.send()
        first.stream.read_now(1)
    with Rig(world, threads=["watch", "lease"]) as rig:
        assert rig.pod(event_id)


def test_what_a_thread_works_on_is_handed_over_last() -> None:
    """The write that it is at would else be refused; all others change hands before it is done."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold(verb: str, _name: str = "") -> None:
        if verb == "create" and not arrived.is_set():
            arrived.set()
            go_on.wait(10)

    with Rig(threads=["watch"], MAX_WORKERS=1) as rig:
        rig.world.kubernetes.on_call = hold
        busy = rig.accept()
        assert arrived.wait(5)
        waits = rig.accept()
        rig.stop.set()
        rig.lease.release(all_=False)
        assert rig.stream.expired(same_consumer=False) == [waits]
        go_on.set()
        rig.registry.close()
        rig.idle()
        rig.lease.release()
        assert set(rig.stream.expired(same_consumer=False)) == {busy, waits}


def test_a_failure_of_ours_hands_nothing_over() -> None:
    """A task that makes processes fail would else never have failed often enough to end."""
    world = World()
    with Rig(world, consumer="old", threads=["watch"]) as first:
        first.dies_of = RuntimeError
        event_id = first.accept()
        first.stop.set(RuntimeError("a defect"))
    with Rig(world, threads=["watch", "lease"]) as rig:
        rig.wait_and_look(rig.parts.lease_s - 2)
        assert not rig.ledger.has(event_id)
        rig.wait_and_look(4)
        assert rig.pod(event_id)


def test_a_new_boot_of_the_same_consumer_takes_its_own_at_once() -> None:
    """There cannot be two of us, so the lease need not run out."""
    world = World()
    with Rig(world, boot="b1", threads=["watch"]) as first:
        event_id = first.accept()
        first.pod(event_id)
        first.close(release=False)
    with Rig(world, boot="b2", threads=["watch", "lease"]) as rig:
        assert rig.pod(event_id)


def test_what_the_first_list_shows_is_not_asked_for_again() -> None:
    """A thousand pods that run on are a thousand requests less; only that one is not there takes a live look."""
    world = World()
    with Rig(world, boot="b1", threads=["watch"]) as first:
        event_id = first.accept(pod_count=2)
        there, vanished = first.pod(event_id, 1), first.pod(event_id, 2)
        first.close(release=False)
    world.kubernetes.remove(vanished)
    with Rig(world, boot="b2", threads=["watch"]) as rig:
        rig.lease.step()
        rig.takeover.step()
        assert rig.pod(event_id, 1) == there
        eventually(lambda: rig.calls("get", vanished) == 1, what="a live look at the other")
        assert rig.calls("get", there) == 0


def test_a_take_over_whose_answer_was_lost_is_heard_of() -> None:
    """The task is ours, and nobody else could take it before its lease runs out."""
    world = World()
    with Rig(world, boot="b1", threads=["watch"]) as first:
        event_id = first.accept()
        first.pod(event_id)
        first.close(release=False)
    world.redis.fail_next("take", after=True)
    with Rig(world, boot="b2", threads=["watch", "lease"]) as rig:
        eventually(lambda: rig.ledger.has(event_id), what="the task to be heard of")
        assert world.redis.calls["take"] == 2
        assert rig.ledger.owners()[event_id] == world.redis.find(event_id).owner  # type: ignore[union-attr]


@contract("2.REDIS_CONSUMER")
def test_the_replaced_process_ends_and_says_why() -> None:
    """Two processes with one consumer name: the older finds out at its next renewal."""
    world = World()
    with Rig(world, boot="b1", threads=["watch", "lease"]) as first:
        first.dies_of = Replaced
        event_id = first.accept()
        first.pod(event_id)
        with Rig(world, boot="b2", threads=["watch", "lease"]) as second:
            eventually(lambda: second.ledger.has(event_id))
            first.pass_time(first.parts.lease_s / 3)
            assert first.stop.wait(5)
        assert "REDIS_CONSUMER must be unique" in str(first.stop.cause)


def test_an_idle_process_is_replaced_as_well() -> None:
    """It has no task that could be taken from it, and finds out all the same."""
    world = World()
    with Rig(world, boot="b1", threads=["lease"]) as first:
        first.dies_of = Replaced
        eventually(lambda: world.redis.calls["renew"])
        with Rig(world, boot="b2", threads=["lease"]) as second:
            eventually(lambda: world.redis.calls["announce"] == 2)
            a_third(first)
            assert first.stop.wait(5)
            assert not second.stop.is_set()
        assert "REDIS_CONSUMER must be unique" in str(first.stop.cause)


def a_third(rig: Rig) -> None:
    """A third of LEASE_S passes, and the renewal that is due then comes."""
    renewals = rig.redis.calls["renew"]
    rig.pass_time(rig.parts.lease_s / 3)
    eventually(lambda: rig.redis.calls["renew"] > renewals, what="a renewal")


def test_nothing_is_taken_over_right_after_an_outage() -> None:
    """While Redis was away nobody could renew: the owner gets one LEASE_S to come back."""
    world = World()
    with Rig(world, consumer="other") as owner, Rig(world, threads=["watch"]) as rig:
        event_id = owner.accept()
        world.redis.fail_next("renew")
        rig.start("lease")
        eventually(lambda: world.redis.calls["renew"] >= 2)
        world.redis.expire_lease(event_id)
        a_third(rig)
        a_third(rig)
        assert not rig.ledger.has(event_id)
        a_third(rig)
        eventually(lambda: rig.ledger.has(event_id), what="the task to be taken over after all")


def test_nothing_is_taken_over_after_a_renewal_that_came_late() -> None:
    """This process was paused, or Redis was: either way the others could not renew in time."""
    world = World()
    with Rig(world, consumer="other") as owner, Rig(world, threads=["lease"]) as rig:
        event_id = owner.accept()
        eventually(lambda: world.redis.calls["expired"] >= 2)
        renewals = world.redis.calls["renew"]
        rig.pass_time(rig.parts.lease_s * 2)
        eventually(lambda: world.redis.calls["renew"] > renewals)
        a_third(rig)
        a_third(rig)
        assert not rig.ledger.has(event_id)


def test_no_renewal_comes_after_the_release() -> None:
    """A renewal that is under way when the stop comes would keep everybody else waiting for a lease."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold(op: str) -> None:
        if op == "renew" and not arrived.is_set():
            arrived.set()
            go_on.wait(10)

    with Rig() as rig, ThreadPoolExecutor(1) as main:
        event_id = rig.accept()
        rig.redis.on_call = hold
        rig.start("lease")
        assert arrived.wait(5)
        rig.stop.set()
        released = main.submit(rig.lease.release)
        eventually(lambda: released.done() or rig.lease._turn.locked())
        go_on.set()
        released.result(5)
        eventually(lambda: not rig.stop.join(SystemClock(), 0))
        assert rig.stream.expired(same_consumer=False) == [event_id]


def test_what_was_taken_from_us_is_let_go() -> None:
    """A process that was paused for longer than its lease finds out and touches nothing more."""
    world = World()
    with Rig(world, threads=["watch"]) as paused, Rig(world, consumer="c2", threads=["watch"]) as heir:
        event_id = paused.accept()
        pod = paused.pod(event_id)
        world.redis.expire_lease(event_id)
        task = heir.stream.take(event_id, same_consumer=False)
        assert task is not None
        heir.intake.open(task)
        heir.pool.pump()
        heir.pod(event_id)
        paused.start("lease")
        eventually(lambda: not paused.ledger.has(event_id))
        paused.idle()
        heir.cluster.run(pod)
        heir.cluster.succeed(pod)
        assert heir.result()["outcome"] == "succeeded"


def test_a_worker_that_finds_out_first_says_so(log: Lines) -> None:
    """Before the renewal that would have told: one line, however many workers the task has."""
    world = World()
    with Rig(world, threads=["watch"]) as paused, Rig(world, consumer="c2") as heir:
        event_id = paused.accept(pod_count=2)
        pods = [paused.pod(event_id, index) for index in (1, 2)]
        world.redis.expire_lease(event_id)
        assert heir.stream.take(event_id, same_consumer=False) is not None
        for pod in pods:
            paused.cluster.run(pod)
            paused.cluster.succeed(pod)
        eventually(lambda: not paused.ledger.has(event_id))
        paused.idle()
        assert log.of("task.lost") == [f"Task {event_id} was taken over by another process"]


def test_states_are_written_for_those_who_look() -> None:
    """The task hash shows a worker's state, not at once but soon."""
    with Rig(threads=["watch", "lease"]) as rig:
        event_id = rig.accept()
        pod = rig.pod(event_id)
        rig.cluster.run(pod)
        eventually(lambda: '"running"' in rig.redis.task(event_id)["worker:1"])
