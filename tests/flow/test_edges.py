"""What happens only between two steps, or only to the second of two: each would go unnoticed for long."""

from __future__ import annotations

import threading

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.stop import StopSignal
from ottoscaler.ports import OpenTask, StoredWorker
from tests.fakes.clock import START
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.ledger_driver import LedgerDriver, task
from tests.flow.simulated_controller import FakeServers, SimulatedController
from tests.test_metrics import samples

contract = pytest.mark.contract
LEASE_S = 3


class Noting(StopSignal):
    """No thread pauses on it: how long the pause would have been is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout_s: float | None = None) -> bool:
        self.pauses.append(timeout_s or 0)
        return super().wait(0)


class TestRoom:
    """MAX_WORKERS while it is unknown whether a pod is there."""

    @contract("2.MAX_WORKERS")
    @pytest.mark.parametrize("created", [True, False])
    def test_a_create_without_an_answer_keeps_its_room_until_a_look_has_shown_what_is_there(
        self, created: bool
    ) -> None:
        """The pod may be there: a second one beside it would be one too many."""
        free: list[bool] = []
        with SimulatedController(threads=["watch"], MAX_WORKERS=2) as controller:

            def look(verb: str, _name: str) -> None:
                if verb == "get":
                    free.append(has_room(controller.ledger))

            controller.servers.kubernetes.on_call = look
            controller.accept(event_id="running")
            controller.pod("running")
            if created:
                controller.servers.kubernetes.drop_replies("create")
            else:
                controller.servers.kubernetes.refuse_next("create", ClusterUnavailable("no answer"))
            controller.accept(event_id="unclear")
            controller.pod("unclear")
            assert free == [False]
            assert has_room(controller.ledger) is False

    def test_room_that_is_one_too_much_is_taken_back(self) -> None:
        """A task that was taken over has a pod: a worker that was to create one waits after all."""
        driver = LedgerDriver(max_workers=1)
        driver.ledger.add(task("ours"))
        run = driver.take()
        driver.ledger.add(task("taken", 1, StoredWorker(1, attempt=1)))
        assert not driver.ledger.may_create_pod(run)

    def test_room_that_is_just_enough_is_not_taken_back(self) -> None:
        """Two workers, two places."""
        driver = LedgerDriver(max_workers=2)
        driver.ledger.add(task("ours"))
        run = driver.take()
        driver.ledger.add(task("taken", 1, StoredWorker(1, attempt=1)))
        assert driver.ledger.may_create_pod(run)

    def test_a_reader_that_waits_for_room_goes_on_as_soon_as_a_task_is_dropped(self) -> None:
        """Not only when its wait is over: another replica has the task now, and its place is free."""
        driver = LedgerDriver(read_ahead=1)
        opened = task("a")
        driver.ledger.add(opened)
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.append(driver.ledger.wait_for_room(30)))
        reader.start()
        eventually(lambda: driver.ledger._room._waiters, what="the reader to wait")
        driver.ledger.drop("a", opened.owner)
        reader.join(5)
        assert found == [1]

    def test_a_worker_that_is_due_and_finds_no_room_counts_as_waiting(self) -> None:
        """As long as another worker has the only place."""
        driver = LedgerDriver(max_workers=1)
        driver.ledger.add(task("a", 2))
        driver.pause(driver.take(), 5)
        assert driver.ledger.thread_counts() == (0, 2)
        second = driver.take()
        driver.clock.advance(10)
        assert not driver.ledger.takeable()
        assert driver.ledger.thread_counts() == (1, 1)
        driver.end(second)
        assert driver.ledger.takeable()
        assert driver.ledger.thread_counts() == (0, 1)

    def test_resumed_workers_that_find_no_thread_are_counted_as_waiting(self) -> None:
        """They are the first to get one."""
        driver = LedgerDriver(max_workers=1)
        driver.ledger.add(task("a", 3, *(StoredWorker(index, attempt=1) for index in (1, 2, 3))))
        assert driver.ledger.thread_counts() == (0, 3)
        driver.take()
        assert driver.ledger.thread_counts() == (1, 2)

    def test_a_create_that_was_refused_gives_its_room_back(self) -> None:
        """It is known that there is no pod: another worker may have the room meanwhile."""
        with SimulatedController(threads=["watch"], MAX_WORKERS=1) as controller:
            refusal = ClusterUnavailable("exceeded quota", retry_after_s=60, unclear=False)
            controller.servers.kubernetes.refuse_next("create", refusal)
            controller.accept(event_id="refused")
            controller.idle()
            controller.accept(event_id="next")
            controller.pod("next")
            assert controller.calls("create") == 2


def has_room(ledger: Ledger) -> bool:
    """Would one more worker be given a pod?"""
    with ledger._lock:
        return ledger._capacity.is_free()


class TestReceived:
    """`event.received` and its counter count events, not requests."""

    @contract("6.event.received")
    def test_a_request_that_is_repeated_after_a_lost_answer_is_counted_once(self, log: Lines) -> None:
        """The second answer says that the task was accepted before; it is new all the same."""
        with SimulatedController() as controller:
            controller.redis.fail_next("accept", after=True)
            controller.accept(event_id="a")
            assert samples(controller.metrics)["ottoscaler_events_received_total", "accepted", "scale_up"] == 1
        assert len(log.of("event.received")) == 1

    @contract("6.event.received")
    def test_an_entry_in_hand_twice_is_counted_once(self, log: Lines) -> None:
        """Reader and control may both have read it; the second is answered with what was accepted."""
        with SimulatedController() as controller:
            controller.send(event_id="a")
            entries = controller.stream.read_now(1)
            controller.intake.accept_entries(entries)
            controller.intake.accept_entries(entries)
            assert samples(controller.metrics)["ottoscaler_events_received_total", "accepted", "scale_up"] == 1
        assert len(log.of("event.received")) == 1

    def test_an_event_that_its_producer_sends_twice_is_counted_once(self, log: Lines) -> None:
        """Two entries, one event."""
        with SimulatedController() as controller:
            controller.accept(event_id="a")
            controller.accept(event_id="a")
            assert samples(controller.metrics)["ottoscaler_events_received_total", "accepted", "scale_up"] == 1
        assert len(log.of("event.received")) == 1


class TestLines:
    """Log lines that operators count on."""

    @contract("6.worker.created")
    def test_the_time_since_the_event_is_counted_from_its_entry(self, log: Lines) -> None:
        """`since_event_s`, and the figure with it."""
        with SimulatedController(threads=["watch"]) as controller:
            stream_id = f"{int((START - 7.5) * 1000)}-0"
            controller.redis.add({"type": "scale_up"}, stream_id)
            controller.intake.accept_entries(controller.stream.read_now(1))
            controller.pod(stream_id)
            found = samples(controller.metrics)
            assert found["ottoscaler_event_to_create_seconds_sum",] == 7.5
        [line] = [line for line in log.all() if line["event"] == "worker.created"]
        assert line["since_event_s"] == 7.5

    @contract("6.fields")
    def test_a_task_that_is_taken_over_is_named(self, log: Lines) -> None:
        """With its own name and its event's id; a task of ours is not taken over."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
            first.accept(event_id="e", task_id="t")
            first.pod("e")
            first.close(release=False)
        assert log.of("task.taken") == []
        with SimulatedController(servers, threads=["watch", "lease"]) as controller:
            controller.wait_and_look(controller.lease_s + 2)
            controller.pod("e")
        [line] = [line for line in log.all() if line["event"] == "task.taken"]
        assert (line["message"], line["event_id"], line["task_id"]) == ("Taking over task t", "e", "t")

    def test_a_scale_down_that_is_over_is_logged_once(self, log: Lines) -> None:
        """By the call that has stored its result, and by no other."""
        with SimulatedController(threads=["watch", "control", "reader"], auto=lambda name: None) as controller:
            controller.pod(controller.send(task_id="t"))
            controller.redis.fail_next("finish", after=True)
            controller.send(type="scale_down", task_id="t")
            controller.result("scale_down")
            eventually(lambda: not controller.control.owners(), what="the scale_down to be over")
            controller.send(type="scale_down", task_id="t")
            controller.results(2, "scale_down")
            eventually(lambda: not controller.control.owners(), what="the scale_down to be over")
        assert log.of("scale_down.finished") == ["Scaled down: 0 workers ended, 0 stay"]

    def test_a_watch_that_breaks_off_at_the_stop_is_no_warning(self, log: Lines) -> None:
        """We ended it ourselves."""
        with SimulatedController(threads=["watch"]) as controller:
            eventually(lambda: controller.servers.kubernetes.watching(), what="the watch")
            controller.stop.set()
            controller.servers.kubernetes.end_watches(ClusterUnavailable("closed"))
        assert log.of("watch.broken") == []


class TestControl:
    """One scale_down does not hold up the next."""

    @contract("5.scale_down")
    def test_new_work_is_seen_while_a_scale_down_waits_for_its_pods(self) -> None:
        """The first victim takes its time to end; the second scale_down's victim is ended and reported meanwhile."""
        with SimulatedController(threads=["watch", "control", "reader"]) as controller:
            slow, quick = (
                controller.send(event_id="slow", task_id="slow"),
                controller.send(event_id="quick", task_id="quick"),
            )
            for event_id in (slow, quick):
                pod = controller.pod(event_id)
                controller.cluster.run(pod)
                controller.sees(pod, lambda seen: seen.started_at is not None)
            controller.send(event_id="down-slow", type="scale_down", task_id="slow")
            controller.sees(controller.name(slow), lambda seen: seen.deleting)
            controller.send(event_id="down-quick", type="scale_down", task_id="quick")
            controller.sees(controller.name(quick), lambda seen: seen.deleting)
            controller.cluster.kill(controller.name(quick))
            assert controller.result("scale_down")["event_id"] == "down-quick"
            controller.cluster.kill(controller.name(slow))
            assert controller.results(2, "scale_down")[1]["event_id"] == "down-slow"


class TestFailures:
    """Our own code fails on a task."""

    def test_a_task_is_dropped_if_our_code_fails_on_opening_it(self) -> None:
        """Its lease runs out, and the replica that takes it up counts that; no thread may go on with half of it."""
        with SimulatedController() as controller:
            add = controller.ledger.add

            def fail(opened: OpenTask) -> None:
                add(opened)
                raise RuntimeError("a defect")

            controller.ledger.add = fail  # type: ignore[method-assign, assignment]
            controller.accept(event_id="e")
            assert (controller.ledger.tasks.has("e"), controller.redis.open_ids()) == (False, {"e"})


class TestEnder:
    """Cancelled workers that no thread of the pool follows."""

    def test_a_pod_that_takes_its_time_is_looked_at_now_and_then_only(self) -> None:
        """Once a minute, and not at each step: the watch says what changes."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
            first.accept(event_id="e", pod_count=2)
            pods = [first.pod("e", 1), first.pod("e", 2)]
            for pod in pods:
                first.cluster.run(pod)
                first.sees(pod, lambda seen: seen.started_at is not None)
            first.close(release=False)
        with SimulatedController(servers, threads=["watch"], MAX_WORKERS=1) as controller:
            servers.redis.expire_lease("e")
            opened = controller.stream.take_over("e", same_consumer=False)
            assert isinstance(opened, OpenTask)
            controller.intake.open_task(opened)
            controller.ledger.wake_for_room()
            # The two are resumed in the order in which they were stored, so either may have the one thread.
            follows = eventually(
                lambda: [one for one in (1, 2) if followed(controller, one)], what="a thread on one of two"
            )
            index = 2 if follows == [1] else 1
            pod, termination = pods[index - 1], Termination(EndReason.SCALED_DOWN, "enough", by="d-1")
            controller.stream.store_termination("e", None, index, termination)
            assert controller.ledger.cancel("e", index, termination)
            eventually(lambda: controller.terminator._arrived, what="the dispatcher to hand it over")
            controller.terminator.step()
            controller.sees(pod, lambda seen: seen.deleting)
            controller.terminator.step()
            looks = controller.calls("get", pod)
            for _ in range(3):
                controller.terminator.step()
            assert controller.calls("get", pod) == looks
            controller.pass_time(61)
            controller.terminator.step()
            assert controller.calls("get", pod) == looks + 1
            controller.cluster.kill(pod)
            controller.sees(pod, lambda seen: seen.finished) if pod in controller.cluster.names() else None
            eventually(lambda: controller.terminator.step() or controller.redis.results("worker"), what="its result")
            assert (controller.result()["index"], controller.result()["reason"]) == (str(index), "ScaledDown")


def followed(controller: SimulatedController, index: int) -> bool:
    """Does a thread follow this worker of event "e"?"""
    return controller.registry.followed(controller.key("e").event_hash, index)


class TestRest:
    """A thread that is woken looks, and waits again."""

    @pytest.mark.parametrize("thread", ["ender", "control"])
    def test_one_wake_up_is_one_look(self, thread: str) -> None:
        """If it did not forget that it was woken, it would look without a break."""
        with SimulatedController(threads=["watch"]) as controller:
            looks: list[str] = []
            controller.terminator.step = lambda: looks.append("ender")  # type: ignore[method-assign]
            controller.control.step = lambda **_due: looks.append("control")  # type: ignore[method-assign]
            controller.start("control")
            wake = controller.terminator._wake if thread == "ender" else controller.inbox.wake
            eventually(lambda: thread in looks, what="the first look")
            looks.clear()
            wake.set()
            eventually(lambda: thread in looks, what="the look after the wake-up")
            threading.Event().wait(0.3)
            assert looks.count(thread) < 30


class TestStop:
    """What does not begin any more."""

    def test_nothing_is_taken_over_once_we_stop(self) -> None:
        """It would have to be handed over again, and would count as one more try."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead") as first:
            first.accept(event_id="e")
        with SimulatedController(servers) as controller:
            controller.stop.set()
            controller.takeover._take_unknown(["e"])
            assert (servers.redis.calls["take_over"], controller.ledger.tasks.owners()) == (0, {})

    def test_an_event_that_waits_to_supersede_others_says_nothing_of_it(self) -> None:
        """Its own workers run meanwhile: `why` is theirs."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead") as dead:
            dead.accept(type="scale_down", task_id="t", event_id="d-1")
            dead.close(release=False)
        with SimulatedController(servers, threads=["watch", "control", "reader"]) as controller:
            controller.send(event_id="s-2", supersedes="key")
            eventually(
                lambda: "s-2" in controller.control._open and controller.control._open["s-2"].blocker, what="it to wait"
            )
            eventually(lambda: controller.control._pause_s > 0.3, what="a further look")
            assert "sent before it" not in servers.redis.task("s-2").get("why", "")


class TestWiped:
    """What was only in Redis, and what was not."""

    def test_a_cancel_that_came_with_a_task_that_was_taken_over_outlives_a_flush(self) -> None:
        """The mark was set by another replica under the dead owner: ours knows it from the take-over only."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead", threads=["watch"], LEASE_S=LEASE_S) as first:
            first.accept(event_id="e")
            pod = first.pod("e")
            first.cluster.run(pod)
            first.sees(pod, lambda seen: seen.started_at is not None)
            first.stream.store_termination("e", None, 1, Termination(EndReason.SCALED_DOWN, "enough", by="d-1"))
            first.close(release=False)
        with SimulatedController(servers, threads=["watch", "lease", "control"], LEASE_S=LEASE_S) as controller:
            controller.wait_and_look(LEASE_S + 2)
            controller.sees(pod, lambda seen: seen.deleting)
            servers.redis.flush()
            restores = servers.redis.calls["restore"]
            controller.live(LEASE_S)
            eventually(lambda: servers.redis.calls["restore"] > restores, what="the task to be stored again")
            controller.live(LEASE_S)  # the worker, which Redis did not know meanwhile, tries again
            assert controller.taken("e").workers[1].termination == Termination(
                EndReason.SCALED_DOWN, "enough", by="d-1"
            )
            controller.cluster.kill(pod)
            assert controller.result()["reason"] == "ScaledDown"

    def test_a_cancel_of_a_worker_that_has_no_pod_outlives_it_too(self) -> None:
        """Nothing but the mark says that it is not to start."""
        driver, termination = LedgerDriver(), Termination(EndReason.SCALED_DOWN, "enough", by="d-1")
        driver.ledger.add(
            task("e-1", 2, StoredWorker(1, termination=termination), StoredWorker(2, 1, create_refused=True))
        )
        known = driver.ledger.task_to_restore("e-1")
        assert known is not None
        assert {index: worker.termination for index, worker in known.workers.items()} == {1: termination, 2: None}


class TestSweep:
    """Pods that no thread follows."""

    def test_a_dead_pod_of_a_task_that_is_finished_goes(self) -> None:
        """Its worker has no result of its own there: Redis was restored, or the task ended as Poison."""
        servers = FakeServers()
        with SimulatedController(servers, consumer="dead", threads=["watch"]) as first:
            event_id = first.accept()
            pod = first.pod(event_id)
            first.close(release=False)
        with SimulatedController(servers, threads=["watch"]) as controller:
            controller.cluster.run(pod)
            servers.redis.find(event_id).state = "finished"  # type: ignore[union-attr]
            controller.sees(pod, lambda seen: seen.started_at is not None)
            controller.reconciler.reconcile()
            assert pod in controller.cluster.names()  # it lives: a thread of another replica may still follow it
            controller.cluster.succeed(pod)
            controller.sees(pod, lambda seen: seen.finished)
            controller.reconciler.reconcile()
            assert pod not in controller.cluster.names()


class TestWatch:
    """Its pauses."""

    def test_a_watch_that_lasted_ends_the_pauses(self) -> None:
        """After it the first short one costs no pause again, and the second the shortest."""
        stop, lasted = Noting(), threading.Event()
        servers = FakeServers()
        with SimulatedController(servers, stop=stop) as controller:
            kubernetes = servers.kubernetes

            def call(verb: str, _name: str) -> None:
                if verb == "watch" and kubernetes.count("watch") == 4:
                    controller.pass_time(2)
                    lasted.set()

            kubernetes.on_call = call
            kubernetes.refuse_next("watch", ClusterUnavailable("no"), times=8)
            controller.start("watch")
            eventually(lambda: kubernetes.count("watch") >= 9, what="the ninth watch")
            assert lasted.is_set()
            assert stop.pauses == [0.1, 0.2, 0.4, 0.1, 0.2]
