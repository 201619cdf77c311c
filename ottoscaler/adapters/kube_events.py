"""Kubernetes Events in the Kubernetes API: implements `ports.KubeEvents`.

It has a connection of its own, so that no worker's call ever waits for an Event's, and a rate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

import msgspec

from ottoscaler.adapters.kube_answers import Verb, decoded
from ottoscaler.adapters.kube_facts import ClusterFacts
from ottoscaler.adapters.kube_http import KubeHttp, OnRequest, ignore_request
from ottoscaler.errors import ClusterRejected
from ottoscaler.settings import KubeSettings

#: Verbs on Events that are needed to write them; deploy/components/kubernetes-events has the same list.
WRITE_VERBS: Final = ("create", "patch")
#: The rate of all Events together: how many a second, and how many at once.
QPS: Final = 5
BURST: Final = 50


class _Metadata(msgspec.Struct, frozen=True):
    uid: str


class _Pod(msgspec.Struct, frozen=True):
    kind: Literal["Pod"]
    metadata: _Metadata


_pod = msgspec.json.Decoder(_Pod)


class KubeEventsApi:
    """`ports.KubeEvents` over HTTP. Any thread."""

    def __init__(self, settings: KubeSettings, on_request: OnRequest = ignore_request) -> None:
        """`on_request`: see KubeHttp. Raises ConfigError if there is no way to a cluster."""
        self._http = KubeHttp(replace(settings, inflight=1, qps=QPS, burst=BURST), on_request=on_request)
        self._facts = ClusterFacts(self._http, settings.namespace)
        self._namespace = settings.namespace
        self._inside = f"/api/v1/namespaces/{settings.namespace}"

    def close(self) -> None:
        """Refuse every call from now on. Any thread."""
        self._http.close()

    def create(self, name: str, body: bytes) -> None:
        """See ports.KubeEvents."""
        try:
            self._http.call(Verb.CREATE_EVENT, f"{self._inside}/events", name=name, body=body)
        except ClusterRejected as error:
            if error.reason != "AlreadyExists":  # otherwise an earlier request of ours got through without an answer
                raise

    def patch(self, name: str, body: bytes) -> bool:
        """See ports.KubeEvents."""
        try:
            self._http.call(Verb.PATCH_EVENT, f"{self._inside}/events/{name}", name=name, body=body)
        except ClusterRejected as error:
            if error.reason != "NotFound":
                raise
            return False
        return True

    def pod_uid(self, name: str) -> str:
        """See ports.KubeEvents."""
        try:
            body = self._http.call(Verb.GET, f"{self._inside}/pods/{name}", name=name)
        except ClusterRejected:  # NotFound: a look is refused for nothing else
            return ""
        return decoded(_pod, body).metadata.uid

    def missing_rights(self) -> Sequence[str]:
        """See ports.KubeEvents."""
        return missing_rights(self._facts, self._namespace)


def missing_rights(facts: ClusterFacts, namespace: str) -> Sequence[str]:
    """A sentence for each verb that is needed to write Events and that our user does not have."""
    return [
        f"may not {verb} Events in namespace {namespace}"
        for verb in WRITE_VERBS
        if not facts.is_permitted(verb, "events")
    ]
