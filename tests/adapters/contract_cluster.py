"""The contract of `ports.Cluster`. Every implementation runs it: the fake, the emulator, and a real API server."""

from __future__ import annotations

import threading

import pytest

from ottoscaler.core.autoscaler import NodeForecast, node_forecast
from ottoscaler.core.manifest import LABEL_EVENT, LABEL_INSTANCE, LABEL_WORKER, MANAGED_BY, MANAGER, AttemptKey
from ottoscaler.core.pod_timeline import finished_pod_verdict
from ottoscaler.core.pods import Phase, PodSnapshot, StartTrouble
from ottoscaler.core.verdicts import EndReason
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, WatchExpired
from ottoscaler.ports import CreateOutcome, WatchEventType
from tests.adapters.clusters import EVENT, ClusterAdmin, ClusterFactory, Pods, Status, ended, running, waiting
from tests.fakes.wait import eventually

__all__ = [
    "TestClosing",
    "TestCreating",
    "TestDeleting",
    "TestEvents",
    "TestListing",
    "TestLooking",
    "TestRelabelled",
    "TestStatus",
    "TestWatching",
]


class TestCreating:
    """create: the name is the lock."""

    def test_gives_the_pod(self, pods: Pods) -> None:
        """With what the API server added."""
        pod = pods.create(2, attempt=3, bound=False)
        assert pod.key == AttemptKey(pods.hash, 2, 3)
        assert (pod.name, pod.event_id, pod.instance) == (f"{pods.name(2)}-r3", "e-1", pods.instance)
        assert (pod.phase, pod.live, pod.deleting) == (Phase.PENDING, True, False)
        assert pod.uid
        assert pod.resource_version
        assert pod.created_at

    @pytest.mark.contract("2.KEEP_FAILED_S")
    def test_a_pod_says_for_how_long_it_stays(self, pods: Pods, admin: ClusterAdmin) -> None:
        """To each process that lists it later, and after its end; then it goes by its UID."""
        pods.cluster.create(pods.body(bound=True, keep_failed_s=600))
        admin.set_status(pods.name(), ended("Failed", 7, "Error"))
        (kept,) = pods.cluster.list().pods
        assert (kept.keep_failed_s, kept.finished, kept.exit_code) == (600, True, 7)
        assert not pods.cluster.delete(kept.name, "00000000-0000-0000-0000-000000000000")
        assert pods.cluster.delete(kept.name, kept.uid)
        assert pods.cluster.get(kept.name) is None
        assert pods.cluster.delete(kept.name, kept.uid)

    def test_again_finds_it_there(self, pods: Pods) -> None:
        """As after a lost answer; the first one stays."""
        pod = pods.create()
        assert pods.cluster.create(pods.body()) is CreateOutcome.ALREADY_THERE
        assert pods.look(pod.name).uid == pod.uid

    def test_while_it_is_being_deleted_finds_it_there(self, pods: Pods) -> None:
        """The name is not free before the pod is gone."""
        pod = pods.create()
        pods.cluster.delete(pod.name, pod.uid)
        assert pods.cluster.create(pods.body()) is CreateOutcome.ALREADY_THERE

    def test_under_a_name_that_is_taken_finds_it_there(self, pods: Pods, admin: ClusterAdmin) -> None:
        """A look shows which program the pod belongs to."""
        admin.add_foreign(pods.name(), {})
        assert pods.cluster.create(pods.body()) is CreateOutcome.ALREADY_THERE

    def test_after_it_is_gone_makes_another(self, pods: Pods) -> None:
        """The API server does not remember names; a caller that must not use one again has to."""
        pod = pods.create(bound=False)
        pods.cluster.delete(pod.name, pod.uid)
        assert pods.create(bound=False).uid != pod.uid

    def test_of_an_attempt_that_avoids_nodes_is_accepted(self, pods: Pods) -> None:
        """And one that does not avoid them meets it: it is the same attempt."""
        created = pods.cluster.create(pods.body(attempt=2, avoided_nodes=("node-a", "node-b.example.com")))
        assert isinstance(created, PodSnapshot)
        assert pods.cluster.create(pods.body(attempt=2)) is CreateOutcome.ALREADY_THERE
        assert (pods.look(created.name).key, pods.look(created.name).event_id) == (created.key, EVENT.event_id)

    @pytest.mark.contract("5.Rejected")
    def test_of_a_bad_pod_is_rejected(self, pods: Pods) -> None:
        """Asking again changes nothing: the status says so."""
        bad = pods.body().replace(b'"name":"agent"', b'"name":"NOT A NAME"').replace(b'"containers":[', b'"others":[')
        with pytest.raises(ClusterRejected) as caught:
            pods.cluster.create(bad)
        assert caught.value.status in (400, 422)
        assert pods.cluster.get(pods.name()) is None


class TestLooking:
    """get and event_of: live."""

    def test_nothing_is_none(self, pods: Pods) -> None:
        """Absence is a value, not an error."""
        assert pods.cluster.get(pods.name()) is None
        assert pods.cluster.annotated_event(pods.name()) is None

    def test_shows_the_pod_as_it_is_now(self, pods: Pods, admin: ClusterAdmin) -> None:
        """Not as it was created."""
        pod = pods.create()
        assert pods.look(pod.name).uid == pod.uid
        admin.set_status(pod.name, running())
        now = pods.look(pod.name)
        assert (now.phase, now.uid, now.started_at) == (Phase.RUNNING, pod.uid, 1767323045.0)
        assert now.resource_version != pod.resource_version

    def test_a_foreign_pod_has_no_event(self, pods: Pods, admin: ClusterAdmin) -> None:
        """It is there, and not a worker of ours."""
        admin.add_foreign(pods.name(), {"app": "web"})
        pod = pods.look(pods.name())
        assert (pod.event_id, pod.name) == ("", pods.name())
        assert pod.uid
        assert pods.cluster.annotated_event(pods.name()) is None

    def test_the_event_is_on_the_pod(self, pods: Pods) -> None:
        """All of it: enough to take the task up again when Redis was wiped."""
        assert pods.cluster.annotated_event(pods.create().name) == EVENT

    @pytest.mark.parametrize(("asked", "given"), [(None, 30), (1, 1)])
    def test_a_pod_that_is_being_deleted_says_so(self, pods: Pods, asked: int | None, given: int) -> None:
        """With the grace that it has: its own, or the one that was asked for."""
        pod = pods.create()
        pods.cluster.delete(pod.name, pod.uid, grace_s=asked)
        now = pods.look(pod.name)
        assert (now.deleting, now.deletion_grace_s, now.live) == (True, given, True)
        assert now.deletion_requested_at is not None
        assert abs(now.deletion_requested_at - (pod.created_at or 0)) < 30


class TestStatus:
    """What kubelet and controllers report comes through to the verdict."""

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            pytest.param(
                ended("Succeeded", 0, "Completed"), EndReason.COMPLETED, marks=pytest.mark.contract("5.Completed")
            ),
            pytest.param(ended("Failed", 3, "Error"), EndReason.ERROR, marks=pytest.mark.contract("5.Error")),
            pytest.param(
                ended("Failed", 137, "OOMKilled"), EndReason.OOM_KILLED, marks=pytest.mark.contract("5.OOMKilled")
            ),
            pytest.param(
                {"phase": "Failed", "reason": "DeadlineExceeded", "message": "too long"},
                EndReason.DEADLINE_EXCEEDED,
                marks=pytest.mark.contract("5.DeadlineExceeded"),
            ),
            pytest.param(
                {"phase": "Failed", "reason": "Evicted", "message": "disk"},
                EndReason.EVICTED,
                marks=pytest.mark.contract("5.Evicted"),
            ),
            pytest.param(
                {
                    "phase": "Failed",
                    "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
                },
                EndReason.PREEMPTED,
                marks=pytest.mark.contract("5.Preempted"),
            ),
        ],
        ids=lambda value: value.value if isinstance(value, EndReason) else "",
    )
    def test_of_a_finished_pod(self, pods: Pods, admin: ClusterAdmin, status: Status, reason: EndReason) -> None:
        """The reason of its result."""
        pod = pods.create()
        admin.set_status(pod.name, status)
        end = finished_pod_verdict(pods.look(pod.name))
        assert end is not None
        assert end.reason is reason

    @pytest.mark.parametrize(
        ("status", "trouble"),
        [
            (waiting("ErrImagePull", "manifest unknown"), StartTrouble.IMAGE_PULL),
            (waiting("ImagePullBackOff", "503 Service Unavailable"), StartTrouble.IMAGE_PULL_TRANSIENT),
            (waiting("InvalidImageName"), StartTrouble.INVALID_IMAGE),
            (waiting("CreateContainerConfigError", 'secret "x" not found'), StartTrouble.CONFIG),
            (
                {
                    "phase": "Pending",
                    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
                },
                StartTrouble.UNSCHEDULABLE,
            ),
        ],
        ids=lambda value: value.value if isinstance(value, StartTrouble) else "",
    )
    def test_of_a_pod_that_does_not_start(
        self, pods: Pods, admin: ClusterAdmin, status: Status, trouble: StartTrouble
    ) -> None:
        """Why not, as far as it is a fault."""
        pod = pods.create()
        admin.set_status(pod.name, status)
        assert pods.look(pod.name).trouble is trouble


class TestEvents:
    """pod_events: what components have written about one pod, and in which order."""

    def test_of_a_pod_without_any_there_are_none(self, pods: Pods) -> None:
        """Nor of one that is not there."""
        assert list(pods.cluster.pod_events(pods.create().uid)) == []
        assert list(pods.cluster.pod_events("00000000-0000-0000-0000-000000000000")) == []

    def test_each_has_its_writer_and_its_words(self, pods: Pods, admin: ClusterAdmin) -> None:
        """And another pod's Events are not among them."""
        pod, other = pods.create(1), pods.create(2)
        admin.announce(other.name, "NotTriggerScaleUp", "no", "cluster-autoscaler")
        admin.announce(pod.name, "TriggeredScaleUp", "pod triggered scale-up: [a 1->2]", "cluster-autoscaler")
        [event] = pods.cluster.pod_events(pod.uid)
        assert (event.reason, event.message) == ("TriggeredScaleUp", "pod triggered scale-up: [a 1->2]")
        assert event.component == "cluster-autoscaler"

    def test_the_one_that_was_written_last_has_the_highest_version(self, pods: Pods, admin: ClusterAdmin) -> None:
        """Also one that was there before and is written again."""
        pod = pods.create()
        admin.announce(pod.name, "TriggeredScaleUp", "a", "cluster-autoscaler")
        admin.announce(pod.name, "FailedScheduling", "b", "default-scheduler")
        admin.announce(pod.name, "NotTriggerScaleUp", "c", "cluster-autoscaler")
        assert node_forecast(pods.cluster.pod_events(pod.uid)) == NodeForecast(False, "NotTriggerScaleUp: c")
        admin.announce(pod.name, "TriggeredScaleUp", "d", "cluster-autoscaler")
        assert node_forecast(pods.cluster.pod_events(pod.uid)) == NodeForecast(True, "TriggeredScaleUp: d")


class TestListing:
    """list: all pods of this instance, and a version to watch from."""

    def test_of_none_has_a_version(self, pods: Pods) -> None:
        """So that the watch can begin before the first pod."""
        listed = pods.cluster.list()
        assert list(listed.pods) == []
        assert int(listed.resource_version) > 0

    def test_shows_what_get_shows(self, pods: Pods, admin: ClusterAdmin) -> None:
        """Snapshots of the same making."""
        names = {pods.create(index).name for index in (1, 2, 3)}
        admin.set_status(pods.name(2), ended("Failed", 1, "Error"))
        listed = {pod.name: pod for pod in pods.cluster.list().pods}
        assert set(listed) == names
        assert listed[pods.name(2)] == pods.look(pods.name(2))

    @pytest.mark.contract("2.INSTANCE")
    def test_leaves_out_other_instances(self, pods: Pods, cluster_factory: ClusterFactory, admin: ClusterAdmin) -> None:
        """They share the namespace with us."""
        other = Pods(cluster_factory(f"{pods.instance}-b"), admin, f"{pods.instance}-b")
        mine, theirs = pods.create(), other.create()
        assert [pod.uid for pod in pods.cluster.list().pods] == [mine.uid]
        assert [pod.uid for pod in other.cluster.list().pods] == [theirs.uid]

    def test_leaves_out_what_is_no_worker(self, pods: Pods, admin: ClusterAdmin) -> None:
        """A foreign pod with our labels, but without a worker's."""
        admin.add_foreign(f"{pods.name()}-x", {MANAGED_BY: MANAGER, LABEL_INSTANCE: pods.instance})
        admin.add_foreign(f"{pods.name()}-y", {})
        assert list(pods.cluster.list().pods) == []


class TestWatching:
    """watch: changes from a version on."""

    def test_yields_a_pods_life_in_order(self, pods: Pods, admin: ClusterAdmin) -> None:
        """Created, running, finished, gone; the last status stays with what is gone."""
        version = pods.cluster.list().resource_version
        pod = pods.create()
        admin.set_status(pod.name, running())
        admin.set_status(pod.name, ended("Succeeded", 0, "Completed"))
        pods.cluster.delete(pod.name, pod.uid)
        events = pods.watch_until(version, lambda event: event.change is WatchEventType.DELETED)
        phases = [event.pod.phase for event in events if event.pod]
        assert list(dict.fromkeys(phases)) == [Phase.PENDING, Phase.RUNNING, Phase.SUCCEEDED]
        assert {event.pod.uid for event in events if event.pod} == {pod.uid}
        last = events[-1].pod
        assert last is not None
        assert (last.gone, last.exit_code, [event.change for event in events[:-1]].count(WatchEventType.DELETED)) == (
            True,
            0,
            0,
        )

    def test_goes_on_behind_the_version_it_is_given(self, pods: Pods) -> None:
        """A new connection repeats nothing and misses nothing."""
        version = pods.cluster.list().resource_version
        for index in (1, 2, 3):
            pods.create(index)
        [first, *_] = pods.watch_until(version, lambda event: event.pod is not None)
        rest = pods.watch_until(
            first.resource_version, lambda event: event.pod is not None and event.pod.key.index == 3
        )
        assert [event.pod.key.index for event in [first, *rest] if event.pod] == [1, 2, 3]

    def test_begins_where_the_list_ends(self, pods: Pods) -> None:
        """The watch does not report again what the list shows."""
        pods.create(1)
        version = pods.cluster.list().resource_version
        pods.create(2)
        events = pods.watch_until(version, lambda event: event.pod is not None)
        assert [event.pod.key.index for event in events if event.pod] == [2]

    def test_wakes_up_for_what_comes_later(self, pods: Pods) -> None:
        """It is open before anything happens."""
        version = pods.cluster.list().resource_version
        seen: list[str] = []

        def watch() -> None:
            events = pods.watch_until(version, lambda event: event.pod is not None)
            seen.extend(event.pod.name for event in events if event.pod)

        thread = threading.Thread(target=watch)
        thread.start()
        pods.create()
        thread.join(10)
        assert seen == [pods.name()]

    def test_leaves_out_other_instances(self, pods: Pods, cluster_factory: ClusterFactory, admin: ClusterAdmin) -> None:
        """Neither their pods nor those without our labels."""
        version = pods.cluster.list().resource_version
        Pods(cluster_factory(f"{pods.instance}-b"), admin, f"{pods.instance}-b").create()
        admin.add_foreign(f"{pods.name()}-y", {})
        mine = pods.create()
        [event] = pods.watch_until(version, lambda event: event.pod is not None)
        assert event.pod is not None
        assert event.pod.uid == mine.uid

    def test_yields_no_pod_that_is_no_worker(self, pods: Pods, admin: ClusterAdmin) -> None:
        """The version goes on all the same."""
        version = pods.cluster.list().resource_version
        admin.add_foreign(f"{pods.name()}-x", {MANAGED_BY: MANAGER, LABEL_INSTANCE: pods.instance})
        pods.create()
        first, *_ = pods.watch_until(version, lambda event: event.pod is not None)
        assert (first.change, first.pod) == (WatchEventType.UPDATED, None)
        assert int(first.resource_version) > int(version)

    def test_from_a_version_that_is_too_old_is_expired(self, pods: Pods, admin: ClusterAdmin) -> None:
        """List again."""
        version = pods.cluster.list().resource_version
        pods.create()
        old = admin.forget_changes(version)
        with pytest.raises(WatchExpired):
            next(iter(pods.cluster.watch(old)))

    def test_works_again_after_a_new_list(self, pods: Pods, admin: ClusterAdmin) -> None:
        """The way on after WatchExpired."""
        admin.forget_changes(pods.cluster.list().resource_version)
        version = pods.cluster.list().resource_version
        pods.create()
        events = pods.watch_until(version, lambda event: event.pod is not None)
        assert len(events) == 1


class TestRelabelled:
    """A user has changed the labels of a worker's pod: name and annotation say that it is ours."""

    @pytest.mark.parametrize(
        ("labels", "text"),
        [
            ({LABEL_INSTANCE: "another"}, f"label {LABEL_INSTANCE} was changed from "),
            ({LABEL_INSTANCE: None}, f"label {LABEL_INSTANCE} was removed"),
            ({MANAGED_BY: "helm"}, f"label {MANAGED_BY} was changed from 'ottoscaler' to 'helm'"),
            ({LABEL_WORKER: "2"}, f"label {LABEL_WORKER} was changed from '1' to '2'"),
            ({LABEL_EVENT: None}, f"label {LABEL_EVENT} was removed"),
        ],
    )
    def test_a_look_shows_it_under_its_own_key(
        self, pods: Pods, admin: ClusterAdmin, labels: dict[str, str | None], text: str
    ) -> None:
        """With what was changed; and it can be deleted by its UID."""
        pod = pods.create()
        admin.relabel(pod.name, labels)
        now = pods.look(pod.name)
        assert (now.key, now.uid, now.event_id, now.instance) == (pod.key, pod.uid, "e-1", pods.instance)
        assert text in now.altered_label
        assert pods.cluster.delete(now.name, now.uid, now.resource_version)

    def test_what_we_do_not_need_may_change(self, pods: Pods, admin: ClusterAdmin) -> None:
        """Labels of others are none of our business."""
        pod = pods.create()
        admin.relabel(pod.name, {"team": "blue"})
        assert pods.look(pod.name).altered_label == ""

    def test_the_watch_says_that_it_is_gone(self, pods: Pods, admin: ClusterAdmin) -> None:
        """It left the selection, with the version at which it did: a look shows that it is there."""
        pod = pods.create()
        version = pods.cluster.list().resource_version
        admin.relabel(pod.name, {LABEL_INSTANCE: "another"})
        [event] = pods.watch_until(version, lambda event: event.pod is not None)
        assert event.pod is not None
        assert (event.change, event.pod.gone, event.pod.deleting) == (WatchEventType.DELETED, True, False)
        assert int(pods.look(pod.name).resource_version) >= int(event.pod.resource_version)
        assert list(pods.cluster.list().pods) == []

    def test_no_key_but_its_own(self, pods: Pods, admin: ClusterAdmin) -> None:
        """In lists and in the watch: it must not be taken for another worker's pod."""
        pods.create(2)
        version = pods.cluster.list().resource_version
        admin.relabel(pods.create(1).name, {LABEL_WORKER: "2"})
        assert sorted(pod.key.index for pod in pods.cluster.list().pods) == [1, 2]
        events = pods.watch_until(version, lambda event: event.pod is not None and event.pod.altered_label != "")
        assert {event.pod.key.index for event in events if event.pod} == {1}


class TestDeleting:
    """delete: only this very pod, and only as it was seen."""

    def test_of_a_live_pod_asks_it_to_end(self, pods: Pods) -> None:
        """It is there until its node says that it is gone; asking twice is no error."""
        pod = pods.create()
        assert pods.cluster.delete(pod.name, pod.uid)
        assert pods.look(pod.name).deleting
        assert pods.cluster.delete(pod.name, pod.uid)
        assert pods.look(pod.name).uid == pod.uid

    def test_of_an_unscheduled_pod_removes_it(self, pods: Pods) -> None:
        """Nothing runs, so nothing has to end."""
        pod = pods.create(bound=False)
        assert pods.cluster.delete(pod.name, pod.uid)
        eventually(lambda: pods.cluster.get(pod.name) is None, what="the pod to be gone")

    def test_of_a_finished_pod_removes_it(self, pods: Pods, admin: ClusterAdmin) -> None:
        """Its result is stored by now."""
        pod = pods.create()
        admin.set_status(pod.name, ended("Failed", 1, "Error"))
        assert pods.cluster.delete(pod.name, pod.uid)
        eventually(lambda: pods.cluster.get(pod.name) is None, what="the pod to be gone")

    def test_of_a_pod_that_is_gone_is_done(self, pods: Pods, admin: ClusterAdmin) -> None:
        """It does not matter what removed it."""
        pod = pods.create()
        admin.remove(pod.name)
        assert pods.cluster.delete(pod.name, pod.uid)
        assert pods.cluster.delete("never-there", "some-uid", "1")

    def test_spares_another_pod_of_that_name(self, pods: Pods, admin: ClusterAdmin) -> None:
        """The UID is the pod, the name is not."""
        pod = pods.create()
        admin.remove(pod.name)
        another = pods.create()
        assert not pods.cluster.delete(pod.name, pod.uid)
        now = pods.look(pod.name)
        assert (now.uid, now.deleting) == (another.uid, False)

    def test_spares_a_pod_that_has_changed(self, pods: Pods, admin: ClusterAdmin) -> None:
        """It may have finished meanwhile: look again."""
        pod = pods.create()
        admin.set_status(pod.name, ended("Succeeded", 0, "Completed"))
        assert not pods.cluster.delete(pod.name, pod.uid, pod.resource_version)
        now = pods.look(pod.name)
        assert (now.phase, now.deleting) == (Phase.SUCCEEDED, False)

    def test_of_the_very_version_is_done(self, pods: Pods, admin: ClusterAdmin) -> None:
        """Nothing happened since it was seen."""
        pod = pods.create()
        admin.set_status(pod.name, running())
        now = pods.look(pod.name)
        assert pods.cluster.delete(pod.name, now.uid, now.resource_version)
        assert pods.look(pod.name).deleting


class TestClosing:
    """close and missing_rights."""

    def test_wakes_a_blocked_watch(self, pods: Pods) -> None:
        """Within a second, by whatever end."""
        version = pods.cluster.list().resource_version
        pods.create()
        begun, ended_ = threading.Event(), threading.Event()

        def watch() -> None:
            try:
                for _ in pods.cluster.watch(version):
                    begun.set()
            except ClusterUnavailable:
                pass
            ended_.set()

        thread = threading.Thread(target=watch)
        thread.start()
        assert begun.wait(10)
        pods.cluster.close()
        assert ended_.wait(1)
        thread.join(5)

    def test_twice_is_no_error_and_then_nothing_goes(self, pods: Pods) -> None:
        """A closed client says so."""
        pods.cluster.close()
        pods.cluster.close()
        with pytest.raises(ClusterUnavailable):
            pods.cluster.get(pods.name())

    def test_the_cluster_has_an_identity(
        self, pods: Pods, cluster_factory: ClusterFactory, admin: ClusterAdmin
    ) -> None:
        """The same for all that look at this namespace."""
        identity = pods.cluster.cluster_id()
        assert identity.startswith(f"{admin.namespace}/")
        assert len(identity) > len(admin.namespace) + 8
        assert cluster_factory("another").cluster_id() == identity

    def test_the_server_has_a_version(self, pods: Pods) -> None:
        """Of a Kubernetes of these years, as two numbers."""
        assert (1, 27) < pods.cluster.server_version() < (2, 0)

    def test_an_admin_lacks_no_rights(self, pods: Pods) -> None:
        """There is nothing to report."""
        assert list(pods.cluster.missing_rights()) == []
