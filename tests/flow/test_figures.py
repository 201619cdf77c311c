"""The figures while the flow works: right, and no more of them however much passes through."""

from __future__ import annotations

import math
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow.gauges import Gauges
from ottoscaler.flow.takeover import LEVELS_EVERY_S
from ottoscaler.ports import StoredWorker
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.ledger_driver import task
from tests.flow.simulated_controller import FakeServers, SimulatedController
from tests.test_metrics import samples

BATCH = 500
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def register(controller: SimulatedController) -> None:
    """The gauges that a scrape reads, as the composition root does it."""
    Gauges(
        ledger=controller.ledger, registry=controller.registry, heartbeat=controller.heartbeat,
        control=controller.control,
    ).register(controller.metrics)  # fmt: skip


def figures(controller: SimulatedController, name: str) -> dict[str, float]:
    """A figure with one label, by its value; the value "" for one without."""
    return {"".join(key[1:]): value for key, value in samples(controller.metrics).items() if key[0] == name}


def test_gauges_are_asked_for_at_each_look() -> None:
    """Tasks, workers and threads, as they are at that moment."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=2) as controller:
        register(controller)
        assert figures(controller, "ottoscaler_live_pods") == {"": 0}
        assert sum(figures(controller, "ottoscaler_workers").values()) == 0
        event_id = controller.accept(pod_count=5)
        first, _second = controller.pod(event_id, 1), controller.pod(event_id, 2)
        controller.accept(pod_count=2)
        found = samples(controller.metrics)
        assert found["ottoscaler_live_pods",] == 2
        assert found["ottoscaler_ready_workers",] == 5
        assert found["ottoscaler_leases_held",] == 2
        assert found["ottoscaler_cluster_known",] == 1
        assert figures(controller, "ottoscaler_tasks") == {"waiting_key": 0, "waiting": 1, "running": 1}
        waiting = {"waiting": 5, "creating": 0, "pending": 2, "running": 0, "ending": 0}
        assert figures(controller, "ottoscaler_workers") == waiting
        assert figures(controller, "ottoscaler_pool_threads") == {"working": 0, "awaiting_pod": 2}
        controller.cluster.run(first)
        controller.wait_seen(first, lambda pod: pod.started_at is not None)
        assert figures(controller, "ottoscaler_workers") == {**waiting, "pending": 1, "running": 1}


def test_a_task_that_waits_for_its_key_is_counted_as_such() -> None:
    """It is in no queue, and none of its workers has had a turn."""
    with SimulatedController(threads=["watch"]) as controller:
        register(controller)
        first = controller.accept(concurrency_key="deploy")
        controller.accept(concurrency_key="deploy", pod_count=3)
        controller.pod(first)
        assert figures(controller, "ottoscaler_tasks") == {"waiting_key": 1, "waiting": 0, "running": 1}
        assert figures(controller, "ottoscaler_workers")["waiting"] == 3


def test_workers_are_counted_by_code_too() -> None:
    """As many as by state; one that needs attention under the code that says why."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=2) as controller:
        register(controller)
        event_id = controller.accept(pod_count=5)
        first, second = controller.pod(event_id, 1), controller.pod(event_id, 2)
        controller.cluster.run(first)
        controller.wait_seen(first, lambda pod: pod.started_at is not None)
        controller.cluster.trouble(second, "ErrImagePull", "no such image")
        controller.wait_seen(second, lambda pod: pod.trouble_text)
        found = figures(controller, "ottoscaler_worker_codes")
        assert (found["running"], found["image_backoff"], sum(found.values())) == (1, 1, 5)


def test_the_times_of_a_worker() -> None:
    """Each once, with the trace of the event as exemplar; in seconds."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept(traceparent=PARENT)
        pod = controller.pod(event_id)
        controller.pass_time(4)
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at is not None)
        controller.pass_time(90)
        controller.cluster.succeed(pod)
        controller.result("task")
        controller.idle()
        found = samples(controller.metrics)
        names = ("event_to_create", "create_to_running", "run", "end_to_result")
        assert [found[f"ottoscaler_{name}_seconds_count",] for name in names] == [1, 1, 1, 1]
        assert found["ottoscaler_create_to_running_seconds_sum",] == pytest.approx(4, abs=1.1)  # whole seconds
        assert found["ottoscaler_run_seconds_sum",] == pytest.approx(90, abs=1.1)
        assert found["ottoscaler_workers_finished_total", "none", "succeeded", "Completed"] == 1
        text = controller.metrics.render(openmetrics=True).decode()
        exemplars = [s.exemplar.labels for f in text_string_to_metric_families(text) for s in f.samples if s.exemplar]
        assert exemplars == [{"trace_id": TRACE}] * 5
        assert figures(controller, "ottoscaler_tasks_finished_total")["succeeded"] == 1


def test_a_task_is_counted_once_with_its_last_worker() -> None:
    """Under the outcome that its result has."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept(pod_count=2)
        for index, code in ((1, 0), (2, 3)):
            pod = controller.pod(event_id, index)
            controller.cluster.run(pod)
            controller.cluster.fail(pod, code) if code else controller.cluster.succeed(pod)
        assert controller.result("task")["outcome"] == "failed"
        counted = {"failed": 1, "succeeded": 0, "cancelled": 0, "other": 0}
        eventually(lambda: figures(controller, "ottoscaler_tasks_finished_total") == counted, what="the count")


def test_the_start_of_a_pod_that_was_taken_over_is_not_counted_again() -> None:
    """The replica that had it before has counted it, and its own clock would count the outage."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
        event_id = first.accept()
        pod = first.pod(event_id)
        first.cluster.run(pod)
        first.wait_seen(pod, lambda seen: seen.started_at is not None)
        assert figures(first, "ottoscaler_create_to_running_seconds_count") == {"": 1}
        first.close(release=False)
    with SimulatedController(servers, threads=["watch", "lease"]) as controller:
        controller.wait_and_look(controller.lease_s + 2)
        assert controller.pod(event_id) == pod
        assert figures(controller, "ottoscaler_create_to_running_seconds_count") == {"": 0}


def test_a_retry_counts_under_the_reason_of_the_attempt_before() -> None:
    """And the result under its own, once."""
    with SimulatedController(threads=["watch"], INFRA_RETRIES=3) as controller:
        event_id = controller.accept()
        controller.cluster.end_pod(controller.pod(event_id), "Evicted", "the node was low on memory")
        eventually(lambda: figures(controller, "ottoscaler_worker_retries_total")["Evicted"] == 1, what="the retry")
        finished = figures(controller, "ottoscaler_workers_finished_total")
        assert sum(finished.values()) == 0


def test_a_task_taken_over_counts_for_both() -> None:
    """As a take-over of the one, and as a loss of the other, which was only slow."""
    servers = FakeServers()
    with SimulatedController(servers, consumer="slow", threads=["watch"]) as slow:
        event_id = slow.accept()
        slow.pod(event_id)
        with SimulatedController(servers, threads=["watch", "lease"]) as controller:
            controller.wait_and_look(controller.lease_s + 2)
            assert controller.pod(event_id)
            assert figures(controller, "ottoscaler_takeovers_total") == {"": 1}
            slow.lease.step()
            assert figures(slow, "ottoscaler_lease_losses_total") == {"": 1}
            assert figures(controller, "ottoscaler_lease_losses_total") == {"": 0}


def test_the_levels_of_the_queue_are_read_by_a_loop(log: Lines) -> None:
    """Now and then; while Redis is away there are none, and where it refuses, all other work goes on."""
    with SimulatedController() as controller:
        controller.lease.step()
        for _ in range(3):
            controller.send()
        controller.takeover.step()
        assert figures(controller, "ottoscaler_backlog_events") == {"unread": 3, "pending": 0}
        calls = controller.redis.calls["stream_levels"]
        controller.takeover.step()
        assert controller.redis.calls["stream_levels"] == calls
        controller.pass_time(LEVELS_EVERY_S)
        controller.lease.step()
        controller.redis.fail_next("stream_levels")
        controller.takeover.step()
        assert controller.redis.calls["stream_levels"] == calls + 1
        assert all(map(math.isnan, figures(controller, "ottoscaler_backlog_events").values()))
        assert log.of("queue.unread")
        controller.pass_time(LEVELS_EVERY_S)
        controller.lease.step()
        controller.takeover.step()
        assert figures(controller, "ottoscaler_backlog_events")["unread"] == 3


def test_a_scrape_of_a_thousand_workers_is_cheap() -> None:
    """Less than 50 ms of CPU time of the thread that answers it."""
    with SimulatedController() as controller:
        register(controller)
        workers = [StoredWorker(index, attempt=1, pod_was_seen=True) for index in range(1, 1001)]
        controller.ledger.add(task("many", 1000, *workers))
        for number in range(200):
            controller.ledger.add(task(f"few-{number}", 3))
        assert sum(figures(controller, "ottoscaler_workers").values()) == 1600
        costs = []
        for openmetrics in (False, True) * 5:
            began = time.thread_time()
            controller.metrics.render(openmetrics=openmetrics)
            costs.append(time.thread_time() - began)
        print(f"{min(costs) * 1000:.1f} ms of CPU for each scrape")
        assert min(costs) < 0.05


@pytest.mark.parametrize("events", [1000, pytest.param(10_000, marks=pytest.mark.full)])
def test_no_text_from_outside_makes_a_series(events: int) -> None:
    """Events that all differ, good and bad; some are carried out, with failures of the servers."""
    with SimulatedController(
        threads=["watch"], auto=True, MAX_WORKERS=4, READ_AHEAD=1000, TASK_TTL_S=10**8
    ) as controller:
        register(controller)
        before = samples(controller.metrics).keys()
        controller.servers.kubernetes.refuse_next(
            "create", ClusterUnavailable("a secret of the server", unclear=False), times=2
        )
        for start in range(0, events, BATCH):
            for number in range(start, start + BATCH):
                odd = {"pod_count": f"many-{number}"} if number % 100 else {}
                controller.send(
                    task_id=f"task-{number}", reason=f"reason {number}", **{f"field_{number}": number}, **odd
                )
            controller.intake.accept_entries(controller.stream.read_now(BATCH))
            controller.pass_time(5)  # a worker that was refused tries again

        def ended() -> bool:
            controller.pass_time(5)  # one may have been refused after the last batch, and pauses by this clock
            return len(controller.redis.results("worker")) >= events // 100

        eventually(ended, what="all results")
        controller.idle()  # a result is stored a moment before it is counted
        after = samples(controller.metrics)
        assert after["ottoscaler_dead_letters_total", "Invalid"] == events - events // 100
        assert after["ottoscaler_workers_finished_total", "none", "succeeded", "Completed"] == events // 100
        assert after.keys() == before
