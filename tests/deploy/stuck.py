"""A controller as a process, an API server and a Redis, and the hands that bring a task into trouble there: those of a
scheduler, a kubelet and an administrator. `explain` is asked in this process.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3
from kubernetes import client, config

from ottoscaler.adapters.cluster import VERBS
from ottoscaler.cli.main import main
from ottoscaler.core.manifest import LABEL_EVENT, event_hash
from tests.adapters.clusters import NO_NODE
from tests.adapters.kube_admin import KubeAdmin
from tests.deploy.cluster import Cluster
from tests.deploy.manifests import Json
from tests.e2e.controller import SCRIPT, Controller
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for
from tests.schemas import faults

ROLE: Final = "workers"
RUN: Final = (str(SCRIPT), "run")
POLICY: Final = """
version: 1
tenants: {default: {}, small: {max_workers: 1}}
default_profile: plain
profiles:
  plain: {}
  served:
    services: [{name: db, image: "busybox:latest", ready: {tcp: 5432}}]
"""
#: Of a pod that is not created: what the API server says of it is asked for.
SPEC: Final = {"containers": [{"name": "main", "image": "busybox"}]}
#: How long a code may take to be written, on a machine that does many other things, seconds.
LONG_S: Final = 60.0


def hash_of(task: str) -> str:
    """What the label of its pod says."""
    return event_hash("ottoscaler", f"e-{task}")


class Stuck:
    """One controller, and the hands of a scheduler, a kubelet and an administrator. One thread."""

    def __init__(
        self, cluster: Cluster, server: RedisServer, folder: Path, namespace: str,
        entry: Sequence[str] = RUN, **settings: str,
    ) -> None:  # fmt: skip
        """`entry`: another way into the controller, see `Controller`."""
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
        self.controller = Controller(folder, self.environ, entry)

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
        self._admin.api.create_namespaced_resource_quota(self._namespace, body, _preload_content=False)
        # what the controller of quotas does elsewhere
        self._admin.api.patch_namespaced_resource_quota_status(
            "full", self._namespace, {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}},
            _content_type="application/merge-patch+json", _preload_content=False,
        )  # fmt: skip
        self._refused({}, "exceeded quota")

    def _refused(self, labels: Json, word: str) -> None:
        """Wait until the API server refuses a pod with these labels for a reason that has this word."""
        pod = {"metadata": {"name": "probe", "labels": labels}, "spec": SPEC}

        def answer() -> str:
            return self._cluster.create(self._namespace, pod, admin=True).text

        wait_for(lambda: word in answer(), f"no pod for {word}", LONG_S)

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
        self._add_webhook(task, "https://127.0.0.1:1/", timeoutSeconds=1)
        self._refused({LABEL_EVENT: hash_of(task)}, "webhook")

    @contextmanager
    def slow_webhook(self, task: str) -> Iterator[None]:
        """A webhook that takes its time for the pods of one task, when they are created and when they are deleted; at
        the end of this it is gone, and what it was asked goes on.
        """
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            self._add_webhook(task, url, timeoutSeconds=30, failurePolicy="Ignore")

            def is_asked() -> bool:
                with suppress(urllib3.exceptions.HTTPError):
                    probe = {"metadata": {"name": "probe", "labels": {LABEL_EVENT: hash_of(task)}}, "spec": SPEC}
                    self._admin.api.create_namespaced_pod(
                        self._namespace, probe, dry_run="All", _request_timeout=0.5, _preload_content=False
                    )
                return bool(select.select([listener], [], [], 0)[0])

            wait_for(is_asked, "the webhook to be asked", LONG_S)
            yield
            self._webhook_gone()

    def _add_webhook(self, task: str, url: str, **options: object) -> None:
        one = {
            "name": "away.example.org", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail", "clientConfig": {"url": url},
            "objectSelector": {"matchLabels": {LABEL_EVENT: hash_of(task)}},
            "rules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "DELETE"], "resources": ["pods"]}
            ],
            **options,
        }  # fmt: skip
        body = {"metadata": {"name": "away"}, "webhooks": [one]}
        self._hooks().create_validating_webhook_configuration(body, _preload_content=False)

    @contextmanager
    def crowded(self) -> Iterator[None]:
        """The API server carries out one create of the controller's ServiceAccount at once: to others it says later
        (429).
        """
        limits = {
            "nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0,
            "limitResponse": {"type": "Reject"},
        }  # fmt: skip
        level = {"metadata": {"name": "crowded"}, "spec": {"type": "Limited", "limited": limits}}
        account = {"kind": "ServiceAccount", "serviceAccount": {"name": "ottoscaler", "namespace": self._namespace}}
        creates = {"verbs": ["create"], "apiGroups": [""], "resources": ["pods"], "namespaces": [self._namespace]}
        schema = {
            "priorityLevelConfiguration": {"name": "crowded"}, "matchingPrecedence": 10,
            "rules": [{"subjects": [account], "resourceRules": [creates]}],
        }  # fmt: skip
        probe = {"metadata": {"name": "probe"}, "spec": SPEC}
        with config.new_client_from_config(config_file=str(self._cluster.server.kubeconfig)) as api:
            flow = client.FlowcontrolApiserverV1Api(api)
            flow.create_priority_level_configuration(level, _preload_content=False)
            uid = flow.create_flow_schema({"metadata": {"name": "crowded"}, "spec": schema}).metadata.uid
            try:
                wait_for(
                    lambda: self._cluster.create(self._namespace, probe).flow == uid, "creates to be counted apart"
                )
                yield
            finally:
                flow.delete_flow_schema("crowded", _preload_content=False)
                flow.delete_priority_level_configuration("crowded", _preload_content=False)

    def remove(self, task: str) -> None:
        """What a kubelet does when all containers of a pod that goes have ended."""
        self._admin.remove(self.pod(task))

    def finalizers(self, task: str, *names: str) -> None:
        """Another client says that it has to see the end of its pod; without names: that it has seen it."""
        body = {"metadata": {"finalizers": list(names) or None}}
        self._admin.api.patch_namespaced_pod(self.pod(task), self._namespace, body, _preload_content=False)

    def _webhook_gone(self) -> None:
        with suppress(client.exceptions.NotFoundException):
            self._hooks().delete_validating_webhook_configuration("away", _preload_content=False)

    def _hooks(self) -> Any:
        api = config.new_client_from_config(config_file=str(self._cluster.server.kubeconfig))
        return client.AdmissionregistrationV1Api(api)


@contextmanager
def started(
    cluster: Cluster, server: RedisServer, folder: Path, namespace: str, monkeypatch: pytest.MonkeyPatch,
    entry: Sequence[str] = RUN, **settings: str,
) -> Iterator[Stuck]:  # fmt: skip
    """With an environment in which `explain` finds the same Redis."""
    made = Stuck(cluster, server, folder, namespace, entry, **settings)
    for name in ("REDIS_HOST", "REDIS_PORT"):
        monkeypatch.setenv(name, made.environ[name])
    try:
        yield made
    finally:
        made.close()


@contextmanager
def started_as_account(
    cluster: Cluster, server: RedisServer, folder: Path, namespace: str, monkeypatch: pytest.MonkeyPatch, *,
    port: int | None = None, **settings: str,
) -> Iterator[Stuck]:  # fmt: skip
    """The same for a controller that comes as a ServiceAccount of a new namespace, with its rights; when it is ready.
    `port`: another way to the API server.
    """
    cluster.server.new_namespace(namespace)
    cluster.account("ottoscaler", namespace)
    kubeconfig = folder / "kubeconfig"
    text = cluster.kubeconfig_of(namespace).replace(f":{cluster.server.port}", f":{port or cluster.server.port}")
    kubeconfig.write_text(text, encoding="utf-8")
    settings = {"KUBECONFIG": str(kubeconfig), "KUBERNETES_EVENTS": "false", **settings}
    with started(cluster, server, folder, namespace, monkeypatch, **settings) as made:
        made.permit()
        made.controller.ready()
        yield made


def explained(capsys: pytest.CaptureFixture[str], task: str) -> Json:
    """What `explain --json` prints of the one event of this name; empty where it knows none."""
    capsys.readouterr()
    main(["explain", f"e-{task}", "--json"])
    found = json.loads(capsys.readouterr().out or '{"at": "", "id": "", "events": []}')
    if not found["events"]:
        return {}
    assert faults("explain", found) == []
    event: Json = found["events"][0]
    return event


def code_of(capsys: pytest.CaptureFixture[str], task: str) -> str:
    """The code that `explain` prints; empty where it knows no such event."""
    return str(explained(capsys, task).get("code", ""))
