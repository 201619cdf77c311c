"""`explain` on real servers, for what holds a step up: a server that is away, refuses or is slow, another replica,
another client, our own code. For most, the next step that it promises is seen to follow when the cause is gone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from ottoscaler.core.status_codes import StatusCode
from tests.adapters.clusters import ended, running
from tests.deploy.cluster import Cluster
from tests.deploy.manifests import Json
from tests.deploy.stuck import LONG_S, Stuck, code_of, explained, started, started_as_account
from tests.e2e.redis_server import RedisServer
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.waiting import stays, wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(240), pytest.mark.contract("1.explain")]

C = StatusCode

#: Waits until `explain` says that a task has this code, and these words in its reason.
Await = Callable[..., None]
#: How the next step begins that `explain` promises.
NEXT: Final = {
    C.CREATING: "the API server answers",
    C.RATE_LIMITED: "it is tried again",
    C.API_SERVER: "it is tried again",
    C.CLUSTER_UNKNOWN: "it goes on with the first list of pods",
    C.REDIS: "it is tried again within seconds",
    C.RIGHTS: "it is tried again",
    C.VICTIMS: "its result is recorded with the last of them",
    C.OUTLIVED: "the controller ends the pod at 20",
    C.FINALIZER: "it goes on when the client that set the finalizer removes it",
    C.OLDER_EVENT: "it chooses its victims when that event is accepted",
    C.RETRY: "the next attempt follows at 20",
    C.TURN: "it begins when a thread is free",
    C.DEFECT: "it is tried again at 20",
    C.STARTING: "if it does not start, the controller ends the pod at 20",
    C.RUNNING: "",
    C.ENDING: "its containers are killed at 20",
    C.FINISHED: "nothing",
}


@pytest.fixture
def way(cluster: Cluster) -> Iterator[TcpProxy]:
    """The network between the controller and the API server."""
    made = TcpProxy(cluster.server.port)
    yield made
    made.close()


@pytest.fixture
def held(
    cluster: Cluster, redis_server: RedisServer, way: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    """A ServiceAccount of the controller's own, and a lease that no step of the test outlasts."""
    namespace = tmp_path.name.replace("_", "-")
    settings = {"LEASE_S": "60", "INFRA_RETRIES": "10", "TERMINATION_GRACE_S": "600"}
    with started_as_account(cluster, redis_server, tmp_path, namespace, monkeypatch, port=way.port, **settings) as made:
        yield made


@pytest.fixture
def small(
    cluster: Cluster, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    """A controller with one thread for workers, whose code fails when SIGUSR1 asks for it."""
    namespace = tmp_path.name.replace("_", "-")
    cluster.server.new_namespace(namespace)
    entry = ("-m", "tests.e2e.defects", "die:worker")
    with started(cluster, redis_server, tmp_path, namespace, monkeypatch, entry, MAX_WORKERS="1") as made:
        made.controller.ready()
        yield made


@pytest.fixture
def await_code(capsys: pytest.CaptureFixture[str]) -> Await:
    """What `explain` says of the next step is looked at, too, and what it says to do where a person has to act."""

    def wait(task: str, code: StatusCode, words: str = "") -> None:
        last: Json = {}

        def said() -> tuple[object, bool, bool]:
            last.clear()
            last.update(explained(capsys, task))
            return last.get("code"), last.get("next", "").startswith(NEXT[code]), words in last.get("why", "")

        with suppress(AssertionError):  # the code may come before the time of the next step
            wait_for(lambda: said() == (code, True, True), f"{code} of {task}", LONG_S, 0.2)
        assert said() == (code, True, True), last
        assert last["advice"] or not last["attention"]

    return wait


def test_what_the_servers_hold_up(held: Stuck, await_code: Await, way: TcpProxy) -> None:
    """A create that is slow, a server that says later meanwhile, a way to it that breaks, a deletion that is forbidden,
    and a result that Redis does not take: 6 codes.
    """
    held.send("ends")
    held.bound("ends")
    held.report("ends", running())
    await_code("ends", C.RUNNING)
    with held.slow_webhook("slow"), held.crowded():
        held.send("slow")
        await_code("slow", C.CREATING)
        held.send("later")
        await_code("later", C.RATE_LIMITED, "429 to create (Too many requests")
        way.refuse()
        await_code("slow", C.API_SERVER, "the Kubernetes API at https://127.0.0.1")
        held.send("unseen")
        await_code("unseen", C.CLUSTER_UNKNOWN)
        await_code("ends", C.RUNNING)
    way.heal()
    await_code("slow", C.STARTING)
    await_code("unseen", C.STARTING)
    await_code("later", C.STARTING)
    held.forbid()
    held.send("down", type="scale_down", task_id="slow")
    await_code("slow", C.RIGHTS, 'cannot delete resource "pods"')
    await_code("down", C.VICTIMS)
    held.permit()
    await_code("slow", C.FINISHED)
    await_code("down", C.FINISHED)
    held.redis.set("otto:scale:results", "not a stream")
    held.report("ends", ended("Succeeded", 0, "Completed"))
    await_code("ends", C.REDIS, "the key otto:scale:results holds something else than a stream")
    held.redis.delete("otto:scale:results")
    await_code("ends", C.FINISHED)


def test_what_others_hold_up(held: Stuck, await_code: Await) -> None:
    """A pod that the platform ended, one that another container keeps, one that another client keeps, and an event that
    another replica has read: 4 codes.
    """

    def evict(pod_suffix: str) -> None:
        """The pause before the next attempt is twice as long each time."""
        wait_for(lambda: held.pod("evicted").endswith(pod_suffix), f"the pod {pod_suffix}", LONG_S)
        held.report("evicted", {"phase": "Failed", "reason": "Evicted", "message": "low on memory"})

    held.send("evicted")
    evict("-1")
    for task in ("outlived", "kept"):
        held.send(task, **({"profile": "served"} if task == "outlived" else {}))
        held.bound(task)
        held.report(task, running())
    db = {**running()["containerStatuses"][0], "name": "db"}
    held.report("outlived", {**ended("Running", 0, "Completed"), "initContainerStatuses": [db]})
    await_code("outlived", C.OUTLIVED)
    held.finalizers("kept", "example.org/seen")
    held.send("down", type="scale_down", task_id="kept")
    await_code("kept", C.ENDING)
    held.report("kept", ended("Failed", 143, "Error"))
    held.remove("kept")
    await_code("down", C.FINALIZER, "example.org/seen")
    held.finalizers("kept")
    await_code("down", C.FINISHED)
    held.send("gone")
    held.finalizers("gone", "example.org/queue")
    held.send("down-0", type="scale_down", task_id="gone")
    await_code("gone", C.FINALIZER, "has never had a node and is kept by finalizer example.org/queue")
    await_code("down-0", C.FINALIZER, "example.org/queue")
    held.finalizers("gone")
    await_code("gone", C.FINISHED)
    await_code("down-0", C.FINISHED)
    evict("-1-r2")
    pipe = held.redis.pipeline()
    pipe.xadd("otto:scale:events", {"type": "scale_up", "event_id": "e-stray", "task_id": "stray"})
    pipe.xreadgroup("ottoscaler", "otto-1", {"otto:scale:events": ">"}, count=1)
    stray = pipe.execute()[0]
    held.send("down-2", type="scale_down", task_id="stray")
    await_code("down-2", C.OLDER_EVENT, stray)
    held.redis.xclaim("otto:scale:events", "ottoscaler", "otto-1", 0, [stray], idle=600_000)
    await_code("down-2", C.FINISHED)
    evict("-1-r3")
    await_code("evicted", C.RETRY, "retry 3 of 10 after Evicted (low on memory")


def test_what_we_hold_up_ourselves(small: Stuck, await_code: Await, capsys: pytest.CaptureFixture[str]) -> None:
    """The only thread waits for a server, and our code fails: 2 codes."""
    small.send("first")
    small.bound("first")
    small.report("first", running())
    await_code("first", C.RUNNING)
    with small.slow_webhook("first"):
        small.report("first", ended("Succeeded", 0, "Completed"))
        await_code("first", C.FINISHED)
        small.send("second")
        await_code("second", C.TURN)
        assert stays(lambda: code_of(capsys, "second") == C.TURN, 1.5, 0.5)
        small.controller.process.send_signal(signal.SIGUSR1)
    await_code("second", C.DEFECT, "a defect, to order")
