"""What an operator reads of tasks and workers while they wait: the code, the words, since when and what comes next."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.pods import Phase
from ottoscaler.errors import ClusterUnavailable, Unavailable
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController

pytestmark = pytest.mark.contract("5.why")

QUOTA = 'the Kubernetes API answered 403 to create: pods "p" is forbidden: exceeded quota: q, used: pods=4'


def write(controller: SimulatedController) -> None:
    """What the take-over thread does once a second."""
    controller.ledger.room_waits.explain()
    controller.takeover._status.write()


def worker(controller: SimulatedController, event_id: str, index: int = 1) -> dict[str, str]:
    """What is shown of a worker."""
    found: dict[str, str] = json.loads(controller.redis.task(event_id)[f"worker:{index}"])
    return found


def test_a_quota_is_shown_with_the_time_of_the_next_try_and_logged_once(log: Lines) -> None:
    """However often the create is refused: the log has one line of it, and `why` stays between two tries."""
    with SimulatedController(threads=["watch"]) as controller:
        controller.servers.kubernetes.refuse_next("create", ClusterUnavailable(QUOTA, unclear=False), times=3)
        event_id = controller.accept(pod_count=1)
        for tries in (1, 2, 3):
            eventually(lambda: controller.calls("create") == tries)  # noqa: B023
            controller.idle()
            write(controller)
            task, shown = controller.redis.task(event_id), worker(controller, event_id)
            assert (task["code"], task["why"]) == ("quota", f"the quota is used up: {QUOTA}")
            assert (shown["state"], shown["code"], shown["detail"]) == ("waiting", "quota", QUOTA)
            assert task["next_at"] == shown["next_at"] > task["since"] == shown["since"]
            controller.pass_time(5)
        controller.pod(event_id)
        write(controller)
        assert controller.redis.task(event_id)["code"] == "starting"
        assert log.of("worker.waiting") == [f"{controller.name(event_id)}: the quota is used up: {QUOTA}"]
        assert len(log.of("worker.created")) == 1
    (line,) = [line for line in log.all() if line["event"] == "worker.waiting"]
    assert (line["level"], line["code"], line["workers"], line["event_id"]) == ("WARNING", "quota", 1, event_id)


def test_workers_of_one_task_share_a_line(log: Lines) -> None:
    """A thousand of them must not fill the log."""
    with SimulatedController(threads=["watch"]) as controller:
        controller.servers.kubernetes.refuse_next("create", ClusterUnavailable(QUOTA, unclear=False), times=4)
        event_id = controller.accept(pod_count=4)
        eventually(lambda: controller.calls("create") == 4)
        controller.idle()
        write(controller)
        assert controller.redis.task(event_id)["why"] == f"the quota is used up: {QUOTA}"
        (line,) = log.of("worker.waiting")
        assert ", and 3 more workers of its task: the quota is used up" in line


def test_an_image_that_cannot_be_pulled_is_shown_and_logged(log: Lines) -> None:
    """With image, message, attempt and the time at which the controller gives it up."""
    with SimulatedController(threads=["watch"], OTTO_AGENT_IMAGE="reg.example/a:1") as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        controller.cluster.trouble(pod, "ImagePullBackOff", 'Back-off pulling image "reg.example/a:1"')
        controller.wait_seen(pod, lambda seen: seen.trouble)
        write(controller)
        task = controller.redis.task(event_id)
        assert (task["code"], worker(controller, event_id)["state"]) == ("image_backoff", "pending")
        assert task["why"] == (
            "the image cannot be pulled: attempt 1 of 4, image reg.example/a:1: ImagePullBackOff: "
            'Back-off pulling image "reg.example/a:1"'
        )
        assert task["next_at"] > task["since"]
        assert len(log.of("worker.waiting")) == 1


def test_what_becomes_of_a_pod_that_runs_is_shown(log: Lines) -> None:
    """Its node falls silent and comes back, and then a user deletes the pod: its state is "running" all the time."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)

        def code() -> str:
            controller.pass_time(1)
            write(controller)
            return controller.redis.task(event_id)["code"]

        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        eventually(lambda: code() == "running", what="the code of a worker that runs")
        controller.cluster.end_pod(pod, "", phase="Unknown")
        controller.wait_seen(pod, lambda seen: seen.phase is Phase.UNKNOWN)
        eventually(lambda: code() == "node_silent", what="the code of a silent node")
        controller.cluster.end_pod(pod, "", phase="Running")
        controller.wait_seen(pod, lambda seen: seen.phase is Phase.RUNNING)
        eventually(lambda: code() == "running", what="the code of a worker that runs again")
        controller.cluster.delete_by_user(pod)
        controller.wait_seen(pod, lambda seen: seen.deleting)
        eventually(lambda: code() == "ending", what="the code of a pod that goes")
        assert worker(controller, event_id)["detail"] == "its deletion was requested"
    assert len(log.of("worker.waiting")) == 1


def test_what_waits_for_room_says_so() -> None:
    """And no longer when it has room."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
        first = controller.accept()
        pod = controller.pod(first)
        second = controller.accept()
        write(controller)
        shown = controller.redis.task(second)
        assert (shown["code"], shown["next_at"]) == ("capacity", "")
        assert shown["why"] == "waits until fewer than 1 of our workers run (MAX_WORKERS)"
        assert controller.ledger.tasks.counts_by_code() == {"starting": 1, "capacity": 1}
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.pod(second)
        controller.pass_time(1)
        write(controller)
        assert controller.redis.task(second)["code"] == "starting"


def test_a_further_attempt_says_what_it_follows() -> None:
    """And when it begins."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept()
        first = controller.pod(event_id)
        controller.cluster.end_pod(first, "Evicted", "low on memory")
        eventually(lambda: controller.ledger.tasks.counts_by_code() == {"retry": 1}, what="the pause")
        controller.idle()
        write(controller)
        shown = worker(controller, event_id)
        assert (shown["code"], shown["state"]) == ("retry", "waiting")
        assert shown["detail"].startswith("retry 1 of 3 after Evicted (low on memory")
        assert shown["next_at"]


def test_nothing_is_written_while_nothing_changes() -> None:
    """However long a worker runs."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        write(controller)
        assert controller.redis.task(event_id)["code"] == "running"
        before = controller.redis.calls["write_status"]
        for _ in range(5):
            controller.pass_time(2)
            write(controller)
        assert controller.redis.calls["write_status"] == before


def test_what_could_not_be_written_is_written_later() -> None:
    """Redis was away for a moment."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept()
        controller.pod(event_id)
        controller.redis.fail_next("write_status", 1)
        with pytest.raises(Unavailable):
            write(controller)
        controller.pass_time(1)
        write(controller)
        assert (controller.redis.task(event_id)["code"], worker(controller, event_id)["code"]) == ("starting",) * 2


def test_a_new_owner_says_how_it_is_now() -> None:
    """What the dead one had noted may be over."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead", threads=["watch"], LEASE_S=3) as first:
        servers.kubernetes.refuse_next("create", ClusterUnavailable(QUOTA, unclear=False), times=1)
        event_id = first.accept()
        eventually(lambda: first.calls("create") == 1)
        first.idle()
        write(first)
        assert servers.redis.task(event_id)["code"] == "quota"
        first.close()
    with SimulatedController(servers, threads=["watch", "lease"], LEASE_S=3) as controller:
        eventually(lambda: controller.ledger.tasks.has(event_id), what="the take-over")
        controller.pod(event_id)

        def code() -> str:
            controller.pass_time(0.5)
            return servers.redis.task(event_id)["code"]

        eventually(lambda: code() == "starting", what="the new owner's word")
