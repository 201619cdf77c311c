"""Servers for the whole run, and for each test a namespace and a database that were not used before."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.conftest import require
from tests.e2e.bare import BareSystem
from tests.e2e.controller import Controller
from tests.e2e.fleet import AuditedServer, Fleet
from tests.e2e.kube_server import KubeServer
from tests.e2e.recorder import Recorder
from tests.e2e.redis_server import DATABASES, RedisServer
from tests.e2e.system import Namespace, System

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """The cluster: TEST_KUBECONFIG."""
    return Path(require("kubernetes")).resolve()


@pytest.fixture(scope="session")
def nodeless_kubeconfig(kubeconfig: Path) -> Path:
    """A cluster without a node, TEST_KUBECONFIG_NO_NODE, if there is one beside the other."""
    path = os.environ.get("TEST_KUBECONFIG_NO_NODE", "")
    return Path(path).resolve() if path and Path(path).is_file() else kubeconfig


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests; each has a database of its own."""
    require("redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[[str], RedisServer]]:
    """Makes servers, not yet started, that a test may do anything to."""
    require("redis-server")
    made: list[RedisServer] = []

    def make(password: str = "") -> RedisServer:
        made.append(RedisServer(tmp_path / f"redis-{len(made)}", password))
        return made[-1]

    yield make
    for server in made:
        server.stop()


_Server = TypeVar("_Server", bound=KubeServer)


def _opened(make: Callable[[Path], _Server], directory: Path) -> Iterator[_Server]:
    """The body of a fixture: an API server, ended afterwards."""
    for program in ("etcd", "kube-apiserver"):
        require(program)
    server = make(directory)
    server.open()
    yield server
    server.close()


@pytest.fixture(scope="session")
def _only_kube_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServer]:
    yield from _opened(KubeServer, tmp_path_factory.mktemp("kube"))


@pytest.fixture
def own_kube(_only_kube_server: KubeServer) -> Iterator[KubeServer]:
    """An API server without a node, that a test may kill, pause and start again; afterwards it is there again."""
    yield _only_kube_server
    _only_kube_server.resume()
    _only_kube_server.start()


@pytest.fixture
def bare_system(
    own_kube: KubeServer, own_redis: Callable[[], RedisServer], tmp_path: Path
) -> Iterator[Callable[[], BareSystem]]:
    """Makes systems without a node, each with a Redis server of its own."""
    made: list[BareSystem] = []

    def make() -> BareSystem:
        server = own_redis()
        server.start()
        directory = tmp_path / f"system-{len(made)}"
        directory.mkdir()
        made.append(BareSystem(server, own_kube, directory))
        return made[-1]

    yield make
    own_kube.resume()
    own_kube.start()
    for system in made:
        system.close()


SystemFactory = Callable[..., System]


@pytest.fixture(scope="session")
def new_system(
    redis_server: RedisServer, kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., System]:
    """Makes systems; the caller closes them. `server` and `kubeconfig` take the place of the usual ones."""

    def make(server: RedisServer | None = None, config: Path | None = None) -> System:
        namespace = Namespace(config or kubeconfig)
        namespace.open()
        directory = tmp_path_factory.mktemp("system")
        return System(server or redis_server, next(_numbers) % DATABASES, namespace, directory)

    return make


@pytest.fixture
def system(new_system: SystemFactory) -> Iterator[System]:
    """A system of this test's own, with no controller yet."""
    made = new_system()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared(new_system: SystemFactory) -> Iterator[System]:
    """A system with a running controller, for tests that look at their own events only."""
    made = new_system()
    made.start(WORKER_MEMORY_LIMIT="32Mi", REDIS_CONSUMER="shared")
    yield made
    made.close()


@pytest.fixture(scope="session")
def audited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedServer]:
    """An API server without a node; it reports which user deleted which pod."""
    yield from _opened(AuditedServer, tmp_path_factory.mktemp("audited"))


@pytest.fixture
def fleet(redis_server: RedisServer, audited_server: AuditedServer, tmp_path: Path) -> Iterator[Fleet]:
    """A system for several controllers, with none yet."""
    made = Fleet(redis_server, next(_numbers) % DATABASES, audited_server, tmp_path)
    yield made
    made.close()


@pytest.fixture
def recorder(kubeconfig: Path, tmp_path: Path) -> Iterator[Recorder]:
    """A way to the API server that notes every request, and answers wrongly when the test asks for it."""
    made = Recorder(kubeconfig, tmp_path)
    made.start()
    yield made
    made.close()


__all__ = ["Controller"]
