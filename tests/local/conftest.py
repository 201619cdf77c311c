"""One emulator for all tests of this directory; each test has a namespace of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottoscaler.local.handle import LocalCluster
from tests.conftest import require
from tests.local.kube import Kube, Space, eventually


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The emulator, in its own process."""
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.start()
    yield local
    local.close()


@pytest.fixture(scope="session")
def emulator(cluster: LocalCluster) -> Iterator[Kube]:
    """A client of the emulator."""
    kube = Kube(cluster.kubeconfig)
    yield kube
    kube.close()


@pytest.fixture(params=["emulator", pytest.param("real", marks=pytest.mark.real)])
def kube(request: pytest.FixtureRequest) -> Iterator[Kube]:
    """The emulator, and a real API server where TEST_KUBECONFIG names one."""
    if request.param == "emulator":
        yield request.getfixturevalue("emulator")
        return
    real = Kube(Path(require("kubernetes")))
    yield real
    real.close()


def _space(kube: Kube) -> Iterator[Space]:
    space = Space(kube, f"ct-{uuid.uuid4().hex[:8]}")
    answer = kube.call("POST", "/api/v1/namespaces", {"metadata": {"name": space.name}})
    assert answer.status == 201, answer.text
    # A real cluster makes it a moment later, and refuses pods until then.
    eventually(lambda: kube.call("GET", space.path("default", resource="serviceaccounts")).status == 200)
    yield space
    kube.call("DELETE", f"/api/v1/namespaces/{space.name}")


@pytest.fixture
def space(kube: Kube) -> Iterator[Space]:
    """A new namespace on each server that the contract is checked against."""
    yield from _space(kube)


@pytest.fixture
def node(emulator: Kube) -> Iterator[Space]:
    """A new namespace on the emulator; its node runs pods."""
    yield from _space(emulator)
