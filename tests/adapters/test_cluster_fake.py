"""The cluster suite on the fake, and what only the fake can do: play the node, be stale, lose answers."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ottoscaler.core.pods import Phase, PodSnapshot, StartTrouble
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.ports import Cluster, WatchEventType
from tests.adapters import contract_cluster
from tests.adapters.clusters import ClusterFactory, Pods, Status
from tests.adapters.contract_cluster import *  # noqa: F403
from tests.fakes.clock import START, ManualClock
from tests.fakes.cluster import FakeCluster, FakeKubernetes

__all__ = [*contract_cluster.__all__, "TestAutoNode", "TestControls", "TestFaults"]


class FakeAdmin:
    """The suite's admin over the fake's controls."""

    namespace = "default"

    def __init__(self) -> None:
        self.cluster = FakeCluster(FakeKubernetes(ManualClock()))

    def set_status(self, name: str, status: Status) -> None:
        self.cluster.set_status(name, dict(status))

    def remove(self, name: str) -> None:
        self.cluster.vanish(name)

    def add_foreign(self, name: str, labels: Mapping[str, str]) -> None:
        self.cluster.add_foreign(name, dict(labels))

    def relabel(self, name: str, labels: Mapping[str, str | None]) -> None:
        self.cluster.relabel(name, labels)

    def announce(self, name: str, reason: str, message: str, component: str) -> None:
        self.cluster.announce(name, reason, message, component)

    def forget_changes(self, version: str) -> str:
        self.cluster.server.compact()
        return version


@pytest.fixture
def admin() -> FakeAdmin:
    """One fake Kubernetes for the test."""
    return FakeAdmin()


@pytest.fixture
def cluster_factory(admin: FakeAdmin) -> ClusterFactory:
    """Clients of it."""

    def make(instance: str) -> Cluster:
        return FakeCluster(admin.cluster.server, instance=instance)

    return make


@pytest.fixture
def node(admin: FakeAdmin) -> FakeCluster:
    """The controls."""
    return admin.cluster


class TestControls:
    """What a test does to pods."""

    def test_a_worker_runs_and_ends(self, pods: Pods, node: FakeCluster) -> None:
        """With the times of the test's clock."""
        pod = pods.create(bound=False)
        node.run(pod.name)
        now = pods.look(pod.name)
        assert (now.phase, now.started_at, now.scheduled_at, now.node) == (Phase.RUNNING, START, START, "node-1")
        node.fail(pod.name, 137, "OOMKilled")
        now = pods.look(pod.name)
        assert (now.phase, now.exit_code, now.agent_end_reason, now.started_at) == (
            Phase.FAILED,
            137,
            "OOMKilled",
            START,
        )

    def test_a_worker_does_not_start(self, pods: Pods, node: FakeCluster) -> None:
        """For want of a node, then of an image."""
        pod = pods.create(bound=False)
        node.unschedulable(pod.name)
        assert pods.look(pod.name).trouble is StartTrouble.UNSCHEDULABLE
        node.trouble(pod.name, "ErrImagePull", "not found")
        assert pods.look(pod.name).trouble is StartTrouble.IMAGE_PULL

    def test_a_killed_pod_ends_and_goes(self, pods: Pods, node: FakeCluster) -> None:
        """As the kubelet does it: the watch reports its last status, then it is gone."""
        version = pods.cluster.list().resource_version
        pod = pods.create()
        pods.cluster.delete(pod.name, pod.uid)
        node.kill(pod.name)
        events = pods.watch_until(version, lambda event: event.change is WatchEventType.DELETED)
        last = events[-1].pod
        assert last is not None
        assert (last.gone, last.exit_code, last.deleting) == (True, 143, True)

    def test_a_pod_vanishes_unseen(self, pods: Pods, node: FakeCluster) -> None:
        """No watch reports it: only a list or a look shows it."""
        version = pods.cluster.list().resource_version
        node.vanish(pods.create(1).name, unseen=True)
        pods.create(2)
        events = pods.watch_until(version, lambda event: event.pod is not None and event.pod.key.index == 2)
        assert [event.change for event in events] == [WatchEventType.UPDATED, WatchEventType.UPDATED]
        assert pods.cluster.get(pods.name(1)) is None

    def test_lists_can_be_stale(self, pods: Pods, node: FakeCluster) -> None:
        """A get is not."""
        node.server.freeze_lists()
        pod = pods.create()
        assert list(pods.cluster.list().pods) == []
        assert pods.look(pod.name).uid == pod.uid
        node.server.thaw_lists()
        assert len(pods.cluster.list().pods) == 1


class TestAutoNode:
    """The tiny node."""

    def test_runs_each_pod_to_its_end(self, admin: FakeAdmin) -> None:
        """With the exit code that the test planned for its name."""
        codes = {"1": 0, "2": 3}
        cluster = FakeCluster(instance="i", auto=lambda name: codes.get(name[-1]))
        pods = Pods(cluster, admin, "i")
        names = [pods.create(index, bound=False).name for index in (1, 2, 3)]
        found = [(pods.look(name).phase, pods.look(name).exit_code) for name in names]
        assert found == [(Phase.SUCCEEDED, 0), (Phase.FAILED, 3), (Phase.RUNNING, None)]

    def test_lets_deleted_pods_go(self, admin: FakeAdmin) -> None:
        """At once."""
        pods = Pods(FakeCluster(instance="i", auto=lambda _name: None), admin, "i")
        pod = pods.create(bound=False)
        assert pods.cluster.delete(pod.name, pod.uid)
        assert pods.cluster.get(pod.name) is None


class TestFaults:
    """Requests that fail to order, and how often each was made."""

    def test_a_refused_request_leaves_nothing(self, pods: Pods, node: FakeCluster) -> None:
        """As often as ordered, with the error that was ordered."""
        quota = ClusterUnavailable("exceeded quota", unclear=False, retry_after_s=1)
        node.server.refuse_next("create", quota, 2)
        for _ in range(2):
            with pytest.raises(ClusterUnavailable, match="quota"):
                pods.create()
        assert isinstance(pods.create(), PodSnapshot)
        assert node.server.count("create", pods.name()) == 3

    def test_a_lost_answer_leaves_the_pod(self, pods: Pods, node: FakeCluster) -> None:
        """The caller cannot know."""
        node.server.drop_replies("create")
        with pytest.raises(ClusterUnavailable) as caught:
            pods.create()
        assert caught.value.unclear
        assert pods.look(pods.name()).live

    def test_a_create_may_arrive_late(self, pods: Pods, node: FakeCluster) -> None:
        """The network delivers it after the caller has looked in vain."""
        node.server.hold_next_create()
        with pytest.raises(ClusterUnavailable):
            pods.create()
        assert pods.cluster.get(pods.name()) is None
        node.server.deliver_held()
        assert pods.look(pods.name()).live

    def test_a_watch_breaks_off(self, pods: Pods, node: FakeCluster) -> None:
        """With an error, or by itself when the server's time is over."""
        version = pods.cluster.list().resource_version
        pods.create()
        changes = iter(pods.cluster.watch(version))
        next(changes)
        node.server.end_watches(ClusterUnavailable("the link is dead"))
        with pytest.raises(ClusterUnavailable, match="link"):
            next(changes)
        assert node.server.watching() == 0

    def test_a_watch_ends_when_its_time_is_over(self, admin: FakeAdmin) -> None:
        """As the server's do."""
        assert list(FakeCluster(admin.cluster.server, watch_s=0.01).watch("1000")) == []

    def test_bookmarks_carry_the_version(self, pods: Pods, node: FakeCluster) -> None:
        """Without a pod."""
        version = pods.cluster.list().resource_version
        node.server.bookmark()
        event = next(iter(pods.cluster.watch(version)))
        assert (event.change, event.pod, int(event.resource_version)) == (
            WatchEventType.BOOKMARK,
            None,
            int(version) + 1,
        )
