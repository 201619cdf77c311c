"""Leases: our tasks stay ours, a dead replica's are taken over, and after a pause of Redis none takes from another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ottoscaler.errors import ConsumerReplaced
from ottoscaler.flow.status_buffer import WRITE_EVERY_S
from ottoscaler.flow.takeover import TAKE_AT_ONCE
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract


@contract("2.LEASE_S")
def test_a_live_owner_keeps_its_tasks() -> None:
    """Renewed in time, however long a worker runs."""
    servers = FakeServers()
    with (
        SimulatedController(servers, threads=["watch", "lease"]) as controller,
        SimulatedController(servers, consumer="c2", threads=["watch", "lease"]) as other,
    ):
        event_id = controller.accept()
        controller.pod(event_id)
        for _ in range(10):
            renewals = servers.redis.calls["renew"]
            controller.pass_time(controller.lease_s / 3)
            eventually(lambda before=renewals: servers.redis.calls["renew"] >= before + 2)  # type: ignore[misc]
        assert controller.ledger.tasks.has(event_id)
        assert not other.ledger.tasks.has(event_id)


@contract("2.LEASE_S")
def test_a_dead_owners_task_is_taken_over() -> None:
    """After LEASE_S its pod is adopted and its result recorded by the other."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.close(release=False)
    with SimulatedController(servers, threads=["watch", "lease"]) as controller:
        controller.wait_and_look(controller.lease_s + 2)
        assert controller.pod(event_id) == pod
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        assert controller.result()["pod"] == pod
        assert controller.calls("create") == 1


def test_what_a_dead_one_read_and_did_not_accept_is_taken_over() -> None:
    """After LEASE_S and not before: the process may only be slow."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead") as dead:
        event_id = dead.send()
        dead.stream.read_now(1)
        dead.close(release=False)
    with SimulatedController(servers, threads=["watch", "lease"]) as controller:
        controller.wait_and_look(controller.lease_s - 2)
        assert not controller.ledger.tasks.has(event_id)
        controller.wait_and_look(4)
        assert controller.pod(event_id)


def test_so_many_tasks_are_taken_over_that_notes_come_in_between() -> None:
    """The rest in the next steps."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead") as dead:
        for _ in range(TAKE_AT_ONCE + 1):
            dead.accept()
        dead.close(release=True)
    with SimulatedController(servers) as controller:
        controller.lease.step()
        controller.takeover._own_taken = True
        controller.takeover._step()
        assert len(controller.ledger.tasks.owners()) == TAKE_AT_ONCE
        controller.takeover._step()
        assert len(controller.ledger.tasks.owners()) == TAKE_AT_ONCE + 1


def test_a_clean_end_hands_over_at_once() -> None:
    """The next one does not wait for the lease to run out."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="old", threads=["watch"]) as first:
        event_id = first.accept()
        first.pod(event_id)
    with SimulatedController(servers, threads=["watch", "lease"]) as controller:
        assert controller.pod(event_id)


def test_what_was_read_and_not_accepted_is_handed_over_at_once() -> None:
    """A clean end leaves nothing that has to wait for a lease, and counts no try."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="old") as first:
        event_id = first.send()
        first.stream.read_now(1)
    with SimulatedController(servers, threads=["watch", "lease"]) as controller:
        assert controller.pod(event_id)


def test_what_a_thread_works_on_is_handed_over_last() -> None:
    """Otherwise the write that it is at would be refused; all others change hands before it is done."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold(verb: str, _name: str = "") -> None:
        if verb == "create" and not arrived.is_set():
            arrived.set()
            go_on.wait(10)

    with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
        controller.servers.kubernetes.on_call = hold
        busy = controller.accept()
        assert arrived.wait(5)
        waits = controller.accept()
        controller.stop.set()
        controller.lease.release(all_=False)
        assert controller.stream.expired(same_consumer=False) == [waits]
        go_on.set()
        controller.registry.close()
        controller.idle()
        controller.lease.release()
        assert set(controller.stream.expired(same_consumer=False)) == {busy, waits}


def test_a_failure_of_ours_hands_nothing_over() -> None:
    """Otherwise a task that makes processes fail would never have failed often enough to end."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="old", threads=["watch"]) as first:
        first.dies_of = RuntimeError
        event_id = first.accept()
        first.stop.set(RuntimeError("a defect"))
    with SimulatedController(servers, threads=["watch", "lease"]) as controller:
        controller.wait_and_look(controller.lease_s - 2)
        assert not controller.ledger.tasks.has(event_id)
        controller.wait_and_look(4)
        assert controller.pod(event_id)


def test_a_new_boot_of_the_same_consumer_takes_its_own_at_once() -> None:
    """There cannot be two of us, so the lease need not run out."""
    servers = FakeServers()
    with SimulatedController(servers, incarnation="b1", threads=["watch"]) as first:
        event_id = first.accept()
        first.pod(event_id)
        first.close(release=False)
    with SimulatedController(servers, incarnation="b2", threads=["watch", "lease"]) as controller:
        assert controller.pod(event_id)


def test_what_the_first_list_shows_is_not_asked_for_again() -> None:
    """A thousand pods that run on are a thousand requests less; only that one is not there takes a live look."""
    servers = FakeServers()
    with SimulatedController(servers, incarnation="b1", threads=["watch"]) as first:
        event_id = first.accept(pod_count=2)
        there, vanished = first.pod(event_id, 1), first.pod(event_id, 2)
        first.close(release=False)
    servers.kubernetes.remove(vanished)
    with SimulatedController(servers, incarnation="b2", threads=["watch"]) as controller:
        controller.lease.step()
        controller.takeover.step()
        assert controller.pod(event_id, 1) == there
        eventually(lambda: controller.calls("get", vanished) == 1, what="a live look at the other")
        assert controller.calls("get", there) == 0


def test_a_take_over_is_noticed_if_its_answer_was_lost() -> None:
    """The task is ours, and no other process could take it before its lease runs out."""
    servers = FakeServers()
    with SimulatedController(servers, incarnation="b1", threads=["watch"]) as first:
        event_id = first.accept()
        first.pod(event_id)
        first.close(release=False)
    servers.redis.fail_next("take_over", after=True)
    with SimulatedController(servers, incarnation="b2", threads=["watch", "lease"]) as controller:
        eventually(lambda: controller.ledger.tasks.has(event_id), what="the task to be heard of")
        assert servers.redis.calls["take_over"] == 2
        assert controller.ledger.tasks.owners()[event_id] == servers.redis.find(event_id).owner  # type: ignore[union-attr]


@contract("2.REDIS_CONSUMER")
def test_the_replaced_process_ends_and_says_why() -> None:
    """Two processes with one consumer name: the older finds out at its next renewal."""
    servers = FakeServers()
    with SimulatedController(servers, incarnation="b1", threads=["watch", "lease"]) as first:
        first.dies_of = ConsumerReplaced
        event_id = first.accept()
        first.pod(event_id)
        with SimulatedController(servers, incarnation="b2", threads=["watch", "lease"]) as second:
            eventually(lambda: second.ledger.tasks.has(event_id))
            first.pass_time(first.lease_s / 3)
            assert first.stop.wait(5)
        assert "REDIS_CONSUMER must be unique" in str(first.stop.cause)


def test_an_idle_process_is_replaced_as_well() -> None:
    """It has no task that could be taken from it, and finds out all the same."""
    servers = FakeServers()
    with SimulatedController(servers, incarnation="b1", threads=["lease"]) as first:
        first.dies_of = ConsumerReplaced
        eventually(lambda: servers.redis.calls["renew"])
        with SimulatedController(servers, incarnation="b2", threads=["lease"]) as second:
            eventually(lambda: servers.redis.calls["announce"] == 2)
            a_third(first)
            assert first.stop.wait(5)
            assert not second.stop.is_set()
        assert "REDIS_CONSUMER must be unique" in str(first.stop.cause)


def a_third(controller: SimulatedController) -> None:
    """A third of LEASE_S passes, and the renewal that is due then comes."""
    renewals = controller.redis.calls["renew"]
    controller.pass_time(controller.lease_s / 3)
    eventually(lambda: controller.redis.calls["renew"] > renewals, what="a renewal")


def test_nothing_is_taken_over_right_after_an_outage() -> None:
    """While Redis was away no process could renew: the owner gets one LEASE_S to come back."""
    servers = FakeServers()
    with (
        SimulatedController(servers, consumer="other") as owner,
        SimulatedController(servers, threads=["watch"]) as controller,
    ):
        event_id = owner.accept()
        servers.redis.fail_next("renew")
        controller.start("lease")
        eventually(lambda: servers.redis.calls["renew"] >= 2)
        servers.redis.expire_lease(event_id)
        a_third(controller)
        a_third(controller)
        assert not controller.ledger.tasks.has(event_id)
        a_third(controller)
        eventually(lambda: controller.ledger.tasks.has(event_id), what="the task to be taken over after all")


def test_nothing_is_taken_over_after_a_renewal_that_came_late() -> None:
    """This process was paused, or Redis was: either way the others could not renew in time."""
    servers = FakeServers()
    with (
        SimulatedController(servers, consumer="other") as owner,
        SimulatedController(servers, threads=["lease"]) as controller,
    ):
        event_id = owner.accept()
        eventually(lambda: servers.redis.calls["expired"] >= 2)
        renewals = servers.redis.calls["renew"]
        controller.pass_time(controller.lease_s * 2)
        eventually(lambda: servers.redis.calls["renew"] > renewals)
        a_third(controller)
        a_third(controller)
        assert not controller.ledger.tasks.has(event_id)


def test_no_renewal_comes_after_the_release() -> None:
    """A renewal that is under way when the stop comes would keep all other replicas waiting for a lease."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold(op: str) -> None:
        if op == "renew" and not arrived.is_set():
            arrived.set()
            go_on.wait(10)

    with SimulatedController() as controller, ThreadPoolExecutor(1) as main:
        event_id = controller.accept()
        controller.redis.on_call = hold
        controller.start("lease")
        assert arrived.wait(5)
        controller.stop.set()
        released = main.submit(controller.lease.release)
        eventually(lambda: released.done() or controller.lease._turn.locked())
        go_on.set()
        released.result(5)
        eventually(lambda: not controller.stop.join(SystemClock(), 0))
        assert controller.stream.expired(same_consumer=False) == [event_id]


def test_what_was_taken_from_us_is_let_go() -> None:
    """A process that was paused for longer than its lease finds out and touches nothing more."""
    servers = FakeServers()
    with (
        SimulatedController(servers, threads=["watch"]) as paused,
        SimulatedController(servers, consumer="c2", threads=["watch"]) as heir,
    ):
        event_id = paused.accept()
        pod = paused.pod(event_id)
        servers.redis.expire_lease(event_id)
        task = heir.stream.take_over(event_id, same_consumer=False)
        assert task is not None
        heir.intake.open_task(task)
        heir.ledger.wake_for_room()
        heir.pod(event_id)
        paused.start("lease")
        eventually(lambda: not paused.ledger.tasks.has(event_id))
        paused.idle()
        heir.cluster.run(pod)
        heir.cluster.succeed(pod)
        assert heir.result()["outcome"] == "succeeded"


def test_a_worker_that_finds_out_first_says_so(log: Lines) -> None:
    """Before the renewal that would have reported it: one line, however many workers the task has."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"]) as paused, SimulatedController(servers, consumer="c2") as heir:
        event_id = paused.accept(pod_count=2)
        pods = [paused.pod(event_id, index) for index in (1, 2)]
        servers.redis.expire_lease(event_id)
        assert heir.stream.take_over(event_id, same_consumer=False) is not None
        for pod in pods:
            paused.cluster.run(pod)
            paused.cluster.succeed(pod)
        eventually(lambda: not paused.ledger.tasks.has(event_id))
        paused.idle()
        assert log.of("task.lost") == [f"Task {event_id} was taken over by another process"]


@contract("2.EVENTS_KEEP")
@pytest.mark.parametrize(("keep", "left"), [(0, 5), (2, 2)])
def test_the_stream_is_trimmed_only_to_a_length_that_was_set(keep: int, left: int) -> None:
    """Without EVENTS_KEEP each entry stays."""
    with SimulatedController(EVENTS_KEEP=keep) as controller:
        for _ in range(5):
            controller.accept()
        controller.takeover.on_announced()
        controller.takeover.step()
        assert len(controller.redis.entries) == left


def test_states_are_written_for_readers() -> None:
    """The task hash shows a worker's state, not at once but a second after the one before."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        controller.takeover.on_announced()
        controller.takeover.step()
        assert '"pending"' in controller.redis.task(event_id)["worker:1"]
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at)
        controller.takeover.step()
        assert '"pending"' in controller.redis.task(event_id)["worker:1"]
        controller.pass_time(WRITE_EVERY_S)
        controller.takeover.step()
        assert '"running"' in controller.redis.task(event_id)["worker:1"]
