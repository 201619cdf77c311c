"""The admission policy: the controller's own pods pass, and nothing else that its account might create or delete.

In the namespace `generous` RBAC permits the account anything on pods, and no Pod Security profile is enforced: what is
refused there is refused by the policy.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from ottoscaler.cli.main import main
from ottoscaler.core.events import BadEvent
from ottoscaler.core.manifest import AttemptKey, build_pod, event_hash, pod_name
from ottoscaler.settings import WorkerSettings
from tests.core.builders import HASH, event
from tests.core.policies import DIGEST, parsed
from tests.deploy.cluster import GENEROUS, PRODUCTION, Cluster
from tests.deploy.manifests import Json, only, rendered

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

PLAIN: Final = WorkerSettings()
POLICY: Final = ("ValidatingAdmissionPolicy", "ottoscaler")
#: How many events are generated.
EVENTS: Final = 500
#: Whatever an operator may configure that the policy has a say in.
CONFIGURED: Final = {
    "plain": PLAIN,
    "no-deadline": replace(PLAIN, deadline_s=0),
    "account": replace(PLAIN, service_account="ottoscaler-worker"),
    "pull-secret": replace(PLAIN, image_pull_secret="registry"),
    "nodes": replace(PLAIN, node_selector={"pool": "ci"}),
    "tolerations": replace(PLAIN, tolerations=[{"key": "ci", "operator": "Exists", "effect": "NoSchedule"}]),
    "user": replace(PLAIN, run_as_user=65534, cpu_limit="500m"),
}


def worker(template: WorkerSettings = PLAIN, namespace: str = GENEROUS, **fields: Any) -> Json:
    """The manifest that the controller sends."""
    key = AttemptKey(HASH, 1, 1)
    sent = event(**fields)
    body: Json = json.loads(
        build_pod(template, sent, key, event_json=sent.encode(), instance="otto", namespace=namespace)
    )
    return body


@pytest.mark.parametrize("name", CONFIGURED)
def test_the_controllers_own_pods_pass(cluster: Cluster, name: str) -> None:
    """As the code builds them, whatever it was configured with."""
    answer = cluster.create(GENEROUS, worker(CONFIGURED[name], passed_on={"branch": "main"}, traceparent="00-1"))
    assert answer.status == 201, answer.text


@pytest.mark.parametrize("namespace", [PRODUCTION, GENEROUS])
def test_every_accepted_event_makes_a_pod_that_passes(cluster: Cluster, namespace: str) -> None:
    """Generated events with overrides: the API server, the restricted profile, quota and the policy take them all."""
    rng, taken = random.Random(7), 0
    for _ in range(EVENTS):
        found = parsed(_fields(rng))
        if isinstance(found, BadEvent):
            continue
        taken += 1
        key, text = AttemptKey(HASH, 1, 1), found.encode()
        body = json.loads(build_pod(PLAIN, found, key, event_json=text, instance="otto", namespace=namespace))
        answer = cluster.create(namespace, body)
        assert answer.status == 201, (found, answer.text)
    assert taken > EVENTS // 3


@pytest.mark.contract("1.plan")
def test_plan_has_the_servers_verdict(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the controller's account, by a dry run: nothing is there afterwards."""
    (tmp_path / "kubeconfig").write_text(cluster.kubeconfig_of(GENEROUS))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("NAMESPACE", GENEROUS)
    assert main(["plan", "event_id=planned", "--server"]) == 0
    assert "# The API server accepts it." in capsys.readouterr().out
    name = pod_name(AttemptKey(event_hash("ottoscaler", "planned"), 1, 1))
    assert cluster.ask("GET", f"/api/v1/namespaces/{GENEROUS}/pods/{name}", namespace=None).status == 404
    monkeypatch.setenv("WORKER_SERVICE_ACCOUNT", "other")
    assert main(["plan", "event_id=planned", "--server"]) == 1
    assert ACCOUNT in capsys.readouterr().err


def _fields(rng: random.Random) -> dict[str, str]:
    """Overrides of all kinds, mostly allowed ones."""
    image = rng.choice(
        ["node:20", "node:20-slim", "registry.example.com/ci/a", "registry.example.com/ci/b/c:1", "nginx"]
    )
    texts = ["", "a", "$(HOME) $$", "한글", "\n\t\x01\x7f", "\U0001f600", "a=b", "'\"\\", "x" * 500]
    chosen = {
        "profile": rng.choice(["plain", "plain", "plain", "node20", "publish", "full"]),
        "image": image + rng.choice(["", "", "", f"@{DIGEST}"]),
        "command": json.dumps(rng.choices(texts, k=rng.randint(0, 4))),
        "args": json.dumps(rng.choices(texts, k=rng.randint(0, 4))),
        "env": json.dumps({f"BUILD_{number}": rng.choice(texts) for number in range(rng.randint(0, 9))}),
        "cpu": rng.choice(["1", "0.25", "10m", "3999m", "4.000", "5"]),
        "memory": rng.choice(["16Mi", "1Gi", "1G", "17000001", "8Gi", "9Gi", "0123M"]),
        "deadline_s": str(rng.choice([1, 60, 86400])),
        "retries": str(rng.randint(0, 3)),
    }
    given = {name for name in chosen if rng.random() < (0.9 if name == "profile" else 0.3)}
    if chosen["profile"] in ("publish", "full") and rng.random() < 0.9:
        given &= {"profile", "deadline_s"}
    return {name: value for name, value in chosen.items() if name in given}


def test_they_pass_all_other_checks(cluster: Cluster) -> None:
    """In production: rights, policy, quota, limits and the restricted profile together, for a pod that is kept."""
    answer = cluster.create(PRODUCTION, worker(namespace=PRODUCTION), dry_run=False)
    assert answer.status == 201, answer.text
    (container,) = json.loads(answer.text)["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "20Gi"}
    path = f"/api/v1/namespaces/{PRODUCTION}/pods/{worker()['metadata']['name']}"
    assert cluster.ask("DELETE", path, namespace=PRODUCTION).status == 200


CHANGES: Final = "changes no pods"
LABEL: Final = "only pods with the label managed-by=ottoscaler"
NODE: Final = "uses no network, processes, memory or port of its node"
ACCOUNT: Final = "ServiceAccount is default or ottoscaler-worker"
TOKEN: Final = "may have its token mounted"
VOLUMES: Final = "a worker mounts empty directories, and claims, ConfigMaps and Secrets with a name that begins with"
VARIABLES: Final = "takes variables only from Secrets with a name that begins with ottoscaler-worker-"
ROOT_USER: Final = "does not run as root"
PRIVILEGES: Final = "has no privileges and no capabilities"
PROBES: Final = "asks no other host"
LIMITS: Final = "has limits of CPU and memory"
PLACE: Final = "goes where the scheduler puts it"

FIRST: Final = "spec.containers.0"
INIT: Final = {"name": "first", "image": "busybox"}
SECURE: Final = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SERVICE: Final = {
    "name": "db", "image": "busybox", "restartPolicy": "Always", "securityContext": SECURE,
    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
}  # fmt: skip
TOKENS: Final = {"sources": [{"serviceAccountToken": {"path": "token", "audience": "aws"}}]}
SECRETS: Final = {"sources": [{"secret": {"name": "ottoscaler-redis"}}]}

#: What is changed in a good pod (None: taken out), and what the policy says to it.
BAD: Final[dict[str, tuple[Mapping[str, object], str]]] = {
    "no-labels": ({"metadata.labels": None}, LABEL),
    "another-label": ({"metadata.labels.managed-by": "somebody"}, LABEL),
    "another-name": ({"metadata.name": "redis-1"}, "begins with otto-agent-"),
    "restarts": ({"spec.restartPolicy": "Always"}, "restartPolicy Never"),
    "host-network": ({"spec.hostNetwork": True}, NODE),
    "host-pid": ({"spec.hostPID": True}, NODE),
    "host-ipc": ({"spec.hostIPC": True}, NODE),
    "host-port": ({f"{FIRST}.ports": [{"containerPort": 80, "hostPort": 80}]}, NODE),
    "foreign-account": ({"spec.serviceAccountName": "other"}, ACCOUNT),
    "the-controllers-account": ({"spec.serviceAccountName": "ottoscaler"}, ACCOUNT),
    "token": ({"spec.automountServiceAccountToken": True}, TOKEN),
    "token-by-default": ({"spec.automountServiceAccountToken": None}, TOKEN),
    "token-in-a-volume": ({"spec.volumes": [{"name": "workspace", "projected": TOKENS}]}, TOKEN),
    "secret": ({"spec.volumes": [{"name": "workspace", "secret": {"secretName": "s"}}]}, VOLUMES),
    "projected-secret": ({"spec.volumes": [{"name": "workspace", "projected": SECRETS}]}, VOLUMES),
    "config-map": ({"spec.volumes": [{"name": "workspace", "configMap": {"name": "c"}}]}, VOLUMES),
    "claim": ({"spec.volumes": [{"name": "workspace", "persistentVolumeClaim": {"claimName": "c"}}]}, VOLUMES),
    "secret-of-a-similar-name": (
        {"spec.volumes": [{"name": "workspace", "secret": {"secretName": "a-ottoscaler-worker-s"}}]},
        VOLUMES,
    ),
    "projected-config-map": (
        {"spec.volumes": [{"name": "workspace", "projected": {"sources": [{"configMap": {"name": "c"}}]}}]},
        VOLUMES,
    ),
    "one-bad-volume-of-two": (
        {"spec.volumes": [{"name": "workspace", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s"}}]},
        VOLUMES,
    ),
    "claim-of-its-own": (
        {
            "spec.volumes": [
                {
                    "name": "workspace",
                    "ephemeral": {
                        "volumeClaimTemplate": {
                            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                        }
                    },
                }
            ]
        },
        VOLUMES,
    ),
    "nfs": ({"spec.volumes": [{"name": "workspace", "nfs": {"server": "10.0.0.1", "path": "/"}}]}, VOLUMES),
    "host-path": ({"spec.volumes": [{"name": "workspace", "hostPath": {"path": "/"}}]}, VOLUMES),
    "csi": ({"spec.volumes": [{"name": "workspace", "csi": {"driver": "d"}}]}, VOLUMES),
    "variable-of-a-secret": (
        {f"{FIRST}.env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
        VARIABLES,
    ),
    "variable-of-a-secret-with-the-prefix-inside": (
        {
            f"{FIRST}.env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "my-ottoscaler-worker-s", "key": "k"}}}
            ]
        },
        VARIABLES,
    ),
    "variable-of-a-config-map": (
        {f"{FIRST}.env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "s", "key": "k"}}}]},
        VARIABLES,
    ),
    "variables-of-a-secret": ({f"{FIRST}.envFrom": [{"secretRef": {"name": "s"}}]}, VARIABLES),
    "root": ({"spec.securityContext.runAsUser": 0, "spec.securityContext.runAsNonRoot": False}, ROOT_USER),
    "root-by-number": ({"spec.securityContext.runAsUser": 0}, ROOT_USER),
    "root-in-the-container": ({f"{FIRST}.securityContext.runAsUser": 0}, ROOT_USER),
    "perhaps-root": ({"spec.securityContext": None}, ROOT_USER),
    "root-in-a-container-before": ({"spec.initContainers": [INIT]}, ROOT_USER),
    "privileged": (
        {f"{FIRST}.securityContext.privileged": True, f"{FIRST}.securityContext.allowPrivilegeEscalation": True},
        PRIVILEGES,
    ),
    "escalation": ({f"{FIRST}.securityContext.allowPrivilegeEscalation": None}, PRIVILEGES),
    "capability": ({f"{FIRST}.securityContext.capabilities.add": ["NET_ADMIN"]}, PRIVILEGES),
    "capabilities-kept": ({f"{FIRST}.securityContext.capabilities": None}, PRIVILEGES),
    "service-that-is-root": ({"spec.initContainers": [SERVICE | {"securityContext": {"runAsUser": 0}}]}, ROOT_USER),
    "service-with-capabilities": ({"spec.initContainers": [SERVICE | {"securityContext": {}}]}, PRIVILEGES),
    "service-without-limits": ({"spec.initContainers": [SERVICE | {"resources": {}}]}, LIMITS),
    "service-with-a-port-of-its-node": (
        {"spec.initContainers": [SERVICE | {"ports": [{"containerPort": 80, "hostPort": 80}]}]},
        NODE,
    ),
    "service-with-variables-of-a-secret": (
        {"spec.initContainers": [SERVICE | {"envFrom": [{"secretRef": {"name": "s"}}]}]},
        VARIABLES,
    ),
    "startup-probe-of-another-host": (
        {"spec.initContainers": [SERVICE | {"startupProbe": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}}]},
        PROBES,
    ),
    "liveness-probe-of-another-host": (
        {f"{FIRST}.livenessProbe": {"httpGet": {"port": 80, "host": "10.0.0.1"}}},
        PROBES,
    ),
    "readiness-probe-of-another-host": (
        {f"{FIRST}.readinessProbe": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}},
        PROBES,
    ),
    "no-limits": ({f"{FIRST}.resources": None}, LIMITS),
    "no-memory-limit": ({f"{FIRST}.resources": {"limits": {"cpu": "1"}}}, LIMITS),
    "node-name": ({"spec.nodeName": "node-1"}, PLACE),
    "every-taint": ({"spec.tolerations": [{"operator": "Exists"}]}, PLACE),
    "control-plane": (
        {"spec.tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}]},
        PLACE,
    ),
    "critical": ({"spec.priorityClassName": "system-cluster-critical"}, "no priority of the system's"),
}


def changed(pod: Json, changes: Mapping[str, object]) -> Json:
    """The pod with other values at dotted paths."""
    for path, value in changes.items():
        *way, last = path.split(".")
        place: Any = pod
        for step in way:
            place = place[int(step)] if step.isdigit() else place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return pod


def test_a_service_passes(cluster: Cluster) -> None:
    """The one from which the bad ones are made."""
    probed = SERVICE | {"startupProbe": {"tcpSocket": {"port": 80}}}
    answer = cluster.create(GENEROUS, changed(worker(), {"spec.initContainers": [probed]}))
    assert answer.status == 201, answer.text


@pytest.mark.parametrize("name", BAD)
def test_another_kind_of_pod_is_refused(cluster: Cluster, name: str) -> None:
    """By the rule that is meant, and by the policy alone: an administrator may create it."""
    changes, message = BAD[name]
    pod = changed(worker(), changes)
    answer = cluster.create(GENEROUS, pod)
    assert (answer.status, "ValidatingAdmissionPolicy 'ottoscaler'" in answer.text) == (422, True), answer.text
    assert message in answer.text
    assert cluster.create(GENEROUS, pod, admin=True).status == 201


def test_the_table_is_large_enough() -> None:
    """And every rule has a row, or one of the tests below."""
    assert len(BAD) >= 20
    rules = [rule["message"] for rule in only(rendered("cluster"), *POLICY)["spec"]["validations"]]
    found = [CHANGES, *(message for _, message in BAD.values())]
    assert [rule for rule in rules if not any(message in rule for message in found)] == []


@pytest.fixture
def foreign(cluster: Cluster) -> str:
    """The path of a pod that an administrator has made."""
    pod = changed(worker(), {"metadata.labels": {"app": "redis"}, "metadata.name": "redis-0"})
    answer = cluster.create(GENEROUS, pod, dry_run=False, admin=True)
    assert answer.status in (201, 409), answer.text
    return f"/api/v1/namespaces/{GENEROUS}/pods/redis-0"


def test_a_foreign_pod_is_not_deleted(cluster: Cluster, foreign: str) -> None:
    """RBAC would permit it."""
    answer = cluster.ask("DELETE", foreign, namespace=GENEROUS)
    assert (answer.status, LABEL in answer.text) == (422, True), answer.text
    assert cluster.ask("GET", foreign, namespace=GENEROUS).status == 200


def test_foreign_pods_are_not_deleted_all_at_once(cluster: Cluster, foreign: str) -> None:
    """Each of a collection is looked at."""
    answer = cluster.ask("DELETE", foreign.rpartition("/")[0], namespace=GENEROUS)
    assert answer.status >= 400, answer.text
    assert cluster.ask("GET", foreign, namespace=GENEROUS).status == 200


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"metadata": {"labels": {"managed-by": "ottoscaler"}}}, id="label"),
        pytest.param({"spec": {"containers": [{"name": "agent", "image": "evil"}]}}, id="image"),
    ],
)
def test_no_pod_is_changed(cluster: Cluster, foreign: str, change: Json) -> None:
    """Otherwise a foreign pod would be made one of ours and then deleted."""
    answer = cluster.ask("PATCH", foreign, change, namespace=GENEROUS)
    assert (answer.status, CHANGES in answer.text) == (422, True), answer.text
