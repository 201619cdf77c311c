"""One queue belongs to one cluster and namespace: a replica that sees other pods would start everything again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import urllib3

from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from tests.e2e.controller import Controller

pytestmark = [pytest.mark.contract("2.cluster"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The queue; a test begins with an empty one."""
    started = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    started.start()
    yield started
    started.close()


class Clusters:
    """Two clusters, and controllers of one queue in them."""

    def __init__(self, directory: Path, server: EmbeddedRedis) -> None:
        self.directory = directory
        self.queue = redis.Redis(server.host, server.port)
        self._environ = {"REDIS_HOST": server.host, "REDIS_PORT": str(server.port)}
        self._controllers: list[Controller] = []
        self._started = 0
        self.one, self.other = LocalCluster(directory / "one"), LocalCluster(directory / "other")
        for cluster in (self.one, self.other):
            cluster.start()

    def begin(self) -> None:
        """For a test of its own: nothing is in the queue, and it belongs to no cluster."""
        self.queue.flushall()

    def controller(self, cluster: LocalCluster, **environ: str) -> Controller:
        """One that has just been started."""
        self._started += 1
        name = f"c{self._started}"
        base = {**self._environ, "KUBECONFIG": str(cluster.kubeconfig), "REDIS_CONSUMER": name}
        self._controllers.append(Controller(self.directory, {**base, **environ}))
        return self._controllers[-1]

    def end(self) -> None:
        """The controllers of a test."""
        while self._controllers:
            self._controllers.pop().close()

    def close(self) -> None:
        for cluster in (self.one, self.other):
            cluster.close()
        self.queue.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, server: EmbeddedRedis) -> Iterator[Clusters]:
    """They are started once."""
    made = Clusters(tmp_path_factory.mktemp("clusters"), server)
    yield made
    made.close()


@pytest.fixture
def clusters(both: Clusters) -> Iterator[Clusters]:
    """Two of them, with no controller yet."""
    both.begin()
    yield both
    both.end()


def refused(controller: Controller) -> str:
    """The one line of the configuration of a controller that does not start."""
    assert controller.exit_code() == 2
    [line] = controller.said("config.invalid")
    return str(line["message"])


@pytest.mark.full
def test_a_replica_of_another_cluster_refuses_to_start(clusters: Clusters) -> None:
    """With one sentence: which cluster owns the queue, and how to move it. The others go on. Moved, it starts."""
    first = clusters.controller(clusters.one).ready()
    answer = refused(clusters.controller(clusters.other))
    assert "this queue belongs to another cluster or namespace (default/" in answer
    assert clusters.other.url in answer
    command = answer.rpartition("redis-cli ")[2].split()
    second = clusters.controller(clusters.one).ready()
    for running in (first, second):
        running.terminate()
        assert running.exit_code() == 0
    assert clusters.queue.execute_command(*command) == 1
    clusters.controller(clusters.other).ready()
    refused(clusters.controller(clusters.one))


@pytest.mark.full
def test_another_namespace_is_another_queue_too(clusters: Clusters) -> None:
    """It sees other pods."""
    body = b'{"metadata":{"name":"apart"}}'
    assert urllib3.request("POST", f"{clusters.one.url}/api/v1/namespaces", body=body).status == 201
    clusters.controller(clusters.one).ready()
    assert "sees apart/" in refused(clusters.controller(clusters.one, NAMESPACE="apart"))
    own = {"REDIS_STREAM": "b:events", "KEY_PREFIX": "b:", "RESULT_STREAM": "b:r", "DEAD_LETTER_STREAM": "b:d"}
    clusters.controller(clusters.one, NAMESPACE="apart", **own).ready()


@pytest.mark.full
def test_an_emulator_is_the_same_cluster_after_a_restart(clusters: Clusters) -> None:
    """Its data folder says which: a queue in a Redis that outlives it goes on."""
    first = clusters.controller(clusters.one).ready()
    first.terminate()
    assert first.exit_code() == 0
    clusters.one.close()
    clusters.one.start()
    clusters.controller(clusters.one).ready()
