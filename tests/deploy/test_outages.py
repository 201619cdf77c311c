"""A server is stopped in mid-run and comes back: the log says so, with how long it was away. On real servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.clusters import ended, running
from tests.adapters.kube_admin import KubeAdmin
from tests.e2e.controller import Controller
from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

NAMESPACE = "outages"
#: How long a server stays away after its first missing answer, seconds: less than a second is no outage.
AWAY_S = 1.5
#: For what a loaded machine does, seconds.
LONG_S = 60.0


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[KubeServer]:
    """An API server of this test's own; no node."""
    server = KubeServer(tmp_path / "kube")
    try:
        server.open()
        server.new_namespace(NAMESPACE)
        yield server
    finally:
        server.close()


@pytest.fixture
def admin(kube: KubeServer) -> Iterator[KubeAdmin]:
    """It does what a kubelet would."""
    made = KubeAdmin(kube.kubeconfig)
    made.namespace = NAMESPACE
    yield made
    made.api.api_client.close()


@pytest.fixture
def controller(redis_server: RedisServer, kube: KubeServer, tmp_path: Path) -> Iterator[Controller]:
    """It runs, and knows both servers."""
    environ = {
        "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port), "REDIS_BLOCK_MS": "500", "LEASE_S": "3",
        "KUBECONFIG": str(kube.kubeconfig), "NAMESPACE": NAMESPACE, "REDIS_CONSUMER": "otto-0",
    }  # fmt: skip
    made = Controller(tmp_path, environ)
    try:
        yield made.ready()
    finally:
        made.close()


def outage(
    controller: Controller, stop: Callable[[], None], start: Callable[[], None], down: str, back: str
) -> dict[str, Any]:
    """Stop a server until the log has a line of a missing answer and AWAY_S more, start it, and return the line of its
    return; the line's `away_s` is what this took.
    """
    before, began = len(controller.said(down)), time.monotonic()
    stop()
    wait_for(lambda: controller.said(down)[before:], f"the line {down}", LONG_S)
    missed = time.monotonic()
    wait_for(lambda: time.monotonic() > missed + AWAY_S, "the outage to last")
    assert controller.said(back) == []
    start()
    line = controller.until_said(back, LONG_S)
    assert AWAY_S <= line["away_s"] <= time.monotonic() - began
    assert f"is back: it was away for {line['away_s']:.1f} s" in line["message"]
    return line


def test_the_log_has_the_end_of_each_outage(
    controller: Controller, redis_server: RedisServer, kube: KubeServer, admin: KubeAdmin
) -> None:
    """A worker runs through both; its end is recorded once."""
    client = redis_server.client()
    client.xadd("otto:scale:events", {"type": "scale_up", "task_id": "t-1", "event_id": "e-1"})
    pod = controller.until_said("worker.created", event_id="e-1")["pod"]
    admin.set_status(pod, running())

    line = outage(controller, redis_server.kill, redis_server.start, "lease.outage", "redis.back")
    assert line["message"].startswith("Redis is back")
    line = outage(controller, kube.kill, kube.start, "watch.broken", "kubernetes.back")
    assert line["message"].startswith("The API server is back")

    admin.set_status(pod, ended("Succeeded", 0, "Completed"))
    controller.until_said("task.finished", LONG_S, event_id="e-1", outcome="succeeded")
    assert client.xlen("otto:scale:results") == 2  # the worker's, and the task's
    assert len(controller.said("redis.back")) == len(controller.said("kubernetes.back")) == 1
    client.close()
