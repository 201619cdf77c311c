"""What the controller's ServiceAccount may do, asked in two ways: what RBAC says, and what a real request gets.

Subresources are asked for as such. `kubectl auth can-i create pods/exec` asks about a pod of the name "exec" and says
yes; the right question is `--subresource=exec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

from ottoscaler.adapters.cluster import EVENT_VERBS, VERBS
from ottoscaler.adapters.kube_events import WRITE_VERBS
from tests.deploy.cluster import PRODUCTION, Cluster

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

#: Group -> version, for paths.
VERSIONS: Final = {
    "apps": "v1",
    "batch": "v1",
    "policy": "v1",
    "coordination.k8s.io": "v1",
    "networking.k8s.io": "v1",
    "rbac.authorization.k8s.io": "v1",
    "authorization.k8s.io": "v1",
    "authentication.k8s.io": "v1",
    "admissionregistration.k8s.io": "v1",
    "certificates.k8s.io": "v1",
    "events.k8s.io": "v1",
}
METHODS: Final = {
    "create": "POST",
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
    "deletecollection": "DELETE",
}
NAMED: Final = ("get", "update", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Row:
    """One action. `namespace` is empty for what is the cluster's, or for all namespaces."""

    verb: str
    resource: str
    subresource: str = ""
    group: str = ""
    namespace: str = PRODUCTION

    def __str__(self) -> str:
        what = "/".join(part for part in (self.resource, self.subresource) if part)
        return f"{self.verb}-{what}" + ("" if self.namespace == PRODUCTION else f"-in-{self.namespace or 'all'}")

    @property
    def attributes(self) -> dict[str, str]:
        """For a SubjectAccessReview."""
        named = {"name": "x"} if self.verb in NAMED or self.subresource else {}
        return {
            "verb": self.verb,
            "group": self.group,
            "resource": self.resource,
            "subresource": self.subresource,
            "namespace": self.namespace,
            **named,
        }

    @property
    def path(self) -> str:
        """For a request."""
        root = f"/apis/{self.group}/{VERSIONS[self.group]}" if self.group else "/api/v1"
        where = f"/namespaces/{self.namespace}" if self.namespace else ""
        name = "/x" if self.verb in NAMED or self.subresource else ""
        rest = f"/{self.subresource}" if self.subresource else ""
        query = "?watch=true&timeoutSeconds=1" if self.verb == "watch" else ""
        return f"{root}{where}/{self.resource}{name}{rest}{query}"


def rows(resource: str, verbs: str, subresource: str = "", group: str = "", namespace: str = PRODUCTION) -> list[Row]:
    """One for each verb."""
    return [Row(verb, resource, subresource, group, namespace) for verb in verbs.split()]


RBAC: Final = "rbac.authorization.k8s.io"
ALLOWED: Final = [
    *rows("pods", " ".join(VERBS)),
    *rows("events", " ".join((*EVENT_VERBS, *WRITE_VERBS))),
    *rows("selfsubjectaccessreviews", "create", group="authorization.k8s.io", namespace=""),
]
FORBIDDEN: Final = [
    *rows("pods", "update patch deletecollection"),
    *rows("pods", "create get", "exec"),
    *rows("pods", "create get", "attach"),
    *rows("pods", "create get", "portforward"),
    *rows("pods", "create get", "proxy"),
    *rows("pods", "get", "log"),
    *rows("pods", "get update patch", "status"),
    *rows("pods", "get update patch", "ephemeralcontainers"),
    *rows("pods", "patch", "resize"),
    *rows("pods", "create", "eviction"),
    *rows("pods", "create", "binding"),
    *rows("secrets", "get list watch create update delete"),
    *rows("configmaps", "get list create patch delete"),
    *rows("serviceaccounts", "get create"),
    *rows("serviceaccounts", "create", "token"),
    *rows("events", "get watch update delete deletecollection"),
    *rows("events", "create list watch patch", group="events.k8s.io"),
    *rows("services", "create"),
    *rows("persistentvolumeclaims", "create"),
    *rows("resourcequotas", "get update delete"),
    *rows("limitranges", "delete"),
    *rows("deployments", "get patch delete", group="apps"),
    *rows("deployments", "update", "scale", group="apps"),
    *rows("jobs", "create", group="batch"),
    *rows("leases", "create get", group="coordination.k8s.io"),
    *rows("networkpolicies", "delete patch", group="networking.k8s.io"),
    *rows("poddisruptionbudgets", "get list create delete", group="policy"),
    *rows("roles", "create get patch", group=RBAC),
    *rows("rolebindings", "create patch", group=RBAC),
    *(row for name in ("default", "kube-system") for row in rows("pods", " ".join(VERBS), namespace=name)),
    *rows("pods", "list watch", namespace=""),
    *(row for name in ("default", "") for row in rows("events", "create list patch", namespace=name)),
    *rows("namespaces", "get list create delete patch", namespace=""),
    *rows("nodes", "get list", namespace=""),
    *rows("nodes", "get", "proxy", namespace=""),
    *rows("persistentvolumes", "list", namespace=""),
    *rows("clusterroles", "create", group=RBAC, namespace=""),
    *rows("clusterrolebindings", "create", group=RBAC, namespace=""),
    *rows("subjectaccessreviews", "create", group="authorization.k8s.io", namespace=""),
    *rows("tokenreviews", "create", group="authentication.k8s.io", namespace=""),
    *rows("validatingadmissionpolicies", "patch delete", group="admissionregistration.k8s.io", namespace=""),
    *rows("validatingadmissionpolicybindings", "delete", group="admissionregistration.k8s.io", namespace=""),
    *rows("certificatesigningrequests", "create", group="certificates.k8s.io", namespace=""),
]
#: Verbs that are no requests of their own: only RBAC is asked.
NO_REQUESTS: Final = [
    *rows("serviceaccounts", "impersonate"),
    *rows("users", "impersonate", namespace=""),
    *rows("roles", "bind escalate", group=RBAC),
    *rows("clusterroles", "bind escalate", group=RBAC, namespace=""),
]


@pytest.mark.parametrize("row", ALLOWED, ids=str)
def test_allowed(cluster: Cluster, row: Row) -> None:
    """RBAC says so, and lets the request through; what becomes of it then is for others to say."""
    assert cluster.may(PRODUCTION, row.attributes)
    answer = cluster.ask(METHODS[row.verb], row.path, _body(row), namespace=PRODUCTION)
    assert not answer.forbidden, answer.text


def test_its_own_namespace_may_be_looked_at(cluster: Cluster) -> None:
    """Its UID says which cluster this is. Not that of another, and no list of them."""
    asked = {"verb": "get", "group": "", "resource": "namespaces", "subresource": ""}
    assert cluster.may(PRODUCTION, {**asked, "namespace": PRODUCTION, "name": PRODUCTION})
    answer = cluster.ask("GET", f"/api/v1/namespaces/{PRODUCTION}", None, namespace=PRODUCTION)
    assert (answer.status, answer.forbidden) == (200, False)
    assert cluster.ask("GET", "/api/v1/namespaces/default", None, namespace=PRODUCTION).forbidden


@pytest.mark.parametrize("row", FORBIDDEN, ids=str)
def test_forbidden(cluster: Cluster, row: Row) -> None:
    """RBAC says so, and stops the request."""
    assert not cluster.may(PRODUCTION, row.attributes)
    answer = cluster.ask(METHODS[row.verb], row.path, _body(row), namespace=PRODUCTION)
    assert answer.forbidden, answer.text
    assert f"cannot {row.verb} resource" in answer.text.replace("\\", "")


@pytest.mark.parametrize("row", NO_REQUESTS, ids=str)
def test_forbidden_by_name(cluster: Cluster, row: Row) -> None:
    """Rights to have more rights."""
    assert not cluster.may(PRODUCTION, row.attributes)


def test_no_other_identity_is_accepted(cluster: Cluster) -> None:
    """Impersonation, as a request."""
    path, mask = f"/api/v1/namespaces/{PRODUCTION}/pods", {"Impersonate-User": "admin"}
    answer = cluster.ask("GET", path, namespace=PRODUCTION, **mask)
    assert (answer.status, "impersonate" in answer.text) == (403, True)


def test_the_trap_of_subresources(cluster: Cluster) -> None:
    """The wrong question has a reassuring answer, the other way round: it is about a pod of the name exec."""
    where = ("-n", PRODUCTION, f"--as=system:serviceaccount:{PRODUCTION}:ottoscaler")
    wrong = cluster.kubectl("auth", "can-i", "create", "pods/exec", *where)
    right = cluster.kubectl("auth", "can-i", "create", "pods", "--subresource=exec", *where)
    assert (wrong.stdout.strip(), right.stdout.strip()) == ("yes", "no")


def test_the_matrix_is_large_enough() -> None:
    """And no row is there twice."""
    every = [*ALLOWED, *FORBIDDEN, *NO_REQUESTS]
    assert len(every) == len(set(every)) >= 40
    assert len({row for row in every if row.subresource}) >= 15


def _body(row: Row) -> object:
    return {} if METHODS[row.verb] in ("POST", "PUT", "PATCH") else None
