"""The cluster suite on KubeCluster with the embedded Kubernetes API, and the errors that this one gives to order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, ConfigError
from ottoscaler.local.handle import LocalCluster
from ottoscaler.ports import Cluster
from ottoscaler.settings import KubeSettings
from tests.adapters import contract_cluster
from tests.adapters.clusters import ClusterFactory, Pods
from tests.adapters.contract_cluster import *  # noqa: F403
from tests.adapters.kube_admin import KubeAdmin

__all__ = [*contract_cluster.__all__, "TestErrors", "TestMany"]


class EmulatorAdmin(KubeAdmin):
    """The emulator forgets changes on request."""

    def __init__(self, local: LocalCluster) -> None:
        super().__init__(local.kubeconfig)
        self._url = local.url

    def forget_changes(self, version: str) -> str:
        urllib3.request("POST", f"{self._url}/_emulator/compact")
        return version

    def order(self, **rule: object) -> None:
        """Let requests fail from now on."""
        answer = urllib3.request("POST", f"{self._url}/_emulator/faults", body=json.dumps([rule] if rule else []))
        assert answer.status < 300, answer.data


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One emulator for all tests here."""
    started = LocalCluster(tmp_path_factory.mktemp("cluster"))
    started.start()
    yield started
    started.close()


@pytest.fixture
def admin(local: LocalCluster) -> Iterator[EmulatorAdmin]:
    """A namespace of the test's own."""
    made = EmulatorAdmin(local)
    made.open()
    yield made
    made.order()
    made.close()


@pytest.fixture
def cluster_factory(admin: EmulatorAdmin) -> Iterator[ClusterFactory]:
    """Clients for that namespace, closed when the test is over."""
    made: list[KubeCluster] = []

    def make(instance: str) -> Cluster:
        settings = KubeSettings(kubeconfig=str(admin.kubeconfig), namespace=admin.namespace)
        made.append(KubeCluster(settings, instance=instance))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


class TestErrors:
    """What the API server refuses, and what the network loses."""

    @pytest.mark.parametrize(
        ("rule", "unclear", "retry_after_s"),
        [
            ({"status": 429, "retry_after": 7}, False, 7),
            ({"status": 429}, False, None),
            ({"status": 403, "message": 'pods "x" is forbidden: exceeded quota: q'}, False, None),
            ({"status": 500}, True, None),
            ({"status": 503, "retry_after": 2}, True, 2),
            ({"status": 504}, True, None),
            ({"status": 401}, False, None),
        ],
        ids=lambda value: str(value.get("status", "")) if isinstance(value, dict) else "",
    )
    def test_a_create_that_is_put_off(
        self, pods: Pods, admin: EmulatorAdmin, rule: dict[str, object], unclear: bool, retry_after_s: float | None
    ) -> None:
        """Try again, after what the server asked for, looking first where it is unclear."""
        admin.order(method="POST", path_regex="/pods$", **rule)
        with pytest.raises(ClusterUnavailable) as caught:
            pods.create()
        assert (caught.value.unclear, caught.value.retry_after_s) == (unclear, retry_after_s)
        assert isinstance(pods.create(), PodSnapshot)

    @pytest.mark.contract("5.Rejected")
    def test_a_create_that_admission_refuses(self, pods: Pods, admin: EmulatorAdmin) -> None:
        """A policy of the cluster: asking again changes nothing."""
        admin.order(method="POST", path_regex="/pods$", status=403, message="denied by policy", reason="Forbidden")
        with pytest.raises(ClusterRejected, match="denied by policy") as caught:
            pods.create()
        assert (caught.value.status, caught.value.reason) == (403, "Forbidden")

    def test_a_lost_answer_is_unclear(self, pods: Pods, admin: EmulatorAdmin) -> None:
        """The pod is there."""
        admin.order(method="POST", path_regex="/pods$", drop_reply=True)
        with pytest.raises(ClusterUnavailable) as caught:
            pods.create()
        assert caught.value.unclear
        assert pods.look(pods.name()).live

    @pytest.mark.parametrize("status", [403, 429, 500])
    @pytest.mark.parametrize("verb", ["get", "list", "watch", "delete"])
    def test_others_are_put_off_as_well(self, pods: Pods, admin: EmulatorAdmin, verb: str, status: int) -> None:
        """Whatever the server's trouble is, it passes; rights can be given."""
        pod = pods.create()
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: pods.cluster.get(pod.name),
            "list": pods.cluster.list,
            "watch": lambda: next(iter(pods.cluster.watch(pod.resource_version))),
            "delete": lambda: pods.cluster.delete(pod.name, pod.uid),
        }
        admin.order(method="DELETE" if verb == "delete" else "GET", path_regex="/pods", status=status)
        with pytest.raises(ClusterUnavailable):
            calls[verb]()

    def test_a_server_out_of_reach_did_nothing(self, tmp_path: Path, local: LocalCluster) -> None:
        """Connection refused: certainly not carried out."""
        text = local.kubeconfig.read_text().replace(local.url, "http://127.0.0.1:1")
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(text)
        cluster = KubeCluster(KubeSettings(kubeconfig=str(kubeconfig)), instance="i")
        with pytest.raises(ClusterUnavailable) as caught:
            cluster.list()
        assert not caught.value.unclear
        cluster.close()

    def test_a_watch_reports_that_the_server_is_gone(self, tmp_path: Path) -> None:
        """It ends or breaks off; it does not hang."""
        mortal = LocalCluster(tmp_path)
        mortal.start()
        cluster = KubeCluster(KubeSettings(kubeconfig=str(mortal.kubeconfig)), instance="i")
        version = cluster.list().resource_version
        mortal.close()
        with pytest.raises(ClusterUnavailable):
            list(cluster.watch(version))
        cluster.close()

    def test_a_missing_namespace_is_waited_for(self, local: LocalCluster, admin: EmulatorAdmin) -> None:
        """It may be made yet; nothing was created."""
        settings = KubeSettings(kubeconfig=str(local.kubeconfig), namespace="not-there")
        cluster = KubeCluster(settings, instance="i")
        body = Pods(cluster, admin, "i").body().replace(admin.namespace.encode(), b"not-there")
        with pytest.raises(ClusterUnavailable) as caught:
            cluster.create(body)
        assert not caught.value.unclear
        cluster.close()

    def test_a_kubeconfig_that_is_none_is_a_fault_of_the_configuration(self, tmp_path: Path) -> None:
        """Reported at the start, with what to do."""
        empty = tmp_path / "kubeconfig"
        empty.write_text("{}")
        with pytest.raises(ConfigError, match="KUBECONFIG"):
            KubeCluster(KubeSettings(kubeconfig=str(empty)), instance="i")


class TestMany:
    """More than one page."""

    def test_a_list_of_several_pages_is_whole(self, pods: Pods) -> None:
        """Each pod once, and a version to watch from."""
        count = 510
        for index in range(1, count + 1):
            pods.create(index)
        listed = pods.cluster.list()
        assert sorted(pod.key.index for pod in listed.pods) == list(range(1, count + 1))
        pods.create(count + 1)
        events = pods.watch_until(listed.resource_version, lambda event: event.pod is not None)
        assert [event.pod.key.index for event in events if event.pod] == [count + 1]
