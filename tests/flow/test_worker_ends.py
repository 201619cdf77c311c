"""How a worker ends that does not end by itself: it does not start, a user deletes it, we end it, our code fails."""

from __future__ import annotations

from typing import Any

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import SimulatedController

contract = pytest.mark.contract
CANCEL = Termination(EndReason.SCALED_DOWN, "ended by scale_down", by="down")
DRAIN = Termination(EndReason.SCALED_DOWN, "ended by scale_down", drain=True, by="down")


def cancel(controller: SimulatedController, event_id: str, termination: Termination) -> None:
    """What a scale_down does: the mark is stored, then the thread that follows the worker is notified."""
    controller.stream.store_termination(event_id, None, 1, termination)
    assert controller.ledger.cancel(event_id, 1, termination)


class TestNotStarting:
    """A pod that does not start is ended, and its result says why."""

    @pytest.mark.parametrize(
        ("trouble", "reason", "after_s"),
        [
            pytest.param(("InvalidImageName",), "InvalidImage", 0, marks=contract("5.InvalidImage")),
            pytest.param(("ErrImagePull", "not found"), "ImagePull", 30, marks=contract("5.ImagePull")),
            pytest.param(
                ("CreateContainerConfigError", 'secret "x" not found'),
                "ConfigError",
                30,
                marks=contract("5.ConfigError"),
            ),
        ],
    )
    def test_a_container_that_cannot_start(self, trouble: tuple[str, ...], reason: str, after_s: float) -> None:
        """At once, or after what is left to the kubelet's own retries."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.trouble(pod, *trouble)
            if after_s:
                controller.wait_seen(pod, lambda seen: seen.trouble)
                controller.pass_time(after_s - 1)
                assert controller.calls("delete") == 0
                controller.pass_time(2)
            eventually(lambda: controller.calls("delete"))
            controller.cluster.kill(pod)
            assert (controller.result()["reason"], controller.result()["fault"]) == (reason, "config")

    @contract("5.Unschedulable")
    @contract("2.PENDING_TIMEOUT_S")
    def test_a_pod_without_a_node(self) -> None:
        """A node may be added for it; the wait has a limit."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.unschedulable(pod)
            controller.wait_seen(pod, lambda seen: seen.trouble)
            controller.pass_time(899)
            assert controller.redis.results() == []
            controller.pass_time(1)
            assert controller.result()["reason"] == "Unschedulable"
            eventually(lambda: controller.cluster.names() == set())

    @contract("5.Unschedulable")
    @contract("2.PENDING_TIMEOUT_S")
    def test_a_pod_without_a_node_waits_for_one_that_an_autoscaler_adds(self) -> None:
        """Until the autoscaler says that none comes; its Events are listed once a minute, and not before."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.unschedulable(pod)
            controller.wait_seen(pod, lambda seen: seen.trouble)
            controller.cluster.announce(pod, "TriggeredScaleUp", "a 1->2")
            controller.pass_time(59)
            assert controller.calls("pod_events") == 0
            for minute in range(1, 4):
                controller.pass_time(60 if minute > 1 else 1)
                self._asked(controller, minute)
            controller.cluster.announce(pod, "NotTriggerScaleUp", "max size reached")
            controller.pass_time(60)
            assert controller.result()["reason"] == "Unschedulable"
            assert controller.result()["message"] == "0/1 nodes are available; NotTriggerScaleUp: max size reached"

    @staticmethod
    def _asked(controller: SimulatedController, times: int) -> None:
        """The Events were asked for so often, and the worker waits on."""
        eventually(lambda: controller.calls("pod_events") == times, what="the Events to be asked for")
        eventually(lambda: controller.registry.awaiting_count == 1, what="the worker to wait on")
        assert controller.redis.results() == []

    @contract("5.Unschedulable")
    def test_without_the_right_to_list_events_it_is_asked_once(self, log: Lines) -> None:
        """In the whole process; one line says what to do, and the worker ends in its time."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            refused = ClusterRejected("events is forbidden", status=403, reason="Forbidden")
            controller.servers.kubernetes.refuse_next("pod_events", refused, times=100)
            for _ in range(2):
                pods = [controller.pod(controller.accept(pod_count=1)) for _ in range(2)]
                for pod in pods:
                    controller.cluster.unschedulable(pod)
                    controller.wait_seen(pod, lambda seen: seen.trouble)
                controller.pass_time(60)
                eventually(lambda: not controller.cluster.names(), what="the pods to be gone")
            assert 1 <= controller.calls("pod_events") <= 2  # two threads may ask at the same time
            assert len(log.of("kubernetes.events_forbidden")) == 1

    @contract("5.Unschedulable")
    def test_an_api_server_that_does_not_list_events_is_asked_again_in_a_minute(self) -> None:
        """Its trouble is not the autoscaler's word."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.unschedulable(pod)
            controller.wait_seen(pod, lambda seen: seen.trouble)
            controller.servers.kubernetes.refuse_next("pod_events", ClusterUnavailable("500"), times=2)
            for minute in (1, 2):
                controller.pass_time(60)
                self._asked(controller, minute)
            controller.pass_time(60)
            assert controller.result()["reason"] == "Unschedulable"

    @contract("5.PendingTimeout")
    @contract("2.PENDING_TIMEOUT_S")
    def test_a_pod_that_does_not_start_for_no_known_reason(self) -> None:
        """By its own deadline, on the real clock of the wait."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            controller.pod(controller.accept())
            controller.pass_time(60)
            assert controller.result()["reason"] == "PendingTimeout"

    @contract("5.deletion")
    def test_a_pod_that_starts_at_the_last_moment_is_spared(self) -> None:
        """The termination is withdrawn, and its end is its own."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            pod = controller.pod(controller.accept())
            controller.servers.kubernetes.on_call = lambda verb, name: (
                controller.cluster.run(name) if verb == "delete" else None
            )
            controller.pass_time(60)
            eventually(lambda: controller.redis.calls["clear_termination"])
            controller.servers.kubernetes.on_call = lambda _verb, _name: None
            controller.cluster.succeed(pod)
            assert controller.result()["reason"] == "Completed"


class TestLost:
    """A pod that is gone."""

    @contract("5.PodDeleted")
    @pytest.mark.parametrize("started", [False, True])
    def test_a_deleted_pod_is_pod_deleted(self, started: bool) -> None:
        """A user's doing is a user's fault, and is not tried again."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            if started:
                controller.cluster.run(pod)
                controller.wait_seen(pod, lambda seen: seen.started_at)
            controller.cluster.delete_by_user(pod)
            if started:
                controller.cluster.kill(pod)
            assert [controller.result()[name] for name in ("outcome", "reason", "fault")] == [
                "failed",
                "PodDeleted",
                "user",
            ]

    @contract("5.PodLost")
    def test_it_is_gone_without_a_known_reason(self) -> None:
        """The list lacks it, and so does the cluster."""
        with SimulatedController(threads=["watch"], INFRA_RETRIES=0) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.vanish(pod, unseen=True)
            controller.break_watch(ClusterUnavailable("broken"))
            assert [controller.result()[name] for name in ("outcome", "reason")] == ["lost", "PodLost"]
            assert controller.calls("get", pod) == 1

    def test_a_list_that_is_wrong_is_not_believed(self) -> None:
        """A stale cache: the live look finds the pod, and it runs on."""
        with SimulatedController(threads=["watch"]) as controller:
            controller.servers.kubernetes.freeze_lists()
            pod = controller.pod(controller.accept())
            (listed,) = controller.registry.snapshots()
            controller.registry.replace(type(controller.cluster.list())([], listed.resource_version))
            eventually(lambda: controller.calls("get", pod))
            controller.wait_seen(pod, lambda seen: seen)
            assert controller.redis.results() == []


class TestCancelled:
    """A scale_down has marked it."""

    @contract("5.ScaledDown")
    def test_a_running_worker_is_ended_and_then_recorded(self) -> None:
        """Not before its pod is seen to have finished."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept()
            pod = controller.pod(event_id)
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at)
            cancel(controller, event_id, CANCEL)
            controller.wait_seen(pod, lambda seen: seen.deleting)
            assert controller.redis.results() == []
            controller.cluster.kill(pod)
            assert [controller.result()[name] for name in ("outcome", "reason")] == ["cancelled", "ScaledDown"]

    @contract("3.mode")
    def test_a_drain_ends_a_worker_that_has_not_started(self) -> None:
        """It costs no work."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept()
            controller.pod(event_id)
            cancel(controller, event_id, DRAIN)
            assert controller.result()["reason"] == "ScaledDown"

    @contract("3.mode")
    def test_a_drain_spares_a_worker_that_has_started(self) -> None:
        """The mark is withdrawn, and the worker ends as it likes."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept()
            pod = controller.pod(event_id)
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at)
            cancel(controller, event_id, DRAIN)
            eventually(lambda: controller.redis.calls["clear_termination"])
            controller.cluster.succeed(pod)
            assert controller.result()["reason"] == "Completed"
            controller.idle()
            assert controller.calls("delete") == 1

    @contract("5.ScaledDown")
    def test_a_worker_that_was_never_created_costs_two_writes(self) -> None:
        """No thread, no pod."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
            first = controller.accept()
            controller.pod(first)
            event_id = controller.accept()
            cancel(controller, event_id, CANCEL)
            assert controller.result()["event_id"] == event_id
            assert controller.calls("create") == 1

    def test_the_mark_that_is_stored_already_holds(self) -> None:
        """The worker's own reason to end comes later than a cancel that its thread has not been notified of."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            event_id = controller.accept()
            controller.pod(event_id)
            run = controller.ledger.tasks._tasks[event_id].runs[1]
            controller.stream.store_termination(event_id, None, 1, CANCEL)
            controller.pass_time(60)
            assert controller.result()["reason"] == "ScaledDown"
            assert run.life.termination == CANCEL


class TestTakenOver:
    """Another process owns the task by now."""

    @pytest.mark.parametrize(
        "write",
        ["store_attempt", "store_refusal", "mark_pod_seen", "store_termination", "clear_termination", "record_result"],
    )
    def test_whichever_write_finds_it_out_the_task_is_let_go_of(self, write: str, log: Lines) -> None:
        """At once, not with the next renewal; and the pod is left to the new owner."""
        with SimulatedController(threads=["watch"], PENDING_TIMEOUT_S=60) as controller:
            event_id, kubernetes = controller.send(), controller.servers.kubernetes

            def take(op: str) -> None:
                if op == write:
                    controller.redis.find(event_id).owner = "other/b1/1"  # type: ignore[union-attr]

            controller.redis.on_call = take
            if write == "store_refusal":
                kubernetes.refuse_next("create", ClusterUnavailable("quota", unclear=False))
            controller.intake.accept_entries(controller.stream.read_now(1))
            if write == "clear_termination":
                kubernetes.on_call = lambda verb, name: controller.cluster.run(name) if verb == "delete" else None
            if write in ("store_termination", "clear_termination"):
                controller.pod(event_id)
                controller.pass_time(60)
            if write == "record_result":
                controller.cluster.succeed(controller.pod(event_id))
            eventually(lambda: not controller.ledger.tasks.has(event_id), what="the task to be let go of")
            controller.idle()
            assert (controller.redis.calls[write], controller.redis.results()) == (1, [])
        assert log.of("task.lost") == [f"Task {event_id} was taken over by another process"]


class TestPoison:
    """Our own code fails on a worker."""

    @contract("5.Poison")
    def test_after_five_failures_it_is_a_result(self, log: Lines) -> None:
        """With pauses in between, and a traceback for each."""

        def fail(verb: str, _name: str) -> None:
            if verb == "create":
                raise ZeroDivisionError("our fault")

        with SimulatedController(threads=["watch"]) as controller:
            controller.servers.kubernetes.on_call = fail
            controller.accept()
            for number in range(1, 6):
                eventually(lambda count=number: len(log.of("worker.failed")) == count)  # type: ignore[misc]
                controller.idle()
                controller.pass_time(32)
            assert [controller.result()[name] for name in ("outcome", "reason", "fault")] == [
                "failed",
                "Poison",
                "infra",
            ]

    def test_four_failures_are_survived(self, log: Lines) -> None:
        """A fault that passes costs only time."""
        faults: list[Any] = [ZeroDivisionError("our fault")] * 4

        def fail(verb: str, _name: str) -> None:
            if verb == "create" and faults:
                raise faults.pop()

        with SimulatedController(threads=["watch"]) as controller:
            controller.servers.kubernetes.on_call = fail
            event_id = controller.accept()
            for number in range(1, 5):
                eventually(lambda count=number: len(log.of("worker.failed")) == count)  # type: ignore[misc]
                controller.idle()
                controller.pass_time(32)
            controller.pod(event_id)
