"""`explain` on real servers: the controller as a process, an API server, a Redis; each stuck situation has its code.

Nothing schedules and nothing runs here: what a scheduler and a kubelet would write is written by the test, so that each
situation stays as it is for as long as the test looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ottoscaler.core.status_codes import StatusCode
from tests.adapters.clusters import running, waiting
from tests.deploy.cluster import Cluster
from tests.deploy.stuck import LONG_S, Stuck, code_of, started, started_as_account
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(240), pytest.mark.contract("1.explain")]

NAMESPACE: Final = "stuck"
#: Here the controller comes as a ServiceAccount, which may lose its rights, and has little room.
NARROW: Final = "narrow"
C = StatusCode


@pytest.fixture
def narrow(
    cluster: Cluster, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    """Two workers at most, of which one may wait for a node, and rights that can be taken away."""
    settings = {"MAX_WORKERS": "2", "MAX_PENDING": "1"}
    with started_as_account(cluster, redis_server, tmp_path, NARROW, monkeypatch, **settings) as made:
        yield made


@pytest.fixture
def stuck(
    cluster: Cluster, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stuck]:
    """One administrator."""
    cluster.server.new_namespace(NAMESPACE)
    with started(cluster, redis_server, tmp_path, NAMESPACE, monkeypatch) as made:
        made.controller.ready()
        yield made


def test_each_stuck_situation_has_its_code(stuck: Stuck, capsys: pytest.CaptureFixture[str]) -> None:
    """In the life of one controller, and after its death: 22 codes."""
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    expected: dict[str, StatusCode] = {}

    def situation(task: str, code: StatusCode, **fields: str) -> None:
        expected[task] = code
        stuck.send(task, **fields)

    def await_codes() -> None:
        """Until each has its code: those that have it are not asked for again."""
        last: dict[str, str] = {}

        def look() -> bool:
            last.update({task: code_of(capsys, task) for task in expected})
            seen.update(expected[task] for task in last if last[task] == expected.get(task))
            for task in [task for task in expected if last[task] == expected[task]]:
                del expected[task]
            return not expected

        try:
            wait_for(look, "the codes", LONG_S, 0.5)
        except AssertionError:
            assert {task: last[task] for task in expected} == expected

    seen: set[StatusCode] = set()
    stuck.webhook("webhook")
    situation("dead", C.DEAD_LETTER, pod_count="none")
    situation("late", C.EXPIRED, not_after="2020-01-01T00:00:00Z")
    for task, code in (
        ("node", C.NODE), ("image", C.IMAGE_BACKOFF), ("image-gone", C.IMAGE_BACKOFF), ("setup", C.CONFIG_ERROR),
        ("command", C.START_ERROR), ("starts", C.STARTING), ("runs", C.RUNNING), ("silent", C.NODE_SILENT),
        ("ends", C.ENDING), ("done", C.FINISHED), ("webhook", C.WEBHOOK), ("gate", C.GATED),
        ("init", C.INIT_CONTAINER),
    ):  # fmt: skip
        situation(task, code)
    situation("served", C.SERVICE, profile="served")
    situation("holder", C.STARTING, concurrency_key="deploy")
    situation("second", C.CONCURRENCY_KEY, concurrency_key="deploy")
    situation("small-1", C.STARTING, team="small")
    situation("small-2", C.TENANT_SHARE, team="small")
    stuck.report("node", {"conditions": [unscheduled]})
    stuck.report("gate", {"conditions": [gated]})
    for task in ("served", "init", "image", "image-gone", "setup", "command", "runs", "silent", "ends", "done"):
        stuck.bound(task)
    crashed = waiting("CrashLoopBackOff", "back-off restarting failed container")["containerStatuses"][0]
    served = {**crashed, "name": "db", "restartCount": 2, "lastState": {"terminated": {"exitCode": 1}}}
    stuck.report("served", {"phase": "Pending", "initContainerStatuses": [served]})
    mesh = {**waiting("ImagePullBackOff", "Back-off pulling image")["containerStatuses"][0], "name": "mesh"}
    stuck.report("init", {"phase": "Pending", "initContainerStatuses": [mesh]})
    stuck.report("image", waiting("ImagePullBackOff", "Back-off pulling image"))
    stuck.report("image-gone", waiting("ErrImagePull", "manifest unknown"))
    stuck.report("setup", waiting("CreateContainerConfigError", 'configmap "x" not found'))
    stuck.report("command", waiting("RunContainerError", "exec: no such file or directory"))
    for task in ("runs", "silent", "ends", "done"):
        stuck.report(task, running())
    stuck.report("silent", {"phase": "Unknown"})
    stuck.report("done", {"phase": "Succeeded"})
    wait_for(lambda: code_of(capsys, "ends") == C.RUNNING, "a worker that runs", LONG_S)
    situation("down", C.VICTIMS, type="scale_down", task_id="ends")
    await_codes()
    stuck.used_up()
    situation("quota", C.QUOTA)
    await_codes()
    stuck.controller.kill()
    situation("unread", C.UNREAD)
    expected["runs"] = C.LEASE_EXPIRED
    await_codes()
    stuck.redis.xreadgroup("ottoscaler", "otto-1", {"otto:scale:events": ">"}, count=1)
    expected["unread"] = C.UNACCEPTED
    await_codes()
    assert len(seen) == 22, sorted(seen)


def test_what_the_cluster_and_the_limits_do_not_allow(narrow: Stuck, capsys: pytest.CaptureFixture[str]) -> None:
    """Room that is used up, rights that are taken away in mid-run, and a namespace that ends: 4 codes."""

    def await_code(task: str, code: StatusCode) -> None:
        wait_for(lambda: code_of(capsys, task) == code, f"{code} of {task}", LONG_S, 0.5)

    def run(task: str) -> None:
        narrow.bound(task)
        narrow.report(task, running())
        await_code(task, C.RUNNING)

    narrow.send("first")
    narrow.pod("first")
    narrow.send("second")
    await_code("second", C.MAX_PENDING)
    run("first")
    run("second")
    narrow.send("third")
    await_code("third", C.CAPACITY)
    narrow.forbid()
    narrow.report("first", {"phase": "Succeeded"})
    await_code("first", C.FINISHED)
    await_code("third", C.RIGHTS)
    narrow.permit()
    run("third")
    narrow.send("fourth")
    await_code("fourth", C.CAPACITY)
    narrow.end_namespace()
    narrow.report("second", {"phase": "Succeeded"})
    await_code("fourth", C.NAMESPACE)
