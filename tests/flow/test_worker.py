"""One worker's life on a pool thread: the normal way, what a create may answer, outages, new attempts."""

from __future__ import annotations

from typing import Any

import pytest

from ottoscaler.core import manifest
from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.names import LABEL_INSTANCE
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.rig import Rig

contract = pytest.mark.contract


def finish(rig: Rig, pod: str) -> dict[str, str]:
    """Let the pod run and succeed; returns the worker's result, when its thread is free again."""
    rig.cluster.run(pod)
    rig.cluster.succeed(pod)
    result = rig.result()
    rig.idle()
    return result


class TestTheNormalWay:
    """A pod that runs and succeeds."""

    @contract("5.Completed")
    def test_it_costs_one_create_and_one_delete(self) -> None:
        """And no look at all: the watch tells everything."""
        with Rig(threads=["watch"]) as rig:
            result = finish(rig, rig.pod(rig.accept()))
            assert (result["outcome"], result["reason"]) == ("succeeded", "Completed")
            assert [rig.calls(verb) for verb in ("create", "delete", "get")] == [1, 1, 0]

    @contract("5.deletion")
    def test_each_step_is_stored_before_the_next(self) -> None:
        """The attempt before the create, the result before the delete."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.send()
            steps = rig.steps()
            rig.intake.absorb(rig.stream.read_now(1))
            finish(rig, rig.pod(event_id))
            assert steps == ["intend", "create", "check", "record", "delete"]

    @contract("5.task")
    def test_the_last_worker_brings_the_tasks_result(self) -> None:
        """And the task is open no longer."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept(pod_count=2, task_id="t")
            for index in (1, 2):
                rig.cluster.run(rig.pod(event_id, index))
                rig.cluster.succeed(rig.name(event_id, index))
            task = rig.result("task")
            assert (task["outcome"], task["succeeded"], task["task_id"]) == ("succeeded", "2", "t")
            assert rig.redis.open_ids() == set()

    @contract("6.worker.created")
    @contract("6.task.monitoring")
    @contract("6.worker.finished")
    @contract("6.worker.deleted")
    @contract("6.task.finished")
    def test_the_log_tells_the_story(self, log: Lines) -> None:
        """Each of its lines once, with the ids that the story is found by."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept(task_id="t")
            pod = rig.pod(event_id)
            finish(rig, pod)
            eventually(lambda: log.of("worker.deleted"))
        assert log.of("event.received") == ["Received scaling event: scale_up (PodCount: 1)"]
        assert log.of("worker.created") == [f"Creating worker pod: {pod}"]
        assert log.of("task.monitoring") == ["Monitoring pod completion"]
        assert log.of("worker.finished") == [f"Worker pod {pod} succeeded: Completed"]
        assert log.of("task.finished") == ["All 1 workers completed successfully"]
        assert log.of("worker.deleted") == [f"Cleaning up pod: {pod}"]
        told = [line for line in log.all() if str(line["event"]).startswith("worker.")]
        assert {(line["event_id"], line["task_id"], line["worker"]) for line in told} == {(event_id, "t", 1)}

    @contract("6.task.finished")
    def test_the_log_counts_who_succeeded(self, log: Lines) -> None:
        """Two of three."""
        with Rig(threads=["watch"], auto=lambda name: int(name.endswith("-2"))) as rig:
            rig.accept(pod_count=3)
            rig.result("task")
            eventually(lambda: log.of("task.finished"))
        assert log.of("task.finished") == ["2 of 3 workers completed"]


class TestCreating:
    """What a create request may come to."""

    @contract("4.name")
    def test_a_pod_of_ours_that_is_there_is_adopted(self, log: Lines) -> None:
        """409 and our annotations: somebody created it before us, in our name."""
        with Rig(threads=["watch"]) as rig:
            event = ScaleEvent(event_id="e-1", stream_id="1-0", type=EventType.SCALE_UP, pod_count=1, task_id="t")
            rig.cluster.create(
                manifest.build(
                    rig.settings.worker, event, rig.key("e-1"), instance=rig.settings.instance, namespace="default"
                )
            )
            pod = rig.pod(rig.accept(event_id="e-1"))
            assert finish(rig, pod)["outcome"] == "succeeded"
            assert rig.calls("get") == 1
        assert log.of("worker.adopted") == [f"Adopting worker pod: {pod}"]

    @contract("5.NameConflict")
    def test_a_strangers_pod_is_left_alone(self) -> None:
        """409 and not ours: the worker fails, and the pod is never deleted."""
        with Rig(threads=["watch"]) as rig:
            rig.cluster.add_foreign(rig.name("e-1"))
            rig.accept(event_id="e-1")
            assert rig.result()["reason"] == "NameConflict"
            rig.idle()
            assert rig.cluster.names() == {rig.name("e-1")}
            assert rig.calls("delete") == 0

    def test_a_lost_answer_is_followed_by_a_look(self) -> None:
        """Never by a blind second create."""
        with Rig(threads=["watch"]) as rig:
            rig.world.kubernetes.drop_replies("create")
            finish(rig, rig.pod(rig.accept()))
            assert (rig.calls("create"), rig.calls("get")) == (1, 1)

    def test_a_lost_request_is_intended_again_and_then_repeated(self) -> None:
        """The look found nothing; that the first one arrives after all makes no second pod."""
        with Rig(threads=["watch"]) as rig:
            event_id, steps = rig.send(), rig.steps()
            rig.world.kubernetes.hold_next_create()
            rig.intake.absorb(rig.stream.read_now(1))
            pod = rig.pod(event_id)
            rig.world.kubernetes.deliver_held()
            finish(rig, pod)
            assert steps[:6] == ["intend", "create", "get", "intend", "create", "check"]
            assert len(rig.redis.results("worker")) == 1

    @contract("5.Rejected")
    def test_a_pod_that_is_not_accepted_is_a_result(self) -> None:
        """Asking again would change nothing."""
        with Rig(threads=["watch"]) as rig:
            rig.world.kubernetes.refuse_next("create", ClusterRejected("invalid", status=422, reason="Invalid"))
            rig.accept()
            assert (rig.result()["reason"], rig.calls("create")) == ("Rejected", 1)

    @contract("5.waiting")
    def test_quota_is_waited_for_without_a_thread(self) -> None:
        """The thread is given back, and the worker goes on when quota is freed."""
        with Rig(threads=["watch"]) as rig:
            rig.world.kubernetes.refuse_next("create", ClusterUnavailable("exceeded quota", unclear=False))
            event_id = rig.accept()
            eventually(lambda: rig.redis.calls["note_refused"])
            rig.idle()
            assert rig.redis.results() == []
            rig.pass_time(1)
            finish(rig, rig.pod(event_id))
            assert rig.calls("create") == 2

    @contract("5.waiting")
    def test_while_admission_fails_why_has_its_words(self) -> None:
        """A look comes first; no attempt is used up, and the user reads what is to be mended."""
        with Rig(threads=["watch"]) as rig:
            words = 'Internal error occurred: failed calling webhook "w.example": connection refused'
            rig.world.kubernetes.refuse_next("create", ClusterUnavailable(words, unclear=True), times=2)
            event_id = rig.accept()
            eventually(lambda: rig.calls("create") == 2)
            rig.idle()
            assert [why for _, _, why in rig.ledger.take_notes()] == [words]
            rig.pass_time(4)
            finish(rig, rig.pod(event_id))
            assert (rig.result()["attempt"], rig.calls("create")) == ("1", 3)

    @contract("5.waiting")
    def test_what_the_server_asks_for_is_waited(self) -> None:
        """Retry-After, and not a second less."""
        with Rig(threads=["watch"]) as rig:
            busy = ClusterUnavailable("too many requests", retry_after_s=7, unclear=False)
            rig.world.kubernetes.refuse_next("create", busy)
            event_id = rig.accept()
            eventually(lambda: rig.redis.calls["note_refused"])
            rig.idle()
            rig.pass_time(6.9)
            assert rig.ledger.counts() == (0, 1)
            rig.pass_time(0.2)
            finish(rig, rig.pod(event_id))


class TestRelabelled:
    """An admission webhook changes labels of our pods: no watch shows them, and they are ours all the same."""

    @contract("5.Rejected")
    @contract("5.deletion")
    @pytest.mark.parametrize("lost", [False, True])
    def test_it_is_ended_by_its_uid_and_rejected(self, lost: bool) -> None:
        """The intent first; also where the create's answer was lost. It counts until it is gone."""
        with Rig(threads=["watch"]) as rig:
            steps = rig.steps()
            rig.world.kubernetes.admit = lambda pod: pod["metadata"]["labels"].update({LABEL_INSTANCE: "other"})
            if lost:
                rig.world.kubernetes.drop_replies("create")
            event_id = rig.accept()
            name = rig.name(event_id)
            eventually(lambda: rig.redis.calls["store_termination"])
            result = rig.result()
            assert (result["reason"], result["attempt"], result["pod"]) == ("Rejected", "1", name)
            assert f"label {LABEL_INSTANCE} was changed from 'ottoscaler' to 'other'" in result["message"]
            rig.idle()
            assert name not in rig.cluster.names()
            assert rig.registry.snapshots() == []
            assert steps.index("check") < steps.index("delete") < steps.index("record")

    @contract("2.MAX_WORKERS")
    def test_it_uses_room_until_it_is_gone(self) -> None:
        """However many lists do not show it."""
        with Rig(threads=["watch"], MAX_WORKERS=1) as rig:

            def admit(pod: dict[str, Any]) -> None:
                pod["spec"]["nodeName"] = "n"
                del pod["metadata"]["labels"][LABEL_INSTANCE]

            rig.world.kubernetes.admit = admit
            event_id = rig.accept(pod_count=2)
            name = rig.name(event_id)
            eventually(lambda: rig.calls("delete", name))
            rig.world.kubernetes.end_watches(ClusterUnavailable("cut"))
            eventually(lambda: rig.calls("list") >= 2)
            assert rig.registry.owned_live == 1
            assert rig.calls("create") == 1
            rig.world.kubernetes.admit = lambda _pod: None
            rig.cluster.kill(name)
            rig.pass_time(3)
            eventually(lambda: rig.calls("create") == 2)

    @contract("5.Rejected")
    def test_labels_that_are_changed_while_it_runs(self) -> None:
        """The watch says that it is gone. It is not, and it is ended."""
        with Rig(threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            rig.cluster.run(pod)
            eventually(lambda: any(each.started_at for each in rig.registry.snapshots()))
            rig.cluster.relabel(pod, {LABEL_INSTANCE: "other"})
            eventually(lambda: rig.calls("delete", pod))
            rig.cluster.kill(pod)
            rig.pass_time(3)
            assert rig.result()["reason"] == "Rejected"

    def test_what_we_do_not_need_may_change(self) -> None:
        """Other labels are none of our business."""
        with Rig(threads=["watch"]) as rig:
            rig.world.kubernetes.admit = lambda pod: pod["metadata"]["labels"].update(team="blue")
            assert finish(rig, rig.pod(rig.accept()))["reason"] == "Completed"

    def test_a_strangers_pod_is_a_conflict_as_before(self) -> None:
        """It has our name, and not our annotation: it is never deleted."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.send()
            rig.cluster.add_foreign(rig.name(event_id))
            rig.intake.absorb(rig.stream.read_now(1))
            assert rig.result()["reason"] == "NameConflict"
            assert rig.calls("delete") == 0


class TestOutages:
    """A server is away in the middle."""

    def test_redis_away_holds_no_thread_and_loses_no_result(self) -> None:
        """The worker is put back as it stands, and recorded when Redis is there again."""
        with Rig(threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            rig.redis.set_down(True)
            rig.cluster.run(pod)
            rig.cluster.succeed(pod)
            rig.idle()
            assert pod in rig.cluster.names()
            rig.redis.set_down(False)
            rig.pass_time(2)
            assert rig.result()["outcome"] == "succeeded"

    def test_redis_away_at_the_first_step_blocks_nobody_for_good(self) -> None:
        """As many workers as there is room for, all paused, all go on."""
        with Rig(threads=["watch"], auto=True, MAX_WORKERS=2) as rig:
            rig.redis.fail_next("intend", 8)
            rig.accept(pod_count=3)
            eventually(lambda: rig.redis.calls["intend"] >= 8)
            rig.idle()
            rig.pass_time(2)
            assert len(rig.results(3)) == 3

    @contract("5.exactly-once")
    @pytest.mark.parametrize("change", ["succeed", "vanish"])
    def test_what_becomes_of_a_pod_in_an_outage_is_not_missed(self, change: str) -> None:
        """Its worker has no thread then, and the watch tells nobody: it hears of it when it goes on."""
        with Rig(threads=["watch"], INFRA_RETRIES=0) as rig:
            rig.redis.fail_next("check", 4)
            event_id = rig.accept()
            rig.idle()
            pod = rig.name(event_id)
            rig.sees(pod, lambda seen: not seen.finished)
            rig.cluster.run(pod)
            getattr(rig.cluster, change)(pod)
            key = rig.key(event_id)
            eventually(lambda: (seen := rig.registry.get(key)) is None or seen.finished)
            rig.pass_time(2)
            assert rig.result()["reason"] == {"succeed": "Completed", "vanish": "PodLost"}[change]
            rig.idle()

    def test_a_lost_answer_of_a_record_makes_one_result(self) -> None:
        """It is asked again, and was known."""
        with Rig(threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            rig.redis.fail_next("record", after=True)
            finish(rig, pod)
            assert rig.redis.calls["record"] == 2
            assert len(rig.redis.results("worker")) == len(rig.redis.results("task")) == 1

    def test_the_cluster_away_at_the_delete_is_waited_out(self) -> None:
        """The result is stored; the pod goes later."""
        with Rig(threads=["watch"]) as rig:
            pod = rig.pod(rig.accept())
            rig.world.kubernetes.refuse_next("delete", ClusterUnavailable("away"), times=4)
            finish(rig, pod)
            assert rig.cluster.names() == {pod}
            rig.pass_time(2)
            eventually(lambda: rig.cluster.names() == set())


@contract("5.deletion")
def test_a_pod_that_finishes_before_our_delete_arrives_is_recorded_first() -> None:
    """It is deleted only as it was seen, so nothing that ended meanwhile is thrown away."""
    there: list[bool] = []

    def end(verb: str, name: str) -> None:
        if verb == "delete" and not there:
            rig.cluster.succeed(name)

    with Rig(threads=["watch"], WORKER_DEADLINE_S=60) as rig:
        pod = rig.pod(rig.accept())
        rig.cluster.run(pod)
        rig.hears(pod, lambda seen: seen.started_at)
        rig.world.kubernetes.on_call = end
        rig.redis.on_call = lambda op: there.append(pod in rig.cluster.names()) if op == "record" else None
        rig.pass_time(91)
        assert (rig.result()["reason"], there) == ("Completed", [True])


class TestNewAttempts:
    """After a failure of the platform, or of the worker where that is wanted."""

    @contract("5.Evicted")
    @contract("5.attempt")
    def test_the_platforms_failure_is_tried_again_under_a_new_name(self) -> None:
        """The old pod goes only when the new attempt is stored."""
        with Rig(threads=["watch"]) as rig:
            event_id = rig.accept()
            pod, steps = rig.pod(event_id), rig.steps()
            rig.cluster.end_pod(pod, "Evicted")
            rig.idle()
            assert (steps, rig.cluster.names()) == ([], {pod})
            rig.pass_time(1)
            again = rig.pod(event_id, attempt=2)
            assert again == f"{pod}-r2"
            assert steps == ["intend", "delete", "create", "check"]
            assert finish(rig, again)["attempt"] == "2"

    @contract("2.INFRA_RETRIES")
    def test_the_platforms_failures_are_counted(self) -> None:
        """After the last one the worker has failed."""
        with Rig(threads=["watch"], INFRA_RETRIES=1) as rig:
            event_id = rig.accept()
            rig.cluster.end_pod(rig.pod(event_id), "Evicted")
            rig.idle()
            rig.pass_time(1)
            rig.cluster.end_pod(rig.pod(event_id, attempt=2), "Evicted")
            assert [rig.result()[name] for name in ("outcome", "reason", "fault")] == ["failed", "Evicted", "infra"]

    @contract("2.WORKER_RETRIES")
    @contract("2.MAX_WORKERS")
    def test_a_new_attempt_needs_room_of_its_own(self) -> None:
        """While the cluster's state is unknown, not even a second attempt is created."""
        with Rig(WORKER_RETRIES=1) as rig:
            rig.registry.replace(rig.cluster.list())
            event_id = rig.accept()
            pod = rig.pod(event_id)
            rig.registry.unknown()
            rig.cluster.fail(pod)
            (failed,) = rig.cluster.list().pods
            rig.registry.publish(failed)
            rig.idle()
            assert rig.calls("create") == 1
            rig.registry.replace(rig.cluster.list())
            rig.pool.pump()
            rig.pod(event_id, attempt=2)
