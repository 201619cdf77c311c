"""The admission policy for Kubernetes Events: the controller's own pass, and no other that its account might write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pytest

from ottoscaler.core.outgoing_kube_events import EventReason, KubeEvent, PodReference, new_event, repeated_event
from tests.deploy.cluster import PRODUCTION, Answer, Cluster
from tests.deploy.manifests import Json, only, rendered
from tests.deploy.test_policy import changed

pytestmark = [pytest.mark.real, pytest.mark.timeout(180), pytest.mark.contract("2.KUBERNETES_EVENTS")]

PATH: Final = f"/api/v1/namespaces/{PRODUCTION}/events"
OWN: Final = KubeEvent(EventReason.WORKER_FAILED, "failed: Error")
NAME: Final = "writes Events in its own name"
ABOUT: Final = "writes Events about pods"
CHANGED: Final = "changes only Events that it has written"


def body(name: str, changes: Mapping[str, object] | None = None) -> Json:
    """What the controller sends, or nearly."""
    sent = new_event(
        OWN, PodReference("otto-agent-1", "u"), name=name, namespace=PRODUCTION, at=1.7e9, count=1, instance="c"
    )
    return changed(json.loads(sent), changes or {})


def patch(cluster: Cluster, name: str, change: Any) -> Answer:
    """As the controller."""
    return cluster.ask("PATCH", f"{PATH}/{name}", change, namespace=PRODUCTION)


def test_the_controllers_own_pass(cluster: Cluster) -> None:
    """The create, and what raises its count."""
    assert cluster.ask("POST", PATH, body("own"), namespace=PRODUCTION).status == 201
    answer = patch(cluster, "own", json.loads(repeated_event(OWN, count=2, at=1.7e9)))
    assert answer.status == 200, answer.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source.component": "kubelet"}, NAME),
        ({"source.component": "cluster-autoscaler"}, NAME),
        ({"source": {}}, NAME),
        ({"reportingComponent": "karpenter"}, NAME),
        ({"involvedObject.kind": "Node"}, ABOUT),
        ({"involvedObject.kind": "Secret"}, ABOUT),
    ],
)
def test_another_kind_of_event_is_refused(cluster: Cluster, changes: Mapping[str, object], message: str) -> None:
    """By the rule that is meant: the scheduler's word of a node, say, would make the controller wait for one."""
    answer = cluster.ask("POST", PATH, body("bad", changes), namespace=PRODUCTION)
    assert (answer.status, message in answer.text) == (422, True), answer.text
    assert cluster.ask("POST", f"{PATH}?dryRun=All", body("bad", changes), namespace=None).status == 201


def test_no_other_programs_event_is_changed(cluster: Cluster) -> None:
    """And it may change neither the object nor the writer of its own Events."""
    foreign = body("foreign", {"source.component": "kubelet", "reportingComponent": "kubelet"})
    assert cluster.ask("POST", PATH, foreign, namespace=None).status in (201, 409)
    assert cluster.ask("POST", PATH, body("mine"), namespace=PRODUCTION).status in (201, 409)
    for name, change in (
        ("foreign", {"message": "x", "source": {"component": "ottoscaler"}, "reportingComponent": "ottoscaler"}),
        ("mine", {"involvedObject": {"name": "another"}}),
        ("mine", {"reason": "TriggeredScaleUp"}),
    ):
        answer = patch(cluster, name, change)
        assert (answer.status, CHANGED in answer.text) == (422, True), answer.text
    assert patch(cluster, "mine", {"source": {"component": "kubelet"}}).status == 422


def test_every_rule_has_a_test() -> None:
    """But for that on deletions and the newer group, which the rights do not reach."""
    policy = only(rendered("cluster"), "ValidatingAdmissionPolicy", "ottoscaler-events")["spec"]
    messages = [rule["message"] for rule in policy["validations"]]
    assert [one for one in messages[1:] if not any(part in one for part in (NAME, ABOUT, CHANGED))] == []


def test_the_policy_means_what_the_api_server_has(cluster: Cluster) -> None:
    """Its expressions fit the fields of Events."""
    done = cluster.kubectl("get", "validatingadmissionpolicy", "ottoscaler-events", "-o", "json")
    assert "expressionWarnings" not in done.stdout
