"""A result never waits for a log, and a pod waits for its log at most LOG_DRAIN_S, in nobody's way."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from ottoscaler.core.log_progress import LogCursor, LogProgress, decode_progress, encode_progress
from ottoscaler.errors import ClusterUnavailable, Stopping
from ottoscaler.flow.log_drain import RETRY_S, STORE_EVERY_S
from tests.core.policies import policy
from tests.fakes.wait import eventually
from tests.flow.conftest import Lines
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

pytestmark = pytest.mark.contract("2.LOG_DRAIN_S")
contract = pytest.mark.contract
LOGS = {"LOG_HANDLER_ADDRESS": "127.0.0.1:1", "LOG_DRAIN_S": 10}


def succeed(controller: SimulatedController, **fields: object) -> tuple[str, str]:
    """A task of one worker that ends well, with its result; returns name and UID of its pod."""
    before = len(controller.redis.results("worker"))
    pod = controller.pod(controller.accept(**fields))
    uid = started(controller, pod)
    controller.cluster.succeed(pod)
    assert controller.results(before + 1)[-1]["outcome"] == "succeeded"
    controller.idle()
    return pod, uid


def started(controller: SimulatedController, pod: str) -> str:
    """The pod runs, and its log is followed; returns its UID."""
    controller.cluster.run(pod)
    controller.sees(pod, lambda seen: seen.started_at is not None)
    (uid,) = [seen.uid for seen in controller.registry.snapshots() if seen.name == pod]
    eventually(lambda: uid in controller.forwarder.followed, what="the log to be followed")
    return uid


def work(controller: SimulatedController) -> None:
    """What the threads of LogDrain do until there is nothing left to do."""
    while controller.log_drain.step():
        pass


def ends(controller: SimulatedController) -> dict[str, float]:
    """How many logs are over, by outcome."""
    found = re.findall(r'ottoscaler_logs_ended_total\{outcome="(\w+)"\} (\S+)', controller.metrics.render().decode())
    return {outcome: float(count) for outcome, count in found if float(count)}


def test_the_result_comes_at_once_and_the_pod_goes_when_its_log_has_arrived(log: Lines) -> None:
    """The log is followed from its beginning when the pod runs, and to its end when that has ended."""
    with SimulatedController(threads=["watch"], **LOGS) as controller:
        pod, uid = succeed(controller)
        assert controller.forwarder.asked == [f"follow {uid}", f"ended {uid}"]
        assert controller.forwarder.followed[uid] == LogProgress(uid)
        assert controller.results(1, "task")[0]["outcome"] == "succeeded"
        work(controller)
        assert controller.cluster.names() == {pod}
        controller.log_drain.log_ended(uid, True, 3, 0)
        work(controller)
        assert controller.cluster.names() == set()
        assert controller.forwarder.given_up == []
        assert ends(controller) == {"complete": 1}
    assert log.of("worker.deleted") == [f"Cleaning up pod: {pod}"]
    assert log.of("logs.given_up") == log.of("logs.incomplete") == []


def test_a_handler_that_is_away_costs_no_more_than_the_drain(log: Lines) -> None:
    """Then the log is given up, the pod goes, and a line says so."""
    with SimulatedController(threads=["watch"], **LOGS) as controller:
        pod, uid = succeed(controller)
        controller.pass_time(9.9)
        work(controller)
        assert controller.cluster.names() == {pod}
        controller.pass_time(0.1)
        work(controller)
        assert controller.cluster.names() == set()
        assert controller.forwarder.given_up == [uid]
        assert ends(controller) == {"given_up": 1}
    assert log.of("logs.given_up") == [f"The log of pod {pod} was not acknowledged to its end within LOG_DRAIN_S"]


@contract("2.MAX_WORKERS")
def test_a_pod_that_waits_for_its_log_uses_no_room_and_holds_no_thread() -> None:
    """With room for one worker the next one starts at once."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1, **LOGS) as controller:
        waiting = {succeed(controller)[0] for _ in range(3)}
        assert (controller.registry.owned_live_count, controller.ledger.thread_counts()) == (0, (0, 0))
        assert controller.cluster.names() == waiting


@contract("2.MAX_WORKERS")
def test_a_pod_that_waits_for_its_log_leaves_its_place_to_the_next_worker_of_its_task() -> None:
    """Its task is open, so its pods count."""
    with SimulatedController(threads=["watch"], MAX_WORKERS=1, **LOGS) as controller:
        event_id = controller.accept(pod_count=2)
        first = controller.pod(event_id)
        started(controller, first)
        controller.cluster.succeed(first)
        second = controller.pod(event_id, 2)
        assert controller.cluster.names() == {first, second}


def test_a_log_that_is_over_before_the_result_holds_nothing_up() -> None:
    """The pod is deleted by the worker's thread then, as without logs. The log is not followed a second time."""
    with SimulatedController(threads=["watch"], **LOGS) as controller:
        pod = controller.pod(controller.accept())
        uid = started(controller, pod)
        controller.log_drain.log_ended(uid, True, 1, 0)
        controller.cluster.succeed(pod)
        controller.results(1)
        eventually(lambda: controller.cluster.names() == set(), what="the pod to be deleted")
        controller.idle()
        work(controller)
        assert controller.forwarder.asked == [f"follow {uid}", f"ended {uid}"]
        assert controller.forwarder.given_up == []
        assert not controller.log_drain._followed


def test_a_pod_that_never_started_waits_for_nothing() -> None:
    """It has no log."""
    with SimulatedController(threads=["watch"], **LOGS) as controller:
        pod = controller.pod(controller.accept())
        controller.servers.kubernetes.remove(pod)
        controller.results(1)
        assert controller.forwarder.asked == []


@pytest.mark.parametrize("seen_running", [True, False])
def test_the_log_of_an_attempt_that_is_retried_is_read_to_its_end(seen_running: bool) -> None:
    """Also where its pod ended so soon that it was never seen running."""
    with SimulatedController(threads=["watch"], WORKER_RETRIES=1, **LOGS) as controller:
        event_id = controller.accept()
        first = controller.pod(event_id)
        if seen_running:
            started(controller, first)
        (uid,) = [seen.uid for seen in controller.registry.snapshots() if seen.name == first]
        controller.cluster.fail(first, 1)
        eventually(lambda: f"{first}-r2" in controller.cluster.names(), what="the second attempt")
        assert controller.forwarder.asked == [f"follow {uid}", f"ended {uid}"]
        assert first in controller.cluster.names(), "its log has not arrived"
        controller.log_drain.log_ended(uid, True, 1, 0)
        work(controller)
        assert controller.cluster.names() == {f"{first}-r2"}


def test_each_attempt_has_a_log_of_its_own() -> None:
    """The pod of the first one waits for its log while the second one runs."""
    with SimulatedController(threads=["watch"], WORKER_RETRIES=1, **LOGS) as controller:
        event_id = controller.accept()
        first = controller.pod(event_id)
        uid = started(controller, first)
        controller.cluster.fail(first, 1)
        second = f"{first}-r2"
        eventually(lambda: second in controller.cluster.names(), what="the second attempt")
        other = started(controller, second)
        assert controller.cluster.names() == {first, second}
        controller.log_drain.log_ended(uid, True, 1, 0)
        work(controller)
        assert controller.cluster.names() == {second}
        assert set(controller.forwarder.followed) == {uid, other}


@pytest.mark.parametrize(("acknowledged", "outcome"), [(True, "incomplete"), (False, "refused")])
def test_a_log_that_is_not_complete_is_reported(log: Lines, acknowledged: bool, outcome: str) -> None:
    """Lines were dropped, or the handler wants none."""
    with SimulatedController(threads=["watch"], **LOGS) as controller:
        pod, uid = succeed(controller)
        controller.log_drain.log_ended(uid, acknowledged, 7, 2)
        work(controller)
        assert controller.cluster.names() == set()
        assert ends(controller) == {outcome: 1}
    assert log.of("logs.incomplete") == [f"The log of pod {pod} is not complete: 2 of 7 lines were dropped"]


def test_the_reconciler_leaves_a_pod_that_waits_for_its_log() -> None:
    """Of this replica as long as it waits, of another one for as long as that may take."""
    servers = FakeServers()
    other = SimulatedController(servers, consumer="c2", incarnation="b2", threads=["watch"], **LOGS)
    with SimulatedController(servers, threads=["watch"], **LOGS) as controller, other:
        pod, _ = succeed(controller)
        other.sees(pod, lambda seen: seen.finished)
        for each in (controller, other, controller, other):
            each.reconciler.reconcile()
        assert controller.cluster.names() == {pod}
        assert other.forwarder.asked == []


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_pod_whose_process_died_while_it_waited_has_its_log_sent_by_another(acknowledged: bool) -> None:
    """From the place that is stored, once the time of the dead one is over. The pod goes when its log is acknowledged,
    or LOG_DRAIN_S later, and its log is not sent a second time.
    """
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], **LOGS) as dead:
        event_id = dead.accept(task_id="t-1")
        pod = dead.pod(event_id)
        uid = started(dead, pod)
        progress = LogProgress(uid, LogCursor("2026-05-01T12:00:00Z", "ab", 3, "2026-05-01T12:00:00.5Z"), 3, 3)
        dead.log_drain.progressed(progress)
        dead.pass_time(STORE_EVERY_S)
        work(dead)
        dead.cluster.succeed(pod)
        dead.results(1)
        dead.idle()
        dead.cluster.hold(pod, "example.com/protect")
        dead.close(release=False)
    with SimulatedController(servers, incarnation="b2", threads=["watch"], **LOGS) as controller:
        controller.reconciler.reconcile()
        assert controller.forwarder.asked == []
        controller.pass_time(10.5)
        controller.reconciler.reconcile()
        controller.reconciler.reconcile()
        assert controller.forwarder.asked == [f"follow {uid}", f"ended {uid}"]
        assert controller.forwarder.followed[uid] == progress
        work(controller)
        assert controller.cluster.names() == {pod}
        if acknowledged:
            controller.log_drain.log_ended(uid, True, 5, 0)
        else:
            controller.pass_time(10)
        controller.servers.kubernetes.refuse_next("delete", ClusterUnavailable("away"))
        work(controller)
        controller.reconciler.reconcile()
        assert controller.cluster.names() == {pod}
        controller.pass_time(RETRY_S)
        work(controller)
        controller.sees(pod, lambda seen: seen.deleting)
        controller.pass_time(10.5)
        controller.reconciler.reconcile()
        assert controller.forwarder.asked[:2] == [f"follow {uid}", f"ended {uid}"]
        assert len(controller.forwarder.asked) == (2 if acknowledged else 3)
        assert ends(controller) == {"complete" if acknowledged else "given_up": 1}


STEPS = ("store_attempt", "create", "mark_pod_seen", "record_result", "write_status", "drain", "delete")


def die_at(step: str, controller: SimulatedController) -> None:
    """Lead an event to its end until the process makes this step; none of its threads makes it. At `drain` it dies
    while the pod waits for its log, at `delete` once that has arrived.
    """
    servers = controller.servers

    def die(verb: str, _name: str = "") -> None:
        if verb == step:
            raise Stopping("the process is gone")

    servers.redis.on_call, servers.kubernetes.on_call = die, die
    controller.intake.accept_entries(controller.stream.read_now(1))
    controller.idle()
    with suppress(Stopping):
        for uid in list(controller.forwarder.followed):
            place = LogCursor("2026-05-01T12:00:00Z", "ab", 2, "2026-05-01T12:00:00.5Z")
            controller.log_drain.progressed(LogProgress(uid, place, 2, 2))
        controller.pass_time(STORE_EVERY_S)
        work(controller)
        if step == "delete":
            for uid in list(controller.forwarder.followed):
                controller.log_drain.log_ended(uid, True, 3, 0)
            work(controller)
    controller.close(release=False)
    servers.redis.on_call, servers.kubernetes.on_call = lambda _op: None, lambda _verb, _name: None


@contract("5.exactly-once")
@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_any_step_with_logs_on_loses_no_log(step: str, answers: bool) -> None:
    """The next process records the result, sends the log from the place that is stored, and deletes the pod: once the
    handler has acknowledged the end, or LOG_DRAIN_S is over where it does not answer.
    """
    servers = FakeServers()
    with SimulatedController(servers, consumer="dead", threads=["watch"], auto=True, LEASE_S=3, **LOGS) as dead:
        dead.send(task_id="t-1")
        die_at(step, dead)
        stored = {event_id: task.worker(1).log for event_id, task in servers.redis.tasks.items()}
    with SimulatedController(servers, threads=ALL, LEASE_S=3, **LOGS) as controller:
        forwarder = controller.forwarder

        def follows() -> bool:
            controller.wait_and_look(2)
            controller.reconciler.reconcile()
            return bool(forwarder.ended)

        eventually(follows, what="the log to be sent")
        (uid,) = forwarder.followed
        (pod,) = controller.cluster.names()
        (progress,) = stored.values()
        assert forwarder.followed[uid] == (decode_progress(progress) or LogProgress(uid))
        assert (progress != "") is (step == "record_result")
        assert controller.result()["outcome"] == "succeeded"
        controller.idle()
        controller.wait_and_look(4)
        work(controller)
        assert controller.cluster.names() == {pod}
        if answers:
            controller.log_drain.log_ended(uid, True, 3, 0)
        else:
            controller.wait_and_look(8)
        work(controller)
        eventually(lambda: controller.cluster.names() == set(), what="the pod to be deleted")
        assert ends(controller) == {"complete" if answers else "given_up": 1}
        assert forwarder.asked[:2] == [f"follow {uid}", f"ended {uid}"]
        assert [len(controller.redis.results(kind)) for kind in ("worker", "task")] == [1, 1]
        assert max(times for (verb, _), times in servers.kubernetes.calls.items() if verb == "create") == 1


@pytest.mark.parametrize("changed", [{"WORKER_LOGS": "agent"}, {"WORKER_LOGS": "none"}])
def test_a_log_that_is_not_ours_holds_no_pod_of_a_dead_process(changed: dict[str, object]) -> None:
    """Its agent sends it, or no one."""
    servers, settings = FakeServers(), {**LOGS, **changed}
    with SimulatedController(servers, consumer="dead", threads=["watch"], auto=True, LEASE_S=3, **settings) as dead:
        dead.send()
        die_at("delete", dead)
    # another profile may still ask for logs: they are on
    on = policy(profiles={"plain": {}}, tenants=None)
    with SimulatedController(servers, threads=ALL, LEASE_S=3, policy=on, **settings) as controller:

        def is_deleted() -> bool:
            controller.wait_and_look(2)
            controller.reconciler.reconcile()
            return controller.cluster.names() == set()

        eventually(is_deleted, what="the pod to be deleted")
        assert controller.forwarder.asked == []


def test_how_far_a_log_has_come_is_stored_and_taken_over() -> None:
    """A new process goes on from there; for another pod it counts nothing."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], **LOGS) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        uid = started(controller, pod)
        progress = LogProgress(uid, LogCursor("2026-05-01T12:00:00Z", "ab", 3, "2026-05-01T12:00:00.5Z"), 3, 3)
        controller.log_drain.progressed(progress)
        controller.redis.fail_next("write_status", 1)
        controller.pass_time(STORE_EVERY_S)
        work(controller)
        controller.log_drain.progressed(progress)
        controller.pass_time(STORE_EVERY_S)
        work(controller)
        assert controller.redis.known(event_id).worker(1).log == encode_progress(progress)
    with SimulatedController(servers, incarnation="b2", threads=["watch", "lease"], **LOGS) as following:
        eventually(lambda: following.forwarder.followed.get(uid), what="the log to be followed again")
        assert following.forwarder.followed[uid] == progress


def test_a_place_behind_a_remark_is_stored_at_once() -> None:
    """A new process that goes back before it would send the lines behind it a second time."""
    with SimulatedController(FakeServers(), threads=["watch"], **LOGS) as controller:
        event_id = controller.accept()
        uid = started(controller, controller.pod(event_id))
        place = LogCursor("2026-05-01T12:00:00Z", "ab", 3, "2026-05-01T12:00:00.5Z")
        controller.log_drain.progressed(LogProgress(uid, place, 3, 3))
        controller.pass_time(STORE_EVERY_S)
        work(controller)
        for counts in ((3, 0, 80, 1), (3, 4, 80, 1)):
            progress = LogProgress(uid, place, 9, *counts)
            controller.log_drain.progressed(progress)
            work(controller)
            assert controller.redis.known(event_id).worker(1).log == encode_progress(progress)
        controller.log_drain.progressed(LogProgress(uid, place, 10, *counts))
        work(controller)
        assert controller.redis.known(event_id).worker(1).log == encode_progress(progress)


def test_a_task_that_another_process_took_over_is_followed_no_longer() -> None:
    """The other one follows its logs, from what is stored."""
    servers = FakeServers()
    with SimulatedController(servers, threads=["watch"], **LOGS) as controller:
        event_id = controller.accept()
        uid = started(controller, controller.pod(event_id))
        owner = controller.redis.known(event_id).owner
        controller.ledger.drop(event_id, owner)

        def is_given_up() -> bool:
            # more than once: its thread may show the pod until it has found out, too
            controller.pass_time(STORE_EVERY_S)
            work(controller)
            return uid in controller.forwarder.given_up

        eventually(is_given_up, what="the log to be given up")


def test_the_log_of_a_closed_task_is_given_up_though_no_thread_of_its_worker_says_so(log: Lines) -> None:
    """Its worker waits for a turn that does not come any more. The other process's progress is not written over."""
    with SimulatedController(threads=["watch"], **LOGS) as controller:
        event_id = controller.accept()
        pod = controller.pod(event_id)
        uid = started(controller, pod)
        task = next(task for task in controller.ledger.tasks if task.event.event_id == event_id)
        task.closed = True  # as Ledger.drop does, and no more
        controller.log_drain.progressed(LogProgress(uid, LogCursor("2026-05-01T12:00:00Z", "ab", 3, ""), 3, 3))
        controller.pass_time(STORE_EVERY_S)
        work(controller)
        assert controller.forwarder.given_up == [uid]
        assert controller.redis.known(event_id).worker(1).log == ""
        controller.log_drain.log_ended(uid, True, 1, 0)
        for run in task.runs.values():
            controller.log_drain.pod_seen(run, run.life.pod)  # its thread was just taking a step
        controller.pass_time(STORE_EVERY_S)
        work(controller)
        assert controller.forwarder.given_up == [uid]
        assert controller.forwarder.asked.count(f"follow {uid}") == 1
        assert controller.cluster.names() == {pod}
        assert ends(controller) == {}
        task.closed = False  # so that the simulation can end


def test_a_deletion_that_fails_is_made_later() -> None:
    """By then the log is over in any case."""
    with SimulatedController(threads=["watch"], **LOGS) as controller:
        pod, uid = succeed(controller)
        controller.log_drain.log_ended(uid, True, 1, 0)
        controller.servers.kubernetes.refuse_next("delete", ClusterUnavailable("away"))
        work(controller)
        assert controller.cluster.names() == {pod}
        controller.pass_time(RETRY_S)
        work(controller)
        assert controller.cluster.names() == set()


@pytest.mark.parametrize("off", [{}, {**LOGS, "WORKER_LOGS": "none"}, {**LOGS, "WORKER_LOGS": "agent"}])
def test_without_logs_nothing_is_followed(off: dict[str, object]) -> None:
    """Pods are deleted as their results are stored."""
    with SimulatedController(threads=["watch"], **off) as controller:
        pod = controller.pod(controller.accept())
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.results(1)
        eventually(lambda: controller.cluster.names() == set(), what="the pod to be deleted")
        assert controller.forwarder.asked == []


@pytest.mark.parametrize(
    ("worker_logs", "profile", "follows"),
    [
        ("controller", "none", False),
        ("controller", "agent", False),
        ("none", "controller", True),
        ("agent", "controller", True),
        ("controller", "", True),
        ("none", "", False),
    ],
)
def test_a_profile_says_which_program_streams(worker_logs: str, profile: str, follows: bool) -> None:
    """Instead of WORKER_LOGS, which holds for profiles that say nothing."""
    own = {"worker_logs": profile} if profile else {}
    found = policy(profiles={"plain": own}, default_profile="plain", tenants=None)
    with SimulatedController(threads=["watch"], policy=found, **LOGS, WORKER_LOGS=worker_logs) as controller:
        pod = controller.pod(controller.accept())
        controller.cluster.run(pod)
        controller.cluster.succeed(pod)
        controller.results(1)
        if follows:
            eventually(lambda: any(each.startswith("follow ") for each in controller.forwarder.asked), what="a follow")
        else:
            eventually(lambda: controller.cluster.names() == set(), what="the pod to be deleted")
            assert controller.forwarder.asked == []
