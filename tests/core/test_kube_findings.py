"""The rules of `doctor` about a cluster: what its API says of our namespace -> code, severity and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from ottoscaler.core import kube_findings
from ottoscaler.core.findings import Severity, broken, fine, warning
from ottoscaler.core.kube_findings import PodDemand
from ottoscaler.core.kube_objects import DisruptionBudget, LimitRange, NetworkPolicy, Node, Quota
from ottoscaler.core.manifest import AttemptKey, build_pod
from ottoscaler.settings import WorkerSettings
from tests.core import builders

pytestmark = pytest.mark.contract("1.doctor")

Json = dict[str, Any]


def demand(**template: Any) -> PodDemand:
    """What a worker of these settings asks for."""
    event = builders.event()
    body = build_pod(
        WorkerSettings(**template),
        event,
        AttemptKey(builders.HASH, 1, 1),
        event_json="",
        instance="otto",
        namespace="ci",
    )
    return PodDemand.of(msgspec.json.decode(body))


def named(name: str, **fields: Any) -> Json:
    """An object of the API."""
    return {"metadata": {"name": name}, **fields}


def quota(hard: Mapping[str, str], used: Mapping[str, str] = {}, **spec: Any) -> Quota:
    """A quota with its figures."""
    return msgspec.convert(named("q", spec=spec, status={"hard": hard, "used": used}), Quota)


@pytest.mark.parametrize(
    ("found", "severity", "words"),
    [
        (quota({"pods": "40"}, {"pods": "40"}), "warning", "q has room for 0 workers (pods: 40 of 40 used): they wait"),
        (quota({"pods": "40"}, {"pods": "41"}), "warning", "room for 0 workers"),
        (quota({"count/pods": "3"}, {"count/pods": "2"}), "ok", "room for 1 worker (count/pods: 2 of 3 used)"),
        (quota({"pods": "9", "requests.cpu": "1"}), "ok", "room for 9 workers (pods: 0 of 9 used)"),
        (quota({"pods": "90", "cpu": "1"}), "ok", "room for 10 workers (cpu: 0 of 1 used)"),
        (quota({"limits.memory": "1Gi"}, {"limits.memory": "600Mi"}), "warning", "limits.memory: 600Mi of 1Gi used"),
        (quota({"limits.cpu": "500m"}), "broken", "allows limits.cpu 500m, less than one worker asks for"),
        (quota({"services": "0", "requests.storage": "0"}), "ok", "limits nothing that workers use"),
        (quota({"pods": "0"}, scopes=["NotTerminating"]), "ok", "No ResourceQuota counts workers"),
        (quota({"pods": "0"}, scopes=["BestEffort"]), "ok", "No ResourceQuota counts workers"),
        (quota({"pods": "0"}, scopeSelector={"matchExpressions": []}), "ok", "No ResourceQuota counts workers"),
        (quota({"pods": "5"}, {"pods": "5"}, scopes=["Terminating", "NotBestEffort"]), "warning", "room for 0"),
    ],
)
def test_the_room_in_a_quota_is_counted(found: Quota, severity: str, words: str) -> None:
    """By what one worker asks for, of the resource that is used up first."""
    [finding] = kube_findings.quota_findings([found], demand())
    assert (finding.code, finding.severity) == ("kube.quota", severity)
    assert words in finding.text


def test_a_worker_without_a_deadline_is_in_the_other_scope() -> None:
    """Terminating means pods with activeDeadlineSeconds."""
    full = quota({"pods": "0"}, scopes=["NotTerminating"])
    assert kube_findings.quota_findings([full], demand(deadline_s=0))[0].severity is Severity.BROKEN


def limits(kind: str = "Container", **bounds: Mapping[str, str]) -> LimitRange:
    """A LimitRange of one item."""
    return msgspec.convert(named("l", spec={"limits": [{"type": kind, **bounds}]}), LimitRange)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (limits(max={"memory": "256Mi"}), ["at most 256Mi memory, and WORKER_MEMORY_LIMIT is more"]),
        (limits(min={"cpu": "200m"}), ["at least 200m cpu of a container, and WORKER_CPU_REQUEST is less"]),
        (limits("Pod", max={"cpu": "500m"}), ["allows a pod at most 500m cpu, and WORKER_CPU_LIMIT is more"]),
        (limits(max={"cpu": "8", "memory": "512Mi"}, min={"cpu": "100m"}), []),
        (limits("PersistentVolumeClaim", max={"storage": "1", "cpu": "50m"}, min={"memory": "9Gi"}), []),
        (limits(max={"cpu": "50m"}), ["WORKER_CPU_REQUEST", "WORKER_CPU_LIMIT"]),
    ],
)
def test_limits_that_refuse_our_resources_are_named(found: LimitRange, words: Sequence[str]) -> None:
    """With the setting."""
    findings = kube_findings.limit_findings([found], demand())
    assert {finding.code for finding in findings} == {"kube.limitrange"}
    assert [finding.severity for finding in findings] == (["broken"] * len(words) or ["ok"])
    assert all(expected in finding.text for expected, finding in zip(words, findings, strict=False))


def test_no_limits_are_fine() -> None:
    """The API server refuses nothing for them."""
    assert kube_findings.limit_findings([], demand()) == [fine("kube.limitrange", "No LimitRange")]


LARGE: Mapping[str, str] = {"cpu_limit": "4", "memory_request": "6Gi", "memory_limit": "6Gi"}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (limits(max={"memory": "4Gi"}), ["allows a container at most 4Gi memory, and a large one asks for 6Gi"]),
        (limits("Pod", max={"cpu": "2500m"}), ["allows a pod at most 2500m cpu, and a large one asks for 4"]),
        (limits(max={"cpu": "4", "memory": "6Gi", "ephemeral-storage": "1Gi"}), []),
        (limits("PersistentVolumeClaim", max={"storage": "1"}), []),
        (limits(max={"cpu": "1", "memory": "1Gi"}), ["at most 1 cpu", "at most 1Gi memory"]),
    ],
)
def test_limits_below_what_the_policy_allows_are_named(found: LimitRange, words: Sequence[str]) -> None:
    """A warning: ordinary workers run."""
    findings = kube_findings.largest_limit_findings([found], [("a large one", demand(**LARGE))])
    assert [(finding.code, finding.severity) for finding in findings] == [("kube.limitrange", "warning")] * len(words)
    assert all(expected in finding.text for expected, finding in zip(words, findings, strict=True))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (quota({"limits.memory": "5Gi"}), ["allows limits.memory 5Gi, and a large one asks for 6Gi: it waits without"]),
        (quota({"limits.cpu": "3500m", "pods": "9"}), ["allows limits.cpu 3500m, and a large one asks for 4"]),
        (quota({"pods": "0"}), ["allows pods 0, and a large one asks for 1"]),
        (quota({"limits.memory": "6Gi", "limits.cpu": "4"}, {"limits.memory": "6Gi"}), []),
        (quota({"limits.memory": "1Gi"}, scopes=["NotTerminating"]), []),
    ],
)
def test_a_quota_below_what_the_policy_allows_is_named(found: Quota, words: Sequence[str]) -> None:
    """Of what it allows in all: what is in use now is no matter."""
    findings = kube_findings.largest_quota_findings([found], [("a large one", demand(**LARGE))])
    assert [(finding.code, finding.severity) for finding in findings] == [("kube.quota", "warning")] * len(words)
    assert all(expected in finding.text for expected, finding in zip(words, findings, strict=True))


def test_a_refusal_of_the_largest_worker_is_a_warning() -> None:
    """With the code of its check."""
    finding = kube_findings.largest_refusal_finding("maximum cpu usage per Pod is 2, but limit is 4", "a large one")
    assert (finding.code, finding.severity) == ("kube.limitrange", "warning")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("maximum memory usage per Container is 256Mi, but limit is 512Mi", "kube.limitrange"),
        ('violates PodSecurity "restricted:latest": host namespaces', "kube.pod_security"),
        ("failed quota: q: must specify limits.ephemeral-storage", "kube.quota"),
        ('error looking up service account ci/x: serviceaccount "x" not found', "kube.service_account"),
        ("the Kubernetes API answered 404 to create: x: does NAMESPACE exist?", "kube.namespace"),
        ('failed calling webhook "y.example.com": context deadline exceeded', "kube.admission"),
    ],
)
def test_a_refusal_has_the_code_of_its_check(message: str, code: str) -> None:
    """By the words of the API server and its plugins, which are quoted."""
    finding = kube_findings.refusal_finding(message, final=True, what="a worker of profile x")
    assert finding == broken(code, f"a worker of profile x would be refused: {message}")


def test_a_quota_that_is_full_makes_workers_wait() -> None:
    """That is no fault."""
    finding = kube_findings.refusal_finding("exceeded quota: q", final=False, what="a worker")
    assert finding == warning("kube.quota", "a worker would wait now: exceeded quota: q")
    assert kube_findings.refusal_finding("webhook is down", final=False, what="a worker").severity == "broken"


def test_a_trouble_is_reported_once() -> None:
    """The dry run repeats what was read before; what is well is no repetition."""
    many = [fine("a", "1"), broken("a", "2"), broken("a", "3"), fine("a", "4"), broken("b", "5"), warning("b", "6")]
    assert [finding.text for finding in kube_findings.first_of_each_code(many)] == ["1", "2", "4", "5"]


def budget(name: str, **spec: Any) -> DisruptionBudget:
    """A PodDisruptionBudget."""
    return msgspec.convert(named(name, spec=spec), DisruptionBudget)


OURS = {"matchLabels": {"managed-by": "ottoscaler", "ottoscaler.io/disruption-budget": "true"}}


@pytest.mark.parametrize(
    ("found", "severity", "words"),
    [
        ([], "warning", "No PodDisruptionBudget selects a worker of profile x"),
        ([budget("b")], "warning", "No PodDisruptionBudget"),
        (
            [budget("b", minAvailable=1, selector={"matchLabels": {"app": "redis"}})],
            "warning",
            "No PodDisruptionBudget",
        ),
        ([budget("b", minAvailable=1, selector=OURS)], "ok", "PodDisruptionBudget b selects a worker of profile x"),
        ([budget("b", minAvailable=1, selector={})], "ok", "b selects"),
        ([budget("b", minAvailable="50%", selector=OURS)], "warning", "has no whole number in minAvailable"),
        ([budget("b", maxUnavailable=0, selector=OURS)], "warning", "has no whole number in minAvailable"),
        ([budget(name, minAvailable=1, selector=OURS) for name in "bc"], "warning", "b, c all select a worker"),
    ],
)
def test_one_budget_has_to_protect_the_workers_that_ask(
    found: Sequence[DisruptionBudget], severity: str, words: str
) -> None:
    """The API server counts pods without a controller by a whole number only, and evicts no pod of two budgets."""
    labels = {**demand().labels, "ottoscaler.io/disruption-budget": "true"}
    finding = kube_findings.budget_finding(found, "a worker of profile x", labels)
    assert (finding.code, finding.severity) == ("kube.disruption_budget", severity)
    assert words in finding.text


@pytest.mark.parametrize(
    ("kind", "severity", "words"),
    [
        (None, "broken", "Secret regcred is not in namespace ci"),
        ("Opaque", "broken", "is of type Opaque"),
        ("kubernetes.io/dockerconfigjson", "ok", "is in namespace ci"),
    ],
)
def test_the_secret_for_images_has_to_be_there(kind: str | None, severity: str, words: str) -> None:
    """In the workers' namespace, and of a type that the kubelet takes."""
    finding = kube_findings.pull_secret_finding("regcred", "ci", kind)
    assert (finding.code, finding.severity) == ("kube.pull_secret", severity)
    assert words in finding.text


def test_the_pod_security_profile_is_said() -> None:
    """Workers meet all of them."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    assert "profile restricted" in kube_findings.pod_security_finding("ci", labels).text
    assert "profile privileged" in kube_findings.pod_security_finding("ci", {}).text


# -- network


def policy(selector: Json, *egress: Json, types: Sequence[str] = ("Egress",)) -> NetworkPolicy:
    """A policy of the workers' namespace."""
    spec = {"podSelector": selector, "policyTypes": list(types), "egress": list(egress)}
    return msgspec.convert(named("z", spec=spec), NetworkPolicy)


OURS = {"matchLabels": {"managed-by": "ottoscaler"}}
WEB = {"ports": [{"protocol": "TCP", "port": 443}]}
REQUIRED = {"key": "managed-by", "operator": "In", "values": ["ottoscaler"]}


@pytest.mark.parametrize(
    ("found", "severity", "words"),
    [
        ([], "ok", "No NetworkPolicy restricts"),
        ([policy({})], "warning", "z selects workers and lets them reach nothing at all: no DNS"),
        ([policy(OURS, WEB)], "warning", "lets them reach no port 53"),
        ([policy({}), policy(OURS, {"ports": [{"protocol": "UDP", "port": 53}]})], "ok", "lets them ask the DNS"),
        ([policy(OURS, {})], "ok", "lets them ask the DNS"),
        ([policy(OURS, {"ports": [{"protocol": "UDP", "port": 1, "endPort": 99}]})], "ok", "DNS"),
        ([policy(OURS, {"ports": [{"protocol": "UDP", "port": "dns"}]})], "ok", "DNS"),
        ([policy(OURS, {"ports": [{"protocol": "UDP"}]})], "ok", "DNS"),
        ([policy(OURS, {"ports": [{"protocol": "SCTP", "port": 53}]})], "warning", "no port 53"),
        ([policy({}, types=["Ingress"])], "ok", "No NetworkPolicy restricts"),
        ([policy({"matchLabels": {"app": "x"}})], "ok", "No NetworkPolicy restricts"),
        ([policy({"matchExpressions": [REQUIRED]})], "warning", "nothing at all"),
        ([policy({"matchExpressions": [{**REQUIRED, "operator": "NotIn"}]})], "ok", "No NetworkPolicy"),
        ([policy({"matchExpressions": [{"key": "managed-by", "operator": "Exists"}]})], "warning", "nothing at all"),
        ([policy({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]})], "warning", "nothing at all"),
        ([policy({"matchExpressions": [{"key": "managed-by", "operator": "DoesNotExist"}]})], "ok", "No NetworkPolicy"),
        ([policy({"matchExpressions": [{"key": "managed-by", "operator": "Later"}]})], "ok", "No NetworkPolicy"),
    ],
)
def test_policies_that_keep_workers_from_the_dns_are_named(
    found: Sequence[NetworkPolicy], severity: str, words: str
) -> None:
    """What the policies of a pod allow adds up."""
    finding = kube_findings.network_finding(found, demand().labels)
    assert (finding.code, finding.severity) == ("kube.network", severity)
    assert words in finding.text


# -- nodes


def node(labels: Mapping[str, str] = {}, cpu: str = "2", memory: str = "4Gi", **spec: Any) -> Node:
    """A node with room for all that it has."""
    status = {"allocatable": {"cpu": cpu, "memory": memory}}
    return msgspec.convert({"metadata": {"name": "n", "labels": dict(labels)}, "spec": spec, "status": status}, Node)


TAINT = {"key": "dedicated", "value": "db", "effect": "NoSchedule"}
POOL = {"pool": "ci"}


@pytest.mark.parametrize(
    ("nodes", "template", "words"),
    [
        ([], {}, "The cluster has no node"),
        (
            [node(), node()],
            {"node_selector": POOL},
            "None of 2 nodes could take a worker (2 without the label pool=ci)",
        ),
        ([node(taints=[TAINT]), node(unschedulable=True)], {}, "1 with the taint dedicated=db:NoSchedule, 1 cordoned"),
        ([node(taints=[{"key": "k", "effect": "NoExecute"}])], {}, "1 with the taint k:NoExecute"),
        ([node(cpu="50m")], {}, "1 with too little cpu"),
        ([node(memory="64Mi")], {}, "1 with too little memory"),
        ([node(memory="x")], {}, "1 with too little memory"),
    ],
)
def test_what_keeps_workers_off_all_nodes_is_named(nodes: Sequence[Node], template: Json, words: str) -> None:
    """A warning, for an autoscaler may add one."""
    finding = kube_findings.nodes_finding(nodes, demand(**template))
    assert (finding.code, finding.severity) == ("kube.nodes", Severity.WARNING)
    assert words in finding.text


@pytest.mark.parametrize(
    ("found", "tolerations"),
    [
        (node(taints=[{**TAINT, "effect": "PreferNoSchedule"}]), ()),
        (node(taints=[TAINT]), ({"key": "dedicated", "value": "db"},)),
        (node(taints=[TAINT]), ({"operator": "Exists"},)),
        (node(taints=[TAINT]), ({"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"},)),
        (node(taints=[TAINT, {**TAINT, "key": "gpu"}]), ({"operator": "Exists"},)),
    ],
)
def test_a_node_that_could_take_a_worker_is_enough(found: Node, tolerations: Sequence[Json]) -> None:
    """Taints that are tolerated, or only preferred, are none."""
    other = node(cpu="0")
    finding = kube_findings.nodes_finding([other, found], demand(tolerations=tolerations))
    assert finding == fine("kube.nodes", "1 of 2 nodes could take a worker")


def test_a_node_of_the_pool_takes_workers_of_the_pool() -> None:
    """The others do not matter."""
    found = kube_findings.nodes_finding([node(), node(POOL)], demand(node_selector=POOL))
    assert found == fine("kube.nodes", "1 of 2 nodes could take a worker")


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "dedicated", "value": "web"},
        {"key": "other", "operator": "Exists"},
        {"key": "dedicated", "operator": "Exists", "effect": "NoExecute"},
    ],
)
def test_another_toleration_is_of_no_use(toleration: Json) -> None:
    """Key, value and effect have to fit."""
    found = kube_findings.nodes_finding([node(taints=[TAINT])], demand(tolerations=[toleration]))
    assert found.severity is Severity.WARNING
