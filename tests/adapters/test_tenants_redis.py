"""Tenants of two replicas that share a real Redis: maxima, reading and a death in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.core.manifest import ANNOTATION_TENANT
from ottoscaler.core.shares import Share, Shares
from ottoscaler.settings import KeySettings, RedisSettings
from tests.adapters.test_redis_client import Start
from tests.adapters.test_redis_client import start as start
from tests.fakes.clock import SystemClock
from tests.fakes.kubernetes import FINISHED
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

pytestmark = [pytest.mark.real, pytest.mark.timeout(240), pytest.mark.contract("2.TENANT_FIELD")]

EVENTS = KeySettings(consumer="c1").stream
#: How long a lease may take to run out on a machine on which renewals are late, seconds.
LONG_S = 90
#: Team a may have two workers, whatever room there is.
SHARES = Shares(named={"a": Share(max_workers=2)})
SETTINGS: dict[str, Any] = {
    "threads": ALL,
    "shares": SHARES,
    "TENANT_FIELD": "team",
    "LEASE_S": 3,
    "MAX_WORKERS": 4,
    "READ_AHEAD": 2,
    "ADMIT_MAX": 5,
}


class System:
    """A real Redis, a fake Kubernetes, and replicas that a test starts and stops."""

    def __init__(self, port: int) -> None:
        self.client: Any = redis.Redis("127.0.0.1", port, decode_responses=True)
        self.servers = FakeServers(SystemClock())
        self._server = RedisSettings(host="127.0.0.1", port=port, block_ms=100)
        self._stack = ExitStack()

    def replica(self, consumer: str) -> SimulatedController:
        """A controller with all its threads."""
        keys = KeySettings(consumer=consumer)
        calls = RedisCalls(self._server, keys, lease_s=3, consumer=consumer, incarnation="b")
        stream = self._stack.enter_context(closing(RedisBackend(calls)))
        made = SimulatedController(self.servers, consumer=consumer, stream=stream, **SETTINGS)
        return self._stack.enter_context(made)

    def send(self, team: str, count: int) -> list[str]:
        """Add so many events of a tenant; returns their event ids."""
        return [str(self.client.xadd(EVENTS, {"type": "scale_up", "team": team})) for _ in range(count)]

    def live(self, team: str) -> set[str]:
        """The names of the tenant's live pods."""
        return {
            name
            for name, pod in self.servers.kubernetes.pods.items()
            if pod["metadata"]["annotations"].get(ANNOTATION_TENANT) == team
            and pod["status"].get("phase") not in FINISHED
        }

    def waiting(self) -> int:
        """How many accepted tasks have had no pod, at most: of what goes on meanwhile, nothing makes it more."""
        finished, unfinished = len(self.finished()), int(self.client.zcard("otto:scale:open"))
        return finished + unfinished - self.servers.kubernetes.count("create")

    def finished(self) -> list[str]:
        """The event ids of the task results."""
        found = (fields for _, fields in self.client.xrange("otto:scale:results"))
        return [fields["event_id"] for fields in found if fields["kind"] == "task"]

    def close(self) -> None:
        """Stop the replicas."""
        self._stack.close()
        self.client.close()


@pytest.fixture
def system(start: Start) -> Iterator[System]:
    """A server of the test's own."""
    made = System(start())
    yield made
    made.close()


def test_a_maximum_holds_over_replicas_and_a_death(system: System) -> None:
    """Both see the two workers of team a, so neither starts a third one; team b goes on. One replica dies, the other
    takes its tasks, and each event has one result.
    """
    first = system.replica("c1")
    sent = system.send("a", 2)
    eventually(lambda: len(system.live("a")) == 2, what="the workers that team a may have")
    second = system.replica("c2")
    for replica in (first, second):
        eventually(lambda one=replica: one.registry.live_count_of("a") == 2, what="that a replica sees them")
    sent += system.send("a", 6)
    held = set(system.live("a"))
    for _ in range(4):
        sent += (sent_now := system.send("b", 1))
        eventually(lambda: system.live("b"), what="a worker of team b")
        for name in system.live("b"):
            first.cluster.succeed(name)
        eventually(lambda one=sent_now: one[0] in system.finished(), what="the end of its task")
        assert system.live("a") == held
    first.close(release=False)
    while len(system.finished()) < len(sent):
        done = len(system.finished())
        for name in eventually(lambda: system.live("a"), LONG_S, "workers of team a"):
            assert len(system.live("a")) <= 2
            second.cluster.succeed(name)
        eventually(lambda seen=done: len(system.finished()) > seen, LONG_S, "a further result")
    assert Counter(system.finished()) == Counter(sent)


@pytest.mark.contract("2.ADMIT_MAX")
def test_what_waits_for_its_share_is_bounded(system: System) -> None:
    """40 events of a tenant that may have two workers: a replica keeps no more than ADMIT_MAX waiting, and one event
    that could start; the rest stays in the stream until some of these have ended.
    """
    replica, most = system.replica("c1"), SETTINGS["ADMIT_MAX"]
    sent = system.send("a", 40)
    eventually(lambda: system.waiting() >= most, what="that it reads as far as it may")
    while len(system.finished()) < len(sent):
        assert system.waiting() <= most + 1 + 2  # one could start, and two have room and no pod yet
        for name in system.live("a"):
            replica.cluster.succeed(name)
        eventually(lambda: system.live("a") or len(system.finished()) == len(sent), what="the next workers")
    assert Counter(system.finished()) == Counter(sent)
