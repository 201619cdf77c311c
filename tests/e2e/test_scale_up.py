"""The way of one event through all of it, as the project's first user described it: three workers for task-123."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.system import Fields, Pod, System, names
from tests.e2e.waiting import wait_for

pytestmark = pytest.mark.e2e

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_LIVE = 'echo "$OTTO_TASK_ID/$OTTO_WORKER_INDEX"; trap "exit 0" TERM; sleep 3 & wait $!'
_WORKER_FIELDS = {
    "kind", "event_id", "task_id", "outcome", "reason", "message", "finished_at", "fault", "exit_code", "pod",
    "pod_uid", "node", "attempt", "index", "created_at", "scheduled_at", "started_at",
    "output",
}  # fmt: skip
_TASK_FIELDS = {
    "kind", "event_id", "task_id", "outcome", "reason", "message", "finished_at", "pod_count", "succeeded", "failed",
    "cancelled", "received_at",
}  # fmt: skip


@dataclass(frozen=True)
class Story:
    """What was seen while the event ran, and after it."""

    event_id: str
    namespace: str
    pods: list[Pod]
    task: Fields
    workers: list[Fields]
    lines: list[dict[str, Any]]
    system: System

    def said(self, event: str) -> list[str]:
        """The messages of one name, in order."""
        return [line["message"] for line in self.lines if line["event"] == event]

    def pod_env(self, index: int) -> Mapping[str, Any]:
        """The variables of a worker."""
        variables = self.pods[index - 1]["spec"]["containers"][0]["env"]
        return {one["name"]: one.get("value", one.get("valueFrom")) for one in variables}


@pytest.fixture(scope="module")
def story(new_system: Callable[[], System]) -> Iterator[Story]:
    """The event of the issue, in a namespace that accepts nothing but restricted pods, with our own defaults."""
    system = new_system()
    system.kube.enforce("restricted")
    defaults = {"WORKER_CPU_REQUEST": "", "WORKER_MEMORY_REQUEST": "", "TERMINATION_GRACE_S": ""}
    controller = system.start(OTTO_AGENT_COMMAND=_LIVE, **defaults)
    event_id = system.send(type="scale_up", pod_count=3, task_id="task-123")
    pods = system.running(event_id, 3)
    task = system.finished(event_id)
    system.no_pods(event_id)
    wait_for(lambda: len(controller.said("worker.deleted")) == 3, "the last words of the log")
    namespace = system.kube.namespace
    yield Story(event_id, namespace, pods, task, system.results(event_id), list(controller.lines), system)
    system.close()


class TestPods:
    """Contract, section 4: read from the API server while they ran."""

    @pytest.mark.contract("4.name")
    def test_names_follow_from_the_event(self, story: Story) -> None:
        """`otto-agent-<hash>-<index>`, the hash that of instance and event id."""
        digest = hashlib.sha256(f"ottoscaler\0{story.event_id}".encode()).hexdigest()[:10]
        assert names(story.pods) == [f"otto-agent-{digest}-{index}" for index in (1, 2, 3)]

    @pytest.mark.contract("4.labels")
    def test_labels(self, story: Story) -> None:
        """Manager, instance, event, worker, attempt and task."""
        digest = names(story.pods)[1].split("-")[2]
        assert story.pods[1]["metadata"]["labels"] == {
            "managed-by": "ottoscaler",
            "ottoscaler.io/instance": "ottoscaler",
            "ottoscaler.io/event": digest,
            "ottoscaler.io/worker": "2",
            "ottoscaler.io/attempt": "1",
            "app.kubernetes.io/managed-by": "ottoscaler",
            "ottoscaler.io/task": "task-123",
        }

    @pytest.mark.contract("4.annotations")
    def test_annotations(self, story: Story) -> None:
        """Ids, the digest of the spec, and the event, enough to take it up again."""
        answer = story.pods[0]["metadata"]["annotations"]
        assert answer["ottoscaler.io/event-id"] == story.event_id
        assert answer["ottoscaler.io/task-id"] == "task-123"
        assert re.fullmatch(r"[0-9a-f]{64}", answer["ottoscaler.io/spec-digest"])
        assert json.loads(answer["ottoscaler.io/event"])["pod_count"] == 3
        assert answer["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert answer["karpenter.sh/do-not-disrupt"] == "true"

    @pytest.mark.contract("4.env")
    def test_environment(self, story: Story) -> None:
        """What every worker gets."""
        expected = {
            "OTTO_TASK_ID": "task-123",
            "OTTO_EVENT_ID": story.event_id,
            "OTTO_WORKER_INDEX": "2",
            "OTTO_WORKER_COUNT": "3",
            "OTTO_ATTEMPT": "1",
            "OTTO_TASK_KEY": f"{story.event_id}/2",
            "OTTO_POD_NAME": names(story.pods)[1],
            "OTTO_OUTPUT": "/dev/termination-log",
        }
        assert expected.items() <= story.pod_env(2).items()
        assert story.pod_env(2)["OTTO_NAMESPACE"]["fieldRef"]["fieldPath"] == "metadata.namespace"

    @pytest.mark.contract("4.security")
    def test_security(self, story: Story) -> None:
        """The namespace refuses all but restricted pods; besides that no token is mounted, and nothing is restarted."""
        spec = story.pods[0]["spec"]
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["restartPolicy"] == "Never"
        assert [volume for volume in spec["volumes"] if "projected" in volume or "secret" in volume] == []

    def test_resources_and_deadline(self, story: Story) -> None:
        """The defaults of section 2."""
        spec = story.pods[0]["spec"]
        assert spec["containers"][0]["resources"] == {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        }
        assert (spec["activeDeadlineSeconds"], spec["terminationGracePeriodSeconds"]) == (21600, 30)

    def test_workspace(self, story: Story) -> None:
        """An emptyDir, their HOME and working directory."""
        container = story.pods[0]["spec"]["containers"][0]
        assert container["workingDir"] == "/workspace"
        assert container["volumeMounts"] == [{"mountPath": "/workspace", "name": "workspace"}]
        assert story.pod_env(1)["HOME"] == "/workspace"


class TestResults:
    """Contract, section 5."""

    @pytest.mark.contract("5.Completed")
    @pytest.mark.contract("5.exactly-once")
    def test_one_result_for_each_worker(self, story: Story) -> None:
        """Succeeded, no fault, with the pod it was."""
        assert sorted(worker["index"] for worker in story.workers) == ["1", "2", "3"]
        for worker in story.workers:
            assert worker.keys() == _WORKER_FIELDS
            assert (worker["outcome"], worker["reason"], worker["fault"]) == ("succeeded", "Completed", "none")
            assert (worker["exit_code"], worker["attempt"], worker["task_id"]) == ("0", "1", "task-123")

    @pytest.mark.contract("5.pod")
    @pytest.mark.contract("5.pod_uid")
    @pytest.mark.contract("5.node")
    def test_results_name_the_pods(self, story: Story) -> None:
        """Name, UID and node are those that the API server returned."""
        found = {(worker["pod"], worker["pod_uid"], worker["node"]) for worker in story.workers}
        seen = {(pod["metadata"]["name"], pod["metadata"]["uid"], pod["spec"]["nodeName"]) for pod in story.pods}
        assert found == seen

    @pytest.mark.contract("5.created_at")
    @pytest.mark.contract("5.scheduled_at")
    @pytest.mark.contract("5.started_at")
    @pytest.mark.contract("5.finished_at")
    def test_times_are_in_order(self, story: Story) -> None:
        """RFC 3339 with milliseconds: created, scheduled, started, finished."""
        for worker in story.workers:
            times = [worker[name] for name in ("created_at", "scheduled_at", "started_at", "finished_at")]
            assert all(_STAMP.fullmatch(time) for time in times)
            assert times == sorted(times)

    @pytest.mark.contract("5.task")
    @pytest.mark.contract("5.pod_count")
    @pytest.mark.contract("5.received_at")
    def test_one_result_for_the_task(self, story: Story) -> None:
        """With the sums, after the last worker's."""
        assert story.task.keys() == _TASK_FIELDS
        sums = [story.task[name] for name in ("pod_count", "succeeded", "failed", "cancelled")]
        assert sums == ["3", "3", "0", "0"]
        assert (story.task["outcome"], story.task["reason"]) == ("succeeded", "Completed")
        assert _STAMP.fullmatch(story.task["received_at"])
        entries = story.system.redis.xrange("otto:scale:results")
        assert [fields["kind"] for _, fields in entries] == ["worker", "worker", "worker", "task"]

    @pytest.mark.contract("5.state")
    def test_the_task_hash_says_the_same(self, story: Story) -> None:
        """State finished, each worker's result, and a time to live."""
        key = f"otto:scale:task:{story.event_id}"
        task = story.system.redis.hgetall(key)
        assert (task["state"], task["task_id"], task["pod_count"]) == ("finished", "task-123", "3")
        assert json.loads(task["worker:2"])["outcome"] == "succeeded"
        assert 604_000 < story.system.redis.ttl(key) <= 604_800

    @pytest.mark.contract("5.open")
    def test_nothing_is_left(self, story: Story) -> None:
        """No pod, nothing pending in the group, nothing open, no dead letter."""
        assert story.system.kube.pods() == []
        assert story.system.pending_count() == 0
        assert story.system.open_ids() == []
        assert story.system.redis.xlen("otto:scale:dead") == 0


class TestLog:
    """Contract, section 6."""

    @pytest.mark.contract("6.event.received")
    @pytest.mark.contract("6.worker.created")
    @pytest.mark.contract("6.task.monitoring")
    @pytest.mark.contract("6.task.finished")
    @pytest.mark.contract("6.worker.deleted")
    def test_the_main_flow(self, story: Story) -> None:
        """In the words that are promised."""
        pods = names(story.pods)
        assert story.said("event.received") == ["Received scaling event: scale_up (PodCount: 3)"]
        assert sorted(story.said("worker.created")) == [f"Creating worker pod: {name}" for name in pods]
        assert story.said("task.monitoring") == ["Monitoring pod completion"]
        assert story.said("task.finished") == ["All 3 workers completed successfully"]
        assert sorted(story.said("worker.deleted")) == [f"Cleaning up pod: {name}" for name in pods]
        assert len(story.said("worker.finished")) == 3

    @pytest.mark.contract("5.deletion")
    def test_in_order(self, story: Story) -> None:
        """Received, created, monitored, finished, deleted."""
        order = [line["event"] for line in story.lines]
        flow = ["event.received", "worker.created", "task.monitoring", "worker.finished", "worker.deleted"]
        assert [order.index(name) for name in flow] == sorted(order.index(name) for name in flow)
        last_result = max(index for index, name in enumerate(order) if name == "worker.finished")
        assert order.index("task.finished") > last_result

    @pytest.mark.contract("6.fields")
    def test_lines_carry_their_facts(self, story: Story) -> None:
        """Time, level, event, message first; ids on every line of the task."""
        for line in story.lines:
            assert list(line)[:4] == ["timestamp", "level", "event", "message"]
            assert _STAMP.fullmatch(line["timestamp"])
        for line in story.lines:
            if line["event"].startswith("worker."):
                assert (line["event_id"], line["task_id"]) == (story.event_id, "task-123")
                assert line["pod"] == names(story.pods)[line["worker"] - 1]
                assert line["attempt"] == 1

    @pytest.mark.contract("6.quiet")
    def test_quiet(self, story: Story) -> None:
        """Nothing at INFO for each poll: beside the flow only the start; no warning."""
        assert [line for line in story.lines if line["level"] != "INFO" and line["event"] != "config.not_yet"] == []
        assert len(story.lines) < 20
