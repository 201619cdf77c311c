"""What `doctor` reads of a cluster besides what the start asks. Nothing is created: pods are tried as dry runs."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

import msgspec
import urllib3

from ottoscaler.adapters.kube_answers import Verb, decoded
from ottoscaler.adapters.kube_facts import ClusterFacts
from ottoscaler.adapters.kube_http import KubeHttp
from ottoscaler.core.kube_objects import DisruptionBudget, LimitRange, Metadata, NetworkPolicy, Node, Quota, Secret
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.settings import KubeSettings

_T = TypeVar("_T")
#: More than this of anything is not looked at: a warning needs no more.
_PAGE = 500


class _List(msgspec.Struct, Generic[_T], frozen=True):
    items: list[_T] | None = None  # null: none


class _NamespaceObject(msgspec.Struct, frozen=True):
    metadata: Metadata


class _UserInfo(msgspec.Struct, frozen=True):
    username: str = ""


class _SelfReviewStatus(msgspec.Struct, frozen=True):
    user: _UserInfo = msgspec.field(default=_UserInfo(), name="userInfo")


class _SelfReview(msgspec.Struct, frozen=True):
    status: _SelfReviewStatus = _SelfReviewStatus()


_quotas = msgspec.json.Decoder(_List[Quota])
_ranges = msgspec.json.Decoder(_List[LimitRange])
_policies = msgspec.json.Decoder(_List[NetworkPolicy])
_budgets = msgspec.json.Decoder(_List[DisruptionBudget])
_nodes = msgspec.json.Decoder(_List[Node])
_secret = msgspec.json.Decoder(Secret)
_namespace = msgspec.json.Decoder(_NamespaceObject)
_self_review = msgspec.json.Decoder(_SelfReview)


class KubeInspector:
    """One look at a cluster and our namespace. Any thread. Each method raises ClusterUnavailable, and ClusterRejected
    where our user may not look, or the API server does not have such a thing.
    """

    def __init__(self, settings: KubeSettings, acting_as: str = "") -> None:
        """`acting_as`: the user that ours impersonates. Raises ConfigError if there is no way to a cluster."""
        self._http = KubeHttp(settings, acting_as=acting_as)
        self._facts = ClusterFacts(self._http, settings.namespace)
        self._namespace = settings.namespace
        self._inside = f"/api/v1/namespaces/{settings.namespace}"

    @property
    def address(self) -> str:
        """Where the API server is."""
        return self._http.address

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def facts(self) -> ClusterFacts:
        """What the start asks, too."""
        return self._facts

    def time(self) -> float | None:
        """The API server's clock, in whole seconds since the epoch; None where it does not say."""
        try:
            return parsedate_to_datetime(self._http.date_header()).timestamp()
        except ValueError:
            return None

    def user(self) -> str:
        """Our user's name; empty where the API server does not say (before 1.28)."""
        body = msgspec.json.encode({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
        try:
            answer = self._http.call(Verb.REVIEW, "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=body)
        except ClusterRejected:
            return ""
        return decoded(_self_review, answer).status.user.username

    def has_account(self, name: str) -> bool:
        """Whether there is a ServiceAccount of this name; True where our user may not look."""
        try:
            self._get(f"{self._inside}/serviceaccounts/{name}")
        except ClusterRejected as error:
            return error.status != 404
        return True

    def namespace_labels(self) -> dict[str, str]:
        """The labels of our namespace."""
        return decoded(_namespace, self._get(self._inside)).metadata.labels

    def quotas(self) -> Sequence[Quota]:
        """Of our namespace."""
        return self._listed(_quotas, f"{self._inside}/resourcequotas")

    def limit_ranges(self) -> Sequence[LimitRange]:
        """Of our namespace."""
        return self._listed(_ranges, f"{self._inside}/limitranges")

    def network_policies(self) -> Sequence[NetworkPolicy]:
        """Of our namespace."""
        return self._listed(_policies, f"/apis/networking.k8s.io/v1/namespaces/{self._namespace}/networkpolicies")

    def disruption_budgets(self) -> Sequence[DisruptionBudget]:
        """Of our namespace."""
        return self._listed(_budgets, f"/apis/policy/v1/namespaces/{self._namespace}/poddisruptionbudgets")

    def nodes(self) -> Sequence[Node]:
        """Of the cluster."""
        return self._listed(_nodes, "/api/v1/nodes")

    def secret_type(self, name: str) -> str | None:
        """The type of a Secret; None if it is not there. What is in it is not decoded."""
        try:
            return decoded(_secret, self._get(f"{self._inside}/secrets/{name}")).type
        except ClusterRejected as error:
            if error.status != 404:
                raise
            return None

    def dry_run(self, pod: bytes) -> None:
        """Ask whether this pod would be created. ClusterRejected: never; ClusterUnavailable: not now."""
        self._http.call(Verb.CREATE, f"{self._inside}/pods", query={"dryRun": "All"}, body=pod)

    def _listed(self, decoder: msgspec.json.Decoder[_List[_T]], path: str) -> Sequence[_T]:
        return decoded(decoder, self._get(path, limit=_PAGE)).items or ()

    def _get(self, path: str, **query: object) -> bytes:
        return self._http.call(Verb.LOOK, path, query=query)


def access_code(error: ClusterUnavailable) -> str:
    """The code of a finding for an API server that does not serve us."""
    cause = error.__cause__
    if isinstance(cause, (urllib3.exceptions.SSLError, ssl.SSLError)):
        return "kube.tls"
    return "kube.token" if "answered 401" in str(error) or "token" in str(error) else "kube.reach"
