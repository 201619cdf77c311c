"""The watch: list, follow, and begin again whenever the link breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from ottoscaler.errors import ClusterRejected, ClusterUnavailable, WatchExpired
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.stop import StopSignal
from ottoscaler.flow.watch import PodWatcher
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock, Cluster, PodList, WatchEvent, WatchEventType
from ottoscaler.retries import MAX_PAUSE_S, Retries
from tests.fakes.clock import ManualClock
from tests.fakes.kubernetes import FakeKubernetes, Watch
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import FakeServers, SimulatedController
from tests.test_metrics import samples

contract = pytest.mark.contract
BOOKMARK = WatchEvent(WatchEventType.BOOKMARK, "2", None)


class Noting(StopSignal):
    """No thread pauses on it: how long the pause would have been is noted."""

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


def watching(controller: SimulatedController, times: int) -> None:
    """Wait until the watch was begun the given number of times, and is open."""
    eventually(
        lambda: controller.calls("watch") >= times and controller.servers.kubernetes.watching(), what=f"watch {times}"
    )


def test_what_is_there_at_the_start_is_known() -> None:
    """Pods of an earlier process are in the first list."""
    with SimulatedController(threads=["watch"]) as first:
        pod = first.pod(first.accept())
        first.close(release=False)
        with SimulatedController(first.servers, consumer="c2", threads=["watch"]) as controller:
            assert [seen.name for seen in controller.registry.snapshots()] == [pod]


def test_every_change_is_published() -> None:
    """Up to its end."""
    with SimulatedController(threads=["watch"]) as controller:
        pod = controller.pod(controller.accept())
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at)
        controller.cluster.vanish(pod)
        eventually(lambda: controller.registry.snapshots() == [])


def test_a_clean_end_goes_on_from_the_version() -> None:
    """The server ends a watch now and then: nothing was missed, so nothing is listed."""
    with SimulatedController(threads=["watch"]) as controller:
        pod = controller.pod(controller.accept())
        watching(controller, 1)
        controller.servers.kubernetes.end_watches()
        watching(controller, 2)
        controller.cluster.run(pod)
        controller.wait_seen(pod, lambda seen: seen.started_at)
        assert controller.calls("list") == 1


def test_a_bookmark_moves_the_version() -> None:
    """So that a quiet watch does not become too old."""
    servers = FakeServers()
    servers.kubernetes = kubernetes = Versions(servers.clock)
    with SimulatedController(servers, threads=["watch"]) as controller:
        watching(controller, 1)
        kubernetes.bookmark()
        eventually(lambda: kubernetes._watches[0].version == 1001)
        kubernetes.end_watches()
        watching(controller, 2)
    assert kubernetes.versions == ["1000", "1001"]


class Passing:
    """A cluster of which each list and watch takes 50 s and then ends as it is set."""

    def __init__(self, clock: ManualClock, heartbeat: Heartbeat) -> None:
        self.clock, self.heartbeat = clock, heartbeat
        self.events: list[WatchEvent] = []
        self.error: Exception | None = None
        self.aged: list[float] = []

    def pass_time(self) -> None:
        for _ in range(10):
            self.clock.advance(5)
            (age,) = self.heartbeat.ages()
        self.aged.append(age.lasted_s)

    def list(self) -> PodList:
        self.pass_time()
        return PodList([], "1")

    def watch(self, version: str) -> Iterator[WatchEvent]:
        for event in self.events:
            self.pass_time()
            yield event
        self.pass_time()
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, ClusterUnavailable("broken")])
@pytest.mark.parametrize("events", [[], [BOOKMARK], [BOOKMARK, replace(BOOKMARK, resource_version="")]])
def test_each_list_each_event_and_each_end_of_a_watch_is_a_sign_of_life(
    error: Exception | None, events: list[WatchEvent]
) -> None:
    """A quiet cluster sends nothing for half a minute at a time: its watch does not hang."""
    clock, metrics = ManualClock(), Metrics()
    heartbeat, stop = Heartbeat(clock), Noting()
    heartbeat.add_loop(threading.current_thread().name)
    cluster = Passing(clock, heartbeat)
    cluster.events, cluster.error = events, error
    watcher = PodWatcher(
        cluster=cast("Cluster", cluster), registry=PodRegistry(clock), metrics=metrics, stop=stop, clock=clock,
        retries=Retries(stop.event, metrics, heartbeat.report_failure), heartbeat=heartbeat,
    )  # fmt: skip
    for _ in range(3):
        watcher.step()
    assert cluster.aged == [50.0] * len(cluster.aged)
    assert [age.lasted_s for age in heartbeat.ages()] == [0.0]


def test_a_version_that_is_too_old_means_a_new_list(log: Lines) -> None:
    """410: what was missed is in the list only."""
    with SimulatedController(threads=["watch"]) as controller:
        pod = controller.pod(controller.accept())
        watching(controller, 1)
        with controller.servers.kubernetes.changed:
            controller.cluster.run(pod)
            controller.cluster.succeed(pod)
            controller.servers.kubernetes.compact()
        assert controller.result()["outcome"] == "succeeded"
        watching(controller, 2)  # the result comes from the list, and may be there before the watch that follows it
        assert [controller.calls(verb) for verb in ("list", "watch")] == [2, 2]
    assert log.of("watch.expired")


def test_a_broken_link_means_a_new_list(log: Lines) -> None:
    """Whatever the error was."""
    with SimulatedController(threads=["watch"]) as controller:
        watching(controller, 1)
        controller.servers.kubernetes.end_watches(ClusterUnavailable("broken"))
        watching(controller, 2)
        assert (controller.calls("list"), controller.registry.is_known) == (2, True)
    assert log.of("watch.broken")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, "ended"),
        (WatchExpired("too old"), "expired"),
        (ClusterUnavailable("broken"), "unreachable"),
        (ClusterRejected("forbidden", status=403, reason="Forbidden"), "unreachable"),
    ],
)
def test_a_watch_that_begins_again_is_counted_by_its_cause(error: Exception | None, cause: str) -> None:
    """Once, and under no other cause."""
    with SimulatedController(threads=["watch"]) as controller:
        watching(controller, 1)
        before = samples(controller.metrics)
        controller.servers.kubernetes.end_watches(error)
        watching(controller, 2)
        after = samples(controller.metrics)
        assert {key: after[key] for key in after if "watch_reconnects" in key[0] and after[key] != before.get(key)} == {
            ("ottoscaler_watch_reconnects_total", cause): 1
        }


def test_nothing_is_created_while_the_link_is_broken() -> None:
    """And all goes on when the cluster can be listed again."""
    with SimulatedController(threads=["watch"]) as controller:
        watching(controller, 1)
        controller.servers.kubernetes.refuse_next("list", ClusterUnavailable("away"), times=1_000_000)
        controller.servers.kubernetes.end_watches(ClusterUnavailable("broken"))
        eventually(lambda: controller.calls("list") > 3)
        event_id = controller.accept()
        assert (controller.registry.is_known, controller.ledger.thread_counts()) == (False, (0, 1))
        controller.servers.kubernetes._faults.clear()
        controller.pod(event_id)


@contract("5.PodLost")
def test_a_waiter_is_notified_that_its_pod_vanished_meanwhile() -> None:
    """A thread must not wait without limit for a pod that no watch will report."""
    with SimulatedController(threads=["watch"], INFRA_RETRIES=0) as controller:
        pod = controller.pod(controller.accept())
        watching(controller, 1)
        with controller.servers.kubernetes.changed:
            controller.cluster.vanish(pod, unseen=True)
            controller.servers.kubernetes.compact()
        assert controller.result()["reason"] == "PodLost"


def test_a_list_that_is_forbidden_is_asked_for_again() -> None:
    """Rights come and go: the thread does not die of it."""
    with SimulatedController() as controller:
        controller.servers.kubernetes.refuse_next(
            "list", ClusterRejected("forbidden", status=403, reason="Forbidden"), times=3
        )
        controller.start("watch")
        assert controller.calls("list") == 4


def test_a_watch_that_is_refused_is_not_asked_for_without_a_break() -> None:
    """Each pause is longer than the one before: a server must not be run over because it says no."""
    stop = Noting()
    with SimulatedController(stop=stop) as controller:
        controller.servers.kubernetes.refuse_next("watch", ClusterUnavailable("no"), times=8)
        controller.start("watch")
        watching(controller, 9)
        assert stop.pauses == [0.1, 0.2, 0.4, 0.8, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]


def test_room_that_a_pod_has_made_is_used_at_once() -> None:
    """The end of a pod that no thread follows gives the next worker its turn."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
        pod = controller.pod(controller.accept(event_id="old"))
        controller.close(release=False)
        with SimulatedController(controller.servers, consumer="c2", threads=["watch"], MAX_WORKERS=1) as next_:
            next_.registry.count_as_ours(controller.key("old").event_hash)
            event_id = next_.accept()
            assert next_.ledger.thread_counts() == (0, 1)
            next_.cluster.vanish(pod)
            next_.pod(event_id)
