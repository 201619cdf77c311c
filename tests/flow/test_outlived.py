"""Workers with pods that hold more than `agent`, or are held back: sidecars, gates, and words that we do not know."""

from __future__ import annotations

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract
CANCEL = Termination(EndReason.SCALED_DOWN, "ended by scale_down", by="down")


def outlived(controller: SimulatedController, event_id: str, code: int, *, first: bool = True) -> str:
    """The name of a worker's pod with a sidecar that runs on; its thread has seen the end of `agent`."""
    pod = controller.pod(event_id)
    controller.cluster.outlive(pod, code, first=first)
    controller.wait_seen(pod, lambda seen: seen.agent_ended)
    return pod


class TestSidecar:
    """An injected container does not end when `agent` does."""

    @contract("4.container")
    @contract("2.TERMINATION_GRACE_S")
    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize(("code", "answer"), [(0, ["succeeded", "Completed", "0"]), (3, ["failed", "Error", "3"])])
    def test_the_pod_is_ended_after_the_grace(self, first: bool, code: int, answer: list[str]) -> None:
        """The result is `agent`'s own; before it is stored, the intent is."""
        with SimulatedController(threads=["watch"], TERMINATION_GRACE_S=20) as controller:
            event_id = controller.accept()
            pod = outlived(controller, event_id, code, first=first)
            controller.pass_time(19)
            assert (
                controller.calls("delete"),
                controller.redis.results(),
                controller.redis.calls["store_termination"],
            ) == (0, [], 0)
            controller.pass_time(1)
            eventually(lambda: controller.calls("delete"))
            assert controller.redis.calls["store_termination"] == 1
            controller.cluster.vanish(pod)
            assert [controller.result()[name] for name in ("outcome", "reason", "exit_code")] == answer
            assert controller.result("task")["outcome"] == answer[0]

    @contract("4.container")
    def test_it_uses_room_until_it_is_gone(self) -> None:
        """Its pod still takes memory and CPU of a node."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=1, TERMINATION_GRACE_S=20) as controller:
            first, second = controller.accept(event_id="a"), controller.accept(event_id="b")
            pod = outlived(controller, first, 0)
            assert controller.registry.owned_live_count == 1
            controller.pass_time(20)
            eventually(lambda: controller.calls("delete"))
            assert controller.calls("create") == 1
            controller.cluster.vanish(pod)
            controller.pod(second)

    @contract("4.container")
    @contract("2.WORKER_RETRIES")
    def test_a_failed_worker_gets_its_next_attempt(self) -> None:
        """After the pod of the first one is gone."""
        with SimulatedController(threads=["watch"], WORKER_RETRIES=1, TERMINATION_GRACE_S=20) as controller:
            event_id = controller.accept()
            pod = outlived(controller, event_id, 3)
            controller.pass_time(20)
            eventually(lambda: controller.calls("delete"))
            controller.cluster.vanish(pod)
            controller.cluster.succeed(controller.pod(event_id, attempt=2))
            assert [controller.result()[name] for name in ("reason", "attempt")] == ["Completed", "2"]

    @contract("4.container")
    @pytest.mark.parametrize("code", [0, 3])
    def test_a_replica_that_takes_over_keeps_the_verdict(self, code: int) -> None:
        """The intent was stored; the pod is gone by the time a replica looks."""
        servers = FakeServers()
        with SimulatedController(servers, threads=["watch"], TERMINATION_GRACE_S=20) as old:
            event_id = old.accept()
            pod = outlived(old, event_id, code)
            old.pass_time(20)
            eventually(lambda: old.calls("delete"))
        servers.kubernetes.remove(pod)
        with SimulatedController(servers, threads=["watch", "lease"], consumer="other") as new:
            eventually(lambda: new.ledger.tasks.has(event_id) or new.redis.results())
            assert new.result()["reason"] == ("Error" if code else "Completed")

    @contract("5.ScaledDown")
    @contract("4.container")
    @pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (3, "ScaledDown")])
    def test_a_scale_down_need_not_wait_for_the_grace(self, code: int, reason: str) -> None:
        """The pod is ended at once; a success stays one."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept()
            pod = outlived(controller, event_id, code)
            controller.stream.store_termination(event_id, None, 1, CANCEL)
            assert controller.ledger.cancel(event_id, 1, CANCEL)
            eventually(lambda: controller.calls("delete"))
            controller.cluster.vanish(pod)
            assert controller.result()["reason"] == reason


class TestGate:
    """A pod that a user holds back."""

    @contract("5.waiting")
    @contract("2.PENDING_TIMEOUT_S")
    def test_no_clock_runs_and_why_names_the_gate(self) -> None:
        """It waits as long as it must, and has its whole time afterwards."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            event_id = controller.accept()
            pod = controller.pod(event_id)
            controller.cluster.gate(pod, "example.com/quota")
            controller.wait_seen(pod, lambda seen: seen.trouble)
            controller.takeover._status.write()
            shown = controller.redis.task(event_id)
            assert (shown["code"], shown["next_at"]) == ("gated", "")
            assert shown["why"] == "the pod is held back: scheduling gate example.com/quota"
            controller.pass_time(10**6)
            controller.cluster.gate(pod)
            controller.wait_seen(pod, lambda seen: not seen.trouble)
            controller.takeover._status.write()
            assert controller.redis.task(event_id)["code"] == "starting"
            controller.pass_time(59)
            assert (controller.redis.results(), controller.calls("delete")) == ([], 0)
            controller.pass_time(1)
            assert controller.result()["reason"] == "PendingTimeout"


class TestWords:
    """What the platform says in words of a later time."""

    @contract("5.StartError")
    @contract("2.INFRA_RETRIES")
    def test_a_node_that_refuses_the_pod_costs_the_platforms_budget(self) -> None:
        """No container ran: the next attempt may find another node."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept()
            controller.cluster.set_status(
                controller.pod(event_id), {"phase": "Failed", "reason": "NovelError", "message": "no"}
            )
            eventually(lambda: controller.ledger.thread_counts()[1])
            controller.pass_time(2)
            controller.cluster.succeed(controller.pod(event_id, attempt=2))
            assert [controller.result()[name] for name in ("reason", "attempt")] == ["Completed", "2"]

    @contract("5.Evicted")
    @pytest.mark.parametrize("word", ["DeletionByNovelController", ""])
    def test_a_disruption_for_any_reason_is_the_platforms(self, word: str) -> None:
        """The condition itself says so; its word stays in the message."""
        with SimulatedController(threads=["watch"], INFRA_RETRIES=0) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.run(pod)
            controller.cluster.disrupt(pod, word)
            controller.cluster.fail(pod, 143)
            assert [controller.result()[name] for name in ("reason", "fault")] == ["Evicted", "infra"]
            assert controller.result()["message"].startswith(word)
