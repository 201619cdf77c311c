"""etcd is restored from a backup in mid-task: versions go back, pods that were gone are back, and others are not.

On a real API server. The pods are led by hand, for there is no node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.bare import BareSystem
from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.system import names, uids
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeServer]:
    """An API server; this test changes its past."""
    server = KubeServer(tmp_path / "kube")
    server.open()
    yield server
    server.close()


@pytest.fixture
def system(kube: KubeServer, own_redis: Callable[[], RedisServer], tmp_path: Path) -> Iterator[BareSystem]:
    """A system of this test's own, with no controller yet."""
    redis = own_redis()
    redis.start()
    made = BareSystem(redis, kube, tmp_path)
    yield made
    made.close()


@pytest.mark.contract("8.restored")
def test_a_restore_in_mid_task(system: BareSystem, kube: KubeServer) -> None:
    """Of two workers before the backup one ends after it: its pod is back, and is deleted again, for its result is
    stored. The other runs on, and its end is seen although its version is lower than before. A worker of later has lost
    its pod, and makes another.
    """
    controller = system.start()
    before = system.send(type="scale_up", pod_count=2)
    first, second = system.run(before, 2)
    kube.back_up()

    system.succeed([first])
    wait_for(lambda: len(system.results(before)) == 1, "the first result")
    wait_for(lambda: names(system.pods_of(before)) == names([second]), "the first pod to go")
    later = system.send(type="scale_up")
    [lost] = system.run(later)
    latest = max(int(pod["metadata"]["resourceVersion"]) for pod in system.kube.pods())
    kube.restore()

    assert all(int(pod["metadata"]["resourceVersion"]) < latest for pod in system.kube.pods())
    # Kubernetes gives a node its pods again; here there is none, and the phase is as it was at the backup
    wait_for(lambda: names(system.pods_of(before)) == names([second]), "the pod that was back to be deleted", 60)
    [again] = system.created(later)
    assert uids([again]).isdisjoint(uids([lost]))
    assert again["metadata"]["labels"]["ottoscaler.io/attempt"] == "2"
    system.run(later)
    system.succeed([second, again])
    for event_id, count in ((before, "2"), (later, "1")):
        assert system.finished(event_id)["succeeded"] == count
        assert len(system.results(event_id)) == int(count)
        system.no_pods(event_id)
    assert system.results(later)[0]["attempt"] == "2"
    assert controller.process.poll() is None
