"""What `doctor` reads of a cluster, as the API server sends it: only the fields that its rules use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class Metadata(msgspec.Struct, frozen=True):
    """Name and labels of any object."""

    name: str = ""
    labels: dict[str, str] = {}


class QuotaSpec(msgspec.Struct, frozen=True):
    """Which pods count: those in all of the scopes."""

    scopes: list[str] = []
    scope_selector: dict[str, Any] | None = msgspec.field(default=None, name="scopeSelector")


class QuotaStatus(msgspec.Struct, frozen=True):
    """Quantities by the name of the resource."""

    hard: dict[str, str] = {}
    used: dict[str, str] = {}


class Quota(msgspec.Struct, frozen=True):
    """https://kubernetes.io/docs/concepts/policy/resource-quotas/"""

    metadata: Metadata
    spec: QuotaSpec = QuotaSpec()
    status: QuotaStatus = QuotaStatus()


class LimitItem(msgspec.Struct, frozen=True):
    """Bounds for a kind of thing: `Container` or `Pod`; others are not about workers."""

    type: str
    max: dict[str, str] = {}
    min: dict[str, str] = {}


class LimitSpec(msgspec.Struct, frozen=True):
    """All bounds of one LimitRange."""

    limits: list[LimitItem] = []


class LimitRange(msgspec.Struct, frozen=True):
    """https://kubernetes.io/docs/concepts/policy/limit-range/"""

    metadata: Metadata
    spec: LimitSpec = LimitSpec()


class Requirement(msgspec.Struct, frozen=True):
    """One requirement of a label selector."""

    key: str
    operator: str
    values: list[str] = []

    def is_met_by(self, labels: Mapping[str, str]) -> bool:
        """Whether a pod with these labels meets it."""
        value = labels.get(self.key)
        return {
            "In": value in self.values,
            "NotIn": value not in self.values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(self.operator, False)


class LabelSelector(msgspec.Struct, frozen=True):
    """An empty one selects everything."""

    labels: dict[str, str] = msgspec.field(default={}, name="matchLabels")
    requirements: list[Requirement] = msgspec.field(default=[], name="matchExpressions")

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects a pod with these labels."""
        return self.labels.items() <= labels.items() and all(one.is_met_by(labels) for one in self.requirements)


class BudgetSpec(msgspec.Struct, frozen=True):
    """The pods that it counts (none without a selector), and how many of them have to be available."""

    selector: LabelSelector | None = None
    min_available: int | str | None = msgspec.field(default=None, name="minAvailable")


class DisruptionBudget(msgspec.Struct, frozen=True):
    """https://kubernetes.io/docs/tasks/run-application/configure-pdb/"""

    metadata: Metadata
    spec: BudgetSpec = BudgetSpec()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether it counts a pod with these labels."""
        return self.spec.selector is not None and self.spec.selector.selects(labels)


class EgressPort(msgspec.Struct, frozen=True):
    """A port by number or by name; without one, every port; with `end`, all from the one to the other."""

    protocol: str = "TCP"
    port: int | str | None = None
    end: int | None = msgspec.field(default=None, name="endPort")


class EgressRule(msgspec.Struct, frozen=True):
    """Which ports are open. The addresses are not looked at: it takes more than the API to know what listens there."""

    ports: list[EgressPort] = []


class PolicySpec(msgspec.Struct, frozen=True):
    """The pods that it restricts, and what it lets through."""

    selector: LabelSelector = msgspec.field(default=LabelSelector(), name="podSelector")
    types: list[str] = msgspec.field(default=[], name="policyTypes")
    egress: list[EgressRule] = []


class NetworkPolicy(msgspec.Struct, frozen=True):
    """https://kubernetes.io/docs/concepts/services-networking/network-policies/"""

    metadata: Metadata
    spec: PolicySpec = PolicySpec()


class Taint(msgspec.Struct, frozen=True):
    """What keeps pods off a node."""

    key: str
    effect: str
    value: str = ""

    def is_tolerated(self, tolerations: Sequence[Mapping[str, Any]]) -> bool:
        """Whether one of these tolerations matches it: https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/"""
        return any(
            one.get("effect") in (None, "", self.effect)
            and one.get("key") in (None, "", self.key)
            and (one.get("operator") == "Exists" or (one.get("value") or "") == self.value)
            for one in tolerations
        )


class NodeSpec(msgspec.Struct, frozen=True):
    """What keeps pods off it."""

    taints: list[Taint] = []
    unschedulable: bool = False


class NodeStatus(msgspec.Struct, frozen=True):
    """What all pods on it may use together."""

    allocatable: dict[str, str] = {}


class Node(msgspec.Struct, frozen=True):
    """A machine of the cluster."""

    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class Secret(msgspec.Struct, frozen=True):
    """Never its data."""

    type: str = ""
