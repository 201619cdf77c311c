"""`doctor` in broken environments that take a real server: kube-apiserver, and redis-servers of several kinds."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from ottoscaler.cli.main import main
from tests.adapters.kube_admin import KubeAdmin
from tests.conftest import require
from tests.deploy.manifests import only, rendered
from tests.e2e.redis_nodes import Cluster, Node
from tests.fakes.wait import eventually

pytestmark = [pytest.mark.real, pytest.mark.contract("1.doctor"), pytest.mark.timeout(180)]

Trouble = tuple[str, str, str]
PATIENCE_S = 30


@pytest.fixture
def admin() -> Iterator[KubeAdmin]:
    """A namespace of this test's own."""
    made = KubeAdmin(Path(require("kubernetes")))
    made.open()
    yield made
    made.close()


@pytest.fixture
def environment(names: Mapping[str, str], admin: KubeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is well."""
    monkeypatch.setenv("KUBECONFIG", str(admin.kubeconfig))
    monkeypatch.setenv("NAMESPACE", admin.namespace)


class Doctor:
    """Runs the command, and reads what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.options: tuple[str, ...] = ()

    def findings(self) -> list[Trouble]:
        """Code, severity and text, the worst first; the exit code fits."""
        code = main(["doctor", "--json", *self.options])
        answer = json.loads(self._capsys.readouterr().out)
        assert code == (1 if answer["broken"] else 0)
        return [(each["code"], each["severity"], each["text"]) for each in answer["findings"]]

    def troubles(self) -> list[Trouble]:
        """Those that are not well."""
        return [each for each in self.findings() if each[1] in ("broken", "warning")]

    def has(self, code: str, severity: str, words: str) -> None:
        """Wait for a finding of this code and severity with these words."""

        def there() -> bool:
            return any(found[:2] == (code, severity) and words in found[2] for found in self.findings())

        eventually(there, PATIENCE_S, f"{severity} {code} {words}; found {self.findings()}")

    def exactly(self, code: str, severity: str) -> str:
        """The text of the one trouble; an admission plugin takes a while to see what a test has changed."""

        def only() -> str:
            found = self.troubles()
            return found[0][2] if [each[:2] for each in found] == [(code, severity)] else ""

        return eventually(only, PATIENCE_S, f"{code}; found {self.troubles()}")


@pytest.fixture
def doctor(environment: None, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The command in this environment."""
    return Doctor(capsys)


def test_a_healthy_cluster_has_no_trouble(doctor: Doctor) -> None:
    """And nothing that could not be checked."""
    found = doctor.findings()
    assert [each for each in found if each[1] != "ok"] == []
    codes = {code for code, _, _ in found}
    assert codes >= {"kube.quota", "kube.limitrange", "kube.network", "kube.nodes", "kube.admission", "kube.rbac"}


def add_quota(admin: KubeAdmin, **hard: str) -> None:
    """A quota that counts already."""
    body = {"metadata": {"name": "q"}, "spec": {"hard": {key.replace("_", "."): value for key, value in hard.items()}}}
    admin.api.create_namespaced_resource_quota(admin.namespace, body, _preload_content=False)
    eventually(
        lambda: admin.api.read_namespaced_resource_quota("q", admin.namespace).status.hard, PATIENCE_S, "the quota"
    )


def test_a_quota_without_room_is_named(doctor: Doctor, admin: KubeAdmin) -> None:
    """Read from the quota, and not again from the dry run."""
    add_quota(admin, pods="1")
    admin.add_foreign("other", {})
    assert "has room for 0 workers (pods: 1 of 1 used): they wait" in doctor.exactly("kube.quota", "warning")


def test_a_limit_range_that_refuses_workers_is_named(doctor: Doctor, admin: KubeAdmin) -> None:
    """With the setting."""
    limits = [{"type": "Container", "max": {"memory": "256Mi"}}]
    body = {"metadata": {"name": "l"}, "spec": {"limits": limits}}
    admin.api.create_namespaced_limit_range(admin.namespace, body, _preload_content=False)
    text = doctor.exactly("kube.limitrange", "broken")
    assert "LimitRange l allows a container at most 256Mi memory, and WORKER_MEMORY_LIMIT is more" in text


def test_limits_below_what_the_policy_allows_are_named(
    doctor: Doctor, admin: KubeAdmin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A retry after OOMKilled that a LimitRange refuses: read, and not again from the dry run, which agrees."""
    path = tmp_path / "policy.yaml"
    profile = {"memory": "1Gi", "retries": 2, "oom_memory_factor": 2}
    path.write_text(yaml.safe_dump({"version": 1, "max": {"memory": "8Gi"}, "profiles": {"big": profile}}))
    monkeypatch.setenv("POLICY_FILE", str(path))
    limits = [{"type": "Container", "max": {"memory": "2Gi"}}]
    body = {"metadata": {"name": "l"}, "spec": {"limits": limits}}
    admin.api.create_namespaced_limit_range(admin.namespace, body, _preload_content=False)
    text = doctor.exactly("kube.limitrange", "warning")
    assert "l allows a container at most 2Gi memory, and the largest worker of profile big asks for 4Gi" in text
    assert "a worker of profile big" in str(doctor.findings())


def test_a_profile_that_asks_for_a_disruption_budget_needs_one(
    doctor: Doctor, admin: KubeAdmin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That of deploy/components is one."""
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nprofiles: {safe: {disruption_budget: true}}\n")
    monkeypatch.setenv("POLICY_FILE", str(path))
    assert "selects a worker of profile safe" in doctor.exactly("kube.disruption_budget", "warning")
    budgets: Any = client.PolicyV1Api(admin.api.api_client)
    budgets.create_namespaced_pod_disruption_budget(
        admin.namespace, only(rendered("components/disruption-budget"), "PodDisruptionBudget"), _preload_content=False
    )
    found = [each for each in doctor.findings() if each[0] == "kube.disruption_budget"]
    assert [each[1] for each in found] == ["ok"]
    assert doctor.troubles() == []


def add_secret(admin: KubeAdmin, name: str, kind: str, data: Mapping[str, str]) -> None:
    """A Secret of the workers' namespace."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    body = {"metadata": {"name": name}, "type": kind, "data": encoded}
    admin.api.create_namespaced_secret(admin.namespace, body, _preload_content=False)


def test_the_secret_for_images_has_to_be_there(
    doctor: Doctor, admin: KubeAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this namespace, and of that type."""
    monkeypatch.setenv("WORKER_IMAGE_PULL_SECRET", "regcred")
    assert f"is not in namespace {admin.namespace}" in doctor.exactly("kube.pull_secret", "broken")
    add_secret(admin, "opaque", "Opaque", {"x": "never shown"})
    monkeypatch.setenv("WORKER_IMAGE_PULL_SECRET", "opaque")
    assert "is of type Opaque" in doctor.exactly("kube.pull_secret", "broken")
    add_secret(admin, "regcred", "kubernetes.io/dockerconfigjson", {".dockerconfigjson": "{}"})
    monkeypatch.setenv("WORKER_IMAGE_PULL_SECRET", "regcred")
    assert doctor.troubles() == []


def test_a_policy_that_denies_egress_is_named(doctor: Doctor, admin: KubeAdmin) -> None:
    """The default of many clusters."""
    network: Any = client.NetworkingV1Api(admin.api.api_client)
    body = {"metadata": {"name": "deny"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"]}}
    network.create_namespaced_network_policy(admin.namespace, body, _preload_content=False)
    assert "NetworkPolicy deny selects workers" in doctor.exactly("kube.network", "warning")


def test_a_node_selector_of_no_node_is_named(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the label."""
    monkeypatch.setenv("WORKER_NODE_SELECTOR", '{"pool": "no-such-pool"}')
    assert "without the label pool=no-such-pool" in doctor.exactly("kube.nodes", "warning")


def test_a_service_account_that_is_not_there_is_named(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the dry run."""
    monkeypatch.setenv("WORKER_SERVICE_ACCOUNT", "nobody")
    assert '"nobody" not found' in doctor.exactly("kube.service_account", "broken")


@pytest.fixture
def webhook(admin: KubeAdmin) -> Iterator[None]:
    """One that does not answer, for this namespace alone."""
    registration: Any = client.AdmissionregistrationV1Api(admin.api.api_client)
    name = f"otto-{admin.namespace}"
    hook = {
        "name": "y.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": admin.namespace}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    body = {"metadata": {"name": name}, "webhooks": [hook]}
    registration.create_validating_webhook_configuration(body, _preload_content=False)
    yield
    registration.delete_validating_webhook_configuration(name, _preload_content=False)


def test_a_webhook_that_is_down_is_named(doctor: Doctor, webhook: None) -> None:
    """In the words of the API server."""
    assert "y.example.com" in doctor.exactly("kube.admission", "broken")


def test_a_namespace_that_is_not_there_is_named(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry run says so, too, and is not repeated."""
    monkeypatch.setenv("NAMESPACE", "no-such-namespace")
    assert doctor.exactly("kube.namespace", "broken") == (
        "There is no namespace no-such-namespace: make it, or set NAMESPACE"
    )


# -- users


class Users:
    """Kubeconfigs of users that may do little."""

    def __init__(self, admin: KubeAdmin, folder: Path) -> None:
        self._admin = admin
        self._folder = folder

    def kubeconfig(self, token: str, authority: str = "") -> str:
        """Of a user with a token."""
        cluster = self._admin.api.api_client.configuration
        trusted = authority or cluster.ssl_ca_cert
        access = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": cluster.host, "certificate-authority": trusted}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        path = self._folder / "kubeconfig"
        path.write_text(yaml.safe_dump(access))
        return str(path)

    def of_service_account(self) -> str:
        """Of the namespace's default one."""
        request = {"spec": {"expirationSeconds": 600}}
        made = self._admin.api.create_namespaced_service_account_token("default", self._admin.namespace, request)
        return self.kubeconfig(made.status.token)

    def grant(self, rules: list[Mapping[str, Any]]) -> None:
        """A Role with these rules for it."""
        rights: Any = client.RbacAuthorizationV1Api(self._admin.api.api_client)
        namespace = self._admin.namespace
        rights.create_namespaced_role(namespace, {"metadata": {"name": "otto"}, "rules": rules})
        subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "otto"}
        binding = {"metadata": {"name": "otto"}, "roleRef": role, "subjects": [subject]}
        rights.create_namespaced_role_binding(namespace, binding)


@pytest.fixture
def users(admin: KubeAdmin, tmp_path: Path) -> Users:
    """In this test's namespace."""
    return Users(admin, tmp_path)


PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "delete"]}
EVENTS = {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "create", "patch"]}
NAMESPACES = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
SECRETS = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}


@pytest.mark.parametrize(
    ("rules", "code", "severity", "words"),
    [
        ([{**PODS, "verbs": PODS["verbs"][:-1]}, EVENTS, NAMESPACES], "kube.rbac", "broken", "may not delete pods"),
        ([PODS, {**EVENTS, "verbs": ["create", "patch"]}, NAMESPACES], "kube.rbac_events", "warning", "may not list"),
        (
            [PODS, {**EVENTS, "verbs": ["list", "patch"]}, NAMESPACES],
            "kube.rbac_event_writes",
            "warning",
            "may not create Events",
        ),
        ([PODS, EVENTS, NAMESPACES, SECRETS], "kube.rbac_excess", "warning", "may read the Secrets"),
    ],
)
def test_a_right_too_few_or_too_many_is_named(
    doctor: Doctor, users: Users, monkeypatch: pytest.MonkeyPatch,
    rules: list[Mapping[str, Any]], code: str, severity: str, words: str,
) -> None:  # fmt: skip
    """Of a ServiceAccount; what it may not look at is unknown, and no error."""
    monkeypatch.setenv("KUBECONFIG", users.of_service_account())
    users.grant(rules)
    assert words in doctor.exactly(code, severity)
    hidden = {name for name, severity, _ in doctor.findings() if severity == "unknown"}
    assert hidden == {"kube.quota", "kube.limitrange", "kube.network", "kube.nodes"}


def test_the_rights_of_the_controller_are_enough(doctor: Doctor, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it runs in the cluster; the Secret for images is not its to read."""
    monkeypatch.setenv("KUBECONFIG", users.of_service_account())
    users.grant([PODS, EVENTS, NAMESPACES])
    eventually(lambda: not doctor.troubles(), PATIENCE_S, "the rights to hold")
    monkeypatch.setenv("WORKER_IMAGE_PULL_SECRET", "regcred")
    found = doctor.findings()
    assert ("kube.pull_secret", "unknown") in [each[:2] for each in found]
    assert [each for each in found if each[1] == "broken"] == []


def test_an_administrator_checks_the_rights_of_the_controller(doctor: Doctor, users: Users) -> None:
    """Those of its ServiceAccount, which has none at first, and not the administrator's, who may do everything. What
    only the administrator may look at is checked all the same.
    """
    assert doctor.troubles() == []
    doctor.options = ("--service-account", "default")
    doctor.has("kube.rbac", "broken", "ServiceAccount default may not create pods in namespace")
    doctor.has("kube.admission", "unknown", "ServiceAccount default may not create pods")
    users.grant([PODS, EVENTS, NAMESPACES, SECRETS])
    assert "may read the Secrets" in doctor.exactly("kube.rbac_excess", "warning")
    doctor.has("kube.rbac", "ok", "ServiceAccount default may do with pods in namespace")
    doctor.has("kube.nodes", "ok", "could take a worker")


def test_rights_that_cannot_be_checked_are_unknown(
    doctor: Doctor, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the user may not act as the ServiceAccount, the finding names the user of the rights below."""
    doctor.options = ("--service-account", "nobody")
    assert "There is no ServiceAccount nobody" in doctor.exactly("kube.account", "broken")
    monkeypatch.setenv("KUBECONFIG", users.of_service_account())
    users.grant([PODS, EVENTS, NAMESPACES])
    doctor.options = ("--service-account", "default")
    doctor.has("kube.rbac", "ok", "Our user may do with pods")
    doctor.has("kube.account", "unknown", "those of system:serviceaccount:")


def test_a_namespace_that_may_not_be_read_is_unknown(
    doctor: Doctor, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the queue is not checked then."""
    monkeypatch.setenv("KUBECONFIG", users.of_service_account())
    users.grant([PODS, EVENTS])
    eventually(lambda: not doctor.troubles(), PATIENCE_S, "the rights to hold")
    assert ("kube.namespace", "unknown") in [each[:2] for each in doctor.findings()]


def test_a_token_that_is_refused_is_named(doctor: Doctor, users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 401."""
    monkeypatch.setenv("KUBECONFIG", users.kubeconfig("e30.e30.never"))
    assert "401" in doctor.exactly("kube.token", "broken")


def test_a_server_of_another_authority_is_named(
    doctor: Doctor, users: Users, monkeypatch: pytest.MonkeyPatch, foreign_authority: Path
) -> None:
    """Its certificate is not trusted."""
    monkeypatch.setenv("KUBECONFIG", users.kubeconfig("x", str(foreign_authority)))
    assert "certificate verify failed" in doctor.exactly("kube.tls", "broken").lower()


@pytest.fixture
def foreign_authority(tmp_path: Path) -> Path:
    """A certificate of another authority."""
    command = [require("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=other"]
    command += ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "cert.pem"


# -- Redis


def test_a_replica_is_named(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its master."""
    master = Node(tmp_path, "--appendonly", "yes")
    replica = Node(tmp_path, "--appendonly", "yes", "--replicaof", "127.0.0.1", str(master.port))
    try:
        monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
        monkeypatch.setenv("REDIS_PORT", str(replica.port))
        eventually(lambda: replica.info("replication")["master_link_status"] == "up", PATIENCE_S, "the replica")
        assert f"This is a replica of 127.0.0.1:{master.port}" in doctor.exactly("redis.role", "broken")
    finally:
        replica.close()
        master.close()


def test_a_sentinel_is_named(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers, and keeps no data."""
    (tmp_path / "sentinel.conf").write_text("")
    sentinel = Node(tmp_path, str(tmp_path / "sentinel.conf"), "--sentinel")
    try:
        monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
        monkeypatch.setenv("REDIS_PORT", str(sentinel.port))
        assert "set REDIS_SENTINELS" in doctor.exactly("redis.sentinel", "broken")
    finally:
        sentinel.close()


def test_names_of_several_slots_in_a_cluster_are_named(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the controller; with a hash tag all is well."""
    cluster = Cluster(tmp_path)
    try:
        for node in cluster.masters:
            node.say("CONFIG", "SET", "appendonly", "yes")
        monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
        monkeypatch.setenv("REDIS_PORT", str(cluster.masters[0].port))
        assert "share one hash tag" in doctor.exactly("redis.cluster", "broken")
        for name in ("REDIS_STREAM", "RESULT_STREAM", "DEAD_LETTER_STREAM"):
            monkeypatch.setenv(name, f"{{otto}}:{name.lower()}")
        monkeypatch.setenv("KEY_PREFIX", "{otto}:")
        assert doctor.troubles() == []
    finally:
        cluster.close()
