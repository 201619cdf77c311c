"""The adapter that reads logs, with the emulator's node and with a real kubelet; and over a network that cuts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3

from ottoscaler.adapters.pod_logs import PodLogs
from ottoscaler.core.manifest import CONTAINER
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.local.handle import LocalCluster
from ottoscaler.settings import KubeSettings
from tests.adapters.kube_admin import KubeAdmin
from tests.conftest import require
from tests.fakes.wait import eventually

pytestmark = pytest.mark.contract("1.logs")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One emulator for all tests here."""
    started = LocalCluster(tmp_path_factory.mktemp("cluster"))
    started.start()
    yield started
    started.close()


@pytest.fixture(scope="module", params=["emulator", pytest.param("real", marks=pytest.mark.real)])
def admin(request: pytest.FixtureRequest) -> Iterator[KubeAdmin]:
    """A namespace on each server."""
    kubeconfig = request.getfixturevalue("local").kubeconfig if request.param == "emulator" else require("kubernetes")
    made = KubeAdmin(Path(kubeconfig))
    made.open()
    yield made
    made.close()


@pytest.fixture
def source(admin: KubeAdmin) -> Iterator[PodLogs]:
    """The adapter in that namespace."""
    opened = PodLogs(KubeSettings(kubeconfig=str(admin.kubeconfig), namespace=admin.namespace))
    yield opened
    opened.close()


def run(admin: KubeAdmin, name: str, script: str, **more: Any) -> None:
    """A pod that runs a script in the container of a worker."""
    container = {"name": CONTAINER, "image": "busybox:latest", "imagePullPolicy": "IfNotPresent", **more}
    container["command"] = ["sh", "-c", script]
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    body = {"metadata": {"name": name}, "spec": spec}
    admin.api.create_namespaced_pod(admin.namespace, body, _preload_content=False)


def phase(admin: KubeAdmin, name: str) -> str:
    """Of the pod, as its node last reported it."""
    return str(admin.api.read_namespaced_pod(name, admin.namespace).status.phase)


def test_a_log_is_read_with_times_and_followed_to_its_end(admin: KubeAdmin, source: PodLogs) -> None:
    """Each line has its time; from a time on it is read by whole seconds; nothing of it is left out."""
    run(admin, "ends", "echo one; sleep 2; echo two")
    eventually(lambda: phase(admin, "ends") in ("Running", "Succeeded"), 30, "the pod to run")
    followed = b"".join(source.read("ends", CONTAINER, follow=True)).splitlines()
    assert [line.partition(b" ")[2] for line in followed] == [b"one", b"two"]
    since = followed[1].partition(b" ")[0].decode()
    assert b"".join(source.read("ends", CONTAINER, since=since)) == followed[1] + b"\n"
    assert b"".join(source.read("ends", CONTAINER)).splitlines() == followed


def test_what_cannot_be_read_is_refused_with_its_reason(admin: KubeAdmin, source: PodLogs) -> None:
    """No such pod, no such container, a container that has not started."""
    with pytest.raises(ClusterRejected) as caught:
        next(source.read("nobody", CONTAINER))
    assert (caught.value.status, caught.value.reason) == (404, "NotFound")
    run(admin, "waits", "true", image="busybox:!")

    def refusal(container: str) -> str:
        """Empty while no node has the pod: its log is empty then. A node that has just got it may not know it yet."""
        try:
            next(source.read("waits", container), None)
            return ""
        except ClusterRejected as error:  # before the node says why it waits, it says that it is not available
            is_early = error.status == 404 or "not available" in str(error)
            return "" if is_early else f"{error.reason}: {error}"

    said = eventually(lambda: refusal(CONTAINER), 30, "the node to say why")
    assert said.startswith("BadRequest: ")
    assert "waiting to start" in said
    assert "container other is not valid for pod waits" in refusal("other")


def test_closing_ends_a_log_that_is_being_followed(admin: KubeAdmin, source: PodLogs) -> None:
    """Whatever its container does; and nothing more can be read."""
    run(admin, "runs", "echo one; sleep 600")
    eventually(lambda: phase(admin, "runs") == "Running", 30, "the pod to run")
    chunks = source.read("runs", CONTAINER, follow=True)
    assert next(chunk for chunk in chunks if chunk).endswith(b" one\n")
    closing = threading.Timer(0.2, source.close)
    closing.start()
    with suppress(ClusterUnavailable):
        assert list(chunks) in ([], [b""])
    closing.join()
    with pytest.raises(ClusterUnavailable):
        next(source.read("runs", CONTAINER))
    admin.remove("runs")


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"status": 403, "reason": "Forbidden", "message": 'pods "x" is forbidden'}, ClusterRejected),
        ({"status": 500}, ClusterUnavailable),
        ({"status": 429, "retry_after": 1}, ClusterUnavailable),
    ],
    ids=["no-right", "broken", "busy"],
)
def test_only_what_stays_so_is_a_refusal(local: LocalCluster, rule: dict[str, object], error: type[Exception]) -> None:
    """A server in trouble is asked again."""
    source = PodLogs(KubeSettings(kubeconfig=str(local.kubeconfig)))
    urllib3.request("POST", f"{local.url}/_emulator/faults", json=[{"path_regex": "/log", **rule}])
    with pytest.raises(error):
        next(source.read("x", CONTAINER))
    source.close()
