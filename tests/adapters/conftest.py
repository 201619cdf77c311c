"""What the contract suites ask for besides the fixtures of each implementation."""

from __future__ import annotations

import ssl
import uuid
from typing import Any

import pytest

from ottoscaler.ports import RedisPorts
from tests.adapters.clusters import ClusterAdmin, ClusterFactory, Pods
from tests.adapters.streams import StreamFactory


@pytest.fixture
def stream(stream_factory: StreamFactory) -> RedisPorts:
    """A stream of consumer c1, incarnation incarnation-1, with its group."""
    made = stream_factory("c1")
    made.ensure_group()
    return made


@pytest.fixture
def other(stream_factory: StreamFactory) -> RedisPorts:
    """A second consumer of the same group, c2."""
    return stream_factory("c2")


@pytest.fixture
def pods(cluster_factory: ClusterFactory, admin: ClusterAdmin) -> Pods:
    """The pods of an instance that only this test has."""
    instance = f"test-{uuid.uuid4().hex[:12]}"
    return Pods(cluster_factory(instance), admin, instance)


@pytest.fixture
def strict_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts check as strictly as Python 3.13 lets them by default, whatever Python this is."""
    make = ssl.create_default_context

    def strict(*arguments: Any, **options: Any) -> ssl.SSLContext:
        context = make(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
