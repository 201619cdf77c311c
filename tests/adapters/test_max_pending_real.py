"""MAX_PENDING on a real API server: fifty workers, room for five, and never more pods than those and the ones that may
wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.settings import KubeSettings
from tests.adapters.clusters import NO_NODE, NOWHERE
from tests.adapters.kube_admin import KubeAdmin
from tests.conftest import require
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

pytestmark = [pytest.mark.real, pytest.mark.timeout(120), pytest.mark.contract("2.MAX_PENDING")]

ROOM = 5
MOST = 3
#: How long a busy machine may take where an idle one takes much less than the 5 seconds that are promised, seconds.
LONG_S = 40


@pytest.fixture
def admin() -> Iterator[KubeAdmin]:
    """A namespace of the test's own."""
    made = KubeAdmin(Path(require("kubernetes")))
    made.open()
    yield made
    made.close()


class Scheduler:
    """The test's hands on a namespace: pods get a node, which is not there, in the order of their names."""

    def __init__(self, admin: KubeAdmin) -> None:
        self._admin = admin

    def place(self, count: int) -> None:
        """Give so many of the pods that wait a node, as soon as they are there."""
        for _ in range(count):
            name = eventually(lambda: min(self.waiting(), default=""), LONG_S, "a pod that waits for a node")
            body = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": NO_NODE}}
            self._admin.api.create_namespaced_binding(self._admin.namespace, body, _preload_content=False)

    def waiting(self) -> set[str]:
        """The names of the pods without a node."""
        return {pod.metadata.name for pod in self._pods() if not pod.spec.node_name}

    def count(self) -> int:
        """How many pods there are."""
        return len(self._pods())

    def _pods(self) -> list[object]:
        return list(self._admin.api.list_namespaced_pod(self._admin.namespace).items)


def test_no_more_pods_than_there_is_room_for_and_than_may_wait(admin: KubeAdmin) -> None:
    """A place that appears is used. Nothing but this test gives a pod a node, so one too many would stay to be seen."""
    settings = KubeSettings(kubeconfig=str(admin.kubeconfig), namespace=admin.namespace)
    scheduler = Scheduler(admin)
    environ = {"NAMESPACE": admin.namespace, "WORKER_NODE_SELECTOR": json.dumps(NOWHERE), "MAX_PENDING": MOST}
    cluster = KubeCluster(settings, instance="ottoscaler")
    with SimulatedController(FakeServers(SystemClock()), threads=ALL, cluster=cluster, **environ) as controller:
        event_id = controller.send(pod_count=50)
        scheduler.place(ROOM)
        for further in range(4):
            eventually(lambda more=further: scheduler.count() >= ROOM + MOST + more, LONG_S, "a pod for each place")
            eventually(lambda: controller.redis.task(event_id).get("why", ""), LONG_S, "why no further one is created")
            assert (scheduler.count(), len(scheduler.waiting())) == (ROOM + MOST + further, MOST)
            scheduler.place(1)
        eventually(lambda: scheduler.count() == ROOM + MOST + 4, LONG_S, "a pod for the last place")
