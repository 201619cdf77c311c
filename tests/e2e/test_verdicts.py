"""How workers end, by the table of contract section 5: each row that can be brought about on a real node."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.e2e.registry import Registry
from tests.e2e.system import LONG_RUN, Fields, System, names
from tests.e2e.waiting import stays, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def summary(result: Fields) -> tuple[str, str, str]:
    """What the table's row says."""
    return result["outcome"], result["reason"], result["fault"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    """An image registry that refuses in the way the image's name says."""
    made = Registry()
    made.start()
    yield made
    made.close()


class TestWorkersOwn:
    """What the worker's program, or its user, did."""

    @pytest.mark.contract("5.Error")
    @pytest.mark.contract("5.exit_code")
    @pytest.mark.contract("5.fault")
    def test_exit_code(self, shared: System) -> None:
        """A program that fails is its user's fault, and is not tried again unasked."""
        result = shared.verdict(shared.send(type="scale_up", script="exit 3"))
        assert summary(result) == ("failed", "Error", "user")
        assert (result["exit_code"], result["attempt"]) == ("3", "1")

    @pytest.mark.contract("5.failed")
    @pytest.mark.contract("5.succeeded")
    def test_a_failing_worker_among_others(self, shared: System) -> None:
        """The task fails for the reason of the one that failed; the others count."""
        event_id = shared.send(type="scale_up", pod_count=3, script='[ "$OTTO_WORKER_INDEX" != 2 ]')
        task = shared.finished(event_id)
        assert (task["outcome"], task["reason"], task["message"]) == ("failed", "Error", "2 of 3 workers completed")
        assert [task[name] for name in ("succeeded", "failed", "cancelled")] == ["2", "1", "0"]

    @pytest.mark.contract("5.Error")
    @pytest.mark.contract("5.attempt")
    def test_tried_again(self, system: System) -> None:
        """With WORKER_RETRIES a new attempt has its own name and number, and one result reports the last."""
        system.start(WORKER_RETRIES="2")
        event_id = system.send(type="scale_up", script='[ "$OTTO_ATTEMPT" = 2 ]')
        result = system.verdict(event_id)
        assert summary(result) == ("succeeded", "Completed", "none")
        assert result["attempt"] == "2"
        assert result["pod"].endswith("-1-r2")
        system.no_pods(event_id)

    @pytest.mark.contract("5.OOMKilled")
    def test_out_of_memory(self, shared: System) -> None:
        """A program that really takes more than its limit."""
        result = shared.verdict(shared.send(type="scale_up", script="exec tail /dev/zero"))
        assert summary(result) == ("failed", "OOMKilled", "user")
        assert result["exit_code"] == "137"

    @pytest.mark.contract("5.DeadlineExceeded")
    def test_deadline(self, system: System) -> None:
        """WORKER_DEADLINE_S, kept by the kubelet."""
        system.start(WORKER_DEADLINE_S="2", WORKER_RETRIES="1")
        result = system.verdict(system.send(type="scale_up", script=LONG_RUN))
        assert summary(result) == ("failed", "DeadlineExceeded", "user")
        assert result["attempt"] == "1"

    @pytest.mark.contract("5.PodDeleted")
    def test_the_pod_was_deleted_from_outside(self, shared: System) -> None:
        """A user that deletes a worker's pod wants it to be gone: it is not tried again."""
        event_id = shared.send(type="scale_up", script=LONG_RUN)
        shared.kube.delete(names(shared.running(event_id))[0])
        result = shared.verdict(event_id)
        assert summary(result) == ("failed", "PodDeleted", "user")
        assert result["attempt"] == "1"


class TestConfiguration:
    """What the platform's configuration makes impossible."""

    @pytest.mark.contract("5.InvalidImage")
    def test_an_image_name_that_is_none(self, system: System) -> None:
        """At once: waiting changes nothing."""
        system.start(OTTO_AGENT_IMAGE="Not/An/Image:1", IMAGE_PULL_GRACE_S="600")
        event_id = system.send(type="scale_up")
        assert summary(system.verdict(event_id)) == ("failed", "InvalidImage", "config")
        system.no_pods(event_id)

    @pytest.mark.contract("5.ImagePull")
    @pytest.mark.parametrize("status", [404, 401, 403])
    def test_an_image_that_is_refused(self, system: System, registry: Registry, status: int) -> None:
        """The registry does not have it, or not for us: after IMAGE_PULL_GRACE_S it is over."""
        system.start(OTTO_AGENT_IMAGE=registry.image(status), IMAGE_PULL_GRACE_S="1", INFRA_RETRIES="1")
        result = system.verdict(system.send(type="scale_up"))
        assert summary(result) == ("failed", "ImagePull", "config")
        assert result["attempt"] == "1"
        assert registry.image(status) in result["message"]

    @pytest.mark.contract("5.CommandNotFound")
    @pytest.mark.parametrize("program", ["/no/such/program", "no-such-program", "/etc/hostname", "/tmp"])
    def test_a_program_that_cannot_be_executed(self, system: System, program: str) -> None:
        """Not found, no permission, a directory: it is not tried again, and its pod goes."""
        system.start(OTTO_AGENT_COMMAND=json.dumps([program]), INFRA_RETRIES="1", WORKER_RETRIES="1")
        event_id = system.send(type="scale_up")
        result = system.verdict(event_id)
        assert summary(result) == ("failed", "CommandNotFound", "config")
        assert (result["attempt"], result["started_at"]) == ("1", "")
        assert program in result["message"]
        system.no_pods(event_id)

    @pytest.mark.contract("5.Error")
    def test_a_shells_own_exit_code(self, system: System) -> None:
        """127 of a program that ran is the program's."""
        system.start(OTTO_AGENT_COMMAND="no-such-program")
        result = system.verdict(system.send(type="scale_up"))
        assert summary(result) == ("failed", "Error", "user")
        assert result["exit_code"] == "127"

    @pytest.mark.contract("5.Rejected")
    def test_a_pod_that_the_server_refuses(self, system: System) -> None:
        """Here for a ServiceAccount that does not exist."""
        system.start(WORKER_SERVICE_ACCOUNT="nobody")
        result = system.verdict(system.send(type="scale_up"))
        assert summary(result) == ("failed", "Rejected", "config")
        assert 'serviceaccount "nobody" not found' in result["message"]

    @pytest.mark.contract("5.NameConflict")
    def test_a_name_that_is_taken(self, shared: System) -> None:
        """A pod of that name which is not ours is left alone."""
        digest = hashlib.sha256(b"ottoscaler\0conflict-1").hexdigest()[:10]
        shared.kube.add_foreign(f"otto-agent-{digest}-1", {"whose": "somebody-elses"})
        result = shared.verdict(shared.send(type="scale_up", event_id="conflict-1") and "conflict-1")
        assert summary(result) == ("failed", "NameConflict", "config")
        pod = shared.kube.pod(f"otto-agent-{digest}-1")
        assert pod is not None
        assert "deletionTimestamp" not in pod["metadata"]


class TestPlatform:
    """What the platform did; INFRA_RETRIES is for these."""

    @pytest.mark.contract("5.ImagePullTransient")
    @pytest.mark.parametrize("status", [503, 429])
    def test_a_registry_that_cannot_just_now(self, system: System, registry: Registry, status: int) -> None:
        """Left to the kubelet until PENDING_TIMEOUT_S, then tried again."""
        system.start(OTTO_AGENT_IMAGE=registry.image(status), PENDING_TIMEOUT_S="3", INFRA_RETRIES="1")
        result = system.verdict(system.send(type="scale_up"))
        assert summary(result) == ("failed", "ImagePullTransient", "infra")
        assert result["attempt"] == "2"

    @pytest.mark.contract("5.ImagePullTransient")
    def test_a_registry_out_of_reach(self, system: System) -> None:
        """No such host, as on a machine without a network: it may be there tomorrow."""
        image = "registry.invalid/worker:1"
        system.start(OTTO_AGENT_IMAGE=image, PENDING_TIMEOUT_S="3", IMAGE_PULL_GRACE_S="1", INFRA_RETRIES="0")
        result = system.verdict(system.send(type="scale_up"))
        assert summary(result) == ("failed", "ImagePullTransient", "infra")
        assert image in result["message"]

    @pytest.mark.contract("5.started_at")
    def test_what_never_started_has_no_start(self, system: System) -> None:
        """The kubelet then reports the beginning of the epoch; a result says nothing instead."""
        system.start(OTTO_AGENT_COMMAND='["/no/such/program"]', INFRA_RETRIES="0")
        assert system.verdict(system.send(type="scale_up"))["started_at"] == ""

    @pytest.mark.contract("5.Unschedulable")
    def test_no_node_for_it(self, system: System) -> None:
        """After PENDING_TIMEOUT_S, in the scheduler's words."""
        system.start(PENDING_TIMEOUT_S="2", WORKER_NODE_SELECTOR='{"ottoscaler.test/nowhere": "true"}')
        event_id = system.send(type="scale_up")
        result = system.verdict(event_id)
        assert summary(result) == ("failed", "Unschedulable", "infra")
        assert "nodes are available" in result["message"]
        assert (result["node"], result["attempt"]) == ("", "1")
        system.no_pods(event_id)

    @pytest.mark.contract("5.PendingTimeout")
    def test_not_started_in_time(self, system: System, registry: Registry) -> None:
        """Nothing is wrong, it only takes too long: here a registry that is slow."""
        system.start(OTTO_AGENT_IMAGE=registry.image(0), PENDING_TIMEOUT_S="3", INFRA_RETRIES="1")
        result = system.verdict(system.send(type="scale_up"))
        assert summary(result) == ("failed", "PendingTimeout", "infra")
        assert result["attempt"] == "1"

    @pytest.mark.contract("5.Preempted")
    def test_preempted(self, system: System) -> None:
        """A more important pod needs the room."""
        name, millicores = system.kube.node()
        most = f"{millicores * 6 // 10}m"
        here = json.dumps({"kubernetes.io/hostname": name})
        system.start(INFRA_RETRIES="0", WORKER_NODE_SELECTOR=here, WORKER_CPU_REQUEST=most, WORKER_CPU_LIMIT="1000")
        event_id = system.send(type="scale_up", script=LONG_RUN)
        system.running(event_id)
        system.kube.add_important("important", name, most)
        assert summary(system.verdict(event_id)) == ("failed", "Preempted", "infra")

    @pytest.mark.contract("5.Evicted")
    def test_evicted(self, system: System) -> None:
        """A node that is drained costs an attempt of the platform's, not of the worker's."""
        system.start(INFRA_RETRIES="1")
        event_id = system.send(type="scale_up", script=f'[ "$OTTO_ATTEMPT" = 2 ] || {{ {LONG_RUN}; }}')
        system.kube.evict(names(system.running(event_id))[0])
        result = system.verdict(event_id)
        assert summary(result) == ("succeeded", "Completed", "none")
        assert result["attempt"] == "2"


class TestWaiting:
    """What is waiting, and no failure."""

    @pytest.mark.contract("5.waiting")
    def test_a_quota_is_waited_for(self, system: System) -> None:
        """Two workers where one pod is allowed: one after the other, and both succeed."""
        system.kube.limit_pods(1)
        system.start(PENDING_TIMEOUT_S="2")
        event_id = system.send(type="scale_up", pod_count=2, script="sleep 2")
        assert system.finished(event_id)["succeeded"] == "2"
        assert {result["attempt"] for result in system.results(event_id)} == {"1"}

    @pytest.mark.contract("2.MAX_WORKERS")
    def test_max_workers(self, system: System) -> None:
        """No more live pods than MAX_WORKERS, and all get their turn."""
        system.start(MAX_WORKERS="2")
        event_id = system.send(type="scale_up", pod_count=4, script="exit 0")
        live = wait_for(lambda: system.pods_of(event_id), "the first pods")
        most = len(live)
        while not system.results(event_id, "task"):
            alive = [pod for pod in system.pods_of(event_id) if pod["status"]["phase"] in ("Pending", "Running")]
            most = max(most, len(alive))
        assert most == 2
        assert system.finished(event_id)["succeeded"] == "4"


class TestEvents:
    """What comes in: contract, section 3."""

    @pytest.mark.contract("5.Rejected")
    @pytest.mark.parametrize(
        ("fields", "word"),
        [
            ({"type": "scale_sideways"}, "type"),
            ({"type": "scale_up", "pod_count": "0"}, "pod_count"),
            ({"type": "scale_up", "pod_count": "1001"}, "MAX_PODS_PER_EVENT"),
            ({"type": "scale_up", "task_id": "no spaces"}, "task_id"),
            ({"type": "scale_up", "worker_index": "7"}, "OTTO_WORKER_INDEX"),
        ],
    )
    @pytest.mark.contract("3.dead-letter")
    @pytest.mark.contract("3.limits")
    def test_a_bad_event(self, shared: System, fields: Fields, word: str) -> None:
        """A dead letter that says why, a result `Rejected`, and no pod."""
        event_id = shared.send(**fields)
        task = shared.finished(event_id)
        assert (task["outcome"], task["reason"], task["pod_count"]) == ("failed", "Rejected", "0")
        (letter,) = shared.dead_letters(event_id)
        assert letter["dead_reason"] == "Invalid"
        assert word in letter["dead_detail"]
        assert shared.pods_of(event_id) == []

    @pytest.mark.contract("3.event_id")
    def test_the_same_event_twice(self, shared: System) -> None:
        """The same id with the same content is the same event, once."""
        for _ in range(2):
            shared.send(type="scale_up", event_id="twice")
        shared.verdict("twice")
        shared.no_pods("twice")  # the last one goes after its result
        shared.send(type="scale_up", event_id="twice")
        assert stays(lambda: len(shared.results("twice", "task")) == 1 and not shared.pods_of("twice"), 1)

    @pytest.mark.contract("3.event_id")
    def test_another_event_of_that_id(self, shared: System) -> None:
        """With other content it is a dead letter, and the first one goes on."""
        shared.send(type="scale_up", event_id="twin", script="sleep 1")
        other = shared.send(type="scale_up", event_id="twin", pod_count=2)
        (letter,) = wait_for(lambda: shared.dead_letters(other), "the dead letter")
        assert letter["dead_reason"] == "Conflict"
        assert shared.finished("twin")["pod_count"] == "1"

    @pytest.mark.contract("3.passed-on")
    def test_passed_on(self, shared: System) -> None:
        """What we do not know reaches the worker and the results unchanged, and no shell or kubelet expands it."""
        given = "$(OTTO_REASON)$$"
        script = '[ "${#OTTO_REPOSITORY}" = 16 ] && [ "$OTTO_BRANCH" = ü ]'
        event_id = shared.send(type="scale_up", reason="nightly", repository=given, branch="ü", script=script)
        task = shared.finished(event_id)
        assert task["outcome"] == "succeeded"
        assert (task["event_reason"], task["repository"], task["branch"]) == ("nightly", given, "ü")
