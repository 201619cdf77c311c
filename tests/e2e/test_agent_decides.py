"""Only `agent` decides, on a real kubelet: sidecars and init containers that a webhook injects, gates, disruptions."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.registry import Registry
from tests.e2e.system import LONG_RUN, Fields, System, names
from tests.e2e.waiting import stays, wait_for
from tests.e2e.webhook import Webhook

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

Pod = dict[str, Any]
_MERGE = "application/merge-patch+json"


def summary(result: Fields) -> tuple[str, str, str]:
    """What the table's row says."""
    return result["outcome"], result["reason"], result["fault"]


def sidecar(pod: Pod, script: str, *, name: str = "aaa-proxy", image: str = "busybox:latest") -> Pod:
    """Another container, with the rights and limits of ours."""
    own = pod["spec"]["containers"][-1]
    kept = {field: own[field] for field in ("securityContext", "resources", "imagePullPolicy") if field in own}
    return copy.deepcopy({**kept, "name": name, "image": image, "command": ["/bin/sh", "-c", script]})


@pytest.fixture
def webhook(system: System, tmp_path: Path) -> Iterator[Webhook]:
    """For the pods of this test's namespace."""
    made = Webhook(system.kube, tmp_path)
    made.open()
    yield made
    made.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    """An image registry that refuses in the way the image's name says."""
    made = Registry()
    made.start()
    yield made
    made.close()


class TestSidecar:
    """A webhook puts another container beside `agent`."""

    @pytest.mark.contract("4.container")
    @pytest.mark.parametrize(
        ("code", "row"), [(0, ("succeeded", "Completed", "none")), (3, ("failed", "Error", "user"))]
    )
    @pytest.mark.parametrize(
        ("first", "script"),
        [
            pytest.param(True, "exec sleep 600", id="never ends, and ignores SIGTERM"),
            pytest.param(False, LONG_RUN, id="ends when it is asked to"),
            pytest.param(True, "exit 143", id="ended before"),
            pytest.param(False, "sleep 1; exit 9", id="fails after"),
        ],
    )
    def test_the_result_is_the_agents(
        self, system: System, webhook: Webhook, first: bool, script: str, code: int, row: tuple[str, str, str]
    ) -> None:
        """Whatever the other container does, and wherever it stands in the list."""

        def inject(pod: Pod) -> None:
            containers = pod["spec"]["containers"]
            containers.insert(0 if first else len(containers), sidecar(pod, script))

        webhook.change = inject
        system.start(TERMINATION_GRACE_S="2", WORKER_DEADLINE_S="60")
        began = time.monotonic()
        event_id = system.send(type="scale_up", script=f"exit {code}")
        result = system.verdict(event_id)
        assert (summary(result), result["exit_code"], result["attempt"]) == (row, str(code), "1")
        system.no_pods(event_id)
        assert time.monotonic() - began < 30, "long before the deadline"

    @pytest.mark.contract("4.container")
    def test_a_native_sidecar(self, system: System, webhook: Webhook) -> None:
        """An init container that restarts: the kubelet ends it after `agent`."""

        def inject(pod: Pod) -> None:
            pod["spec"]["initContainers"] = [{**sidecar(pod, LONG_RUN), "restartPolicy": "Always"}]

        webhook.change = inject
        system.start(TERMINATION_GRACE_S="2")
        event_id = system.send(type="scale_up", script="exit 0")
        assert summary(system.verdict(event_id)) == ("succeeded", "Completed", "none")
        system.no_pods(event_id)

    @pytest.mark.contract("4.container")
    @pytest.mark.contract("2.WORKER_RETRIES")
    def test_a_failed_worker_is_tried_again(self, system: System, webhook: Webhook) -> None:
        """Each attempt's pod goes before the next one comes."""
        webhook.change = lambda pod: pod["spec"]["containers"].insert(0, sidecar(pod, "exec sleep 600"))
        system.start(TERMINATION_GRACE_S="1", WORKER_RETRIES="1")
        event_id = system.send(type="scale_up", script='[ "$OTTO_ATTEMPT" = 2 ]')
        result = system.verdict(event_id)
        assert (summary(result), result["attempt"]) == (("succeeded", "Completed", "none"), "2")

    @pytest.mark.contract("4.container")
    def test_a_sidecar_with_a_missing_image(self, system: System, webhook: Webhook, registry: Registry) -> None:
        """The pod stays Pending, and its worker has done its work."""
        image = registry.image(404)
        webhook.change = lambda pod: pod["spec"]["containers"].insert(0, sidecar(pod, "true", image=image))
        system.start(TERMINATION_GRACE_S="2")
        event_id = system.send(type="scale_up", script="exit 0")
        assert summary(system.verdict(event_id)) == ("succeeded", "Completed", "none")
        system.no_pods(event_id)


class TestInit:
    """A webhook puts a container before `agent`."""

    @pytest.mark.contract("5.ImagePull")
    def test_an_image_that_is_not_there(self, system: System, webhook: Webhook, registry: Registry) -> None:
        """Named with the container and its image, after IMAGE_PULL_GRACE_S."""
        image = registry.image(404)

        def inject(pod: Pod) -> None:
            pod["spec"]["initContainers"] = [sidecar(pod, "true", name="setup", image=image)]

        webhook.change = inject
        system.start(IMAGE_PULL_GRACE_S="1")
        event_id = system.send(type="scale_up")
        result = system.verdict(event_id)
        assert summary(result) == ("failed", "ImagePull", "config")
        assert f"init container setup (image {image}): " in result["message"]
        assert result["started_at"] == ""
        system.no_pods(event_id)

    @pytest.mark.contract("5.StartError")
    @pytest.mark.contract("5.CommandNotFound")
    @pytest.mark.parametrize(
        ("command", "row", "text"),
        [
            (["/bin/sh", "-c", "exit 3"], ("failed", "StartError", "infra"), "exited with code 3"),
            (["/no/such/program"], ("failed", "CommandNotFound", "config"), "/no/such/program"),
        ],
    )
    def test_one_that_fails(
        self, system: System, webhook: Webhook, command: list[str], row: tuple[str, str, str], text: str
    ) -> None:
        """The worker never ran: its exit code is not the worker's."""

        def inject(pod: Pod) -> None:
            pod["spec"]["initContainers"] = [{**sidecar(pod, "", name="setup"), "command": command}]

        webhook.change = inject
        system.start(INFRA_RETRIES="0")
        result = system.verdict(system.send(type="scale_up"))
        assert (summary(result), result["exit_code"], result["started_at"]) == (row, "", "")
        assert "init container setup (image busybox:latest)" in result["message"]
        assert text in result["message"]


class TestPlatform:
    """What the platform says in words of its own."""

    @pytest.mark.contract("5.waiting")
    def test_a_gate(self, system: System, webhook: Webhook) -> None:
        """No clock runs, `why` names it, and the worker runs when it is lifted."""

        def gate(pod: Pod) -> None:
            pod["spec"]["schedulingGates"] = [{"name": "example.com/quota"}]

        webhook.change = gate
        system.start(PENDING_TIMEOUT_S="2")
        event_id = system.send(type="scale_up", script="exit 0")
        (pod,) = wait_for(lambda: system.pods_of(event_id), "the pod")
        key = f"otto:scale:task:{event_id}"
        wait_for(lambda: "example.com/quota" in str(system.redis.hget(key, "why")), "the gate to be named")
        assert stays(lambda: system.pods_of(event_id) and not system.results(event_id), 4)
        system.kube.api.patch_namespaced_pod(
            pod["metadata"]["name"], system.kube.namespace, {"spec": {"schedulingGates": None}},
            _content_type=_MERGE, _preload_content=False,
        )  # fmt: skip
        result = system.verdict(event_id)
        assert (summary(result), result["attempt"]) == (("succeeded", "Completed", "none"), "1")

    @pytest.mark.contract("5.Evicted")
    def test_a_disruption_for_a_reason_of_a_later_time(self, system: System) -> None:
        """The condition says that the platform ended it; its word stays in the message."""
        system.start(INFRA_RETRIES="0")
        event_id = system.send(type="scale_up", script=LONG_RUN)
        (name,) = names(system.running(event_id))
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByNovelController"}
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        patch = {"status": {"conditions": [{**condition, "lastTransitionTime": moment, "message": ""}]}}
        system.kube.api.patch_namespaced_pod_status(name, system.kube.namespace, patch, _preload_content=False)
        system.kube.delete(name)
        result = system.verdict(event_id)
        assert summary(result) == ("failed", "Evicted", "infra")
        assert "DeletionByNovelController" in result["message"]

    @pytest.mark.contract("5.StartError")
    def test_a_pod_that_the_kubelet_refuses(self, system: System, webhook: Webhook) -> None:
        """It is for another operating system: nothing ran."""
        node, _ = system.kube.node()

        def move(pod: Pod) -> None:
            spec = pod["spec"]
            spec["os"], spec["nodeName"] = {"name": "windows"}, node
            spec.pop("securityContext", None)
            for container in spec["containers"]:
                container.pop("securityContext", None)

        webhook.change = move
        system.start(INFRA_RETRIES="1")
        result = system.verdict(system.send(type="scale_up"))
        assert (summary(result), result["attempt"]) == (("failed", "StartError", "infra"), "2")
        assert "PodOSNotSupported" in result["message"]


class TestCommand:
    """OTTO_AGENT_COMMAND reaches the program as it was written."""

    @pytest.mark.contract("2.OTTO_AGENT_COMMAND")
    @pytest.mark.parametrize(
        "line",
        [
            'test "$OTTO_NOTE" = "x; exit 7"',
            'test "$(echo a)" = a',
            'test "$(OTTO_NOTE)" = ""',
            "test $$ -gt 0 && kill -0 $$",
            "test $((1 + 2)) = 3",
            "test \"$(printf %s '$$')\" = '$'\"$\"",
        ],
    )
    def test_a_shell_line(self, system: System, line: str) -> None:
        """The shell expands it, the kubelet does not; no text of an event becomes part of it."""
        system.start(OTTO_AGENT_COMMAND=line)
        result = system.verdict(system.send(type="scale_up", note="x; exit 7"))
        assert summary(result) == ("succeeded", "Completed", "none")

    @pytest.mark.contract("2.OTTO_AGENT_COMMAND")
    def test_a_list(self, system: System) -> None:
        """Each word is one argument."""
        script = "[ \"$1\" = '$(OTTO_NOTE)' ] && [ \"$2\" = '$$' ]"
        system.start(OTTO_AGENT_COMMAND=json.dumps(["/bin/sh", "-c", script, "sh", "$(OTTO_NOTE)", "$$"]))
        result = system.verdict(system.send(type="scale_up", note="x"))
        assert summary(result) == ("succeeded", "Completed", "none")
