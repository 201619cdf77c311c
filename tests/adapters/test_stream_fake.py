"""The stream suite on the fake, and what only the fake can do: fail to order."""

from __future__ import annotations

import threading

import pytest

from ottoscaler.errors import RedisUnavailable
from ottoscaler.ports import RedisPorts
from tests.adapters import contract_attempts, contract_event_log, contract_keys, contract_leases, contract_scale_downs
from tests.adapters.contract_attempts import *  # noqa: F403
from tests.adapters.contract_event_log import *  # noqa: F403
from tests.adapters.contract_keys import *  # noqa: F403
from tests.adapters.contract_leases import *  # noqa: F403
from tests.adapters.contract_scale_downs import *  # noqa: F403
from tests.adapters.streams import (
    BLOCK_S,
    LEASE_S,
    RESULT_MAXLEN,
    TASK_TTL_S,
    StreamFactory,
    accept,
    opened,
    receive,
    record,
    send,
)
from tests.fakes.clock import ManualClock
from tests.fakes.stream import FakeRedis, FakeStream
from tests.fakes.wait import eventually

__all__ = [
    *contract_event_log.__all__,
    *contract_leases.__all__,
    *contract_keys.__all__,
    *contract_attempts.__all__,
    *contract_scale_downs.__all__,
    "TestFaults",
]


@pytest.fixture
def admin() -> FakeRedis:
    """The server, with the system's clock: one test waits for a lease to run out."""
    return FakeRedis(result_maxlen=RESULT_MAXLEN, task_ttl_s=TASK_TTL_S)


@pytest.fixture
def stream_factory(admin: FakeRedis) -> StreamFactory:
    """Streams on that server."""

    def make(consumer: str, *, incarnation: str = "boot-1", lease_s: float = LEASE_S) -> RedisPorts:
        return FakeStream(admin, consumer, incarnation=incarnation, lease_s=lease_s, block_s=BLOCK_S)

    return make


class TestFaults:
    """The fake's own controls."""

    def test_a_failure_before_the_effect_leaves_nothing(self, stream: RedisPorts, admin: FakeRedis) -> None:
        """The caller tries again."""
        send(admin, event_id="e-1")
        entry = receive(stream)
        admin.fail_next("accept")
        with pytest.raises(RedisUnavailable):
            accept(stream, entry)
        assert admin.open_count() == 0
        assert accept(stream, entry) is not None

    def test_a_lost_answer_leaves_the_effect(self, stream: RedisPorts, admin: FakeRedis) -> None:
        """The caller cannot know."""
        task = opened(stream, admin)
        admin.fail_next("record_result", after=True)
        with pytest.raises(RedisUnavailable):
            record(stream, task)
        assert len(admin.results("worker")) == 1

    def test_a_failure_happens_as_often_as_ordered(self, stream: RedisPorts, admin: FakeRedis) -> None:
        """And the calls are counted all the same."""
        admin.fail_next("*", 2)
        for _ in range(2):
            with pytest.raises(RedisUnavailable):
                stream.last_delivered_id()
        stream.last_delivered_id()
        assert admin.calls["last_delivered_id"] == 3

    def test_a_blocked_read_ends_when_the_server_goes_down(self, stream: RedisPorts, admin: FakeRedis) -> None:
        """As when the connection breaks."""
        patient = FakeStream(admin, "c1", block_s=30)
        failed = threading.Event()

        def read() -> None:
            with pytest.raises(RedisUnavailable):
                patient.read(1)
            failed.set()

        thread = threading.Thread(target=read)
        thread.start()
        eventually(lambda: admin.calls["read"], what="the read to begin")
        admin.set_down(True)
        thread.join(5)
        assert failed.is_set()

    def test_a_blocked_read_is_woken_by_an_event(self, stream: RedisPorts, admin: FakeRedis) -> None:
        """No test has to wait for the block's end."""
        patient = FakeStream(admin, "c1", block_s=30)
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.extend(entry.stream_id for entry in patient.read(1)))
        thread.start()
        eventually(lambda: admin.calls["read"], what="the read to begin")
        sent = send(admin)
        thread.join(5)
        assert found == [sent]

    def test_time_is_the_tests(self) -> None:
        """With a manual clock leases and memories end when the test says so."""
        clock = ManualClock()
        server = FakeRedis(clock, task_ttl_s=100)
        stream = FakeStream(server, lease_s=15)
        stream.ensure_group()
        task = opened(stream, server, event_id="e-1")
        clock.advance(15)
        assert stream.expired(same_consumer=False) == ["e-1"]
        record(stream, task)
        clock.advance(100)
        assert (server.task("e-1"), stream.known_tasks(["e-1"])) == ({}, {})
