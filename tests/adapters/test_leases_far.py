"""10,000 open tasks, 100 ms to Redis and back: no lease of a live owner runs out, whatever other work there is."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest
import redis

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.core.events import ScaleEvent, content_digest, parse
from ottoscaler.core.lifecycle import begin_lifecycle
from ottoscaler.flow.owned_tasks import WorkerRun
from ottoscaler.ports import OpenTask
from ottoscaler.settings import KeySettings, RedisSettings
from tests.adapters.test_redis_client import Start
from tests.adapters.test_redis_client import start as start
from tests.e2e.tcp_proxy import TcpProxy
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

TASKS = 10_000
DEAD = 300
LEASE_S = 15
ONE_WAY_S = 0.05
#: More than two leases: every task is renewed several times.
WATCHED_S = 2.5 * LEASE_S


@pytest.fixture
def near(start: Start) -> int:
    """A server of the test's own."""
    return start()


def open_stream(port: int, consumer: str) -> RedisBackend:
    """A stream of a process that begins just now."""
    server = RedisSettings(host="127.0.0.1", port=port, block_ms=100)
    return RedisBackend(
        RedisCalls(server, KeySettings(consumer=consumer), lease_s=LEASE_S, consumer=consumer, incarnation="b")
    )


def opened(stream: RedisBackend, prefix: str, count: int) -> list[OpenTask]:
    """The given number of tasks, owned by that process."""
    made: list[OpenTask] = []
    for first in range(0, count, 500):
        fields = [
            {b"type": b"scale_up", b"event_id": f"{prefix}-{number}".encode()}
            for number in range(first, min(first + 500, count))
        ]
        pairs = [(_event(each), content_digest(each)) for each in fields]
        made += [task for task in stream.accept(pairs, fields) if isinstance(task, OpenTask)]
    return made


def _event(fields: dict[bytes, bytes]) -> ScaleEvent:
    event = parse("9999999999999-0", fields, 1000)
    assert isinstance(event, ScaleEvent)
    return event


@pytest.mark.contract("2.LEASE_S")
def test_no_lease_of_a_living_owner_runs_out(near: int) -> None:
    """While it writes notes of all of them, and takes over the tasks of another one by one."""
    proxy = TcpProxy(near)
    with closing(open_stream(near, "c1")) as close, closing(open_stream(near, "dead")) as other:
        close.ensure_group()
        tasks = opened(close, "e", TASKS)
        opened(other, "d", DEAD)
    proxy.delay_s = ONE_WAY_S
    with (
        redis.Redis("127.0.0.1", near, decode_responses=True) as client,
        closing(open_stream(proxy.port, "c1")) as stream,
        SimulatedController(
            FakeServers(SystemClock()), stream=stream, auto=lambda _name: None, LEASE_S=LEASE_S, MAX_WORKERS=20
        ) as controller,
    ):
        plain: Any = client
        plain.zadd("otto:scale:open", {f"d-{number}": 1 for number in range(DEAD)})
        runs = [WorkerRun(controller.ledger.add(task), begin_lifecycle(1)) for task in tasks]
        overdue: list[str] = []
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(plain, over, overdue))
        controller.start("watch", "lease")
        watcher.start()
        for _ in range(int(WATCHED_S)):
            for run in runs:
                run.noted = None
                controller.ledger.status_buffer.mark(run)
            over.wait(1)
        over.set()
        watcher.join(10)
        assert overdue == []
        assert len(controller.ledger.tasks.owners()) > TASKS, "tasks of the dead are taken over meanwhile"
        eventually(lambda: "worker:1" in plain.hgetall(f"otto:scale:task:e-{TASKS - 1}"), 60, "the notes")
        proxy.delay_s = 0.0
        controller.close()
        stream.close()
        proxy.close()  # its threads are no threads of the controller


def _watch(client: Any, over: threading.Event, overdue: list[str]) -> None:
    while not over.wait(0.1):
        seconds, micros = client.time()
        late = client.zrangebyscore("otto:scale:open", "-inf", seconds * 1000 + micros // 1000)
        overdue += [name for name in late if name.startswith("e-")]
