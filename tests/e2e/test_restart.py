"""The controller dies, stops, is replaced; Redis and the API server go and come: every worker has one result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.recorder import Recorder
from tests.e2e.redis_server import RedisServer
from tests.e2e.system import LONG_RUN, System, names, uids
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

#: Long enough to restart a controller meanwhile, and an end that says whether the program ran from start to end.
_RUN = "trap 'exit 9' TERM; sleep {} & wait $!"


def once(system: System, event_id: str, count: int) -> None:
    """Each worker's end is reported once, the task's too, and nothing is left to do."""
    assert system.finished(event_id)["succeeded"] == str(count)
    results = Counter(result["index"] for result in system.results(event_id))
    assert results == Counter(str(index) for index in range(1, count + 1))
    system.no_pods(event_id)
    assert system.open_ids() == []
    assert system.pending_count() == 0


class TestKilled:
    """SIGKILL: no time for a word."""

    @pytest.mark.contract("5.exactly-once")
    def test_the_same_pods_go_on(self, system: System) -> None:
        """The next start follows them at once, whatever is left of the lease, and creates no new one."""
        first = system.start(LEASE_S="60")
        event_id = system.send(type="scale_up", pod_count=3, script=_RUN.format(6))
        pods = system.running(event_id, 3)
        first.kill()
        second = system.start(LEASE_S="60")
        assert uids(system.running(event_id, 3)) == uids(pods)
        once(system, event_id, 3)
        assert {result["pod_uid"] for result in system.results(event_id)} == uids(pods)
        assert {result["attempt"] for result in system.results(event_id)} == {"1"}
        assert second.said("task.taken", event_id=event_id)

    @pytest.mark.contract("5.exactly-once")
    def test_ends_in_between_are_reported(self, system: System) -> None:
        """Workers that end while no controller runs."""
        first = system.start()
        event_id = system.send(type="scale_up", pod_count=2, script="sleep 2")
        pods = system.running(event_id, 2)
        first.kill()
        phases = {"Succeeded"}
        wait_for(lambda: {pod["status"]["phase"] for pod in system.pods_of(event_id)} == phases, "them to end")
        assert system.results(event_id) == []
        system.start()
        once(system, event_id, 2)
        assert {result["pod_uid"] for result in system.results(event_id)} == uids(pods)

    @pytest.mark.contract("5.PodLost")
    def test_a_pod_that_vanished_in_between(self, system: System) -> None:
        """The cause is unknown: the platform's fault, and a new attempt under a new name."""
        first = system.start()
        event_id = system.send(type="scale_up", script=f'[ "$OTTO_ATTEMPT" = 2 ] || {{ {LONG_RUN}; }}')
        name = names(system.running(event_id))[0]
        first.kill()
        system.kube.remove(name)
        system.start(INFRA_RETRIES="1")
        once(system, event_id, 1)
        (result,) = system.results(event_id)
        assert (result["attempt"], result["pod"]) == ("2", f"{name}-r2")

    @pytest.mark.contract("5.PodLost")
    def test_lost_for_good(self, system: System) -> None:
        """Without a retry left, the result says so."""
        first = system.start()
        event_id = system.send(type="scale_up", script=LONG_RUN)
        name = names(system.running(event_id))[0]
        first.kill()
        system.kube.remove(name)
        system.start(INFRA_RETRIES="0")
        result = system.verdict(event_id)
        assert (result["outcome"], result["reason"], result["fault"]) == ("lost", "PodLost", "infra")

    @pytest.mark.contract("2.LEASE_S")
    def test_another_replica_takes_over(self, system: System) -> None:
        """After LEASE_S, with no restart of the dead one."""
        first = system.start(LEASE_S="3")
        event_id = system.send(type="scale_up", pod_count=2, script=_RUN.format(10))
        pods = system.running(event_id, 2)
        second = system.start(LEASE_S="3", REDIS_CONSUMER="otto-1")
        first.kill()
        second.until_said("task.taken", 10, event_id=event_id)
        once(system, event_id, 2)
        assert {result["pod_uid"] for result in system.results(event_id)} == uids(pods)


class TestStopped:
    """SIGTERM: a roll-out."""

    @pytest.mark.contract("1.exit-codes")
    @pytest.mark.contract("2.SHUTDOWN_GRACE_S")
    def test_exit_code_and_time(self, system: System) -> None:
        """0, in less than SHUTDOWN_GRACE_S, with workers running."""
        controller = system.start()
        system.running(system.send(type="scale_up", script=LONG_RUN))
        began = time.monotonic()
        controller.terminate()
        assert controller.exit_code(20) == 0
        assert time.monotonic() - began < 20
        assert controller.said("controller.stopped", exit_code=0)

    def test_pods_run_on_and_are_adopted(self, system: System) -> None:
        """By the next start: the same pods, each end reported once."""
        first = system.start()
        event_id = system.send(type="scale_up", pod_count=3, script=_RUN.format(10))
        pods = system.running(event_id, 3)
        first.terminate()
        assert first.exit_code(20) == 0
        assert uids(system.running(event_id, 3)) == uids(pods)
        system.start()
        once(system, event_id, 3)
        assert {result["pod_uid"] for result in system.results(event_id)} == uids(pods)

    def test_another_replica_goes_on_at_once(self, system: System) -> None:
        """The lease is given up, not waited for."""
        first = system.start(LEASE_S="60")
        event_id = system.send(type="scale_up", script=_RUN.format(8))
        system.running(event_id)
        second = system.start(LEASE_S="60", REDIS_CONSUMER="otto-1")
        first.terminate()
        assert first.exit_code(20) == 0
        second.until_said("task.taken", 8, event_id=event_id)
        once(system, event_id, 1)

    def test_a_second_signal_ends_it_at_once(
        self, new_system: Callable[..., System], own_redis: Callable[[], RedisServer]
    ) -> None:
        """While the first is still at handing over, here to a Redis that does not answer."""
        server = own_redis()
        server.start()
        system = new_system(server)
        controller = system.start()
        system.running(system.send(type="scale_up", script=LONG_RUN))
        server.pause()
        controller.terminate()
        controller.until_said("controller.stopping", 10)
        began = time.monotonic()
        controller.terminate()
        controller.exit_code(10)
        assert time.monotonic() - began < 1
        assert not controller.said("controller.stopped")
        server.resume()
        system.close()


class TestReplicas:
    """Several at once."""

    @pytest.mark.contract("2.REDIS_CONSUMER_GROUP")
    def test_they_share_the_work(self, system: System) -> None:
        """Each task is carried out once, and both have some."""
        both = [system.start(REDIS_CONSUMER=f"otto-{number}", READ_AHEAD="1", MAX_WORKERS="3") for number in (0, 1)]
        sent = [system.send(type="scale_up", script="sleep 1") for _ in range(12)]
        for event_id in sent:
            assert system.finished(event_id, timeout_s=60)["succeeded"] == "1"
        found = Counter(fields["event_id"] for _, fields in system.redis.xrange("otto:scale:results"))
        assert found == Counter(sent * 2)
        assert all(one.said("worker.created") for one in both)

    @pytest.mark.contract("1.exit-codes")
    @pytest.mark.contract("2.REDIS_CONSUMER")
    def test_two_of_one_name(self, system: System) -> None:
        """The newer one has the tasks; the older one says what is wrong, and ends with code 1."""
        older = system.start(LEASE_S="3")
        event_id = system.send(type="scale_up", script=_RUN.format(8))
        system.running(event_id)
        system.start(LEASE_S="3")
        assert older.exit_code(20) == 1
        assert "REDIS_CONSUMER must be unique" in older.said("controller.failed")[0]["error"]
        once(system, event_id, 1)


class TestRedisGone:
    """Redis goes away in the middle of a task."""

    def test_restarted(self, new_system: Callable[..., System], own_redis: Callable[[], RedisServer]) -> None:
        """Workers end meanwhile; when it is back, their ends are reported once."""
        server = own_redis()
        server.start()
        system = new_system(server)
        controller = system.start()
        event_id = system.send(type="scale_up", pod_count=2, script="sleep 3")
        pods = system.running(event_id, 2)
        server.stop()
        phases = {"Succeeded"}
        wait_for(lambda: {pod["status"]["phase"] for pod in system.pods_of(event_id)} == phases, "them to end")
        server.start()
        once(system, event_id, 2)
        assert {result["pod_uid"] for result in system.results(event_id)} == uids(pods)
        assert controller.process.poll() is None
        system.close()

    def test_wiped(self, system: System) -> None:
        """FLUSHALL: the worker runs on, and its end is reported."""
        system.start(LEASE_S="3")
        event_id = system.send(type="scale_up", script=_RUN.format(15))
        pods = system.running(event_id)
        system.redis.flushdb()
        assert system.finished(event_id, timeout_s=60)["succeeded"] == "1"
        assert [result["pod_uid"] for result in system.results(event_id)] == list(uids(pods))

    def test_wiped_after_a_first_result(self, system: System) -> None:
        """FLUSHALL: the worker that has ended counts, is not reported again, and is not called lost."""
        controller = system.start(LEASE_S="3")
        event_id = system.send(
            type="scale_up", pod_count=2, script=f"[ $OTTO_WORKER_INDEX = 1 ] && exit; {_RUN.format(12)}"
        )
        wait_for(lambda: len(system.results(event_id)) == 1, "the first to end")
        wait_for(lambda: len(system.pods_of(event_id)) == 1, "its pod to be gone")
        [pod] = system.pods_of(event_id)
        system.redis.flushdb()
        controller.until_said("task.restored", event_id=event_id)
        assert system.finished(event_id, timeout_s=60)["succeeded"] == "2"
        assert [result["pod_uid"] for result in system.results(event_id)] == list(uids([pod]))


class TestBadNetwork:
    """Between the controller and the API server."""

    def test_an_answer_is_lost(self, system: System, recorder: Recorder) -> None:
        """The pod is there, and no answer has said so: it is found, and not made twice."""
        system.start(KUBECONFIG=str(recorder.kubeconfig))
        recorder.lose_answers(2)
        event_id = system.send(type="scale_up", pod_count=2, script="sleep 1")
        pods = system.running(event_id, 2)
        once(system, event_id, 2)
        assert {result["pod_uid"] for result in system.results(event_id)} == uids(pods)
        assert {result["attempt"] for result in system.results(event_id)} == {"1"}

    @pytest.mark.contract("5.waiting")
    def test_the_server_asks_it_to_wait(self, system: System, recorder: Recorder) -> None:
        """429 with Retry-After is obeyed, and is no failure."""
        controller = system.start(KUBECONFIG=str(recorder.kubeconfig))
        recorder.refuse(2)
        event_id = system.send(type="scale_up", pod_count=2)
        once(system, event_id, 2)
        assert len(controller.said("worker.finished")) == 2
        assert recorder.counts()["create"] == 4

    def test_away(self, system: System, recorder: Recorder) -> None:
        """Workers end while it is away; all is reported when it is back."""
        controller = system.start(KUBECONFIG=str(recorder.kubeconfig))
        event_id = system.send(type="scale_up", pod_count=2, script="sleep 3")
        pods = system.running(event_id, 2)
        recorder.go_away()
        phases = {"Succeeded"}
        wait_for(lambda: {pod["status"]["phase"] for pod in system.pods_of(event_id)} == phases, "them to end")
        later = system.send(type="scale_up")
        controller.until_said("event.received", event_id=later)
        recorder.come_back()
        assert system.finished(later)["succeeded"] == "1"
        once(system, event_id, 2)
        assert {result["pod_uid"] for result in system.results(event_id)} == uids(pods)
