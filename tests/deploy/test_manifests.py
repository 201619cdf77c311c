"""What the manifests say, without a server: pods that are restricted, rights that are few, walls that stand."""

from __future__ import annotations

import json
import os
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from ottoscaler.adapters.cluster import EVENT_VERBS, VERBS
from ottoscaler.adapters.kube_events import WRITE_VERBS
from ottoscaler.core import manifest
from ottoscaler.settings import FlowSettings, Settings, WebSettings
from tests.conftest import require
from tests.deploy.manifests import DEPLOY, OVERLAYS, Json, only, overlay, rendered, settings_of
from tests.readme import variables

pytestmark = pytest.mark.real

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def pod_of(name: str) -> Json:
    """The controller's pod in an overlay."""
    template: Json = only(overlay(name), "Deployment")["spec"]["template"]
    return template


def container_of(name: str) -> Json:
    """Its container."""
    (container,) = pod_of(name)["spec"]["containers"]
    return dict(container)


@every_overlay
def test_the_controllers_pod_is_restricted(name: str) -> None:
    """Not root, nothing to gain, nothing to write to."""
    spec, container = pod_of(name)["spec"], container_of(name)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] >= 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert {*container["resources"]["requests"], *container["resources"]["limits"]} == {"cpu", "memory"}


@every_overlay
def test_the_user_is_the_images(name: str) -> None:
    """The number in the Dockerfile."""
    user = pod_of(name)["spec"]["securityContext"]["runAsUser"]
    assert f"\nUSER {user}:{user}\n" in (DEPLOY.parent / "Dockerfile").read_text(encoding="utf-8")


@every_overlay
def test_the_pod_lives_longer_than_the_stop_takes(name: str) -> None:
    """With some seconds for the kubelet."""
    budget = int(settings_of(overlay(name)).get("SHUTDOWN_GRACE_S", FlowSettings().shutdown_grace_s))
    assert pod_of(name)["spec"]["terminationGracePeriodSeconds"] >= budget + 5


@every_overlay
def test_a_service_named_redis_does_no_harm(name: str) -> None:
    """Kubernetes would put its address into REDIS_PORT."""
    assert pod_of(name)["spec"]["enableServiceLinks"] is False


@every_overlay
def test_each_replica_is_a_consumer_of_its_own(name: str) -> None:
    """The pod's name: unique, and the same after a restart of the container."""
    (consumer,) = (each for each in container_of(name)["env"] if each["name"] == "REDIS_CONSUMER")
    assert consumer["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert "REDIS_CONSUMER" not in settings_of(overlay(name))


@every_overlay
def test_the_probes_ask_the_port_that_is_listened_on(name: str) -> None:
    """By its name, at the paths that are answered."""
    container, port = container_of(name), WebSettings().port
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    assert "HTTP_PORT" not in settings_of(overlay(name))
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("liveness", "readiness")}
    assert probes == {
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }


@every_overlay
def test_a_rollout_leaves_no_task_without_a_controller(name: str) -> None:
    """The new one first; a drain of nodes takes one at a time, whatever its state."""
    objects = overlay(name)
    assert only(objects, "Deployment")["spec"]["replicas"] == 1
    assert only(objects, "Deployment")["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    budget = only(objects, "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


@every_overlay
def test_all_selectors_find_the_controller_and_no_worker(name: str) -> None:
    """Deployment, budget, spread and network policy mean the same pods."""
    objects, labels = overlay(name), pod_of(name)["metadata"]["labels"]
    selectors = [
        only(objects, "Deployment")["spec"]["selector"],
        only(objects, "PodDisruptionBudget")["spec"]["selector"],
        only(objects, "NetworkPolicy", "ottoscaler")["spec"]["podSelector"],
        *(each["labelSelector"] for each in pod_of(name)["spec"]["topologySpreadConstraints"]),
    ]
    assert all(each["matchLabels"] == labels for each in selectors)
    assert manifest.MANAGED_BY not in labels


@every_overlay
def test_the_settings_are_known_and_good(name: str) -> None:
    """A misspelt variable would have no effect, in silence. Files are in the Secret, so they are left out here."""
    settings = settings_of(overlay(name))
    assert settings.keys() <= variables().keys()
    files = {"REDIS_PASSWORD_FILE", "REDIS_CA_FILE"}
    Settings.load({key: value for key, value in settings.items() if key not in files}, "pod-1", "namespace-1")


def test_the_password_is_a_file_of_the_secret() -> None:
    """Where the pod mounts it, and in no variable."""
    mount, _ = container_of("production")["volumeMounts"]
    volume, _ = pod_of("production")["spec"]["volumes"]
    settings = settings_of(overlay("production"))
    assert mount["name"] == volume["name"]
    assert volume["secret"]["secretName"] == "ottoscaler-redis"
    assert settings["REDIS_PASSWORD_FILE"] == f"{mount['mountPath']}/password"
    assert "REDIS_PASSWORD" not in settings
    assert settings["REDIS_TLS"] == "true"


@every_overlay
def test_the_role_has_the_verbs_of_the_code(name: str) -> None:
    """Those, on pods and Events, in the namespace, and a look at the namespace; no right that is the cluster's."""
    objects = overlay(name)
    look = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": list(VERBS)}
    events = {"apiGroups": [""], "resources": ["events"], "verbs": list(EVENT_VERBS)}
    writes = {"apiGroups": [""], "resources": ["events"], "verbs": list(WRITE_VERBS)}
    assert only(objects, "Role")["rules"] == [pods, events, look, writes]
    binding = only(objects, "RoleBinding")
    assert [(each["kind"], each["name"]) for each in binding["subjects"]] == [("ServiceAccount", "ottoscaler")]
    assert binding["roleRef"]["name"] == only(objects, "Role")["metadata"]["name"]
    assert not {"ClusterRole", "ClusterRoleBinding"} & {each["kind"] for each in objects}
    assert pod_of(name)["spec"]["serviceAccountName"] == "ottoscaler"


def test_the_right_to_write_events_comes_and_goes_with_the_setting() -> None:
    """An overlay without the component has neither; nothing but these two is its."""
    base, whole = rendered("base"), overlay("production")
    assert settings_of(base)["KUBERNETES_EVENTS"] == "false"
    assert settings_of(whole)["KUBERNETES_EVENTS"] == "true"
    assert [rule["verbs"] for rule in only(base, "Role")["rules"] if rule["resources"] == ["events"]] == [
        list(EVENT_VERBS)
    ]


def with_component(folder: Path, name: str) -> list[Json]:
    """The production overlay with one more component."""
    parts = {"resources": ["overlays/production"], "components": [f"components/{name}"]}
    body = {kind: [os.path.relpath(DEPLOY / each, folder) for each in paths] for kind, paths in parts.items()}
    (folder / "kustomization.yaml").write_text(json.dumps(body), encoding="utf-8")
    command = [require("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return list(yaml.safe_load_all(done.stdout))


def test_the_component_for_a_disruption_budget_adds_that_alone(tmp_path: Path) -> None:
    """It selects the workers that ask for it and not the controller, by a whole number."""
    with_budget, without = with_component(tmp_path, "disruption-budget"), overlay("production")
    (added,) = (each for each in with_budget if each not in without)
    assert (added["kind"], len(with_budget)) == ("PodDisruptionBudget", len(without) + 1)
    assert added["spec"] == {
        "minAvailable": 2**31 - 1,
        "selector": {"matchLabels": {manifest.MANAGED_BY: manifest.MANAGER, manifest.LABEL_BUDGET: "true"}},
    }
    assert manifest.MANAGED_BY not in pod_of("production")["metadata"]["labels"]


def test_the_component_for_traces_adds_a_way(tmp_path: Path) -> None:
    """To the port of OTLP over HTTP; the headers come from a Secret, where there is one. Nothing else."""
    with_traces, without = with_component(tmp_path, "traces"), overlay("production")
    policy = only(without, "NetworkPolicy", "ottoscaler")
    policy["spec"]["egress"].append({"ports": [{"protocol": "TCP", "port": 4318}]})
    container = only(without, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    source = {"name": "ottoscaler-traces", "key": "headers", "optional": True}
    container["env"].append({"name": "OTEL_EXPORTER_OTLP_HEADERS", "valueFrom": {"secretKeyRef": source}})
    assert with_traces == without


def test_the_component_for_logs_adds_a_right_and_a_way(tmp_path: Path) -> None:
    """To read the logs of pods, and to the port of the reference handler; nothing of it is there without it."""
    with_logs, without = with_component(tmp_path, "logs"), overlay("production")
    right = {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]}
    assert only(with_logs, "Role")["rules"] == [*only(without, "Role")["rules"], right]
    way = {"ports": [{"protocol": "TCP", "port": 50051}]}
    egress = [only(objects, "NetworkPolicy", "ottoscaler")["spec"]["egress"] for objects in (with_logs, without)]
    assert egress[0] == [*egress[1], way]
    kinds = [[(each["kind"], each["metadata"]["name"]) for each in objects] for objects in (with_logs, without)]
    assert kinds[0] == kinds[1]


def test_the_namespace_enforces_the_restricted_profile() -> None:
    """For the workers too."""
    labels = only(overlay("production"), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_the_policy_is_the_clusters() -> None:
    """The same object for all of them, so that several Ottoscalers in a cluster do not take turns changing it."""
    kinds = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert {each["kind"] for each in rendered("cluster")} == kinds
    for kind in kinds:
        for policy in ("ottoscaler", "ottoscaler-events"):
            first, second = (only(overlay(name), kind, policy) for name in OVERLAYS)
            assert first["spec"] == second["spec"]


@every_overlay
def test_the_quota_counts_workers_and_not_the_controller(name: str) -> None:
    """Its scope is pods with a deadline: workers have one by default, the controller never."""
    quota = only(overlay(name), "ResourceQuota")["spec"]
    assert quota["scopes"] == ["Terminating"]
    assert "activeDeadlineSeconds" not in pod_of(name)["spec"]
    assert int(settings_of(overlay(name)).get("WORKER_DEADLINE_S", "21600")) > 0


# -- network policies, read as a network plugin reads them


def reachable(policy: Json, address: str, port: int, protocol: str = "TCP") -> bool:
    """May a pod of this policy open a connection to an address outside the cluster's known pods?"""
    return any(
        _port_in(rule, port, protocol) and ("to" not in rule or any(_in_block(peer, address) for peer in rule["to"]))
        for rule in policy["spec"]["egress"]
    )


def _port_in(rule: Json, port: int, protocol: str) -> bool:
    return "ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"]


def _in_block(peer: dict[str, Any], address: str) -> bool:
    block = peer.get("ipBlock")
    if block is None:
        return False
    inside = ip_address(address) in ip_network(block["cidr"])
    return inside and not any(ip_address(address) in ip_network(each) for each in block.get("except", []))


def workers_policy() -> Json:
    """The workers' wall in production."""
    return only(overlay("production"), "NetworkPolicy", "ottoscaler-workers")


@pytest.mark.parametrize(
    ("address", "port"),
    [
        pytest.param("169.254.169.254", 80, id="metadata"),
        pytest.param("169.254.170.23", 80, id="pod-identity"),
        pytest.param("fd00:ec2::254", 80, id="metadata-v6"),
        pytest.param("10.100.0.1", 443, id="api-server-service"),
        pytest.param("172.20.0.1", 443, id="api-server-service-eks"),
        pytest.param("10.0.1.20", 6379, id="redis"),
        pytest.param("172.18.0.2", 6379, id="redis-in-docker"),
        pytest.param("192.168.10.4", 26379, id="sentinel"),
        pytest.param("100.64.3.4", 6379, id="pods-of-custom-networking"),
        pytest.param("fe80::1", 443, id="link-local-v6"),
        pytest.param("10.0.1.20", 53, id="a-server-of-names-that-is-not-the-clusters"),
    ],
)
def test_workers_do_not_reach(address: str, port: int) -> None:
    """What is inside: private, shared and link-local addresses."""
    assert not reachable(workers_policy(), address, port)


@pytest.mark.parametrize(
    ("address", "port", "protocol"),
    [
        ("140.82.112.3", 443, "TCP"),
        ("1.1.1.1", 80, "TCP"),
        ("2606:4700::1111", 443, "TCP"),
        ("140.82.112.3", 22, "TCP"),
        ("169.254.20.10", 53, "UDP"),
    ],
)
def test_workers_reach(address: str, port: int, protocol: str) -> None:
    """The internet, which jobs need, and the node's cache of names."""
    assert reachable(workers_policy(), address, port, protocol)


def test_workers_reach_the_clusters_dns() -> None:
    """Pods of kube-system, on port 53 and no other."""
    (rule,) = (each for each in workers_policy()["spec"]["egress"] if "ports" in each)
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}} in rule["to"]
    assert [(each["protocol"], each["port"]) for each in rule["ports"]] == [("UDP", 53), ("TCP", 53)]


@every_overlay
def test_no_connection_reaches_workers(name: str) -> None:
    """The policy is about them, and lets nothing in."""
    spec = only(overlay(name), "NetworkPolicy", "ottoscaler-workers")["spec"]
    assert spec["podSelector"] == {"matchLabels": {manifest.MANAGED_BY: manifest.MANAGER}}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert not spec.get("ingress")


def test_the_controller_reaches_redis_and_the_api_server_only() -> None:
    """By their ports; and it is reached on its own, by what collects metrics."""
    policy = only(overlay("production"), "NetworkPolicy", "ottoscaler")
    assert all(reachable(policy, "10.0.1.20", port) for port in (443, 6443, 6379, 26379))
    assert not any(reachable(policy, address, 80) for address in ("169.254.169.254", "1.1.1.1"))
    (rule,) = policy["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [8080]
    assert all("namespaceSelector" in peer for peer in rule["from"])
