"""What the tests here share: a real API server with the manifests in it, without a node, for nothing has to run; and a
checkout of a developer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.deploy.checkout import make_checkout
from tests.deploy.cluster import Cluster, audited
from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The production overlay, applied as the guide says; and a second namespace with the overlay for development."""
    folder = tmp_path_factory.mktemp("kubernetes")
    server = KubeServer(folder, [*audited(folder), "--allow-privileged=true"])
    try:
        server.open()
        made = Cluster(server)
        made.apply_all()
        yield made
        made.close()
    finally:
        server.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test's own, with as much memory as it wants."""
    require("redis-server")
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the scripts of a developer's environment need, and nothing else."""
    return make_checkout(tmp_path / "checkout")
