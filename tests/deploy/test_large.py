"""A producer sends more than a small controller has memory for: entries of 12 MB, with 150 MiB for the process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ottoscaler.local.handle import LocalCluster
from tests.e2e.controller import SCRIPT, Controller
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

LARGE = 12_000_000
COUNT = 12
LIMIT_MIB = 150
#: More than the tries that a task has.
KILLS = 12
#: Ends the process where it asks for more memory than that. Stacks of threads count whole, though they are hardly used.
LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT_MIB} * 2**20,) * 2)
sys.argv = [{str(SCRIPT)!r}, "run"]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.fixture
def start(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[[], Controller]]:
    """Starts one controller after the other, with limited memory."""
    cluster = LocalCluster(tmp_path / "cluster")
    cluster.start()
    environ = {
        "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port), "REDIS_CONSUMER": "one", "LEASE_S": "3",
        "KUBECONFIG": str(cluster.kubeconfig), "MAX_WORKERS": "10",
        "OTTO_AGENT_COMMAND": f"until [ -e {tmp_path}/end ]; do sleep 0.1; done",
    }  # fmt: skip
    made: list[Controller] = []

    def launch() -> Controller:
        made.append(Controller(tmp_path, environ, ("-c", LIMITED)))
        return made[-1]

    yield launch
    for each in made:
        each.close()
    cluster.close()


@pytest.mark.contract("3.limits")
def test_entries_that_are_too_large_are_dead_letters_and_end_nothing_else(
    redis_server: RedisServer, start: Callable[[], Controller], tmp_path: Path
) -> None:
    """Before a task, behind it and while its worker runs; the process lives through it, and so does the worker."""
    client, controller = cast("Any", redis_server.client()), start()
    large = [client.xadd("otto:scale:events", {"type": "scale_up", "x": os.urandom(LARGE)}) for _ in range(COUNT)]
    task = client.xadd("otto:scale:events", {"type": "scale_up"})
    large += [client.xadd("otto:scale:events", {"type": "scale_up", "x": "y" * LARGE}) for _ in range(COUNT)]
    wait_for(lambda: client.xlen("otto:scale:dead") == len(large), "the dead letters", 60)
    letters = [fields for _, fields in client.xrange("otto:scale:dead")]
    assert [(each["dead_reason"], each["stream_id"]) for each in letters] == [("TooLarge", name) for name in large]
    assert all("the event has 120000" in each["dead_detail"] for each in letters)
    assert all(json.loads(each["event"])["cut"] for each in letters)
    shown = f"otto:scale:task:{task}"
    wait_for(lambda: '"running"' in (client.hget(shown, "worker:1") or ""), "the worker to run", 30)
    more = client.xadd("otto:scale:events", {"type": "scale_down", "task_id": "t", "x": "y" * LARGE})
    wait_for(lambda: client.xlen("otto:scale:dead") == len(large) + 1, "the last dead letter", 60)
    assert client.xrevrange("otto:scale:dead", count=1)[0][1]["stream_id"] == more
    (tmp_path / "end").touch()
    wait_for(lambda: client.hget(shown, "state") == "finished", "the task's end", 60)
    assert json.loads(client.hget(shown, "worker:1"))["outcome"] == "succeeded"
    assert controller.process.poll() is None
    assert controller.status("VmHWM") < LIMIT_MIB * 1024
    print("peak memory, KiB:", controller.status("VmHWM"))


@pytest.mark.contract("5.Poison")
def test_a_task_that_only_runs_is_not_to_blame(
    redis_server: RedisServer, start: Callable[[], Controller], tmp_path: Path
) -> None:
    """Its controllers are killed soon after their start, more often than a task may be tried: its pod runs on."""
    client = cast("Any", redis_server.client())
    client.xadd("otto:scale:events", {"type": "scale_up", "event_id": "innocent"})
    shown = "otto:scale:task:innocent"
    for number in range(1, KILLS + 1):
        controller = start()
        wait_for(lambda: '"running"' in (client.hget(shown, "worker:1") or ""), "the worker to run", 30)
        rest = [str(number), "0"]
        wait_for(lambda: client.hmget(shown, "tenure", "tries") == rest, "the task to be at rest", 30)  # noqa: B023
        controller.kill()
    assert client.xlen("otto:scale:dead") == 0
    start()
    wait_for(lambda: '"running"' in (client.hget(shown, "worker:1") or ""), "the worker to run on", 30)
    (tmp_path / "end").touch()
    wait_for(lambda: client.hget(shown, "state") == "finished", "the task's end", 60)
    assert json.loads(client.hget(shown, "worker:1"))["outcome"] == "succeeded"
    assert json.loads(client.hget(shown, "worker:1"))["attempt"] == "1"
