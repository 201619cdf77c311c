"""The servers die, hang, are wiped, or refuse us, in the middle of tasks: it is said clearly and in few lines, nothing
is lost, and nothing that runs is deleted.

How long servers hang is OTTO_PAUSE_S, seconds: longer than any call's time-out, and than the lease.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.bare import BareSystem, reading_s, warnings_since
from tests.e2e.controller import Controller
from tests.e2e.kube_server import KubeServer
from tests.e2e.recorder import Recorder
from tests.e2e.system import Pod, names, uids
from tests.e2e.waiting import stays, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

_STREAM = "otto:scale:events"
_GROUP = "ottoscaler"
_BACK_S = 2.0
_LEASE_S = 3
_PAUSE_S = float(os.environ.get("OTTO_PAUSE_S", "12"))
_FEW_LINES = 20

SystemMaker = Callable[[], BareSystem]


def nobody_stole(*controllers: Controller) -> bool:
    """No task has changed hands."""
    return not any(one.said("task.taken") or one.said("task.lost") for one in controllers)


class TestRedis:
    """redis-server."""

    def test_killed(self, bare_system: SystemMaker) -> None:
        """kill -9, time and again: workers end while it is away; events are read within two seconds of its return."""
        system = bare_system()
        controller = system.start()
        took = []
        for away_s in (0.3, 1.2, 2.5):
            event_id = system.send(type="scale_up", pod_count=2)
            pods = system.run(event_id, 2)
            before = len(controller.lines)
            system.server.kill()
            system.succeed(pods)
            time.sleep(away_s)
            system.server.start()
            back = time.time()
            later = system.send(type="scale_up")
            took.append(reading_s(controller, later, back))
            system.once(event_id, pods)
            system.succeed(system.run(later))
            assert system.finished(later)["succeeded"] == "1"
            assert len(warnings_since(controller, before)) <= _FEW_LINES, warnings_since(controller, before)
        print("killed:", [round(each, 2) for each in took])
        assert max(took) <= _BACK_S, took

    def test_wiped_under_a_live_owner(self, bare_system: SystemMaker) -> None:
        """FLUSHALL: the group is there again, the task is stored again, its pods run on and are reported."""
        system = bare_system()
        controller = system.start(LEASE_S=str(_LEASE_S))
        event_id = system.send(type="scale_up", pod_count=2)
        pods = system.run(event_id, 2)
        system.redis.flushall()
        later = system.send(type="scale_up")
        assert reading_s(controller, later) <= _BACK_S
        controller.until_said("task.restored", event_id=event_id)
        assert stays(lambda: uids(system.pods_of(event_id)) == uids(pods), 2 * _LEASE_S)
        system.succeed(pods)
        system.once(event_id, pods)
        system.succeed(system.run(later))
        assert system.finished(later)["succeeded"] == "1"

    def test_wiped_after_its_owner_died(self, bare_system: SystemMaker) -> None:
        """Only the annotations of its pods hold the task: another replica takes it up from them."""
        system = bare_system()
        first = system.start(LEASE_S=str(_LEASE_S))
        event_id = system.send(type="scale_up", pod_count=2, task_id="of-the-dead")
        pods = system.run(event_id, 2)
        first.kill()
        system.redis.flushall()
        second = system.start(LEASE_S=str(_LEASE_S), REDIS_CONSUMER="otto-1")
        second.until_said("task.restored", event_id=event_id)
        second.until_said("task.taken", event_id=event_id)
        assert stays(lambda: uids(system.pods_of(event_id)) == uids(pods), 2 * _LEASE_S)
        system.succeed(pods)
        system.once(event_id, pods)
        assert {result["task_id"] for result in system.results(event_id)} == {"of-the-dead"}

    def test_stream_or_group_removed(self, bare_system: SystemMaker) -> None:
        """DEL and XGROUP DESTROY during a blocked read: events are read within two seconds."""
        system = bare_system()
        controller = system.start()
        before = len(controller.lines)
        took = []
        for _ in range(5):
            system.redis.delete(_STREAM)
            took.append(reading_s(controller, system.send(type="scale_up")))
            system.redis.xgroup_destroy(_STREAM, _GROUP)
            took.append(reading_s(controller, system.send(type="scale_up")))
        print("removed:", [round(each, 2) for each in took])
        assert max(took) <= _BACK_S, took
        assert len(warnings_since(controller, before)) <= _FEW_LINES, warnings_since(controller, before)
        every = {line["event_id"] for line in controller.said("event.received")}
        wait_for(lambda: len(system.kube.pods()) == len(every), "one pod for each event")
        assert len(every) == 10


class TestKubernetes:
    """kube-apiserver."""

    def test_killed(self, bare_system: SystemMaker, own_kube: KubeServer) -> None:
        """kill -9: what happens before it is watched again is reported."""
        system = bare_system()
        controller = system.start()
        for _ in range(2):
            event_id = system.send(type="scale_up", pod_count=3)
            pods = system.run(event_id, 3)
            before = len(controller.lines)
            own_kube.kill()
            meanwhile = system.send(type="scale_up")
            controller.until_said("event.received", event_id=meanwhile)
            own_kube.start()
            system.succeed(pods)
            system.once(event_id, pods)
            system.succeed(system.run(meanwhile))
            assert system.finished(meanwhile)["succeeded"] == "1"
            assert len(warnings_since(controller, before)) <= _FEW_LINES, warnings_since(controller, before)

    def test_killed_and_past_forgotten(self, bare_system: SystemMaker, own_kube: KubeServer, tmp_path: Path) -> None:
        """A true 410: pods are listed again, and a pod that vanished meanwhile is known to be gone."""
        system = bare_system()
        recorder = Recorder(own_kube.kubeconfig, tmp_path)
        recorder.start()
        controller = system.start(KUBECONFIG=str(recorder.kubeconfig), INFRA_RETRIES="0")
        event_id = system.send(type="scale_up", pod_count=3)
        runs, vanishes, ends = system.run(event_id, 3)
        self._seen_running(system, event_id, 3)
        recorder.hold()
        for count in range(30):
            annotate(system, runs, str(count))
        system.kube.remove(vanishes["metadata"]["name"])
        system.succeed([ends])
        own_kube.kill()
        own_kube.start()
        assert not controller.said("watch.expired")
        recorder.release()
        controller.until_said("watch.expired")
        wait_for(lambda: len(system.results(event_id)) == 2, "the results of what vanished and of what ended", 10)
        results = {result["pod"]: result["reason"] for result in system.results(event_id)}
        assert results == dict(zip(names([vanishes, ends]), ("PodLost", "Completed"), strict=True))
        system.succeed([runs])
        assert system.finished(event_id)["succeeded"] == "2"
        system.no_pods(event_id)
        recorder.close()

    @staticmethod
    def _seen_running(system: BareSystem, event_id: str, count: int) -> None:
        def look() -> bool:
            task = system.redis.hgetall(f"otto:scale:task:{event_id}")
            return sum('"running"' in task.get(f"worker:{index}", "") for index in range(1, count + 1)) == count

        wait_for(look, "the controller to have seen them run")


def annotate(system: BareSystem, pod: Pod, text: str) -> None:
    """Change something that no controller looks at."""
    body = {"metadata": {"annotations": {"example.com/note": text}}}
    system.kube.api.patch_namespaced_pod(pod["metadata"]["name"], system.kube.namespace, body, _preload_content=False)


class TestHanging:
    """SIGSTOP: they answer no request, and no client gets an error."""

    def test_both(self, bare_system: SystemMaker, own_kube: KubeServer) -> None:
        """One system has only the API server hang, the other Redis too: no replica steals, and all is reported once."""
        one, two = bare_system(), bare_system()
        only = one.start()
        pair = [two.start(REDIS_CONSUMER=f"otto-{number}", LEASE_S=str(_LEASE_S)) for number in (0, 1)]
        before = [len(each.lines) for each in (only, *pair)]
        sent = [(system, system.send(type="scale_up", pod_count=2)) for system in (one, two, two)]
        pods = [system.run(event_id, 2) for system, event_id in sent]
        own_kube.pause()
        two.server.pause()
        meanwhile = one.send(type="scale_up")
        only.until_said("event.received", event_id=meanwhile)
        time.sleep(_PAUSE_S)
        own_kube.resume()
        two.server.resume()
        for (system, event_id), those in zip(sent, pods, strict=True):
            system.succeed(those)
            system.once(event_id, those)
        one.succeed(one.run(meanwhile))
        assert one.finished(meanwhile)["succeeded"] == "1"
        assert {result["attempt"] for result in one.results(meanwhile)} == {"1"}
        assert nobody_stole(only, *pair)
        lines = [warnings_since(each, count) for each, count in zip((only, *pair), before, strict=True)]
        print("warnings:", [len(each) for each in lines])
        assert max(len(each) for each in lines) <= 2 * _FEW_LINES, lines
