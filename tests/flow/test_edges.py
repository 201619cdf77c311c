"""What happens only between two steps, or only to the second of two: each would go unnoticed for long."""

from __future__ import annotations

import threading

import pytest

from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import Reason
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.flow.ledger import Ledger
from ottoscaler.flow.stop import Stop
from ottoscaler.ports import OpenTask, StoredWorker
from tests.fakes.clock import START
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.desk import Desk, task
from tests.flow.rig import Rig, World
from tests.test_metrics import samples

contract = pytest.mark.contract
LEASE_S = 3


class Noting(Stop):
    """Nobody pauses on it: how long the pause would have been is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout_s: float | None = None) -> bool:
        self.pauses.append(timeout_s or 0)
        return super().wait(0)


class TestRoom:
    """MAX_WORKERS while nobody knows whether a pod is there."""

    @contract("2.MAX_WORKERS")
    @pytest.mark.parametrize("created", [True, False])
    def test_a_create_without_an_answer_keeps_its_room_until_a_look_has_shown_what_is_there(
        self, created: bool
    ) -> None:
        """The pod may be there: a second one beside it would be one too many."""
        free: list[bool] = []
        with Rig(threads=["watch"], MAX_WORKERS=2) as rig:

            def look(verb: str, _name: str) -> None:
                if verb == "get":
                    free.append(has_room(rig.ledger))

            rig.world.kubernetes.on_call = look
            rig.accept(event_id="running")
            rig.pod("running")
            if created:
                rig.world.kubernetes.drop_replies("create")
            else:
                rig.world.kubernetes.refuse_next("create", ClusterUnavailable("no answer"))
            rig.accept(event_id="unclear")
            rig.pod("unclear")
            assert free == [False]
            assert has_room(rig.ledger) is False

    def test_room_that_is_one_too_much_is_taken_back(self) -> None:
        """A task that was taken over has a pod: who was to create one waits after all."""
        desk = Desk(max_workers=1)
        desk.ledger.add(task("ours"))
        run = desk.take()
        desk.ledger.add(task("taken", 1, StoredWorker(1, attempt=1)))
        assert not desk.ledger.holds_room(run)

    def test_room_that_is_just_enough_is_not_taken_back(self) -> None:
        """Two workers, two places."""
        desk = Desk(max_workers=2)
        desk.ledger.add(task("ours"))
        run = desk.take()
        desk.ledger.add(task("taken", 1, StoredWorker(1, attempt=1)))
        assert desk.ledger.holds_room(run)

    def test_who_waits_for_room_to_read_goes_on_as_soon_as_a_task_is_dropped(self) -> None:
        """Not only when its wait is over: somebody else has the task now, and its place is free."""
        desk = Desk(read_ahead=1)
        opened = task("a")
        desk.ledger.add(opened)
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.append(desk.ledger.wait_for_room(30)))
        reader.start()
        eventually(lambda: desk.ledger._room._waiters, what="the reader to wait")
        desk.ledger.drop("a", opened.owner)
        reader.join(5)
        assert found == [1]

    def test_who_is_due_and_finds_no_room_is_counted_as_waiting(self) -> None:
        """As long as another worker has the only place."""
        desk = Desk(max_workers=1)
        desk.ledger.add(task("a", 2))
        desk.pause(desk.take(), 5)
        assert desk.ledger.counts() == (0, 2)
        second = desk.take()
        desk.clock.advance(10)
        assert not desk.ledger.takeable()
        assert desk.ledger.counts() == (1, 1)
        desk.end(second)
        assert desk.ledger.takeable()
        assert desk.ledger.counts() == (0, 1)

    def test_resumed_workers_that_find_no_thread_are_counted_as_waiting(self) -> None:
        """They are the first to get one."""
        desk = Desk(max_workers=1)
        desk.ledger.add(task("a", 3, *(StoredWorker(index, attempt=1) for index in (1, 2, 3))))
        assert desk.ledger.counts() == (0, 3)
        desk.take()
        assert desk.ledger.counts() == (1, 2)

    def test_a_create_that_was_refused_gives_its_room_back(self) -> None:
        """It is known that there is no pod: another worker may have the room meanwhile."""
        with Rig(threads=["watch"], MAX_WORKERS=1) as rig:
            refusal = ClusterUnavailable("exceeded quota", retry_after_s=60, unclear=False)
            rig.world.kubernetes.refuse_next("create", refusal)
            rig.accept(event_id="refused")
            rig.idle()
            rig.accept(event_id="next")
            rig.pod("next")
            assert rig.calls("create") == 2


def has_room(ledger: Ledger) -> bool:
    """Would one more worker be given a pod?"""
    with ledger._lock:
        return ledger._capacity.is_free()


class TestReceived:
    """`event.received` and its counter count events, not requests."""

    @contract("6.event.received")
    def test_a_request_that_is_repeated_after_a_lost_answer_is_counted_once(self, log: Lines) -> None:
        """The second answer says that the task was accepted before; it is new all the same."""
        with Rig() as rig:
            rig.redis.fail_next("accept", after=True)
            rig.accept(event_id="a")
            assert samples(rig.metrics)["ottoscaler_events_received_total", "scale_up"] == 1
        assert len(log.of("event.received")) == 1

    @contract("6.event.received")
    def test_an_entry_in_hand_twice_is_counted_once(self, log: Lines) -> None:
        """Reader and control may both have read it; the second is answered with what was accepted."""
        with Rig() as rig:
            rig.send(event_id="a")
            entries = rig.stream.read_now(1)
            rig.intake.absorb(entries)
            rig.intake.absorb(entries)
            assert samples(rig.metrics)["ottoscaler_events_received_total", "scale_up"] == 1
        assert len(log.of("event.received")) == 1

    def test_an_event_that_its_producer_sends_twice_is_counted_once(self, log: Lines) -> None:
        """Two entries, one event."""
        with Rig() as rig:
            rig.accept(event_id="a")
            rig.accept(event_id="a")
            assert samples(rig.metrics)["ottoscaler_events_received_total", "scale_up"] == 1
        assert len(log.of("event.received")) == 1


class TestLines:
    """Log lines that operators count on."""

    @contract("6.worker.created")
    def test_the_time_since_the_event_is_counted_from_its_entry(self, log: Lines) -> None:
        """`since_event_s`, and the figure with it."""
        with Rig(threads=["watch"]) as rig:
            stream_id = f"{int((START - 7.5) * 1000)}-0"
            rig.redis.add({"type": "scale_up"}, stream_id)
            rig.intake.absorb(rig.stream.read_now(1))
            rig.pod(stream_id)
            found = samples(rig.metrics)
            assert found["ottoscaler_event_to_create_seconds_sum",] == 7.5
        [line] = [line for line in log.all() if line["event"] == "worker.created"]
        assert line["since_event_s"] == 7.5

    @contract("6.fields")
    def test_a_task_that_is_taken_over_is_named(self, log: Lines) -> None:
        """With its own name and its event's id; a task of ours is not taken over."""
        world = World()
        with Rig(world, consumer="dead", threads=["watch"]) as first:
            first.accept(event_id="e", task_id="t")
            first.pod("e")
            first.close(release=False)
        assert log.of("task.taken") == []
        with Rig(world, threads=["watch", "lease"]) as rig:
            rig.wait_and_look(rig.parts.lease_s + 2)
            rig.pod("e")
        [line] = [line for line in log.all() if line["event"] == "task.taken"]
        assert (line["message"], line["event_id"], line["task_id"]) == ("Taking over task t", "e", "t")

    def test_a_scale_down_that_is_over_is_logged_once(self, log: Lines) -> None:
        """By who has stored its result, and by nobody else."""
        with Rig(threads=["watch", "control", "reader"], auto=lambda name: None) as rig:
            rig.pod(rig.send(task_id="t"))
            rig.redis.fail_next("finish", after=True)
            rig.send(type="scale_down", task_id="t")
            rig.result("scale_down")
            eventually(lambda: not rig.control.owners(), what="the scale_down to be over")
            rig.send(type="scale_down", task_id="t")
            rig.results(2, "scale_down")
            eventually(lambda: not rig.control.owners(), what="the scale_down to be over")
        assert log.of("scale_down.finished") == ["Scaled down: 0 workers ended, 0 stay"]

    def test_a_watch_that_breaks_off_at_the_stop_is_no_warning(self, log: Lines) -> None:
        """It was we who ended it."""
        with Rig(threads=["watch"]) as rig:
            eventually(lambda: rig.world.kubernetes.watching(), what="the watch")
            rig.stop.set()
            rig.world.kubernetes.end_watches(ClusterUnavailable("closed"))
        assert log.of("watch.broken") == []


class TestControl:
    """One scale_down does not hold up the next."""

    @contract("5.scale_down")
    def test_new_work_is_seen_while_a_scale_down_waits_for_its_pods(self) -> None:
        """The first victim takes its time to end; the second scale_down's is ended and told of meanwhile."""
        with Rig(threads=["watch", "control", "reader"]) as rig:
            slow, quick = rig.send(event_id="slow", task_id="slow"), rig.send(event_id="quick", task_id="quick")
            for event_id in (slow, quick):
                pod = rig.pod(event_id)
                rig.cluster.run(pod)
                rig.sees(pod, lambda seen: seen.started_at is not None)
            rig.send(event_id="down-slow", type="scale_down", task_id="slow")
            rig.sees(rig.name(slow), lambda seen: seen.deleting)
            rig.send(event_id="down-quick", type="scale_down", task_id="quick")
            rig.sees(rig.name(quick), lambda seen: seen.deleting)
            rig.cluster.kill(rig.name(quick))
            assert rig.result("scale_down")["event_id"] == "down-quick"
            rig.cluster.kill(rig.name(slow))
            assert rig.results(2, "scale_down")[1]["event_id"] == "down-slow"


class TestFailures:
    """Our own code fails on a task."""

    def test_a_task_on_whose_opening_our_code_fails_is_let_go_of(self) -> None:
        """Its lease runs out, and whoever takes it up counts that; nobody may go on with half of it here."""
        with Rig() as rig:
            add = rig.ledger.add

            def fail(opened: OpenTask) -> None:
                add(opened)
                raise RuntimeError("a defect")

            rig.ledger.add = fail  # type: ignore[method-assign, assignment]
            rig.accept(event_id="e")
            assert (rig.ledger.has("e"), rig.redis.open_ids()) == (False, {"e"})


class TestEnder:
    """Cancelled workers that no thread of the pool follows."""

    def test_a_pod_that_takes_its_time_is_looked_at_now_and_then_only(self) -> None:
        """Once a minute, and not at each step: the watch says what changes."""
        world = World()
        with Rig(world, consumer="dead", threads=["watch"]) as first:
            first.accept(event_id="e", pod_count=2)
            pods = [first.pod("e", 1), first.pod("e", 2)]
            for pod in pods:
                first.cluster.run(pod)
                first.sees(pod, lambda seen: seen.started_at is not None)
            first.close(release=False)
        with Rig(world, threads=["watch"], MAX_WORKERS=1) as rig:
            world.redis.expire_lease("e")
            opened = rig.stream.take("e", same_consumer=False)
            assert isinstance(opened, OpenTask)
            rig.intake.open(opened)
            rig.pool.pump()
            # The two are resumed in the order in which they were stored, so either may have the one thread.
            follows = eventually(lambda: [one for one in (1, 2) if followed(rig, one)], what="a thread on one of two")
            index = 2 if follows == [1] else 1
            pod, termination = pods[index - 1], Termination(Reason.SCALED_DOWN, "enough", by="d-1")
            rig.stream.store_termination("e", None, index, termination)
            assert rig.ledger.cancel("e", index, termination)
            rig.pool.run_cancelled(rig.ender.follow)
            rig.ender.step()
            rig.sees(pod, lambda seen: seen.deleting)
            rig.ender.step()
            looks = rig.calls("get", pod)
            for _ in range(3):
                rig.ender.step()
            assert rig.calls("get", pod) == looks
            rig.pass_time(61)
            rig.ender.step()
            assert rig.calls("get", pod) == looks + 1
            rig.cluster.kill(pod)
            rig.sees(pod, lambda seen: seen.finished) if pod in rig.cluster.names() else None
            eventually(lambda: rig.ender.step() or rig.redis.results("worker"), what="its result")
            assert (rig.result()["index"], rig.result()["reason"]) == (str(index), "ScaledDown")


def followed(rig: Rig, index: int) -> bool:
    """Does a thread follow this worker of event "e"?"""
    return rig.registry.followed(rig.key("e").event_hash, index)


class TestStop:
    """What does not begin any more."""

    def test_nothing_is_taken_over_once_we_stop(self) -> None:
        """It would have to be handed over again, and would count as one more try."""
        world = World()
        with Rig(world, consumer="dead") as first:
            first.accept(event_id="e")
        with Rig(world) as rig:
            rig.stop.set()
            rig.takeover._take_unknown(["e"])
            assert (world.redis.calls["take"], rig.ledger.owners()) == (0, {})

    def test_an_event_that_waits_to_supersede_others_says_nothing_of_it(self) -> None:
        """Its own workers run meanwhile: `why` is theirs."""
        world = World()
        with Rig(world, consumer="dead") as dead:
            dead.accept(type="scale_down", task_id="t", event_id="d-1")
            dead.close(release=False)
        with Rig(world, threads=["watch", "control", "reader"]) as rig:
            rig.send(event_id="s-2", supersedes="key")
            eventually(lambda: "s-2" in rig.control._open and rig.control._open["s-2"].blocker, what="it to wait")
            eventually(lambda: rig.control._pause_s > 0.3, what="a further look")
            assert not world.redis.task("s-2").get("why")


class TestWiped:
    """What was only in Redis, and what was not."""

    def test_a_cancel_that_came_with_a_task_that_was_taken_over_outlives_a_flush(self) -> None:
        """The mark was set by another replica under the dead owner: ours knows it from the take-over only."""
        world = World()
        with Rig(world, consumer="dead", threads=["watch"], LEASE_S=LEASE_S) as first:
            first.accept(event_id="e")
            pod = first.pod("e")
            first.cluster.run(pod)
            first.sees(pod, lambda seen: seen.started_at is not None)
            first.stream.store_termination("e", None, 1, Termination(Reason.SCALED_DOWN, "enough", by="d-1"))
            first.close(release=False)
        with Rig(world, threads=["watch", "lease", "control"], LEASE_S=LEASE_S) as rig:
            rig.wait_and_look(LEASE_S + 2)
            rig.sees(pod, lambda seen: seen.deleting)
            world.redis.flush()
            restores = world.redis.calls["restore"]
            rig.live(LEASE_S)
            eventually(lambda: world.redis.calls["restore"] > restores, what="the task to be stored again")
            rig.live(LEASE_S)  # the worker, which Redis did not know meanwhile, tries again
            assert rig.taken("e").workers[1].termination == Termination(Reason.SCALED_DOWN, "enough", by="d-1")
            rig.cluster.kill(pod)
            assert rig.result()["reason"] == "ScaledDown"

    def test_a_cancel_of_a_worker_that_has_no_pod_outlives_it_too(self) -> None:
        """Nothing but the mark says that it is not to start."""
        desk, termination = Desk(), Termination(Reason.SCALED_DOWN, "enough", by="d-1")
        desk.ledger.add(task("e-1", 2, StoredWorker(1, termination=termination), StoredWorker(2, 1, refused=True)))
        known = desk.ledger.recall("e-1")
        assert known is not None
        assert {index: worker.termination for index, worker in known.workers.items()} == {1: termination, 2: None}


class TestSweep:
    """Pods that nobody follows."""

    def test_a_dead_pod_of_a_task_that_is_finished_goes(self) -> None:
        """Its worker has no result of its own there: Redis was restored, or the task ended as Poison."""
        world = World()
        with Rig(world, consumer="dead", threads=["watch"]) as first:
            event_id = first.accept()
            pod = first.pod(event_id)
            first.close(release=False)
        with Rig(world, threads=["watch"]) as rig:
            rig.cluster.run(pod)
            world.redis.find(event_id).state = "finished"  # type: ignore[union-attr]
            rig.sees(pod, lambda seen: seen.started_at is not None)
            rig.reconciler.once()
            assert pod in rig.cluster.names()  # it lives: somebody may still follow it
            rig.cluster.succeed(pod)
            rig.sees(pod, lambda seen: seen.finished)
            rig.reconciler.once()
            assert pod not in rig.cluster.names()


class TestWatch:
    """Its pauses."""

    def test_a_watch_that_lasted_ends_the_pauses(self) -> None:
        """After it the first short one costs no pause again, and the second the shortest."""
        stop, lasted = Noting(), threading.Event()
        world = World()
        with Rig(world, stop=stop) as rig:
            kubernetes = world.kubernetes

            def call(verb: str, _name: str) -> None:
                if verb == "watch" and kubernetes.count("watch") == 4:
                    rig.pass_time(2)
                    lasted.set()

            kubernetes.on_call = call
            kubernetes.refuse_next("watch", ClusterUnavailable("no"), times=8)
            rig.start("watch")
            eventually(lambda: kubernetes.count("watch") >= 9, what="the ninth watch")
            assert lasted.is_set()
            assert stop.pauses == [0.1, 0.2, 0.4, 0.1, 0.2]
