"""What others have written in Redis that is not UTF-8: no name of ours, and nothing that ends the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.core.victim_selection import BlockingEvent
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import KeySettings, RedisSettings

KEYS = KeySettings(consumer="c")
ODD = b"\xff"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A Redis with nothing in it."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    with closing(redis.Redis(server.host, server.port)) as made:
        yield made
    server.close()


@pytest.fixture(scope="module")
def stream(client: redis.Redis) -> Iterator[RedisBackend]:
    """A stream with its group, and a task that another process has."""
    at = client.connection_pool.connection_kwargs
    settings = RedisSettings(host=at["host"], port=at["port"], block_ms=50)
    with closing(RedisBackend(RedisCalls(settings, KEYS, lease_s=10, consumer="c", incarnation="b"))) as made:
        made.ensure_group()
        client.zadd("otto:scale:open", {ODD: 1, b"e": 1})
        stored: dict[str | bytes, bytes | str] = {
            "owner": ODD + b"/1/1",
            "state": ODD,
            "sid": "1-1",
            "type": "scale_down",
        }
        client.hset("otto:scale:task:e", mapping=stored)  # type: ignore[arg-type]
        client.zadd("otto:scale:choices", {b"0" * 19 + b"1-" + b"0" * 19 + b"1|e": 0})
        client.xgroup_createconsumer("otto:scale:events", "ottoscaler", ODD)
        client.xgroup_create("otto:scale:events", ODD)
        client.hset("otto:scale:group", "group", ODD)
        client.hset("otto:scale:group", "cluster", ODD)
        yield made


@pytest.mark.parametrize(
    ("look", "found"),
    [
        (lambda stream: stream.remove_consumers(0), []),
        (lambda stream: stream.expired(same_consumer=False), ["e"]),
        (lambda stream: stream.expired(same_consumer=True), []),
        (lambda stream: stream.owned(), []),
        (lambda stream: stream.open_scale_ups(), []),
        (lambda stream: stream.known_tasks(["e"]), {"e": ("�", {})}),
        (lambda stream: stream.renew({"e": "c/b/1"}).lost, {"e": "�/1/1"}),
        (lambda stream: stream.blocker("2-1"), BlockingEvent("e", "�/1/1")),
        (lambda stream: stream.reserve_prefix(), "�"),
        (lambda stream: stream.bind_queue_to_cluster("k"), "�"),
        (lambda stream: stream.trim(0), 0),
        (lambda stream: stream.last_delivered_id(), "0-0"),
    ],
)
def test_is_met_without_an_error(stream: RedisBackend, look: Callable[[RedisBackend], object], found: object) -> None:
    """The look goes on with what can be read."""
    assert look(stream) == found
