"""scale_down once more: what is repeated, lost or late must neither end more workers nor be forgotten."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.choice import Claim, Victim
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import StreamUnavailable
from tests.fakes.wait import eventually
from tests.flow.rig import Rig, World

contract = pytest.mark.contract


def runs_on(_name: str) -> None:
    """A worker that does not end by itself."""


def test_what_control_read_and_could_not_accept_is_read_again() -> None:
    """The reader, who had no error, would not look for it before half a minute has passed."""
    with Rig(threads=["watch", "reader"], auto=runs_on, READ_AHEAD=1, MAX_WORKERS=1) as rig:
        rig.pod(rig.send())
        waiting = rig.send(pod_count=2, task_id="t")
        eventually(lambda: rig.ledger.has(waiting))
        rig.redis.fail_next("accept")
        rig.send(type="scale_down", task_id="t")
        rig.start("control")
        assert rig.result("scale_down")["pod_count"] == "2"
        assert rig.redis.pending_count() == 0


def test_marks_of_another_replica_survive_an_outage() -> None:
    """They are told once only, so they are kept until they are dealt with."""
    with Rig(threads=["watch"], auto=runs_on, MAX_WORKERS=1) as rig:
        rig.pod(rig.accept())
        waiting = rig.accept()
        rig.stream.store_termination(waiting, None, 1, Termination(Reason.SCALED_DOWN, by="elsewhere"))
        rig.redis.fail_next("reload")
        rig.control.reload([waiting])
        rig.start("control")
        assert rig.result()["event_id"] == waiting


@contract("5.survivors")
def test_a_scale_down_that_is_accepted_twice_is_one() -> None:
    """Its survivors are those of the choice that holds, not of a second one."""
    with Rig(threads=["watch"]) as rig:
        event_id = rig.accept(pod_count=3, task_id="t")
        pods = {rig.pod(event_id, index) for index in (1, 2, 3)}
        down = rig.send(type="scale_down", task_id="t", pod_count=1)
        entries = rig.stream.read_now(10)
        rig.intake.absorb(entries)
        chosen: list[str] = []

        def again(op: str) -> None:
            if op == "choose":
                chosen.append(op)
                rig.intake.absorb(entries)

        rig.redis.on_call = again
        rig.start("control")
        told = rig.result("scale_down")
        assert (told["event_id"], len(chosen)) == (down, 1)
        assert set(json.loads(told["victims"])) | set(json.loads(told["survivors"])) == pods


@contract("5.survivors")
def test_a_choice_whose_answer_was_lost_holds_with_its_survivors() -> None:
    """A survivor that has ended before it is chosen again is still one."""
    with Rig(threads=["watch", "reader"], auto=runs_on) as rig:
        event_id = rig.send(pod_count=3, task_id="t")
        pods = {rig.pod(event_id, index) for index in (1, 2, 3)}

        def end_a_survivor(op: str) -> None:
            chosen = [task for task in rig.redis.tasks.values() if task.victims is not None]
            if op == "tasks" and chosen and not rig.redis.results():
                rig.redis.on_call = lambda op: None
                rig.cluster.succeed(chosen[0].survivors[0])
                rig.results(1)

        rig.redis.on_call = end_a_survivor
        rig.redis.fail_next("choose", after=True)
        rig.send(type="scale_down", task_id="t", pod_count=1)
        rig.start("control")
        told = rig.result("scale_down")
        assert (rig.redis.calls["choose"], len(rig.redis.results("worker"))) == (2, 2)
        assert (len(json.loads(told["victims"])), len(json.loads(told["survivors"]))) == (1, 2)
        assert set(json.loads(told["victims"])) | set(json.loads(told["survivors"])) == pods


@contract("5.survivors")
def test_a_worker_that_a_drain_spared_is_a_survivor_for_the_next_one_too() -> None:
    """Also when it has ended by the time that somebody else goes on with the scale_down."""
    world = World()
    with Rig(world, threads=["watch"], auto=runs_on, MAX_WORKERS=2) as rig:
        event_id = rig.accept(pod_count=2, task_id="t")
        pods = [rig.pod(event_id, index) for index in (1, 2)]
        termination = Termination(Reason.SCALED_DOWN, drain=True, by="down")
        rig.accept(type="scale_down", task_id="t", mode="drain", event_id="down")
        victims = [Victim(event_id, 1, pods[0]), Victim(event_id, 2, pods[1])]
        rig.stream.choose("down", "c1/b1/1", Claim(termination, victims))
        task = rig.taken(event_id)
        rig.stream.clear_termination(event_id, task.owner, 1, termination)
        rig.cluster.succeed(pods[0])
        rig.results(1)
        rig.close()
    with Rig(world, consumer="next", threads=["watch", "control", "lease"], auto=runs_on) as other:
        while not world.redis.results("scale_down"):
            other.wait_and_look(2)
        told = other.result("scale_down")
        assert pods[0] in json.loads(told["survivors"])


@contract("3.pod_count")
@pytest.mark.parametrize("op", ["read_now", "accept", "blocker", "choose", "outcomes", "finish"])
def test_who_goes_on_after_a_death_ends_nobody_else(op: str) -> None:
    """Wherever the first one died: two victims were asked for, two there are, and one result."""
    world = World()
    with Rig(world, consumer="owner", threads=["watch"], auto=runs_on) as owner:
        event_id = owner.accept(pod_count=4, task_id="t")
        pods = [owner.pod(event_id, index) for index in (1, 2, 3, 4)]
        with Rig(world, consumer="dead", threads=["watch", "control"], LEASE_S=3) as dead:
            world.redis.fail_next(op, 100_000, after=True)
            owner.send(type="scale_down", task_id="t", pod_count=2)
            eventually(lambda: world.redis.calls[op])
            dead.close(release=False)
        world.redis._faults.clear()
        owner.pass_time(4)
        with Rig(world, consumer="next", threads=["watch", "control", "lease", "reader"], LEASE_S=3) as rig:
            while not rig.redis.results("scale_down"):
                rig.live(1)
            assert rig.result("scale_down")["pod_count"] == "2"
            assert len(owner.results(2)) == 2
        assert len(owner.cluster.names() & set(pods)) == 2


def test_a_scale_down_that_is_somebody_elses_now_is_let_go() -> None:
    """The renewal told: nothing more is done for it."""
    with Rig(threads=["watch"]) as rig:
        down = rig.accept(type="scale_down", task_id="t")
        rig.control._open_new()
        assert rig.control.owners() == {down: "c1/b1/1"}
        rig.control.drop(down, "c1/b1/0")
        assert rig.control.owners()
        rig.control.drop(down, "c1/b1/1")
        assert rig.control.owners() == {}


def test_nothing_is_chosen_while_an_older_event_is_in_somebodys_hands() -> None:
    """It may be of this very task: its reader has a lease's time, then it is taken from him."""
    world = World()
    with Rig(world, consumer="slow") as slow, Rig(world, threads=["watch", "control"]) as rig:
        older = slow.send(task_id="t", pod_count=2)
        slow.stream.read_now(1)
        rig.send(type="scale_down", task_id="t")
        eventually(lambda: rig.redis.calls["blocker"] > 3)
        assert (rig.redis.calls["choose"], rig.redis.results()) == (0, [])
        rig.pass_time(rig.parts.lease_s)
        assert rig.result("scale_down")["pod_count"] == "2"
        assert {result["event_id"] for result in rig.results(2)} == {older}


def test_an_error_of_redis_is_an_error_of_this_step_only() -> None:
    """Control goes on from what the group has delivered."""
    with Rig(threads=["control"]) as rig:
        rig.redis.set_down(True)
        eventually(lambda: rig.redis.calls["ensure_group"] > 5)
        with pytest.raises(StreamUnavailable):
            rig.stream.delivered()
        rig.redis.set_down(False)
        rig.send(type="scale_down", task_id="nobody")
        assert rig.result("scale_down")["reason"] == "NothingToEnd"
