"""How a worker ends that does not end by itself: it does not start, somebody deletes it, we end it, our code fails."""

from __future__ import annotations

from typing import Any

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import ClusterUnavailable
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.rig import Rig

contract = pytest.mark.contract
CANCEL = Termination(Reason.SCALED_DOWN, "ended by scale_down", by="down")
DRAIN = Termination(Reason.SCALED_DOWN, "ended by scale_down", drain=True, by="down")


def cancel(rig: Rig, event_id: str, termination: Termination) -> None:
    """What a scale_down does: the mark is stored, then whoever follows the worker is told."""
    rig.stream.store_termination(event_id, None, 1, termination)
    assert rig.ledger.cancel(event_id, 1, termination)


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
        with Rig(threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            rig.cluster.trouble(pod, *trouble)
            if after_s:
                rig.hears(pod, lambda seen: seen.trouble)
                rig.pass_time(after_s - 1)
                assert rig.calls("delete") == 0
                rig.pass_time(2)
            eventually(lambda: rig.calls("delete"))
            rig.cluster.kill(pod)
            assert (rig.result()["reason"], rig.result()["fault"]) == (reason, "config")

    @contract("5.Unschedulable")
    @contract("2.PENDING_TIMEOUT_S")
    def test_a_pod_without_a_node(self) -> None:
        """A node may be added for it; not for ever."""
        with Rig(threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            rig.cluster.unschedulable(pod)
            rig.hears(pod, lambda seen: seen.trouble)
            rig.pass_time(899)
            assert rig.redis.results() == []
            rig.pass_time(1)
            assert rig.result()["reason"] == "Unschedulable"
            eventually(lambda: rig.cluster.names() == set())

    @contract("5.PendingTimeout")
    @contract("2.PENDING_TIMEOUT_S")
    def test_a_pod_that_does_not_start_for_no_known_reason(self) -> None:
        """By its own deadline, on the real clock of the wait."""
        with Rig(threads=["watch"], PENDING_TIMEOUT_S=60) as rig:
            rig.pod(rig.accept())
            rig.pass_time(60)
            assert rig.result()["reason"] == "PendingTimeout"

    @contract("5.deletion")
    def test_a_pod_that_starts_at_the_last_moment_is_spared(self) -> None:
        """The termination is withdrawn, and its end is its own."""
        with Rig(threads=["watch"], PENDING_TIMEOUT_S=60) as rig:
            pod = rig.pod(rig.accept())
            rig.world.kubernetes.on_call = lambda verb, name: rig.cluster.run(name) if verb == "delete" else None
            rig.pass_time(60)
            eventually(lambda: rig.redis.calls["clear_termination"])
            rig.world.kubernetes.on_call = lambda _verb, _name: None
            rig.cluster.succeed(pod)
            assert rig.result()["reason"] == "Completed"


class TestLost:
    """A pod that is gone."""

    @contract("5.PodDeleted")
    @pytest.mark.parametrize("started", [False, True])
    def test_somebody_deleted_it(self, started: bool) -> None:
        """A user's doing is a user's fault, and is not tried again."""
        with Rig(threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            if started:
                rig.cluster.run(pod)
                rig.hears(pod, lambda seen: seen.started_at)
            rig.cluster.delete_by_user(pod)
            if started:
                rig.cluster.kill(pod)
            assert [rig.result()[name] for name in ("outcome", "reason", "fault")] == ["failed", "PodDeleted", "user"]

    @contract("5.PodLost")
    def test_nobody_knows_why_it_is_gone(self) -> None:
        """The list lacks it, and so does the cluster."""
        with Rig(threads=["watch"], INFRA_RETRIES=0) as rig:
            pod = rig.pod(rig.accept())
            rig.cluster.vanish(pod, unseen=True)
            rig.world.kubernetes.end_watches(ClusterUnavailable("broken"))
            assert [rig.result()[name] for name in ("outcome", "reason")] == ["lost", "PodLost"]
            assert rig.calls("get", pod) == 1

    def test_a_list_that_is_wrong_is_not_believed(self) -> None:
        """A stale cache: the live look finds the pod, and it runs on."""
        with Rig(threads=["watch"]) as rig:
            rig.world.kubernetes.freeze_lists()
            pod = rig.pod(rig.accept())
            (listed,) = rig.registry.snapshots()
            rig.registry.replace(type(rig.cluster.list())([], listed.resource_version))
            eventually(lambda: rig.calls("get", pod))
            rig.hears(pod, lambda seen: seen)
            assert rig.redis.results() == []


class TestCancelled:
    """A scale_down has marked it."""

    @contract("5.ScaledDown")
    def test_a_running_worker_is_ended_and_then_recorded(self) -> None:
        """Not before its pod is seen to have finished."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept()
            pod = rig.pod(event_id)
            rig.cluster.run(pod)
            rig.hears(pod, lambda seen: seen.started_at)
            cancel(rig, event_id, CANCEL)
            rig.hears(pod, lambda seen: seen.deleting)
            assert rig.redis.results() == []
            rig.cluster.kill(pod)
            assert [rig.result()[name] for name in ("outcome", "reason")] == ["cancelled", "ScaledDown"]

    @contract("3.mode")
    def test_a_drain_ends_a_worker_that_has_not_started(self) -> None:
        """It costs nobody anything."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept()
            rig.pod(event_id)
            cancel(rig, event_id, DRAIN)
            assert rig.result()["reason"] == "ScaledDown"

    @contract("3.mode")
    def test_a_drain_spares_a_worker_that_has_started(self) -> None:
        """The mark is withdrawn, and the worker ends as it likes."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept()
            pod = rig.pod(event_id)
            rig.cluster.run(pod)
            rig.hears(pod, lambda seen: seen.started_at)
            cancel(rig, event_id, DRAIN)
            eventually(lambda: rig.redis.calls["clear_termination"])
            rig.cluster.succeed(pod)
            assert rig.result()["reason"] == "Completed"
            rig.idle()
            assert rig.calls("delete") == 1

    @contract("5.ScaledDown")
    def test_a_worker_that_was_never_created_costs_two_writes(self) -> None:
        """No thread, no pod."""
        with Rig(threads=["watch"], MAX_WORKERS=1) as rig:
            first = rig.accept()
            rig.pod(first)
            event_id = rig.accept()
            cancel(rig, event_id, CANCEL)
            assert rig.pool.run_cancelled(rig.ender.follow) == 1
            assert rig.result()["event_id"] == event_id
            assert rig.calls("create") == 1


class TestPoison:
    """Our own code fails on a worker."""

    @contract("5.Poison")
    def test_after_five_failures_it_is_a_result(self, log: Lines) -> None:
        """With pauses in between, and a traceback for each."""

        def fail(verb: str, _name: str) -> None:
            if verb == "create":
                raise ZeroDivisionError("our fault")

        with Rig(threads=["watch"]) as rig:
            rig.world.kubernetes.on_call = fail
            rig.accept()
            for number in range(1, 6):
                eventually(lambda count=number: len(log.of("worker.failed")) == count)  # type: ignore[misc]
                rig.idle()
                rig.pass_time(32)
            assert [rig.result()[name] for name in ("outcome", "reason", "fault")] == ["failed", "Poison", "infra"]

    def test_four_failures_are_survived(self, log: Lines) -> None:
        """A fault that passes costs only time."""
        faults: list[Any] = [ZeroDivisionError("our fault")] * 4

        def fail(verb: str, _name: str) -> None:
            if verb == "create" and faults:
                raise faults.pop()

        with Rig(threads=["watch"]) as rig:
            rig.world.kubernetes.on_call = fail
            event_id = rig.accept()
            for number in range(1, 5):
                eventually(lambda count=number: len(log.of("worker.failed")) == count)  # type: ignore[misc]
                rig.idle()
                rig.pass_time(32)
            rig.pod(event_id)
