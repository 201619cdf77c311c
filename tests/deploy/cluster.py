"""An API server to which the manifests were applied, the controller's ServiceAccount as a user, and its requests."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import urllib3
from kubernetes import client, config

from tests.conftest import require
from tests.deploy.manifests import ROOT, Json, only, overlay
from tests.e2e.kube_server import KubeServer
from tests.e2e.waiting import wait_for

#: Where the overlays went.
PRODUCTION: Final = "ottoscaler"
DEV: Final = "jinwoo-dev"
#: Here the controller's account may do anything to pods: only the policy stands in its way.
GENEROUS: Final = "generous"
#: A policy holds some time after it was applied, seconds at the most.
HOLDS_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said; `flow` is the UID of the FlowSchema that it counted the request to."""

    status: int
    text: str
    flow: str = ""

    @property
    def forbidden(self) -> bool:
        """By RBAC, not by admission."""
        return self.status == 403 and "cannot" in self.text and " resource " in self.text


def audited(folder: Path) -> list[str]:
    """Options with which an API server notes each request, its user and what became of it; see `Cluster.audit`."""
    rule = {"level": "Metadata", "omitStages": ["RequestReceived"]}
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [rule]}
    (folder / "audit-policy").write_text(json.dumps(policy), encoding="utf-8")
    log = f"--audit-log-path={folder}/audit.log"
    return [f"--audit-policy-file={folder}/audit-policy", log, "--audit-log-mode=blocking"]


class Cluster:
    """The server with both overlays in it. One thread."""

    def __init__(self, server: KubeServer) -> None:
        self.server = server
        self._api: Any = config.new_client_from_config(config_file=str(server.kubeconfig))
        self._core: Any = client.CoreV1Api(self._api)
        self._tokens: dict[str, str] = {}

    def audit(self) -> list[Json]:
        """What was noted of all requests."""
        lines = (self.server.directory / "audit.log").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Let go of the connections."""
        self._api.close()

    def kubectl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl as an administrator, in the checkout."""
        return subprocess.run(
            [require("kubectl"), *arguments], cwd=ROOT, env={**os.environ, "KUBECONFIG": str(self.server.kubeconfig)},
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def apply_all(self) -> None:
        """Production in a namespace of its own making, development in one that is there, and wait for the policy."""
        self.said_well(self.kubectl("apply", "-k", "deploy/overlays/production"))
        for name in (DEV, GENEROUS):
            self.server.new_namespace(name)
        self.account("default", PRODUCTION)
        self.said_well(self.kubectl("apply", "-n", DEV, "-k", "deploy/overlays/dev"))
        for name in (PRODUCTION, DEV):
            self._count_quota(name)
        self._be_generous()
        self._offer_classes()
        wait_for(self._holds, "the policy to hold", HOLDS_S)

    def said_well(self, done: subprocess.CompletedProcess[str]) -> list[str]:
        """The lines of a command that went well, without a warning."""
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout.splitlines()

    def account(self, name: str, namespace: str) -> None:
        """A ServiceAccount; elsewhere a controller makes the one of the name default."""
        self._core.create_namespaced_service_account(namespace, {"metadata": {"name": name}}, _preload_content=False)

    def _count_quota(self, namespace: str) -> None:
        """What the controller of quotas does elsewhere: without its word nothing is admitted."""
        hard = only(overlay("production"), "ResourceQuota")["spec"]["hard"]
        body = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
        self._core.patch_namespaced_resource_quota_status(
            "ottoscaler-workers", namespace, body, _content_type="application/merge-patch+json", _preload_content=False
        )

    def _offer_classes(self) -> None:
        """The classes that a profile of the tests names: the API server refuses pods of unknown ones."""
        scheduling: Any = client.SchedulingV1Api(self._api)
        scheduling.create_priority_class({"metadata": {"name": "ci"}, "value": 1000}, _preload_content=False)
        node: Any = client.NodeV1Api(self._api)
        node.create_runtime_class({"metadata": {"name": "gvisor"}, "handler": "runsc"}, _preload_content=False)

    def _be_generous(self) -> None:
        rights: Any = client.RbacAuthorizationV1Api(self._api)
        self.account("ottoscaler", GENEROUS)
        self.account("ottoscaler-worker", GENEROUS)
        self.account("other", GENEROUS)
        rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}
        subject = {"kind": "ServiceAccount", "name": "ottoscaler"}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "all"}
        rights.create_namespaced_role(GENEROUS, {"metadata": {"name": "all"}, "rules": [rule]}, _preload_content=False)
        binding = {"metadata": {"name": "all"}, "roleRef": reference, "subjects": [subject]}
        rights.create_namespaced_role_binding(GENEROUS, binding, _preload_content=False)

    def _holds(self) -> bool:
        """Are a pod without our label, and an Event in another's name, refused by the policies by now?"""
        spec, about = {"containers": [{"name": "main", "image": "busybox"}]}, {"namespace": PRODUCTION, "kind": "Pod"}
        pod = self.create(GENEROUS, {"metadata": {"name": "probe"}, "spec": spec})
        event = {"metadata": {"name": "probe"}, "involvedObject": about, "source": {"component": "kubelet"}}
        path = f"/api/v1/namespaces/{PRODUCTION}/events?dryRun=All"
        answer = self.ask("POST", path, event, namespace=PRODUCTION)
        return "managed-by=ottoscaler" in pod.text and "in its own name" in answer.text

    def token(self, namespace: str) -> str:
        """A token of the controller's ServiceAccount, as the kubelet would mount it."""
        if namespace not in self._tokens:
            request = {"spec": {"expirationSeconds": 3600}}
            made = self._core.create_namespaced_service_account_token("ottoscaler", namespace, request)
            self._tokens[namespace] = str(made.status.token)
        return self._tokens[namespace]

    def kubeconfig_of(self, namespace: str) -> str:
        """The text of a kubeconfig for the controller in a namespace."""
        here = self.server.directory
        return f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "{self._api.configuration.host}", certificate-authority: {here}/ca.crt}}}}]
users: [{{name: u, user: {{token: "{self.token(namespace)}"}}}}]
"""

    def create(self, namespace: str, pod: Json, *, dry_run: bool = True, admin: bool = False) -> Answer:
        """Create a pod as the controller, or as an administrator; a dry run by default."""
        path = f"/api/v1/namespaces/{namespace}/pods" + ("?dryRun=All" if dry_run else "")
        body = {"apiVersion": "v1", "kind": "Pod", **pod}
        return self.ask("POST", path, body, namespace=None if admin else namespace)

    def ask(self, method: str, path: str, body: object = None, *, namespace: str | None, **headers: str) -> Answer:
        """One request, with the token of the controller in a namespace; None: as an administrator."""
        kind = "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"
        sent = {"Accept": "application/json", "Content-Type": kind, **headers}
        url, data = f"{self._api.configuration.host}{path}", json.dumps(body) if body is not None else None
        if namespace is None:
            pool: Any = self._api.rest_client.pool_manager
        else:
            sent["Authorization"] = f"Bearer {self.token(namespace)}"
            pool = urllib3.PoolManager(ca_certs=str(self.server.directory / "ca.crt"))
        response = pool.request(method, url, headers=sent, body=data, timeout=10, retries=False, redirect=False)
        flow = response.headers.get("X-Kubernetes-PF-FlowSchema-UID", "")
        return Answer(response.status, response.data.decode("utf-8", "replace"), flow)

    def may(self, namespace: str, attributes: Json) -> bool:
        """The API server's own word for what the controller in a namespace is permitted."""
        user = f"system:serviceaccount:{namespace}:ottoscaler"
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        spec = {"user": user, "groups": groups, "resourceAttributes": attributes}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = self.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review, namespace=None)
        assert answer.status == 201, answer.text
        return bool(json.loads(answer.text)["status"]["allowed"])
