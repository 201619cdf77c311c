"""A real API server takes the manifests as they are."""

from __future__ import annotations

import json

import pytest

from tests.deploy.cluster import DEV, GENEROUS, PRODUCTION, Cluster
from tests.deploy.manifests import Json, only, overlay

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

PLACES = [("production", PRODUCTION), ("dev", DEV)]


@pytest.mark.parametrize(("name", "namespace"), PLACES)
def test_every_object_is_there(cluster: Cluster, name: str, namespace: str) -> None:
    """And applied a second time it changes nothing: what the server fills in is what the file says."""
    where = ("-n", namespace, "-k", f"deploy/overlays/{name}")
    before = _versions(cluster, where)
    assert len(before) == len(overlay(name))
    cluster.said_well(cluster.kubectl("apply", *where))
    assert _versions(cluster, where) == before


def _versions(cluster: Cluster, where: tuple[str, ...]) -> dict[str, str]:
    lines = cluster.said_well(cluster.kubectl("get", *where, "-o", "json"))
    items = json.loads("\n".join(lines))["items"]
    return {f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in items}


def test_the_controllers_pod_is_admitted_under_the_restricted_profile(cluster: Cluster) -> None:
    """Into the namespace that enforces it; in real life the controller of ReplicaSets creates it."""
    template: Json = only(overlay("production"), "Deployment")["spec"]["template"]
    pod = {**template, "metadata": {**template["metadata"], "name": "controller"}}
    answer = cluster.create(PRODUCTION, pod, admin=True)
    assert answer.status == 201, answer.text


def test_the_profile_is_enforced(cluster: Cluster) -> None:
    """The same pod as root is refused: the test above would notice."""
    template: Json = json.loads(json.dumps(only(overlay("production"), "Deployment")["spec"]["template"]))
    template["spec"]["securityContext"].pop("runAsNonRoot")
    answer = cluster.create(PRODUCTION, {**template, "metadata": {"name": "root"}}, admin=True)
    assert answer.status == 403
    assert "PodSecurity" in answer.text


def test_the_policy_means_what_the_api_server_has(cluster: Cluster) -> None:
    """Its expressions fit the fields of pods: a wrong name would be a warning, and an error at each request."""
    done = cluster.kubectl("get", "validatingadmissionpolicy", "ottoscaler", "-o", "json")
    assert "expressionWarnings" not in done.stdout
    assert json.loads(done.stdout)["spec"]["failurePolicy"] == "Fail"


def test_others_are_not_held_to_the_policy(cluster: Cluster) -> None:
    """An administrator creates what the controller may not."""
    spec = {"containers": [{"name": "main", "image": "busybox"}]}
    answer = cluster.create(GENEROUS, {"metadata": {"name": "free"}, "spec": spec}, admin=True)
    assert answer.status == 201, answer.text
