"""What the log says of a worker that is tried again: which attempt ended, how, and which retry of how many follows."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ottoscaler.core.pods import Phase, PodSnapshot
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.worker_status import Obstacle
from ottoscaler.flow.worker_log import WorkerLog
from ottoscaler.metrics import Metrics
from tests.core.builders import deleting, pod, running
from tests.core.drive import LIMITS
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.simulated_controller import SimulatedController


def test_a_retry_after_an_eviction_has_its_reason_and_number(log: Lines) -> None:
    """The line names both pods, the verdict with its message, and the limit."""
    with SimulatedController(threads=["watch"], INFRA_RETRIES=3) as controller:
        event_id = controller.accept()
        first = controller.pod(event_id)
        controller.cluster.end_pod(first, "Evicted", "the node was low on memory")
        (line,) = eventually(lambda: log.of("worker.retried"), what="the retry")
    expected = f"Worker pod {first} ended: Evicted (the node was low on memory"
    assert line.startswith(expected)
    assert line.endswith(f"; retry 1 of 3 as {first}-r2")


@pytest.mark.parametrize("code", [1, 3])
def test_a_retry_after_the_workers_own_failure_counts_its_own_limit(log: Lines, code: int) -> None:
    """WORKER_RETRIES, not INFRA_RETRIES."""
    with SimulatedController(threads=["watch"], WORKER_RETRIES=1) as controller:
        event_id = controller.accept()
        first = controller.pod(event_id)
        controller.cluster.run(first)
        controller.cluster.fail(first, code)
        (line,) = eventually(lambda: log.of("worker.retried"), what="the retry")
    assert f"ended: Error (the worker exited with code {code}" in line
    assert line.endswith(f"; retry 1 of 1 as {first}-r2")


def test_a_retry_has_its_reason_number_and_limit_in_fields(log: Lines) -> None:
    """Of each kind, beside the attempt that follows."""
    with SimulatedController(threads=["watch"], INFRA_RETRIES=3, WORKER_RETRIES=1) as controller:
        event_id = controller.accept()
        controller.cluster.end_pod(controller.pod(event_id), "Evicted")
        eventually(lambda: log.lines("worker.retried"), what="the retry")
        controller.pass_time(60)
        second = controller.pod(event_id, attempt=2)
        controller.cluster.run(second)
        controller.cluster.fail(second, 3)
        lines = eventually(lambda: log.lines("worker.retried")[1:] and log.lines("worker.retried"), what="another")
    named = [tuple(line[name] for name in ("pod", "attempt", "reason", "retry", "limit")) for line in lines]
    first = controller.name(event_id)
    assert named == [(f"{first}-r2", 2, "Evicted", 1, 3), (f"{first}-r3", 3, "Error", 1, 1)]


def test_the_end_of_a_worker_has_its_facts_in_fields(log: Lines) -> None:
    """How it ended, which side has to act, how long it was pending and ran; and the task counts its workers."""
    with SimulatedController(threads=["watch"]) as controller:
        event_id = controller.accept(pod_count=2)
        pods = [controller.pod(event_id, index) for index in (1, 2)]
        controller.pass_time(7)
        for pod, code in zip(pods, (0, 3), strict=True):
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at)
            controller.pass_time(20)
            if code:
                controller.cluster.fail(pod, code)
            else:
                controller.cluster.succeed(pod)
            eventually(lambda pod=pod: pod in [line["pod"] for line in log.lines("worker.finished")])  # type: ignore[misc]
        (task,) = eventually(lambda: log.lines("task.finished"))
    names = ("level", "outcome", "reason", "fault", "exit_code", "pending_s", "duration_s")
    assert [[line[name] for name in names] for line in log.lines("worker.finished")] == [
        ["INFO", "succeeded", "Completed", "none", 0, 7.0, 20.0],
        ["WARNING", "failed", "Error", "user", 3, 27.0, 20.0],
    ]
    counts = ("level", "outcome", "pod_count", "succeeded", "failed", "cancelled", "duration_s")
    assert [task[name] for name in counts] == ["WARNING", "failed", 2, 1, 1, 0, 47.0]


def test_a_task_that_did_not_fail_is_no_warning(log: Lines) -> None:
    """One task succeeds; the workers of the other are cancelled before they have a pod."""
    with SimulatedController(threads=["watch", "lease", "control", "reader"], MAX_WORKERS=1) as controller:
        event_id = controller.send()
        controller.pod(event_id)
        waiting = controller.send(task_id="t", pod_count=2)
        eventually(lambda: controller.ledger.tasks.has(waiting))
        controller.send(type="scale_down", task_id="t")
        eventually(lambda: controller.redis.results("scale_down"))
        controller.cluster.succeed(controller.name(event_id))
        lines = eventually(lambda: log.lines("task.finished")[1:] and log.lines("task.finished"))
    counts = ("event_id", "level", "outcome", "pod_count", "succeeded", "failed", "cancelled")
    assert [[line[name] for name in counts] for line in lines] == [
        [waiting, "INFO", "cancelled", 2, 0, 0, 2], [event_id, "INFO", "succeeded", 1, 1, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "after_s", "reason", "limit_s"),
    [
        ("pending", 60, "PendingTimeout", 60),
        ("pulling", 20, "ImagePull", 20),
        ("invalid", 0, "InvalidImage", None),
        ("running", 131, "DeadlineExceeded", 101),
        ("outlived", 15, "Completed", 15),
    ],
)
def test_a_pod_that_is_ended_has_the_limit_in_a_field(
    log: Lines, state: str, after_s: int, reason: str, limit_s: int | None
) -> None:
    """The one that it has passed, seconds; none where no time is to be waited."""
    with SimulatedController(
        threads=["watch"], PENDING_TIMEOUT_S=60, IMAGE_PULL_GRACE_S=20, WORKER_DEADLINE_S=101, TERMINATION_GRACE_S=15
    ) as controller:
        pod = controller.pod(controller.accept())
        if state == "pulling":
            controller.cluster.trouble(pod, "ImagePullBackOff", "manifest unknown: not found")
            controller.wait_seen(pod, lambda seen: seen.trouble)
        elif state == "invalid":
            controller.cluster.trouble(pod, "InvalidImageName")
        elif state == "outlived":
            controller.cluster.outlive(pod)
            controller.wait_seen(pod, lambda seen: seen.agent_ended)
        elif state == "running":
            controller.cluster.run(pod)
            controller.wait_seen(pod, lambda seen: seen.started_at)
        controller.pass_time(after_s)
        (line,) = eventually(lambda: log.lines("worker.terminating"), what="its end")
        if state != "pending":  # one without a node the server takes away at once
            eventually(lambda: controller.calls("delete"))
            controller.cluster.vanish(pod)
        controller.result("task")
    assert [line[name] for name in ("attempt", "reason", "limit_s")] == [1, reason, limit_s]


def test_the_lines_of_a_worker_that_is_ended_without_a_thread_name_it(log: Lines) -> None:
    """A cancelled worker that is taken up while the pool is full: the same facts as on a thread of the pool."""
    with SimulatedController(threads=["watch"]) as first:
        event_id = first.accept(task_id="t")
        pod = first.pod(event_id)
        first.cluster.run(pod)
        first.close()
        with SimulatedController(
            first.servers, consumer="c2", threads=["watch", "control"], MAX_WORKERS=1
        ) as controller:
            controller.pod(controller.accept())
            termination = Termination(EndReason.SCALED_DOWN)
            task = controller.stream.take_over(event_id, same_consumer=False)
            assert task is not None
            controller.stream.store_termination(event_id, None, 1, termination)
            controller.intake.open_task(task)
            controller.ledger.cancel(event_id, 1, termination)
            eventually(lambda: controller.calls("delete"), what="its end")
            controller.cluster.vanish(pod)
            (line,) = eventually(lambda: log.lines("worker.finished"))
    assert [line[name] for name in ("event_id", "task_id", "worker", "outcome")] == [event_id, "t", 1, "cancelled"]


@pytest.mark.parametrize(
    ("fields", "type_", "pod_count"),
    [
        ({"pod_count": 3}, "scale_up", 3),
        ({}, "scale_up", 1),
        ({"type": "scale_down", "task_id": "t"}, "scale_down", None),
        ({"type": "scale_down", "pod_count": 2}, "scale_down", 2),
    ],
)
def test_an_event_has_its_type_and_its_count_in_fields(
    log: Lines, fields: dict[str, object], type_: str, pod_count: int | None
) -> None:
    """Null: all workers of the task."""
    with SimulatedController() as controller:
        event_id = controller.accept(**fields)
    (line,) = log.lines("event.received")
    assert [line[name] for name in ("event_id", "type", "pod_count")] == [event_id, type_, pod_count]


def stepped(before: PodSnapshot | None, after: PodSnapshot | None, **more: object) -> tuple[LedgerDriver, bool]:
    """A worker of which a step was noted: its ledger, and whether its status is to be written."""
    driver = LedgerDriver()
    driver.ledger.add(task("a"))
    run = driver.take()
    run.life = replace(run.life, pod=after)
    run.state = run.life.state
    for name, value in more.items():
        setattr(run, name, value)
    driver.ledger.status_buffer.take(driver.clock.now())
    driver.clock.advance(60)
    metrics = Metrics()
    log = WorkerLog(driver.clock, driver.ledger.tasks, driver.ledger.status_buffer, metrics, None)
    log.step(run, replace(run.life, pod=before), LIMITS)
    return driver, bool(driver.ledger.status_buffer.take(driver.clock.now()))


@pytest.mark.parametrize("seen", [None, pod()])
@pytest.mark.parametrize("code", [StatusCode.REDIS, StatusCode.DEFECT, StatusCode.QUOTA, None])
def test_an_obstacle_of_ours_is_over_with_any_step_and_the_servers_with_the_pod(
    code: StatusCode | None, seen: PodSnapshot | None
) -> None:
    """A quota is shown until the pod is there, however often it was asked for."""
    obstacle = None if code is None else Obstacle(code, "x")
    driver, written = stepped(seen, seen, obstacle=obstacle)
    (run,) = (run for run in driver.ledger.tasks.get("a").runs.values())
    over = code in (StatusCode.REDIS, StatusCode.DEFECT) or (code is not None and seen is not None)
    assert (run.obstacle, written) == (None if over else obstacle, over)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (None, None, False), (None, pod(), False), (pod(), pod(), False), (pod(), None, False),
        (pod(), pod(Phase.UNKNOWN), True), (running(), deleting(running()), True),
        (deleting(running()), replace(deleting(running()), resource_version="8"), False),
    ],
)  # fmt: skip
def test_a_status_is_written_where_the_phase_or_the_deletion_is_another(
    before: PodSnapshot | None, after: PodSnapshot | None, changed: bool
) -> None:
    """Where the state stays, too."""
    assert stepped(before, after)[1] is changed
