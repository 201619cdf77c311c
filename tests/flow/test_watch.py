"""The watch: list, follow, and begin again whenever the link breaks."""

from __future__ import annotations

import pytest

from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.flow.stop import Stop
from ottoscaler.ports import Clock
from ottoscaler.retries import MAX_PAUSE_S
from tests.fakes.kubernetes import FakeKubernetes, Watch
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.rig import Rig, World

contract = pytest.mark.contract


class Noting(Stop):
    """Nobody pauses on it: how long he would have is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout_s: float | None = None) -> bool:
        self.pauses.append(timeout_s or 0)
        return super().wait(0)


class Versions(FakeKubernetes):
    """Notes from which version each watch begins."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.versions: list[str] = []

    def open_watch(self, instance: str, version: str, timeout_s: float) -> Watch:
        self.versions.append(version)
        return super().open_watch(instance, version, timeout_s)


def watching(rig: Rig, times: int) -> None:
    """Wait until the watch was begun so often, and is open."""
    eventually(lambda: rig.calls("watch") >= times and rig.world.kubernetes.watching(), what=f"watch {times}")


def test_what_is_there_at_the_start_is_known() -> None:
    """Pods of an earlier process are in the first list."""
    with Rig(threads=["watch"]) as first:
        pod = first.pod(first.accept())
        first.close(release=False)
        with Rig(first.world, consumer="c2", threads=["watch"]) as rig:
            assert [seen.name for seen in rig.registry.snapshots()] == [pod]


def test_every_change_is_published() -> None:
    """Up to its end."""
    with Rig(threads=["watch"]) as rig:
        pod = rig.pod(rig.accept())
        rig.cluster.run(pod)
        rig.hears(pod, lambda seen: seen.started_at)
        rig.cluster.vanish(pod)
        eventually(lambda: rig.registry.snapshots() == [])


def test_a_clean_end_goes_on_from_the_version() -> None:
    """The server ends a watch now and then: nothing was missed, so nothing is listed."""
    with Rig(threads=["watch"]) as rig:
        pod = rig.pod(rig.accept())
        watching(rig, 1)
        rig.world.kubernetes.end_watches()
        watching(rig, 2)
        rig.cluster.run(pod)
        rig.hears(pod, lambda seen: seen.started_at)
        assert rig.calls("list") == 1


def test_a_bookmark_moves_the_version() -> None:
    """So that a quiet watch does not become too old."""
    world = World()
    world.kubernetes = kubernetes = Versions(world.clock)
    with Rig(world, threads=["watch"]) as rig:
        watching(rig, 1)
        kubernetes.bookmark()
        eventually(lambda: kubernetes._watches[0].version == 1001)
        kubernetes.end_watches()
        watching(rig, 2)
    assert kubernetes.versions == ["1000", "1001"]


def test_a_version_that_is_too_old_means_a_new_list(log: Lines) -> None:
    """410: what was missed is in the list only."""
    with Rig(threads=["watch"]) as rig:
        pod = rig.pod(rig.accept())
        watching(rig, 1)
        with rig.world.kubernetes.changed:
            rig.cluster.run(pod)
            rig.cluster.succeed(pod)
            rig.world.kubernetes.compact()
        assert rig.result()["outcome"] == "succeeded"
        assert [rig.calls(verb) for verb in ("list", "watch")] == [2, 2]
    assert log.of("watch.expired")


def test_a_broken_link_means_a_new_list(log: Lines) -> None:
    """Whatever the error was."""
    with Rig(threads=["watch"]) as rig:
        watching(rig, 1)
        rig.world.kubernetes.end_watches(ClusterUnavailable("broken"))
        watching(rig, 2)
        assert (rig.calls("list"), rig.registry.known) == (2, True)
    assert log.of("watch.broken")


def test_nothing_is_created_while_the_link_is_broken() -> None:
    """And all goes on when the cluster can be listed again."""
    with Rig(threads=["watch"]) as rig:
        watching(rig, 1)
        rig.world.kubernetes.refuse_next("list", ClusterUnavailable("away"), times=1_000_000)
        rig.world.kubernetes.end_watches(ClusterUnavailable("broken"))
        eventually(lambda: rig.calls("list") > 3)
        event_id = rig.accept()
        assert (rig.registry.known, rig.ledger.counts()) == (False, (0, 1))
        rig.world.kubernetes._faults.clear()
        rig.pod(event_id)


@contract("5.PodLost")
def test_who_waits_for_a_pod_that_vanished_meanwhile_is_told() -> None:
    """A thread must not wait for ever for a pod that no watch will speak of."""
    with Rig(threads=["watch"], INFRA_RETRIES=0) as rig:
        pod = rig.pod(rig.accept())
        watching(rig, 1)
        with rig.world.kubernetes.changed:
            rig.cluster.vanish(pod, unseen=True)
            rig.world.kubernetes.compact()
        assert rig.result()["reason"] == "PodLost"


def test_a_list_that_is_forbidden_is_asked_for_again() -> None:
    """Rights come and go: the thread does not die of it."""
    with Rig() as rig:
        rig.world.kubernetes.refuse_next("list", ClusterRejected("forbidden", status=403, reason="Forbidden"), times=3)
        rig.start("watch")
        assert rig.calls("list") == 4


def test_a_watch_that_is_refused_is_not_asked_for_without_a_break() -> None:
    """Each pause is longer than the one before: a server must not be run over because it says no."""
    stop = Noting()
    with Rig(stop=stop) as rig:
        rig.world.kubernetes.refuse_next("watch", ClusterUnavailable("no"), times=8)
        rig.start("watch")
        watching(rig, 9)
        assert stop.pauses == [0.1, 0.2, 0.4, 0.8, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]


def test_room_that_a_pod_has_made_is_used_at_once() -> None:
    """The end of a pod that no thread follows gives the next worker its turn."""
    with Rig(threads=["watch"], MAX_WORKERS=1) as rig:
        pod = rig.pod(rig.accept(event_id="old"))
        rig.close(release=False)
        with Rig(rig.world, consumer="c2", threads=["watch"], MAX_WORKERS=1) as next_:
            next_.registry.track(rig.key("old").event_hash)
            event_id = next_.accept()
            assert next_.ledger.counts() == (0, 1)
            next_.cluster.vanish(pod)
            next_.pod(event_id)
