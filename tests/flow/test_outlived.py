"""Workers whose pods hold more than `agent`, or are held back: sidecars, gates, and words that we do not know."""

from __future__ import annotations

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from tests.fakes.wait import eventually
from tests.flow.rig import Rig, World

contract = pytest.mark.contract
CANCEL = Termination(Reason.SCALED_DOWN, "ended by scale_down", by="down")


def outlived(rig: Rig, event_id: str, code: int, *, first: bool = True) -> str:
    """The name of a worker's pod whose sidecar runs on; its thread has seen the end of `agent`."""
    pod = rig.pod(event_id)
    rig.cluster.outlive(pod, code, first=first)
    rig.hears(pod, lambda seen: seen.ended)
    return pod


class TestSidecar:
    """A container that somebody injected does not end when `agent` does."""

    @contract("4.container")
    @contract("2.TERMINATION_GRACE_S")
    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize(("code", "told"), [(0, ["succeeded", "Completed", "0"]), (3, ["failed", "Error", "3"])])
    def test_the_pod_is_ended_after_the_grace(self, first: bool, code: int, told: list[str]) -> None:
        """The result is `agent`'s own; before it is stored, the intent is."""
        with Rig(threads=["watch"], TERMINATION_GRACE_S=20) as rig:
            event_id = rig.accept()
            pod = outlived(rig, event_id, code, first=first)
            rig.pass_time(19)
            assert (rig.calls("delete"), rig.redis.results(), rig.redis.calls["store_termination"]) == (0, [], 0)
            rig.pass_time(1)
            eventually(lambda: rig.calls("delete"))
            assert rig.redis.calls["store_termination"] == 1
            rig.cluster.vanish(pod)
            assert [rig.result()[name] for name in ("outcome", "reason", "exit_code")] == told
            assert rig.result("task")["outcome"] == told[0]

    @contract("4.container")
    def test_it_uses_room_until_it_is_gone(self) -> None:
        """Its pod still takes memory and CPU of a node."""
        with Rig(threads=["watch"], MAX_WORKERS=1, TERMINATION_GRACE_S=20) as rig:
            first, second = rig.accept(event_id="a"), rig.accept(event_id="b")
            pod = outlived(rig, first, 0)
            assert rig.registry.owned_live == 1
            rig.pass_time(20)
            eventually(lambda: rig.calls("delete"))
            assert rig.calls("create") == 1
            rig.cluster.vanish(pod)
            rig.pod(second)

    @contract("4.container")
    @contract("2.WORKER_RETRIES")
    def test_a_failed_worker_gets_its_next_attempt(self) -> None:
        """After the pod of the first one is gone."""
        with Rig(threads=["watch"], WORKER_RETRIES=1, TERMINATION_GRACE_S=20) as rig:
            event_id = rig.accept()
            pod = outlived(rig, event_id, 3)
            rig.pass_time(20)
            eventually(lambda: rig.calls("delete"))
            rig.cluster.vanish(pod)
            rig.cluster.succeed(rig.pod(event_id, attempt=2))
            assert [rig.result()[name] for name in ("reason", "attempt")] == ["Completed", "2"]

    @contract("4.container")
    @pytest.mark.parametrize("code", [0, 3])
    def test_a_replica_that_takes_over_keeps_the_verdict(self, code: int) -> None:
        """The intent was stored; the pod is gone by the time anybody looks."""
        world = World()
        with Rig(world, threads=["watch"], TERMINATION_GRACE_S=20) as old:
            event_id = old.accept()
            pod = outlived(old, event_id, code)
            old.pass_time(20)
            eventually(lambda: old.calls("delete"))
        world.kubernetes.remove(pod)
        with Rig(world, threads=["watch", "lease"], consumer="other") as new:
            eventually(lambda: new.ledger.has(event_id) or new.redis.results())
            assert new.result()["reason"] == ("Error" if code else "Completed")

    @contract("5.ScaledDown")
    @contract("4.container")
    @pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (3, "ScaledDown")])
    def test_a_scale_down_need_not_wait_for_the_grace(self, code: int, reason: str) -> None:
        """The pod is ended at once; a success stays one."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept()
            pod = outlived(rig, event_id, code)
            rig.stream.store_termination(event_id, None, 1, CANCEL)
            assert rig.ledger.cancel(event_id, 1, CANCEL)
            eventually(lambda: rig.calls("delete"))
            rig.cluster.vanish(pod)
            assert rig.result()["reason"] == reason


class TestGate:
    """A pod that somebody holds back."""

    @contract("5.waiting")
    @contract("2.PENDING_TIMEOUT_S")
    def test_no_clock_runs_and_why_names_the_gate(self) -> None:
        """It waits as long as it must, and has its whole time afterwards."""
        with Rig(threads=["watch"], PENDING_TIMEOUT_S=60) as rig:
            event_id = rig.accept()
            pod = rig.pod(event_id)
            rig.cluster.gate(pod, "example.com/quota")
            rig.hears(pod, lambda seen: seen.trouble)
            notes = {task.event.event_id: why for task, _, why in rig.ledger.take_notes()}
            assert notes[event_id] == "scheduling gate example.com/quota"
            rig.pass_time(10**6)
            rig.cluster.gate(pod)
            rig.hears(pod, lambda seen: not seen.trouble)
            assert rig.ledger.take_notes()[0][2] == ""
            rig.pass_time(59)
            assert (rig.redis.results(), rig.calls("delete")) == ([], 0)
            rig.pass_time(1)
            assert rig.result()["reason"] == "PendingTimeout"


class TestWords:
    """What the platform says in words of a later time."""

    @contract("5.StartError")
    @contract("2.INFRA_RETRIES")
    def test_a_node_that_refuses_the_pod_costs_the_platforms_budget(self) -> None:
        """No container ran: the next attempt may find another node."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept()
            rig.cluster.set_status(rig.pod(event_id), {"phase": "Failed", "reason": "NovelError", "message": "no"})
            eventually(lambda: rig.ledger.counts()[1])
            rig.pass_time(2)
            rig.cluster.succeed(rig.pod(event_id, attempt=2))
            assert [rig.result()[name] for name in ("reason", "attempt")] == ["Completed", "2"]

    @contract("5.Evicted")
    @pytest.mark.parametrize("word", ["DeletionByNovelController", ""])
    def test_a_disruption_for_any_reason_is_the_platforms(self, word: str) -> None:
        """The condition itself says so; its word stays in the message."""
        with Rig(threads=["watch"], INFRA_RETRIES=0) as rig:
            pod = rig.pod(rig.accept())
            rig.cluster.run(pod)
            rig.cluster.disrupt(pod, word)
            rig.cluster.fail(pod, 143)
            assert [rig.result()[name] for name in ("reason", "fault")] == ["Evicted", "infra"]
            assert rig.result()["message"].startswith(word)
