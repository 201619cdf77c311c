"""`explain` on real servers: the controller as a process, an API server, a Redis; each stuck situation has its code.

Nothing schedules and nothing runs here: what a scheduler and a kubelet would write is written by the test, so that each
situation stays as it is for as long as the test looks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from kubernetes import client, config

from ottoscaler.adapters.cluster import VERBS
from ottoscaler.cli.main import main
from ottoscaler.core.manifest import LABEL_EVENT, event_hash
from ottoscaler.core.status_codes import StatusCode
from tests.adapters.clusters import NO_NODE, running, waiting
from tests.adapters.kube_admin import KubeAdmin
from tests.deploy.cluster import Cluster
from tests.deploy.manifests import Json
from tests.e2e.controller import Controller
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for
from tests.schemas import faults

pytestmark = [pytest.mark.real, pytest.mark.timeout(240), pytest.mark.contract("1.explain")]

NAMESPACE: Final = "stuck"
#: Here the controller comes as a ServiceAccount, which may lose its rights, and has little room.
NARROW: Final = "narrow"
ROLE: Final = "workers"
POLICY: Final = """
version: 1
tenants: {default: {}, small: {max_workers: 1}}
default_profile: plain
profiles:
  plain: {}
  served:
    services: [{name: db, image: "busybox:latest", ready: {tcp: 5432}}]
"""
#: How long a code may take to be written, on a machine that does many other things, seconds.
LONG_S: Final = 60.0
C = StatusCode


def hash_of(task: str) -> str:
    """What the label of its pod says."""
    return event_hash("ottoscaler", f"e-{task}")


class Stuck:
    """One controller, and the hands of a scheduler, a kubelet and an administrator. One thread."""

    def __init__(
        self, cluster: Cluster, server: RedisServer, folder: Path, namespace: str = NAMESPACE, **settings: str
    ) -> None:
        self.redis = server.client()
        self._cluster = cluster
        self._admin = KubeAdmin(cluster.server.kubeconfig)
        self._admin.namespace = self._namespace = namespace
        policy = folder / "policy.yaml"
        policy.write_text(POLICY, encoding="utf-8")
        self.environ = {
            "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(server.port), "NAMESPACE": namespace, "LEASE_S": "3",
            "KUBECONFIG": str(cluster.server.kubeconfig), "REDIS_CONSUMER": "otto-0", "POLICY_FILE": str(policy),
            "TENANT_FIELD": "team", "WORKER_RETRIES": "0", "IMAGE_PULL_GRACE_S": "600", "LOG_LEVEL": "INFO",
            **settings,
        }  # fmt: skip
        self.controller = Controller(folder, self.environ)

    def close(self) -> None:
        """Its own namespace stays; the server goes with the session."""
        self.controller.close()
        self._webhook_gone()
        self._admin.clear()
        self._admin.api.api_client.close()
        self.redis.close()

    def send(self, task: str, **fields: str) -> None:
        """An event of this name; a scale_up unless it says otherwise."""
        self.redis.xadd("otto:scale:events", {"type": "scale_up", "task_id": task, "event_id": f"e-{task}", **fields})

    def pod(self, task: str) -> str:
        """The name of its worker's pod, when that is there."""

        def look() -> str:
            selector = f"{LABEL_EVENT}={hash_of(task)}"
            found = self._admin.api.list_namespaced_pod(self._namespace, label_selector=selector).items
            return str(found[0].metadata.name) if found else ""

        return wait_for(look, f"a pod of {task}", LONG_S)

    def bound(self, task: str) -> str:
        """The same, on a node."""
        name = self.pod(task)
        body = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": NO_NODE}}
        self._admin.api.create_namespaced_binding(self._namespace, body, _preload_content=False)
        return name

    def report(self, task: str, status: Any) -> None:
        """What a kubelet or a scheduler writes of its pod."""
        self._admin.set_status(self.pod(task), status)

    def used_up(self) -> None:
        """A quota that no pod fits into any more."""
        body = {"metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}}
        self._admin.api.create_namespaced_resource_quota(NAMESPACE, body, _preload_content=False)
        # what the controller of quotas does elsewhere
        self._admin.api.patch_namespaced_resource_quota_status(
            "full", NAMESPACE, {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}},
            _content_type="application/merge-patch+json", _preload_content=False,
        )  # fmt: skip
        self._refused({}, "exceeded quota")

    def _refused(self, labels: Json, word: str) -> None:
        """Wait until the API server refuses a pod with these labels for a reason that has this word."""
        spec = {"containers": [{"name": "main", "image": "busybox"}]}
        pod = {"metadata": {"name": "probe", "labels": labels}, "spec": spec}
        wait_for(lambda: word in self._cluster.create(NAMESPACE, pod, admin=True).text, f"no pod for {word}", LONG_S)

    def permit(self) -> None:
        """Give the account a Role, and wait until that holds."""
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": list(VERBS)}]
        body = {"metadata": {"name": ROLE}, "rules": rules}
        with suppress(client.exceptions.ApiException):  # it is there from the first time
            self._rights().create_namespaced_role(self._namespace, body, _preload_content=False)
        subject = {"kind": "ServiceAccount", "name": "ottoscaler"}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ROLE}
        binding = {"metadata": {"name": ROLE}, "roleRef": reference, "subjects": [subject]}
        self._rights().create_namespaced_role_binding(self._namespace, binding, _preload_content=False)
        wait_for(self._may_create, "the rights to hold", LONG_S)

    def forbid(self) -> None:
        """Take the rights away, and wait until that holds."""
        self._rights().delete_namespaced_role_binding(ROLE, self._namespace, _preload_content=False)
        wait_for(lambda: not self._may_create(), "the rights to be gone", LONG_S)

    def end_namespace(self) -> None:
        """Delete the namespace: nothing here empties it, so it goes on ending."""
        self._admin.api.delete_namespace(self._namespace, _preload_content=False)

    def _may_create(self) -> bool:
        return self._cluster.may(self._namespace, {"namespace": self._namespace, "verb": "create", "resource": "pods"})

    def _rights(self) -> Any:
        api = config.new_client_from_config(config_file=str(self._cluster.server.kubeconfig))
        return client.RbacAuthorizationV1Api(api)

    def webhook(self, task: str) -> None:
        """A webhook that does not answer, for the pods of one task."""
        one = {
            "name": "away.example.org", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail", "timeoutSeconds": 1, "clientConfig": {"url": "https://127.0.0.1:1/"},
            "objectSelector": {"matchLabels": {LABEL_EVENT: hash_of(task)}},
            "rules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
            ],
        }  # fmt: skip
        body = {"metadata": {"name": "away"}, "webhooks": [one]}
        self._hooks().create_validating_webhook_configuration(body, _preload_content=False)
        self._refused({LABEL_EVENT: hash_of(task)}, "webhook")

    def _webhook_gone(self) -> None:
        with suppress(client.exceptions.NotFoundException):
            self._hooks().delete_validating_webhook_configuration("away", _preload_content=False)

    def _hooks(self) -> Any:
        api = config.new_client_from_config(config_file=str(self._cluster.server.kubeconfig))
        return client.AdmissionregistrationV1Api(api)


@contextmanager
def started(
    cluster: Cluster, server: RedisServer, folder: Path, namespace: str, monkeypatch: pytest.MonkeyPatch,
    **settings: str,
) -> Iterator[Stuck]:  # fmt: skip
    """With an environment in which `explain` finds the same Redis."""
    made = Stuck(cluster, server, folder, namespace, **settings)
    for name in ("REDIS_HOST", "REDIS_PORT"):
        monkeypatch.setenv(name, made.environ[name])
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def narrow(
    cluster: Cluster, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    """Two workers at most, of which one may wait for a node, and rights that can be taken away."""
    cluster.server.new_namespace(NARROW)
    cluster.account("ottoscaler", NARROW)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig_of(NARROW), encoding="utf-8")
    settings = {"KUBECONFIG": str(kubeconfig), "MAX_WORKERS": "2", "MAX_PENDING": "1", "KUBERNETES_EVENTS": "false"}
    with started(cluster, redis_server, tmp_path, NARROW, monkeypatch, **settings) as made:
        made.permit()
        made.controller.ready()
        yield made


@pytest.fixture
def stuck(
    cluster: Cluster, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    """One administrator."""
    cluster.server.new_namespace(NAMESPACE)
    with started(cluster, redis_server, tmp_path, NAMESPACE, monkeypatch) as made:
        made.controller.ready()
        yield made


def code_of(capsys: pytest.CaptureFixture[str], task: str) -> str:
    """The code that `explain` prints; empty where it knows no such event."""
    capsys.readouterr()
    main(["explain", f"e-{task}", "--json"])
    found = json.loads(capsys.readouterr().out or '{"at": "", "id": "", "events": []}')
    if not found["events"]:
        return ""
    assert faults("explain", found) == []
    code: str = found["events"][0]["code"]
    return code


def test_each_stuck_situation_has_its_code(stuck: Stuck, capsys: pytest.CaptureFixture[str]) -> None:
    """In the life of one controller, and after its death: 22 codes."""
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    expected: dict[str, StatusCode] = {}

    def situation(task: str, code: StatusCode, **fields: str) -> None:
        expected[task] = code
        stuck.send(task, **fields)

    def await_codes() -> None:
        """Until each has its code: those that have it are not asked for again."""
        last: dict[str, str] = {}

        def look() -> bool:
            last.update({task: code_of(capsys, task) for task in expected})
            seen.update(expected[task] for task in last if last[task] == expected.get(task))
            for task in [task for task in expected if last[task] == expected[task]]:
                del expected[task]
            return not expected

        try:
            wait_for(look, "the codes", LONG_S, 0.5)
        except AssertionError:
            assert {task: last[task] for task in expected} == expected

    seen: set[StatusCode] = set()
    stuck.webhook("webhook")
    situation("dead", C.DEAD_LETTER, pod_count="none")
    situation("late", C.EXPIRED, not_after="2020-01-01T00:00:00Z")
    for task, code in (
        ("node", C.NODE), ("image", C.IMAGE_BACKOFF), ("image-gone", C.IMAGE_BACKOFF), ("setup", C.CONFIG_ERROR),
        ("command", C.START_ERROR), ("starts", C.STARTING), ("runs", C.RUNNING), ("silent", C.NODE_SILENT),
        ("ends", C.ENDING), ("done", C.FINISHED), ("webhook", C.WEBHOOK), ("gate", C.GATED),
        ("init", C.INIT_CONTAINER),
    ):  # fmt: skip
        situation(task, code)
    situation("served", C.SERVICE, profile="served")
    situation("holder", C.STARTING, concurrency_key="deploy")
    situation("second", C.CONCURRENCY_KEY, concurrency_key="deploy")
    situation("small-1", C.STARTING, team="small")
    situation("small-2", C.TENANT_SHARE, team="small")
    stuck.report("node", {"conditions": [unscheduled]})
    stuck.report("gate", {"conditions": [gated]})
    for task in ("served", "init", "image", "image-gone", "setup", "command", "runs", "silent", "ends", "done"):
        stuck.bound(task)
    crashed = waiting("CrashLoopBackOff", "back-off restarting failed container")["containerStatuses"][0]
    served = {**crashed, "name": "db", "restartCount": 2, "lastState": {"terminated": {"exitCode": 1}}}
    stuck.report("served", {"phase": "Pending", "initContainerStatuses": [served]})
    mesh = {**waiting("ImagePullBackOff", "Back-off pulling image")["containerStatuses"][0], "name": "mesh"}
    stuck.report("init", {"phase": "Pending", "initContainerStatuses": [mesh]})
    stuck.report("image", waiting("ImagePullBackOff", "Back-off pulling image"))
    stuck.report("image-gone", waiting("ErrImagePull", "manifest unknown"))
    stuck.report("setup", waiting("CreateContainerConfigError", 'configmap "x" not found'))
    stuck.report("command", waiting("RunContainerError", "exec: no such file or directory"))
    for task in ("runs", "silent", "ends", "done"):
        stuck.report(task, running())
    stuck.report("silent", {"phase": "Unknown"})
    stuck.report("done", {"phase": "Succeeded"})
    wait_for(lambda: code_of(capsys, "ends") == C.RUNNING, "a worker that runs", LONG_S)
    situation("down", C.VICTIMS, type="scale_down", task_id="ends")
    await_codes()
    stuck.used_up()
    situation("quota", C.QUOTA)
    await_codes()
    stuck.controller.kill()
    situation("unread", C.UNREAD)
    expected["runs"] = C.LEASE_EXPIRED
    await_codes()
    stuck.redis.xreadgroup("ottoscaler", "otto-1", {"otto:scale:events": ">"}, count=1)
    expected["unread"] = C.UNACCEPTED
    await_codes()
    assert len(seen) == 22, sorted(seen)


def test_what_the_cluster_and_the_limits_do_not_allow(narrow: Stuck, capsys: pytest.CaptureFixture[str]) -> None:
    """Room that is used up, rights that are taken away in mid-run, and a namespace that ends: 4 codes."""

    def await_code(task: str, code: StatusCode) -> None:
        wait_for(lambda: code_of(capsys, task) == code, f"{code} of {task}", LONG_S, 0.5)

    def run(task: str) -> None:
        narrow.bound(task)
        narrow.report(task, running())
        await_code(task, C.RUNNING)

    narrow.send("first")
    narrow.pod("first")
    narrow.send("second")
    await_code("second", C.MAX_PENDING)
    run("first")
    run("second")
    narrow.send("third")
    await_code("third", C.CAPACITY)
    narrow.forbid()
    narrow.report("first", {"phase": "Succeeded"})
    await_code("first", C.FINISHED)
    await_code("third", C.RIGHTS)
    narrow.permit()
    run("third")
    narrow.send("fourth")
    await_code("fourth", C.CAPACITY)
    narrow.end_namespace()
    narrow.report("second", {"phase": "Succeeded"})
    await_code("fourth", C.NAMESPACE)
