"""The rules about a cluster: from what its API says of our namespace, and from what workers need, to findings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from ottoscaler.core.amounts import quantity_text
from ottoscaler.core.findings import Finding, broken, fine, warning
from ottoscaler.core.kube_objects import DisruptionBudget, EgressPort, LimitRange, NetworkPolicy, Node, Quota
from ottoscaler.core.quantities import quantity
from ottoscaler.core.wording import count_text

DNS_PORT: Final = 53
_PULL_SECRETS: Final = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")
#: What the API server and its admission plugins say -> which of our checks that is.
_REFUSALS: Final = (
    (re.compile(r"(?:maximum|minimum) \S+ usage per|max limit to request ratio"), "kube.limitrange"),
    (re.compile(r"violates PodSecurity"), "kube.pod_security"),
    (re.compile(r"exceeded quota|failed quota|insufficient quota"), "kube.quota"),
    (re.compile(r"error looking up service account"), "kube.service_account"),
    (re.compile(r"does NAMESPACE exist"), "kube.namespace"),
)
#: What to do about a limit that is less than the policy allows.
_MEND: Final = "lower the maxima of the policy, or raise the limit"
_SETTINGS: Final = {
    ("requests", "cpu"): "WORKER_CPU_REQUEST",
    ("requests", "memory"): "WORKER_MEMORY_REQUEST",
    ("limits", "cpu"): "WORKER_CPU_LIMIT",
    ("limits", "memory"): "WORKER_MEMORY_LIMIT",
}


@dataclass(frozen=True, slots=True)
class PodDemand:
    """What one worker pod asks for, by its create request."""

    labels: Mapping[str, str]
    resources: Sequence[Mapping[str, Mapping[str, str]]]
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]
    has_deadline: bool

    @classmethod
    def of(cls, pod: Mapping[str, Any]) -> PodDemand:
        """Of the body that `build_pod` makes, decoded."""
        spec = pod["spec"]
        containers = [*spec["containers"], *spec.get("initContainers", ())]
        return cls(
            pod["metadata"]["labels"],
            [container["resources"] for container in containers],
            spec.get("nodeSelector", {}),
            spec.get("tolerations", ()),
            "activeDeadlineSeconds" in spec,
        )

    def total(self, kind: str, resource: str) -> Fraction:
        """All containers together; services run beside the worker."""
        return sum((amount(each.get(kind, {}).get(resource, "0")) for each in self.resources), Fraction(0))


def amount(text: str) -> Fraction:
    """The value of a quantity; 0 for what is none."""
    return quantity(text) or Fraction(0)


# -- quota and limits


def quota_findings(quotas: Sequence[Quota], demand: PodDemand) -> Sequence[Finding]:
    """Is there room for a worker? Full is what waits for an end; what never fits is broken."""
    counting = [quota for quota in quotas if _counts(quota, demand)]
    if not counting:
        return [fine("kube.quota", "No ResourceQuota counts workers")]
    return [_quota_finding(quota, demand) for quota in counting]


def _counts(quota: Quota, demand: PodDemand) -> bool:
    """Is a worker in the quota's scopes? Those of priority classes and of others are not for ordinary workers."""
    ours = {"NotBestEffort", "Terminating" if demand.has_deadline else "NotTerminating"}
    return quota.spec.scope_selector is None and set(quota.spec.scopes) <= ours


def _quota_finding(quota: Quota, demand: PodDemand) -> Finding:
    name, hard = quota.metadata.name, quota.status.hard
    needs = {resource: need for resource in hard if (need := _need(resource, demand))}
    if not needs:
        return fine("kube.quota", f"ResourceQuota {name} limits nothing that workers use")
    rooms = {resource: _room(quota, resource, need) for resource, need in needs.items()}
    resource = min(rooms, key=lambda each: rooms[each])
    used = f"{resource}: {quota.status.used.get(resource, '0')} of {hard[resource]} used"
    if needs[resource] > amount(hard[resource]):
        text = f"ResourceQuota {name} allows {resource} {hard[resource]}, less than one worker asks for: raise it"
        return broken("kube.quota", text)
    if rooms[resource] <= 0:
        return warning("kube.quota", f"ResourceQuota {name} has room for 0 workers ({used}): they wait; raise it")
    return fine("kube.quota", f"ResourceQuota {name} has room for {count_text(rooms[resource], 'worker')} ({used})")


def _need(resource: str, demand: PodDemand) -> Fraction:
    if resource in ("pods", "count/pods"):
        return Fraction(1)
    kind, _, name = resource.rpartition(".")
    return demand.total(kind or "requests", name)


def _room(quota: Quota, resource: str, need: Fraction) -> int:
    return int((amount(quota.status.hard[resource]) - amount(quota.status.used.get(resource, "0"))) // need)


def limit_findings(ranges: Sequence[LimitRange], demand: PodDemand) -> Sequence[Finding]:
    """Does the API server refuse our resources?"""
    found = [
        broken(
            "kube.limitrange", f"LimitRange {each.metadata.name} {sentence}: no worker is created; change one of them"
        )
        for each in ranges
        for sentence in _outside(each, demand)
    ]
    names = ", ".join(each.metadata.name for each in ranges)
    return found or [fine("kube.limitrange", f"LimitRange {names} allows our resources" if ranges else "No LimitRange")]


def _outside(limits: LimitRange, demand: PodDemand) -> Iterable[str]:
    for item in limits.spec.limits:
        if item.type not in ("Container", "Pod"):
            continue
        for (kind, resource), setting in _SETTINGS.items():
            asked = _asked(item.type, kind, resource, demand)
            if (most := item.max.get(resource)) is not None and max(asked) > amount(most):
                yield f"allows a {item.type.lower()} at most {most} {resource}, and {setting} is more"
            if (least := item.min.get(resource)) is not None and min(asked) < amount(least):
                yield f"asks at least {least} {resource} of a {item.type.lower()}, and {setting} is less"


def _asked(item: str, kind: str, resource: str, demand: PodDemand) -> Sequence[Fraction]:
    if item == "Pod":
        return [demand.total(kind, resource)]
    return [amount(each[kind].get(resource, "0")) for each in demand.resources]


def largest_limit_findings(ranges: Sequence[LimitRange], largest: Iterable[tuple[str, PodDemand]]) -> Sequence[Finding]:
    """Does the API server refuse a worker that the policy allows? `largest`: of each profile the worker that asks for
    most, with its name for people. Smaller ones run all the same, so this is a warning.
    """
    return [
        warning(
            "kube.limitrange",
            f"LimitRange {each.metadata.name} allows a {where} at most {most} {resource}, and {what} asks for {asked}:"
            f" it is refused; {_MEND}",
        )
        for what, demand in largest
        for each in ranges
        for where, resource, most, asked in _above(each, demand)
    ]


def largest_quota_findings(quotas: Sequence[Quota], largest: Iterable[tuple[str, PodDemand]]) -> Sequence[Finding]:
    """Does a quota never have room for a worker that the policy allows? Arguments as of `largest_limit_findings`."""
    return [
        warning(
            "kube.quota",
            f"ResourceQuota {quota.metadata.name} allows {resource} {most}, and {what} asks for"
            f" {quantity_text(need, resource)}: it waits without end; {_MEND}",
        )
        for what, demand in largest
        for quota in quotas
        if _counts(quota, demand)
        for resource, most in quota.status.hard.items()
        if (need := _need(resource, demand)) > amount(most)
    ]


def _above(limits: LimitRange, demand: PodDemand) -> Iterable[tuple[str, str, str, str]]:
    """What of a demand is above a maximum: of which kind of thing, the resource, the maximum, what is asked for."""
    for item in limits.spec.limits:
        for resource, most in item.max.items() if item.type in ("Container", "Pod") else ():
            asked = max(_asked(item.type, "limits", resource, demand))
            if asked > amount(most):
                yield item.type.lower(), resource, most, quantity_text(asked, resource)


# -- admission


def refusal_finding(message: str, *, final: bool, what: str) -> Finding:
    """The API server refuses a dry run of a pod. `final`: it would refuse it again; `what`: the pod, for people."""
    code = next((code for words, code in _REFUSALS if words.search(message)), "kube.admission")
    if not final and code == "kube.quota":
        return warning(code, f"{what} would wait now: {message}")
    return broken(code, f"{what} would be refused: {message}")


def largest_refusal_finding(message: str, what: str) -> Finding:
    """The API server refuses a dry run of the largest worker of a profile, and would again: smaller ones may run."""
    refused = refusal_finding(message, final=True, what=what)
    return warning(refused.code, refused.text)


def pod_security_finding(namespace: str, labels: Mapping[str, str]) -> Finding:
    """Workers meet the strictest profile by themselves; a refusal is found by the dry run."""
    level = labels.get("pod-security.kubernetes.io/enforce", "privileged")
    return fine("kube.pod_security", f"Namespace {namespace} enforces the Pod Security profile {level}")


def pull_secret_finding(name: str, namespace: str, kind: str | None) -> Finding:
    """Is the Secret for images where the kubelet looks for it? `kind`: its type, None if it is not there."""
    if kind is None:
        return broken(
            "kube.pull_secret",
            f"Secret {name} is not in namespace {namespace}: make it there, or mend WORKER_IMAGE_PULL_SECRET",
        )
    if kind not in _PULL_SECRETS:
        return broken(
            "kube.pull_secret",
            f"Secret {name} is of type {kind}, and the kubelet takes {_PULL_SECRETS[0]}: make it with"
            " 'kubectl create secret docker-registry'",
        )
    return fine("kube.pull_secret", f"Secret {name} is in namespace {namespace}")


# -- network and nodes


def network_finding(policies: Sequence[NetworkPolicy], labels: Mapping[str, str]) -> Finding:
    """Can workers ask the DNS? What the policies of a pod allow adds up."""
    selecting = [each for each in policies if "Egress" in each.spec.types and each.spec.selector.selects(labels)]
    names = ", ".join(each.metadata.name for each in selecting)
    if not selecting:
        return fine("kube.network", "No NetworkPolicy restricts where workers may connect to")
    rules = [rule for each in selecting for rule in each.spec.egress]
    if any(not rule.ports or any(map(_is_dns, rule.ports)) for rule in rules):
        return fine("kube.network", f"NetworkPolicy {names} selects workers and lets them ask the DNS")
    lets = "nothing at all" if not rules else "no port 53"
    return warning(
        "kube.network",
        f"NetworkPolicy {names} selects workers and lets them reach {lets}: no DNS; allow UDP and TCP 53 to them",
    )


def _is_dns(port: EgressPort) -> bool:
    if port.protocol not in ("UDP", "TCP"):
        return False
    if not isinstance(port.port, int):  # a name stands for any number
        return True
    return port.port <= DNS_PORT <= (port.end or port.port)


def nodes_finding(nodes: Sequence[Node], demand: PodDemand) -> Finding:
    """Is there a node that could take a worker if it were empty?"""
    if not nodes:
        return warning("kube.nodes", "The cluster has no node: workers wait until one is added")
    obstacles = [_node_obstacle(node, demand) for node in nodes]
    able = obstacles.count("")
    if able:
        return fine("kube.nodes", f"{able} of {len(nodes)} nodes could take a worker")
    reasons = ", ".join(f"{count} {obstacle}" for obstacle, count in Counter(obstacles).most_common())
    return warning(
        "kube.nodes",
        f"None of {len(nodes)} nodes could take a worker ({reasons}): workers wait, unless an autoscaler adds one; see"
        " WORKER_NODE_SELECTOR, WORKER_TOLERATIONS and the resources of workers",
    )


def _node_obstacle(node: Node, demand: PodDemand) -> str:
    for name, value in demand.node_selector.items():
        if node.metadata.labels.get(name) != value:
            return f"without the label {name}={value}"
    if node.spec.unschedulable:
        return "cordoned"
    for taint in node.spec.taints:
        if taint.effect != "PreferNoSchedule" and not taint.is_tolerated(demand.tolerations):
            return f"with the taint {taint.key}{f'={taint.value}' if taint.value else ''}:{taint.effect}"
    for resource in ("cpu", "memory"):
        if amount(node.status.allocatable.get(resource, "0")) < demand.total("requests", resource):
            return f"with too little {resource}"
    return ""


def budget_finding(budgets: Sequence[DisruptionBudget], what: str, labels: Mapping[str, str]) -> Finding:
    """Does a PodDisruptionBudget protect the workers that ask for one? `what`: one of them, for people."""
    code, selecting = "kube.disruption_budget", [each for each in budgets if each.selects(labels)]
    names = ", ".join(each.metadata.name for each in selecting)
    if not selecting:
        return warning(
            code,
            f"No PodDisruptionBudget selects {what}, of which the profile asks for one, so a drain evicts it: add"
            " components/disruption-budget to the overlay",
        )
    if len(selecting) > 1:
        return warning(
            code,
            f"The PodDisruptionBudgets {names} all select {what}, and the API server evicts no pod of several: keep one"
            " that selects it",
        )
    if not isinstance(selecting[0].spec.min_available, int):
        return warning(
            code,
            f"PodDisruptionBudget {names} selects {what} and has no whole number in minAvailable; for pods without a"
            " controller nothing else counts",
        )
    return fine(code, f"PodDisruptionBudget {names} selects {what}")


def first_of_each_code(findings: Iterable[Finding]) -> Sequence[Finding]:
    """What a dry run repeats is left out: a trouble of a code that was found before."""
    seen: set[str] = set()
    kept = []
    for finding in findings:
        if finding.is_trouble and finding.code in seen:
            continue
        kept.append(finding)
        if finding.is_trouble:
            seen.add(finding.code)
    return kept
