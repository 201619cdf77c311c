"""One worker's life on a pool thread: the normal way, what a create may answer, outages, new attempts."""

from __future__ import annotations

from typing import Any

import pytest

from ottoscaler.core import manifest
from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.manifest import LABEL_INSTANCE
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController

contract = pytest.mark.contract


def finish(controller: SimulatedController, pod: str) -> dict[str, str]:
    """Let the pod run and succeed; returns the worker's result, when its thread is free again."""
    controller.cluster.run(pod)
    controller.cluster.succeed(pod)
    result = controller.result()
    controller.idle()
    return result


class TestTheNormalWay:
    """A pod that runs and succeeds."""

    @contract("5.Completed")
    def test_it_costs_one_create_and_one_delete(self) -> None:
        """And no look at all: the watch reports everything."""
        with SimulatedController(threads=["watch"]) as controller:
            result = finish(controller, controller.pod(controller.accept()))
            assert (result["outcome"], result["reason"]) == ("succeeded", "Completed")
            assert [controller.calls(verb) for verb in ("create", "delete", "get")] == [1, 1, 0]

    @contract("5.deletion")
    def test_each_step_is_stored_before_the_next(self) -> None:
        """The attempt before the create, the result before the delete."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.send()
            steps = controller.steps()
            controller.intake.accept_entries(controller.stream.read_now(1))
            finish(controller, controller.pod(event_id))
            assert steps == ["store_attempt", "create", "mark_pod_seen", "record_result", "delete"]

    @contract("5.task")
    def test_the_last_worker_brings_the_tasks_result(self) -> None:
        """And the task is open no longer."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept(pod_count=2, task_id="t")
            for index in (1, 2):
                controller.cluster.run(controller.pod(event_id, index))
                controller.cluster.succeed(controller.name(event_id, index))
            task = controller.result("task")
            assert (task["outcome"], task["succeeded"], task["task_id"]) == ("succeeded", "2", "t")
            assert controller.redis.open_ids() == set()

    @contract("6.worker.created")
    @contract("6.task.monitoring")
    @contract("6.worker.finished")
    @contract("6.worker.deleted")
    @contract("6.task.finished")
    def test_the_log_shows_each_step(self, log: Lines) -> None:
        """Each of its lines once, with the ids that the story is found by."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept(task_id="t")
            pod = controller.pod(event_id)
            finish(controller, pod)
            eventually(lambda: log.of("worker.deleted"))
        assert log.of("event.received") == ["Received scaling event: scale_up (PodCount: 1)"]
        assert log.of("worker.created") == [f"Creating worker pod: {pod}"]
        assert log.of("task.monitoring") == ["Monitoring pod completion"]
        assert log.of("worker.finished") == [f"Worker pod {pod} succeeded: Completed"]
        assert log.of("task.finished") == ["All 1 workers completed successfully"]
        assert log.of("worker.deleted") == [f"Cleaning up pod: {pod}"]
        found = [line for line in log.all() if str(line["event"]).startswith("worker.")]
        assert {(line["event_id"], line["task_id"], line["worker"]) for line in found} == {(event_id, "t", 1)}

    @contract("6.task.finished")
    def test_the_log_counts_the_workers_that_succeeded(self, log: Lines) -> None:
        """Two of three."""
        with SimulatedController(threads=["watch"], auto=lambda name: int(name.endswith("-2"))) as controller:
            controller.accept(pod_count=3)
            controller.result("task")
            eventually(lambda: log.of("task.finished"))
        assert log.of("task.finished") == ["2 of 3 workers completed"]


class TestCreating:
    """What a create request may come to."""

    @contract("4.name")
    def test_a_pod_of_ours_that_is_there_is_adopted(self, log: Lines) -> None:
        """409 and our annotations: another process created it before us, in our name."""
        with SimulatedController(threads=["watch"]) as controller:
            event = ScaleEvent(event_id="e-1", stream_id="1-0", type=EventType.SCALE_UP, pod_count=1, task_id="t")
            controller.cluster.create(
                manifest.build_pod(
                    controller.settings.worker,
                    event,
                    controller.key("e-1"),
                    event_json=event.encode(),
                    instance=controller.settings.instance,
                    namespace="default",
                )
            )
            pod = controller.pod(controller.accept(event_id="e-1"))
            assert finish(controller, pod)["outcome"] == "succeeded"
            assert controller.calls("get") == 1
        assert log.of("worker.adopted") == [f"Adopting worker pod: {pod}"]

    @contract("5.NameConflict")
    def test_a_strangers_pod_is_left_alone(self) -> None:
        """409 and not ours: the worker fails, and the pod is never deleted."""
        with SimulatedController(threads=["watch"]) as controller:
            controller.cluster.add_foreign(controller.name("e-1"))
            controller.accept(event_id="e-1")
            assert controller.result()["reason"] == "NameConflict"
            controller.idle()
            assert controller.cluster.names() == {controller.name("e-1")}
            assert controller.calls("delete") == 0

    def test_a_lost_answer_is_followed_by_a_look(self) -> None:
        """Never by a blind second create."""
        with SimulatedController(threads=["watch"]) as controller:
            controller.servers.kubernetes.drop_replies("create")
            finish(controller, controller.pod(controller.accept()))
            assert (controller.calls("create"), controller.calls("get")) == (1, 1)

    def test_a_lost_request_is_intended_again_and_then_repeated(self) -> None:
        """The look found nothing; that the first one arrives after all makes no second pod."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id, steps = controller.send(), controller.steps()
            controller.servers.kubernetes.hold_next_create()
            controller.intake.accept_entries(controller.stream.read_now(1))
            pod = controller.pod(event_id)
            controller.servers.kubernetes.deliver_held()
            finish(controller, pod)
            assert steps[:6] == ["store_attempt", "create", "get", "store_attempt", "create", "mark_pod_seen"]
            assert len(controller.redis.results("worker")) == 1

    @contract("5.Rejected")
    def test_a_pod_that_is_not_accepted_is_a_result(self) -> None:
        """Asking again would change nothing."""
        with SimulatedController(threads=["watch"]) as controller:
            controller.servers.kubernetes.refuse_next(
                "create", ClusterRejected("invalid", status=422, reason="Invalid")
            )
            controller.accept()
            assert (controller.result()["reason"], controller.calls("create")) == ("Rejected", 1)

    @contract("5.waiting")
    def test_quota_is_waited_for_without_a_thread(self) -> None:
        """The thread is given back, and the worker goes on when quota is freed."""
        with SimulatedController(threads=["watch"]) as controller:
            controller.servers.kubernetes.refuse_next("create", ClusterUnavailable("exceeded quota", unclear=False))
            event_id = controller.accept()
            eventually(lambda: controller.redis.calls["store_refusal"])
            controller.idle()
            assert controller.redis.results() == []
            controller.pass_time(1)
            finish(controller, controller.pod(event_id))
            assert controller.calls("create") == 2

    @contract("5.waiting")
    def test_while_admission_fails_why_has_its_words(self) -> None:
        """A look comes first; no attempt is used up, and the user reads what is to be mended."""
        with SimulatedController(threads=["watch"]) as controller:
            words = 'Internal error occurred: failed calling webhook "w.example": connection refused'
            controller.servers.kubernetes.refuse_next("create", ClusterUnavailable(words, unclear=True), times=2)
            event_id = controller.accept()
            eventually(lambda: controller.calls("create") == 2)
            controller.idle()
            controller.takeover._status.write()
            shown = controller.redis.task(event_id)
            assert (shown["code"], shown["why"]) == ("webhook", f"an admission webhook cannot decide: {words}")
            controller.pass_time(4)
            finish(controller, controller.pod(event_id))
            assert (controller.result()["attempt"], controller.calls("create")) == ("1", 3)

    @contract("5.waiting")
    def test_an_admission_that_fails_for_long_does_not_fill_the_log(self, log: Lines) -> None:
        """The first, second, fourth, eighth ... failure has a line; `why` has the cause all the time."""
        with SimulatedController(threads=["watch"]) as controller:
            words = 'Internal error occurred: failed calling webhook "w.example": connection refused'
            controller.servers.kubernetes.refuse_next("create", ClusterUnavailable(words, unclear=True), times=9)
            event_id = controller.accept()

            def there() -> bool:
                controller.pass_time(1)
                return bool(controller.cluster.names())

            eventually(there)
            finish(controller, controller.pod(event_id))
            assert (controller.calls("create"), len(log.of("worker.unclear"))) == (10, 4)

    @contract("5.waiting")
    def test_what_the_server_asks_for_is_waited(self) -> None:
        """Retry-After, and not a second less."""
        with SimulatedController(threads=["watch"]) as controller:
            busy = ClusterUnavailable("too many requests", retry_after_s=7, unclear=False)
            controller.servers.kubernetes.refuse_next("create", busy)
            event_id = controller.accept()
            eventually(lambda: controller.redis.calls["store_refusal"])
            controller.idle()
            controller.pass_time(6.9)
            assert controller.ledger.thread_counts() == (0, 1)
            controller.pass_time(0.2)
            finish(controller, controller.pod(event_id))


class TestRelabelled:
    """An admission webhook changes labels of our pods: no watch shows them, and they are ours all the same."""

    @contract("5.Rejected")
    @contract("5.deletion")
    @pytest.mark.parametrize("lost", [False, True])
    def test_it_is_ended_by_its_uid_and_rejected(self, lost: bool) -> None:
        """The intent first; also where the create's answer was lost. It counts until it is gone."""
        with SimulatedController(threads=["watch"]) as controller:
            steps = controller.steps()
            controller.servers.kubernetes.admit = lambda pod: pod["metadata"]["labels"].update(
                {LABEL_INSTANCE: "other"}
            )
            if lost:
                controller.servers.kubernetes.drop_replies("create")
            event_id = controller.accept()
            name = controller.name(event_id)
            eventually(lambda: controller.redis.calls["store_termination"])
            result = controller.result()
            assert (result["reason"], result["attempt"], result["pod"]) == ("Rejected", "1", name)
            assert f"label {LABEL_INSTANCE} was changed from 'ottoscaler' to 'other'" in result["message"]
            controller.idle()
            assert name not in controller.cluster.names()
            assert controller.registry.snapshots() == []
            assert steps.index("mark_pod_seen") < steps.index("delete") < steps.index("record_result")

    @contract("2.MAX_WORKERS")
    def test_it_uses_room_until_it_is_gone(self) -> None:
        """However many lists do not show it."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:

            def admit(pod: dict[str, Any]) -> None:
                pod["spec"]["nodeName"] = "n"
                del pod["metadata"]["labels"][LABEL_INSTANCE]

            controller.servers.kubernetes.admit = admit
            event_id = controller.accept(pod_count=2)
            name = controller.name(event_id)
            eventually(lambda: controller.calls("delete", name))
            controller.break_watch(ClusterUnavailable("cut"))
            eventually(lambda: controller.calls("list") >= 2)
            assert controller.registry.owned_live_count == 1
            assert controller.calls("create") == 1
            controller.servers.kubernetes.admit = lambda _pod: None
            controller.cluster.kill(name)
            controller.pass_time(3)
            eventually(lambda: controller.calls("create") == 2)

    @contract("5.Rejected")
    def test_labels_that_are_changed_while_it_runs(self) -> None:
        """The watch says that it is gone. It is not, and it is ended."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.run(pod)
            eventually(lambda: any(each.started_at for each in controller.registry.snapshots()))
            controller.cluster.relabel(pod, {LABEL_INSTANCE: "other"})
            eventually(lambda: controller.calls("delete", pod))
            controller.cluster.kill(pod)
            controller.pass_time(3)
            assert controller.result()["reason"] == "Rejected"

    @pytest.mark.parametrize("end", ["succeed", "fail"])
    def test_one_that_ends_by_itself_uses_no_room_after_its_result(self, end: str) -> None:
        """No watch would ever say that it is gone."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.cluster.run(pod)
            controller.sees(pod, lambda seen: seen.started_at is not None)
            controller.cluster.relabel(pod, {LABEL_INSTANCE: "other"})
            eventually(lambda: controller.calls("delete", pod))
            getattr(controller.cluster, end)(pod)
            controller.pass_time(3)
            controller.result()
            controller.idle()
            assert (controller.registry.snapshots(), controller.registry.owned_live_count) == ([], 0)

    def test_what_we_do_not_need_may_change(self) -> None:
        """Other labels are none of our business."""
        with SimulatedController(threads=["watch"]) as controller:
            controller.servers.kubernetes.admit = lambda pod: pod["metadata"]["labels"].update(team="blue")
            assert finish(controller, controller.pod(controller.accept()))["reason"] == "Completed"

    def test_a_strangers_pod_is_a_conflict_as_before(self) -> None:
        """It has our name, and not our annotation: it is never deleted."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.send()
            controller.cluster.add_foreign(controller.name(event_id))
            controller.intake.accept_entries(controller.stream.read_now(1))
            assert controller.result()["reason"] == "NameConflict"
            assert controller.calls("delete") == 0


class TestOutages:
    """A server is away in the middle."""

    def test_redis_away_holds_no_thread_and_loses_no_result(self) -> None:
        """The worker is put back as it stands, and recorded when Redis is there again."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.redis.set_down(True)
            controller.cluster.run(pod)
            controller.cluster.succeed(pod)
            controller.idle()
            assert pod in controller.cluster.names()
            controller.redis.set_down(False)
            controller.pass_time(2)
            assert controller.result()["outcome"] == "succeeded"

    def test_redis_away_at_the_first_step_blocks_no_worker_for_good(self) -> None:
        """As many workers as there is room for, all paused, all go on."""
        with SimulatedController(threads=["watch"], auto=True, MAX_WORKERS=2) as controller:
            controller.redis.fail_next("store_attempt", 8)
            controller.accept(pod_count=3)
            eventually(lambda: controller.redis.calls["store_attempt"] >= 8)
            controller.idle()
            controller.pass_time(2)
            assert len(controller.results(3)) == 3

    @contract("5.exactly-once")
    @pytest.mark.parametrize("change", ["succeed", "vanish"])
    def test_what_becomes_of_a_pod_in_an_outage_is_not_missed(self, change: str) -> None:
        """Its worker has no thread then, and the watch has no thread to notify: the worker sees it when it goes on."""
        with SimulatedController(threads=["watch"], INFRA_RETRIES=0) as controller:
            controller.redis.fail_next("mark_pod_seen", 4)
            event_id = controller.accept()
            controller.idle()
            pod = controller.name(event_id)
            controller.sees(pod, lambda seen: not seen.finished)
            controller.cluster.run(pod)
            getattr(controller.cluster, change)(pod)
            key = controller.key(event_id)
            eventually(lambda: (seen := controller.registry.get(key)) is None or seen.finished)
            controller.pass_time(2)
            assert controller.result()["reason"] == {"succeed": "Completed", "vanish": "PodLost"}[change]
            controller.idle()

    def test_a_lost_answer_of_a_record_makes_one_result(self) -> None:
        """It is asked again, and was known."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.redis.fail_next("record_result", after=True)
            finish(controller, pod)
            assert controller.redis.calls["record_result"] == 2
            assert len(controller.redis.results("worker")) == len(controller.redis.results("task")) == 1

    def test_the_cluster_away_at_the_delete_is_waited_out(self) -> None:
        """The result is stored; the pod goes later."""
        with SimulatedController(threads=["watch"]) as controller:
            pod = controller.pod(controller.accept())
            controller.servers.kubernetes.refuse_next("delete", ClusterUnavailable("away"), times=4)
            finish(controller, pod)
            assert controller.cluster.names() == {pod}
            controller.pass_time(2)
            eventually(lambda: controller.cluster.names() == set())


@contract("5.deletion")
def test_a_pod_that_finishes_before_our_delete_arrives_is_recorded_first() -> None:
    """It is deleted only as it was seen, so nothing that ended meanwhile is thrown away."""
    there: list[bool] = []

    def end(verb: str, name: str) -> None:
        if verb == "delete" and not there:
            controller.cluster.succeed(name)

    with SimulatedController(threads=["watch"], WORKER_DEADLINE_S=60) as controller:
        pod = controller.pod(controller.accept())
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at)
        controller.servers.kubernetes.on_call = end
        controller.redis.on_call = lambda op: (
            there.append(pod in controller.cluster.names()) if op == "record_result" else None
        )
        controller.pass_time(91)
        assert (controller.result()["reason"], there) == ("Completed", [True])


class TestNewAttempts:
    """After a failure of the platform, or of the worker where that is wanted."""

    @contract("5.Evicted")
    @contract("5.attempt")
    def test_the_platforms_failure_is_tried_again_under_a_new_name(self) -> None:
        """The old pod goes only when the new attempt is stored."""
        with SimulatedController(threads=["watch"]) as controller:
            event_id = controller.accept()
            pod, steps = controller.pod(event_id), controller.steps()
            controller.cluster.end_pod(pod, "Evicted")
            controller.idle()
            assert (steps, controller.cluster.names()) == ([], {pod})
            controller.pass_time(1)
            again = controller.pod(event_id, attempt=2)
            assert again == f"{pod}-r2"
            assert "affinity" not in controller.servers.kubernetes.pods[again]["spec"]
            assert steps == ["store_attempt", "delete", "create", "mark_pod_seen"]
            assert finish(controller, again)["attempt"] == "2"

    @contract("2.INFRA_RETRIES")
    def test_the_platforms_failures_are_counted(self) -> None:
        """After the last one the worker has failed."""
        with SimulatedController(threads=["watch"], INFRA_RETRIES=1) as controller:
            event_id = controller.accept()
            controller.cluster.end_pod(controller.pod(event_id), "Evicted")
            controller.idle()
            controller.pass_time(1)
            controller.cluster.end_pod(controller.pod(event_id, attempt=2), "Evicted")
            assert [controller.result()[name] for name in ("outcome", "reason", "fault")] == [
                "failed",
                "Evicted",
                "infra",
            ]

    @contract("2.INFRA_RETRIES")
    def test_a_new_attempt_prefers_another_node_than_the_one_at_fault(self) -> None:
        """The pod says so to the scheduler. The process that takes the worker over does not know it, and adopts it."""
        servers = FakeServers()
        with SimulatedController(servers, threads=["watch"], INFRA_RETRIES=2) as controller:
            event_id = controller.accept()
            pod = controller.pod(event_id)
            controller.cluster.run(pod, node="node-7")
            controller.cluster.end_pod(pod, "Evicted")
            controller.idle()
            controller.pass_time(1)
            again = controller.pod(event_id, attempt=2)
        affinity = servers.kubernetes.pods[again]["spec"]["affinity"]["nodeAffinity"]
        [term] = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
        assert [one["values"] for one in term["preference"]["matchFields"]] == [["node-7"]]
        with SimulatedController(servers, threads=["watch", "lease"], incarnation="b2") as controller:
            eventually(lambda: event_id in controller.ledger.tasks.owners(), what="the task to be taken over")
            assert finish(controller, again)["reason"] == "Completed"
            assert controller.servers.kubernetes.count("create") == 2

    @contract("2.WORKER_RETRIES")
    @contract("2.MAX_WORKERS")
    def test_a_new_attempt_needs_room_of_its_own(self) -> None:
        """While the cluster's state is unknown, not even a second attempt is created."""
        with SimulatedController(threads=["dispatcher"], WORKER_RETRIES=1) as controller:
            controller.registry.replace(controller.cluster.list())
            event_id = controller.accept()
            pod = controller.pod(event_id)
            controller.registry.mark_unknown()
            controller.cluster.fail(pod)
            (failed,) = controller.cluster.list().pods
            controller.registry.publish(failed)
            controller.idle()
            assert controller.calls("create") == 1
            controller.registry.replace(controller.cluster.list())
            controller.ledger.wake_for_room()
            controller.pod(event_id, attempt=2)

    @contract("3.retries")
    def test_an_event_has_retries_of_its_own(self) -> None:
        """More than configured, and no more than that."""
        with SimulatedController(threads=["watch"], WORKER_RETRIES=0) as controller:
            event_id = controller.accept(retries="1")
            controller.cluster.fail(controller.pod(event_id))
            controller.pass_time(1)
            controller.cluster.fail(controller.pod(event_id, attempt=2))
            assert [controller.result()[name] for name in ("outcome", "reason", "attempt")] == ["failed", "Error", "2"]

    @contract("3.retries")
    def test_an_event_may_have_no_retries(self) -> None:
        """Where the configuration has some."""
        with SimulatedController(threads=["watch"], WORKER_RETRIES=2) as controller:
            event_id = controller.accept(retries="0")
            controller.cluster.fail(controller.pod(event_id))
            assert [controller.result()[name] for name in ("outcome", "reason", "attempt")] == ["failed", "Error", "1"]

    @contract("3.deadline_s")
    def test_an_event_has_a_deadline_of_its_own(self) -> None:
        """The controller ends its worker 30 s after it, if the kubelet has not."""
        with SimulatedController(threads=["watch"], WORKER_DEADLINE_S=3600) as controller:
            pod = controller.pod(controller.accept(deadline_s="60"))
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at)
            controller.pass_time(91)
            eventually(lambda: controller.calls("delete"))
            controller.cluster.kill(pod)
            assert controller.result()["reason"] == "DeadlineExceeded"
