"""scale_down once more: what is repeated, lost or late must neither end more workers nor be forgotten."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim, VictimRequest
from ottoscaler.errors import RedisUnavailable
from tests.fakes import stream as stream_module
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract


def runs_on(_name: str) -> None:
    """A worker that does not end by itself."""


def test_what_control_read_and_could_not_accept_is_read_again() -> None:
    """The reader had no error, so it would not look for it before half a minute has passed."""
    with SimulatedController(threads=["watch", "reader"], auto=runs_on, READ_AHEAD=1, MAX_WORKERS=1) as controller:
        controller.pod(controller.send())
        waiting = controller.send(pod_count=2, task_id="t")
        eventually(lambda: controller.ledger.tasks.has(waiting))
        controller.redis.fail_next("accept")
        controller.send(type="scale_down", task_id="t")
        controller.start("control")
        assert controller.result("scale_down")["pod_count"] == "2"
        assert controller.redis.pending_count() == 0


def test_what_is_too_much_for_one_read_is_accepted_before_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read with more bytes than are allowed brings nothing: what it was delivered is then accepted part by part."""
    monkeypatch.setattr(stream_module, "MAX_READ_BYTES", 500)
    with SimulatedController(threads=["watch"], auto=runs_on) as controller:
        sent = [controller.send(task_id="t", reason="x" * 200) for _ in range(5)]
        controller.send(type="scale_down", task_id="t")
        controller.send(task_id="later", reason="x" * 200)
        controller.start("control")
        assert controller.result("scale_down")["pod_count"] == "5"
        assert {result["event_id"] for result in controller.results(5, kind="worker")} == set(sent)
        eventually(lambda: controller.redis.pending_count() == 0, what="all to be accepted")


def test_marks_of_another_replica_survive_an_outage() -> None:
    """The renewal reports them once only, so they are kept until they are dealt with."""
    with SimulatedController(threads=["watch"], auto=runs_on, MAX_WORKERS=1) as controller:
        controller.pod(controller.accept())
        waiting = controller.accept()
        controller.stream.store_termination(waiting, None, 1, Termination(EndReason.SCALED_DOWN, by="elsewhere"))
        controller.redis.fail_next("reload_task")
        controller.inbox.submit_cancel_marked([waiting])
        controller.start("control")
        assert controller.result()["event_id"] == waiting


@contract("5.survivors")
def test_a_scale_down_that_is_accepted_twice_is_one() -> None:
    """Its survivors are those of the choice that holds, not of a second one."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept(pod_count=3, task_id="t")
        pods = {controller.pod(event_id, index) for index in (1, 2, 3)}
        down = controller.send(type="scale_down", task_id="t", pod_count=1)
        entries = controller.stream.read_now(10)
        controller.intake.accept_entries(entries)
        chosen: list[str] = []

        def again(op: str) -> None:
            if op == "select_victims":
                chosen.append(op)
                controller.intake.accept_entries(entries)

        controller.redis.on_call = again
        controller.start("control")
        result = controller.result("scale_down")
        assert (result["event_id"], len(chosen)) == (down, 1)
        assert set(json.loads(result["victims"])) | set(json.loads(result["survivors"])) == pods


@contract("5.survivors")
def test_a_choice_holds_with_its_survivors_if_its_answer_was_lost() -> None:
    """A survivor that has ended before it is chosen again is still one."""
    with SimulatedController(threads=["watch", "reader"], auto=runs_on) as controller:
        event_id = controller.send(pod_count=3, task_id="t")
        pods = {controller.pod(event_id, index) for index in (1, 2, 3)}

        def end_a_survivor(op: str) -> None:
            chosen = [task for task in list(controller.redis.tasks.values()) if task.victims]
            if op == "open_scale_ups" and chosen and not controller.redis.results():
                controller.redis.on_call = lambda op: None
                controller.cluster.succeed(chosen[0].survivors[0])
                controller.results(1)

        controller.redis.on_call = end_a_survivor
        controller.redis.fail_next("select_victims", after=True)
        controller.send(type="scale_down", task_id="t", pod_count=1)
        controller.start("control")
        result = controller.result("scale_down")
        assert (controller.redis.calls["select_victims"], len(controller.redis.results("worker"))) == (2, 2)
        assert (len(json.loads(result["victims"])), len(json.loads(result["survivors"]))) == (1, 2)
        assert set(json.loads(result["victims"])) | set(json.loads(result["survivors"])) == pods


@contract("5.survivors")
def test_a_worker_that_a_drain_spared_is_a_survivor_for_the_next_one_too() -> None:
    """Also when it has ended by the time that another replica goes on with the scale_down."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], auto=runs_on, MAX_WORKERS=2) as controller:
        event_id = controller.accept(pod_count=2, task_id="t")
        pods = [controller.pod(event_id, index) for index in (1, 2)]
        termination = Termination(EndReason.SCALED_DOWN, drain=True, by="down")
        controller.accept(type="scale_down", task_id="t", mode="drain", event_id="down")
        victims = [Victim(event_id, 1, pods[0]), Victim(event_id, 2, pods[1])]
        controller.stream.select_victims("down", "c1/b1/1", VictimRequest(termination, victims))
        task = controller.taken(event_id)
        controller.stream.clear_termination(event_id, task.owner, 1, termination)
        controller.cluster.succeed(pods[0])
        controller.results(1)
        controller.close()
    with SimulatedController(servers, consumer="next", threads=["watch", "control", "lease"], auto=runs_on) as other:
        while not servers.redis.results("scale_down"):
            other.wait_and_look(2)
        result = other.result("scale_down")
        assert pods[0] in json.loads(result["survivors"])


@contract("3.pod_count")
@pytest.mark.parametrize("op", ["read_now", "accept", "blocker", "select_victims", "stored_workers", "finish"])
def test_a_replica_that_goes_on_after_a_death_ends_no_other_worker(op: str) -> None:
    """Wherever the first one died: two victims were asked for, two there are, and one result."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="owner", threads=["watch"], auto=runs_on) as owner:
        event_id = owner.accept(pod_count=4, task_id="t")
        pods = [owner.pod(event_id, index) for index in (1, 2, 3, 4)]
        with SimulatedController(servers, consumer="dead", threads=["watch", "control"], LEASE_S=3) as dead:
            servers.redis.fail_next(op, 100_000, after=True)
            owner.send(type="scale_down", task_id="t", pod_count=2)
            eventually(lambda: servers.redis.calls[op])
            dead.close(release=False)
        servers.redis._faults.clear()
        owner.pass_time(4)
        with SimulatedController(
            servers, consumer="next", threads=["watch", "control", "lease", "reader"], LEASE_S=3
        ) as controller:
            while not controller.redis.results("scale_down"):
                controller.live(1)
            assert controller.result("scale_down")["pod_count"] == "2"
            assert len(owner.results(2)) == 2
        assert len(owner.cluster.names() & set(pods)) == 2


def test_a_scale_down_that_another_process_owns_now_is_dropped() -> None:
    """The renewal reported it: nothing more is done for it."""
    with SimulatedController(threads=["watch"]) as controller:
        down = controller.accept(type="scale_down", task_id="t")
        controller.control._open_new()
        assert controller.control.owners() == {down: "c1/b1/1"}
        controller.control.forget_taken_over(down, "c1/b1/0")
        assert controller.control.owners()
        controller.control.forget_taken_over(down, "c1/b1/1")
        assert controller.control.owners() == {}


def test_nothing_is_chosen_while_an_older_event_is_not_accepted() -> None:
    """It may be of this very task: its reader has a lease's time, then another replica takes it."""
    servers = FakeServers()
    with (
        SimulatedController(servers, consumer="slow") as slow,
        SimulatedController(servers, threads=["watch", "control"]) as controller,
    ):
        older = slow.send(task_id="t", pod_count=2)
        slow.stream.read_now(1)
        controller.send(type="scale_down", task_id="t")
        eventually(lambda: controller.redis.calls["blocker"] > 3)
        assert (controller.redis.calls["select_victims"], controller.redis.results()) == (0, [])
        controller.pass_time(controller.lease_s)
        assert controller.result("scale_down")["pod_count"] == "2"
        assert {result["event_id"] for result in controller.results(2)} == {older}


def test_an_error_of_redis_is_an_error_of_this_step_only() -> None:
    """Control goes on from what the group has delivered."""
    with SimulatedController(threads=["control"]) as controller:
        controller.redis.set_down(True)
        eventually(lambda: controller.redis.calls["ensure_group"] > 5)
        with pytest.raises(RedisUnavailable):
            controller.stream.last_delivered_id()
        controller.redis.set_down(False)
        controller.send(type="scale_down", task_id="nobody")
        assert controller.result("scale_down")["reason"] == "NothingToEnd"
