"""The controller itself, with the rights and under the policy that the manifests give it: they suffice, and none of
them is for nothing. What it asked for is read from the API server's own audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.cluster import DEV, Cluster
from tests.deploy.manifests import only, overlay
from tests.e2e.controller import Controller
from tests.e2e.fakekubelet import FakeKubelet
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

USER = f"system:serviceaccount:{DEV}:ottoscaler"
WORKERS = 3


@pytest.fixture
def start(cluster: Cluster, redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[[], Controller]]:
    """Starts controllers that act as the ServiceAccount only."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig_of(DEV), encoding="utf-8")
    environ = {"KUBECONFIG": str(kubeconfig), "NAMESPACE": DEV, "REDIS_HOST": "127.0.0.1"}
    made: list[Controller] = []

    def launch() -> Controller:
        made.append(Controller(tmp_path, {**environ, "REDIS_PORT": str(redis_server.port)}))
        return made[-1].ready()

    yield launch
    for each in made:
        each.close()


@pytest.fixture
def kubelet(cluster: Cluster) -> Iterator[FakeKubelet]:
    """As soon as three pods run, they succeed; all later ones run on."""
    made = FakeKubelet(cluster.server.kubeconfig, DEV, release_at=WORKERS)
    made.start()
    yield made
    made.close()


def audited(cluster: Cluster) -> list[tuple[str, str, int]]:
    """What the controller asked the API server for: verb, resource with subresource, status."""
    events = [event for event in cluster.audit() if event["user"]["username"] == USER]
    return [(event["verb"], _what(event["objectRef"]), event["responseStatus"]["code"]) for event in events]


def _what(reference: dict[str, str]) -> str:
    return "/".join(filter(None, (reference["resource"], reference.get("subresource", ""))))


def test_the_rights_are_enough_and_all_of_them_are_used(
    cluster: Cluster, redis_server: RedisServer, start: Callable[[], Controller], kubelet: FakeKubelet
) -> None:
    """Workers that succeed, one deleted from outside, one that is gone when the next controller looks for it, one that
    a scale_down ends after a controller was killed.
    """
    controller = start()
    pods = f"/api/v1/namespaces/{DEV}/pods"
    with redis_server.client() as client:

        def send(**fields: str) -> str:
            return str(client.xadd("otto:scale:events", fields))

        def outcome(event_id: str, kind: str = "task") -> str:
            found = [fields for _, fields in client.xrange("otto:scale:results")]
            mine = [fields for fields in found if (fields["event_id"], fields["kind"]) == (event_id, kind)]
            return str(mine[0]["outcome"]) if mine else ""

        first = send(type="scale_up", pod_count=str(WORKERS))
        assert wait_for(lambda: outcome(first), "the result of the first event") == "succeeded"
        deleted, lost, ended = send(type="scale_up"), send(type="scale_up"), send(type="scale_up")
        wait_for(lambda: kubelet.running == WORKERS + 3, "three more workers to run")

        def delete_pod_of(event_id: str) -> None:
            path = f"{pods}/{controller.until_said('worker.created', event_id=event_id)['pod']}"
            assert cluster.ask("DELETE", path, namespace=None).status == 200
            wait_for(lambda: cluster.ask("GET", path, namespace=None).status == 404, f"{path} to be gone")

        delete_pod_of(deleted)
        assert wait_for(lambda: outcome(deleted), "the result of the deleted one") == "failed"
        controller.kill()
        delete_pod_of(lost)
        start().until_said("worker.retried", event_id=lost)
        down = send(type="scale_down", task_id=ended)
        assert wait_for(lambda: outcome(down, "scale_down"), "the result of the scale_down") == "succeeded"
    calls = audited(cluster)
    rules = only(overlay("dev"), "Role")["rules"]
    granted = {(verb, resource) for rule in rules for verb in rule["verbs"] for resource in rule["resources"]}
    reviews = {("create", "selfsubjectaccessreviews")}  # every user may ask for its own rights
    # for pods that no node takes in time, and here is none; for what happens to a pod for the second time
    unused = {("list", "events"), ("patch", "events")}
    assert {(verb, what) for verb, what, _ in calls} == granted - unused | reviews
    assert [call for call in calls if call[2] in (401, 403, 422)] == []
