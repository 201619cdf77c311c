"""not_after: a worker that has not started by then is expired, whatever it waits for, and never starts late."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ottoscaler.errors import ClusterUnavailable
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import SimulatedController

pytestmark = pytest.mark.contract("3.not_after")
THREADS = ["watch", "lease", "control", "reader"]


def in_s(controller: SimulatedController, seconds: float) -> str:
    """A time so many seconds from now, on the clock of Redis."""
    return datetime.fromtimestamp(controller.clock.now() + seconds, UTC).isoformat()


@pytest.mark.contract("5.NotAfter")
@pytest.mark.contract("5.outcome")
@pytest.mark.contract("5.task")
def test_what_waits_for_room_expires() -> None:
    """At once, and not when there is room; the task has failed."""
    with SimulatedController(threads=THREADS, MAX_WORKERS=1) as controller:
        controller.pod(controller.send())
        late = controller.send(pod_count=2, not_after=in_s(controller, 7))
        controller.wait_and_look(6)
        assert controller.redis.results() == []
        controller.wait_and_look(2)
        for result in controller.results(2):
            assert (result["event_id"], result["outcome"], result["reason"]) == (late, "expired", "NotAfter")
            assert (result["fault"], result["attempt"], result["pod"]) == ("user", "0", "")
        task = controller.result("task")
        assert (task["outcome"], task["reason"], task["failed"]) == ("failed", "NotAfter", "2")
        assert controller.calls("create", controller.name(late)) == 0


def test_what_waits_for_its_concurrency_key_expires() -> None:
    """And lets the next one of the key start."""
    with SimulatedController(threads=THREADS) as controller:
        pod = controller.pod(controller.send(concurrency_key="k"))
        late = controller.send(concurrency_key="k", not_after=in_s(controller, 7))
        controller.wait_and_look(8)
        result = controller.result()
        assert (result["event_id"], result["reason"]) == (late, "NotAfter")
        assert controller.result("task")["outcome"] == "failed"
        assert controller.calls("delete", pod) == 0


def test_an_event_that_comes_too_late_creates_nothing() -> None:
    """It lay in the stream for too long."""
    with SimulatedController(threads=THREADS) as controller:
        late = controller.send(not_after=in_s(controller, -1))
        assert controller.result()["reason"] == "NotAfter"
        assert controller.calls("create", controller.name(late)) == 0


def test_a_pod_that_has_not_started_is_ended_and_one_that_has_runs_on() -> None:
    """The first is deleted after its mark was stored; the second ends by itself."""
    with SimulatedController(threads=THREADS) as controller:
        event_id = controller.send(pod_count=2, not_after=in_s(controller, 7))
        waits, runs = (controller.pod(event_id, index) for index in (1, 2))
        controller.cluster.run(runs)
        controller.wait_seen(runs, lambda seen: seen.started_at is not None)
        controller.wait_and_look(8)
        eventually(lambda: controller.calls("delete", waits), what="the end of the first")
        assert controller.result()["reason"] == "NotAfter"
        assert controller.calls("delete", runs) == 0
        controller.cluster.succeed(runs)
        assert [result["reason"] for result in controller.results(2)] == ["NotAfter", "Completed"]


def test_a_pod_that_starts_while_it_is_ended_in_time_runs_on() -> None:
    """The mark and the start have crossed: the pod has changed, so it is not deleted."""
    with SimulatedController(threads=THREADS) as controller:
        event_id = controller.send(not_after=in_s(controller, 7))
        pod = controller.pod(event_id)
        started: list[str] = []

        def start(verb: str, name: str) -> None:
            if verb == "delete" and not started:
                started.append(name)
                controller.cluster.run(name)

        controller.servers.kubernetes.on_call = start
        controller.wait_and_look(8)
        eventually(lambda: controller.taken(event_id).workers[1].termination is None and started, what="its withdrawal")
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        controller.cluster.fail(pod, 3)
        result = controller.result()
        assert (result["reason"], result["exit_code"]) == ("Error", "3")


def test_a_worker_that_fails_after_it_is_not_tried_again() -> None:
    """It had started in time, so its result says how it ended."""
    with SimulatedController(threads=THREADS, WORKER_RETRIES=3) as controller:
        event_id = controller.send(not_after=in_s(controller, 7))
        pod = controller.pod(event_id)
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        controller.wait_and_look(8)
        controller.cluster.fail(pod, 3)
        result = controller.result()
        assert (result["outcome"], result["reason"], result["attempt"]) == ("failed", "Error", "1")
        assert controller.calls("create", controller.name(event_id, 1, 2)) == 0


def test_a_pause_for_quota_ends_with_it() -> None:
    """Nothing is created after it."""
    with SimulatedController(threads=THREADS) as controller:
        quota = ClusterUnavailable("exceeded quota")
        controller.servers.kubernetes.refuse_next("create", quota, times=1000)
        event_id = controller.send(not_after=in_s(controller, 7))
        eventually(lambda: controller.calls("create", controller.name(event_id)), what="a refusal")
        controller.wait_and_look(8)
        assert controller.result()["reason"] == "NotAfter"


def test_the_next_owner_expires_what_the_last_one_left() -> None:
    """The marks are in Redis."""
    with SimulatedController(threads=THREADS) as first:
        event_id = first.send(not_after=in_s(first, 20))
        pod = first.pod(event_id)
        first.close(release=False)
        with SimulatedController(first.servers, incarnation="b2", threads=THREADS) as second:
            second.pod(event_id)
            second.wait_and_look(22)
            eventually(lambda: second.calls("delete", pod), what="its end")
            assert second.result()["reason"] == "NotAfter"
