"""Real sentinels: 80 workers on the bounded pool of connections, and a failover in mid-task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.redis_client import connect
from ottoscaler.settings import RedisSettings
from tests.adapters.redis_commands import NAMES, all_commands_work, keys_of
from tests.adapters.test_redis_client import certificate
from tests.e2e.redis_nodes import Sentinels
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

pytestmark = [pytest.mark.real, pytest.mark.contract("2.REDIS_SENTINELS"), pytest.mark.timeout(180)]

WORKERS = 80


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    """A master, its replica and three sentinels."""
    made = Sentinels(tmp_path)
    yield made
    made.close()


def settings_of(sentinels: Sentinels, **more: Any) -> RedisSettings:
    """How a process is configured that knows the sentinels."""
    return RedisSettings(sentinels=sentinels.addresses, sentinel_master=sentinels.name, block_ms=100, **more)


def open_stream(settings: RedisSettings, errors: list[str]) -> RedisBackend:
    """A stream that notes what goes wrong."""
    note = lambda error: errors.append(error) if error else None  # noqa: E731
    return RedisBackend(RedisCalls(settings, keys_of(), lease_s=5, consumer="c1", incarnation="b", on_reply=note))


@pytest.mark.contract("5.exactly-once")
@pytest.mark.contract("2.MAX_WORKERS")
def test_eighty_workers_and_a_failover(sentinels: Sentinels) -> None:
    """In a healthy system none of them sees an error; after the failover all go on, and each ends exactly once."""
    errors: list[str] = []
    stream = open_stream(settings_of(sentinels), errors)
    stream.ensure_group()
    before, after = sentinels.master.client(), sentinels.replica.client()
    with (
        closing(before),
        closing(after),
        closing(stream),
        SimulatedController(
            FakeServers(SystemClock()), stream=stream, auto=True, threads=ALL, MAX_WORKERS=WORKERS, LEASE_S=5
        ) as controller,
    ):
        _send(before, 0, 8)
        eventually(lambda: len(_results(before, "task")) == 8, 60, "the first tasks to end")
        assert errors == []
        _send(before, 8, 24)
        eventually(lambda: len(_results(before, "worker")) > 9 * WORKERS, 60, "some workers to end")
        before.wait(1, 1000)
        sentinels.master.kill()
        sentinels.await_failover()
        eventually(lambda: len(_results(after, "task")) >= 24, 60, "all tasks to end")
        assert errors
        assert not [error for error in errors if "Too many connections" in error]
        ended = Counter((result["event_id"], result["index"]) for result in _results(after, "worker"))
        assert (len(ended), set(ended.values())) == (24 * WORKERS, {1})
        assert set(Counter(result["event_id"] for result in _results(after, "task")).values()) == {1}
        assert controller.calls("create") == 24 * WORKERS


def test_the_bound_is_waited_at(sentinels: Sentinels) -> None:
    """More threads than connections: the pool makes them wait for one, as without sentinels."""
    with closing(connect(settings_of(sentinels), timeout_s=2, connections=1)) as client:
        pool: Any = client.connection_pool
        pool.timeout = 0.1
        held = pool.get_connection()
        with pytest.raises(Exception, match="No connection available"):
            client.ping()
        pool.release(held)
        assert client.ping()


def test_the_commands_work(sentinels: Sentinels) -> None:
    """send, status, dead."""
    with closing(open_stream(settings_of(sentinels), [])) as stream:
        all_commands_work(_environ(sentinels), stream, "e-1")


@pytest.mark.contract("2.REDIS_TLS")
@pytest.mark.contract("2.REDIS_PASSWORD")
def test_with_tls_and_a_password(tmp_path: Path) -> None:
    """The master is checked by the name in its certificate, which the sentinels give."""
    cert, key = certificate(tmp_path, "localhost")
    made = Sentinels(tmp_path, tls=(cert, key), password="secret")
    settings = settings_of(made, tls=True, ca_file=cert, password="secret")
    secret = {"REDIS_TLS": "true", "REDIS_CA_FILE": cert, "REDIS_PASSWORD": "secret"}
    with closing(open_stream(settings, [])) as stream:
        all_commands_work({**_environ(made), **secret}, stream, "e-1")
    made.close()


def _environ(sentinels: Sentinels) -> dict[str, str]:
    listed = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
    return {"REDIS_SENTINELS": listed, "REDIS_SENTINEL_MASTER": sentinels.name}


def _send(client: Any, first: int, last: int) -> None:
    for number in range(first, last):
        event = {"type": "scale_up", "event_id": f"e-{number}", "pod_count": str(WORKERS)}
        client.xadd(NAMES["REDIS_STREAM"], event)


def _results(client: Any, kind: str) -> list[dict[str, str]]:
    return [fields for _, fields in client.xrange(NAMES["RESULT_STREAM"]) if fields["kind"] == kind]
