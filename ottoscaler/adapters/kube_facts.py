"""What the controller asks the Kubernetes API before it takes the first event: its rights, which cluster and namespace
this is, and the version.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from ottoscaler.adapters.kube_answers import Verb, decoded
from ottoscaler.adapters.kube_http import KubeHttp
from ottoscaler.errors import ClusterRejected, ClusterUnavailable


class _NamespaceMetadata(msgspec.Struct, frozen=True):
    uid: str


class _Namespace(msgspec.Struct, frozen=True):
    kind: Literal["Namespace"]
    metadata: _NamespaceMetadata


class _Version(msgspec.Struct, frozen=True):
    major: str = ""
    minor: str = ""


class _ReviewStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _AccessReview(msgspec.Struct, frozen=True):
    kind: Literal["SelfSubjectAccessReview"]
    status: _ReviewStatus


_namespace = msgspec.json.Decoder(_Namespace)
_version = msgspec.json.Decoder(_Version)
_review = msgspec.json.Decoder(_AccessReview)


class ClusterFacts:
    """The part of `ports.Cluster` that is not about pods. Any thread."""

    def __init__(self, http: KubeHttp, namespace: str) -> None:
        self._http = http
        self._namespace = namespace

    def missing_rights(self, verbs: Sequence[str], *, logs: bool) -> Sequence[str]:
        """See ports.Cluster. Asks by SelfSubjectAccessReview, which every user may;
        where it is refused, nothing is claimed. `logs`: whether the logs of pods are read, too.
        """
        found = [
            f"may not {verb} pods in namespace {self._namespace}: bind it to a Role with that verb on pods"
            for verb in verbs
            if not self.is_permitted(verb)
        ]
        if logs and not self.is_permitted("get", subresource="log"):
            found.append(
                f"may not get pods/log in namespace {self._namespace}: bind it to a Role with that verb on "
                "pods/log, or unset LOG_HANDLER_ADDRESS"
            )
        return found

    def cluster_id(self) -> str:
        """See ports.Cluster. The namespace's UID: no other cluster and no other namespace has it, a cluster that is
        restored from a backup keeps it, and to read it takes a right on our own namespace alone.
        """
        if not self.is_permitted("get", "namespaces", self._namespace):
            return ""
        try:
            body = self._http.call(Verb.GET, f"/api/v1/namespaces/{self._namespace}", name=self._namespace)
        except ClusterRejected as error:
            raise ClusterUnavailable(f"{error}: make the namespace, or set NAMESPACE", unclear=False) from error
        return f"{self._namespace}/{decoded(_namespace, body).metadata.uid}"

    def server_version(self) -> tuple[int, int]:
        """See ports.Cluster. By default every user may read it."""
        try:
            found = decoded(_version, self._http.call(Verb.GET, "/version"))
        except ClusterRejected:
            return 0, 0
        minor = re.match(r"[0-9]+", found.minor)  # some providers write "29+"
        return (int(found.major), int(minor[0])) if minor and found.major.isdecimal() else (0, 0)

    def is_permitted(self, verb: str, resource: str = "pods", name: str = "", subresource: str = "") -> bool:
        """Whether our user may do that in our namespace; True where the API server does not say."""
        attributes = {"namespace": self._namespace, "verb": verb, "resource": resource, "name": name}
        if subresource:
            attributes["subresource"] = subresource
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        try:
            answer = self._http.call(Verb.REVIEW, path, body=msgspec.json.encode(review))
        except ClusterRejected:
            return True
        return decoded(_review, answer).status.allowed
