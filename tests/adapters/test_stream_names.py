"""The names that the configuration gives are used, and no others; and a blocking read blocks as long as it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.core.events import BadEvent, DeadReason, ScaleEvent, content_digest, parse
from ottoscaler.core.results import worker_result
from ottoscaler.core.verdicts import EndReason, Verdict
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import KeySettings, RedisSettings

KEYS = KeySettings(
    stream="my:events",
    group="g",
    consumer="c",
    result_stream="my:out",
    dead_letter_stream="my:dead",
    prefix="my:state:",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis with nothing in it."""
    started = EmbeddedRedis(tmp_path)
    started.start()
    yield started
    started.close()


def stream_on(server: EmbeddedRedis, block_ms: int = 50, keys: KeySettings = KEYS) -> RedisBackend:
    """A stream with the names above, or others."""
    settings = RedisSettings(host=server.host, port=server.port, block_ms=block_ms)
    return RedisBackend(RedisCalls(settings, keys, lease_s=10, consumer="c", incarnation="b"))


@pytest.mark.contract("2.REDIS_PORT")
@pytest.mark.contract("2.REDIS_STREAM")
@pytest.mark.contract("2.RESULT_STREAM")
@pytest.mark.contract("2.DEAD_LETTER_STREAM")
@pytest.mark.contract("2.KEY_PREFIX")
def test_only_the_configured_names_are_used(server: EmbeddedRedis) -> None:
    """One event is carried out and one buried: these are all the keys there are."""
    with closing(stream_on(server)) as stream, closing(redis.Redis(server.host, server.port)) as client:
        stream.reserve_prefix()
        stream.ensure_group()
        client.xadd("my:events", {"type": "scale_up", "event_id": "e"})
        client.xadd("my:events", {"type": "nonsense"})
        good, bad = stream.read(2)
        event = parse(good.stream_id, good.fields or {}, 10)
        assert isinstance(event, ScaleEvent)
        [task] = stream.accept([(event, content_digest(good.fields or {}))], [good.fields or {}])
        assert task is not None
        result = worker_result(event, 1, 0, Verdict(EndReason.COMPLETED), None, time.time())
        stream.record_result("e", task.owner, 1, attempt=0, fields=result)
        stream.dead_letter(bad, BadEvent(DeadReason.INVALID, "it is nonsense"))
        names = {key.decode() for key in client.scan_iter()}
    assert names == {"my:events", "my:out", "my:dead", "my:state:buried", "my:state:group", "my:state:task:e"}


@pytest.mark.contract("2.KEY_PREFIX")
def test_a_prefix_belongs_to_the_group_that_came_first(server: EmbeddedRedis) -> None:
    """Two groups would take each other's tasks; another prefix is another matter."""
    others, apart = replace(KEYS, group="h"), replace(KEYS, group="h", prefix="my:other:")
    with (
        closing(stream_on(server)) as first,
        closing(stream_on(server, keys=others)) as second,
        closing(stream_on(server, keys=apart)) as third,
    ):
        assert [first.reserve_prefix(), second.reserve_prefix(), third.reserve_prefix(), first.reserve_prefix()] == [
            "g",
            "g",
            "h",
            "g",
        ]


def test_a_queue_belongs_to_the_cluster_that_came_first(server: EmbeddedRedis) -> None:
    """And to its namespace. Another group, with a prefix of its own, is another queue."""
    apart = replace(KEYS, group="h", prefix="my:other:")
    with closing(stream_on(server)) as one, closing(stream_on(server, keys=apart)) as other:
        assert [one.bind_queue_to_cluster(name) for name in ("a/1", "b/2", "a/1")] == ["a/1"] * 3
        assert other.bind_queue_to_cluster("b/2") == "b/2"
        assert one.reserve_prefix() == "g"


@pytest.mark.contract("2.REDIS_BLOCK_MS")
def test_a_read_blocks_as_long_as_it_says(server: EmbeddedRedis) -> None:
    """And no longer: a reader notices that late that it has to stop."""
    with closing(stream_on(server, block_ms=200)) as stream:
        stream.ensure_group()
        began = time.monotonic()
        assert stream.read(1) == []
        assert 0.19 <= time.monotonic() - began < 2
