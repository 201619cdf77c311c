"""The result stream as the trace exporter reads it, on the embedded server and on the installed Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ottoscaler.adapters import result_log
from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.core.events import BadEvent, parse
from ottoscaler.core.spans import encode_ended
from ottoscaler.errors import RedisUnavailable
from ottoscaler.local.redis import find_binary
from ottoscaler.ports import OpenTask, ScriptStatus
from ottoscaler.stored import WorkerAttempt
from tests.adapters.redis_admin import RedisAdmin, Server, local_server, open_stream
from tests.adapters.streams import TASK_TTL_S, opened, record, result_of, send
from tests.conftest import require
from tests.fakes.wait import eventually

pytestmark = pytest.mark.contract("2.OTEL_EXPORTER_OTLP_ENDPOINT")
Replica = Callable[[str], RedisBackend]
GROUP = "group:traces"


@pytest.fixture(scope="module", params=["embedded", pytest.param("installed", marks=pytest.mark.real)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded Valkey, or the redis-server from the PATH."""
    binary = find_binary() if request.param == "embedded" else Path(require("redis-server"))
    with local_server(tmp_path_factory.mktemp("redis"), binary) as started:
        yield started


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    """Plain redis-py."""
    with server.client() as made:
        yield made


@pytest.fixture
def admin(client: Any) -> Iterator[RedisAdmin]:
    """Keys of this test's own."""
    made = RedisAdmin(client)
    yield made
    made.flush()


@pytest.fixture
def replica(server: Server, admin: RedisAdmin) -> Iterator[Replica]:
    """Makes replicas of one group, by the name of their consumer."""
    made: list[RedisBackend] = []

    def make(consumer: str) -> RedisBackend:
        made.append(open_stream(server, admin, consumer, incarnation="boot-1"))
        made[-1].ensure_group()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def first(replica: Replica) -> RedisBackend:
    """A replica that has begun to read results."""
    made = replica("c1")
    made.begin_results()
    return made


def ended(stream: RedisBackend, admin: RedisAdmin, **fields: str) -> OpenTask:
    """A task of one worker that has its result."""
    task = opened(stream, admin, **fields)
    assert record(stream, task).status is ScriptStatus.OK
    return task


def kinds(entries: Any) -> list[str]:
    """What was read."""
    return [fields["kind"] for _, fields in entries]


def test_each_result_is_read_by_one_replica(replica: Replica, first: RedisBackend, admin: RedisAdmin) -> None:
    """What was recorded before traces were on is not read."""
    second = replica("c2")
    second.begin_results()
    ended(first, admin)
    assert kinds(first.read_results(1)) == ["worker"]
    assert kinds(second.read_results(5)) == ["task"]
    assert first.read_results(5) == second.read_results(5) == []


def test_what_was_there_before_gets_no_trace(replica: Replica, admin: RedisAdmin) -> None:
    """Nor when another replica begins later, or the same one again: then nothing is skipped."""
    stream = replica("c1")
    ended(stream, admin)
    stream.begin_results()
    assert stream.read_results(5) == []
    ended(stream, admin)
    stream.begin_results()
    assert kinds(stream.read_results(5)) == ["worker", "task"]


def test_a_result_stays_pending_until_it_is_acknowledged(
    replica: Replica, first: RedisBackend, admin: RedisAdmin
) -> None:
    """Another replica gets it when its reader was silent for long enough, and not before."""
    second = replica("c2")
    ended(first, admin)
    entries = first.read_results(5)
    assert second.claim_results(60, 5) == ([], 0)
    first.acknowledge_results([entries[0][0]])
    claimed, trimmed = second.claim_results(0, 5)
    assert (list(claimed), trimmed) == ([entries[1]], 0)
    second.acknowledge_results([entries[1][0]])
    assert first.claim_results(0, 5) == ([], 0)


def test_a_reader_that_is_alive_keeps_what_it_has(replica: Replica, first: RedisBackend, admin: RedisAdmin) -> None:
    """A pod may be kept for a while, and its result is in hand meanwhile."""
    second = replica("c2")
    ended(first, admin)
    ids = [entry_id for entry_id, _ in first.read_results(5)]
    eventually(lambda: second._redis.client.xpending_range(f"{admin.prefix}results", GROUP, "-", "+", 5, idle=120))
    first.renew_results(ids)
    assert second.claim_results(0.1, 5) == ([], 0)


def test_results_that_were_trimmed_away_are_counted(first: RedisBackend, admin: RedisAdmin, client: Any) -> None:
    """They are pending, and there is nothing left to send of them."""
    ended(first, admin)
    first.read_results(5)
    client.xtrim(f"{admin.prefix}results", maxlen=0, approximate=False)
    assert first.claim_results(0, 5) == ([], 2)
    assert first.claim_results(0, 5) == ([], 0)


def test_after_redis_was_wiped_all_that_is_new_is_read(first: RedisBackend, admin: RedisAdmin) -> None:
    """The group is gone too."""
    admin.flush()
    assert first.claim_results(0, 5) == ([], 0)
    first.ensure_group()
    ended(first, admin)
    assert first.read_results(5) == []
    assert kinds(first.read_results(5)) == ["worker", "task"]


def test_the_consumers_of_replicas_that_are_gone_are_removed(
    replica: Replica, first: RedisBackend, admin: RedisAdmin, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pod of a Deployment has a name of its own. One with something pending stays."""
    monkeypatch.setattr(result_log, "FORGOTTEN_MS", -1)
    ended(first, admin)
    first.read_results(1)
    replica("c2").read_results(1)
    replica("c3").read_results(1)
    replica("c4").claim_results(60, 5)
    left = {each["name"] for each in client.xinfo_consumers(f"{admin.prefix}results", GROUP)}
    assert left - {"c4"} == {"c1", "c2"}  # Redis 7.0 makes no consumer that has got nothing


def test_our_own_group_is_no_reader_of_results(first: RedisBackend, admin: RedisAdmin, client: Any) -> None:
    """The figure says whether somebody's results may be trimmed away unread."""
    ended(first, admin)
    assert first.stream_levels().results_unread == 0
    client.xgroup_create(f"{admin.prefix}results", "handler", id="0")
    assert first.stream_levels().results_unread == 2


def test_the_times_of_a_worker(first: RedisBackend, admin: RedisAdmin, client: Any) -> None:
    """When each attempt was stored, by the clock of Redis, how an earlier one ended, and when its pod was gone."""
    task = opened(first, admin, event_id="e-1", pod_count="2")
    fields = result_of(task, 2)
    before = _now_ms(client)
    for attempt, traced in enumerate((encode_ended(), encode_ended(fields)), start=1):
        stored = first.store_attempt("e-1", task.owner, 2, attempt=attempt, infra_used=0, pod="p", traced=traced)
        assert stored.status is ScriptStatus.OK
    (times,) = first.stored_times([WorkerAttempt("e-1", 2, 2)])
    assert times is not None
    assert (times.event_type, times.stream_id) == ("scale_up", task.event.stream_id)
    assert before <= times.intended_ms[1] <= times.intended_ms[2] <= _now_ms(client)
    assert times.received_ms is not None
    assert before - 60_000 < times.received_ms <= _now_ms(client)
    assert times.ended[1]["outcome"] == fields["outcome"]
    assert (times.ended[2], times.gone_ms) == ({}, None)
    (of_event,) = first.stored_times([WorkerAttempt("e-1")])
    assert of_event is not None
    assert (of_event.stream_id, of_event.intended_ms) == (times.stream_id, {})


def test_an_attempt_leaves_no_times_where_traces_are_off(first: RedisBackend, admin: RedisAdmin) -> None:
    """No byte more for each worker."""
    task = opened(first, admin, event_id="e-1")
    first.store_attempt("e-1", task.owner, 1, attempt=1, infra_used=0, pod="p")
    assert [name for name in admin.task("e-1") if name.startswith(("intent", "ended", "gone"))] == []


def test_an_attempt_that_is_stored_again_keeps_how_the_one_before_it_ended(
    first: RedisBackend, admin: RedisAdmin
) -> None:
    """A process that has taken the worker over does not know it."""
    task = opened(first, admin, event_id="e-1")
    for attempt, traced in ((1, "{}"), (2, encode_ended(result_of(task))), (2, "{}")):
        first.store_attempt("e-1", task.owner, 1, attempt=attempt, infra_used=0, pod="p", traced=traced)
    (times,) = first.stored_times([WorkerAttempt("e-1", 1, 2)])
    assert times is not None
    assert times.ended[1]["outcome"] == "succeeded"


def test_a_pod_is_gone_once(first: RedisBackend, admin: RedisAdmin, client: Any) -> None:
    """Each later note gets the same time. The task still expires."""
    ended(first, admin, event_id="e-1")
    (gone,) = first.store_gone_time([WorkerAttempt("e-1", 1, 1)])
    eventually(lambda: _now_ms(client) > gone)
    assert first.store_gone_time([WorkerAttempt("e-9", 1, 1), WorkerAttempt("e-1", 1, 1)]) == [0, gone]
    assert first.store_gone_time([]) == []
    (times,) = first.stored_times([WorkerAttempt("e-1", 1, 1)])
    assert times is not None
    assert times.gone_ms == gone
    assert 0 < (admin.expires_in("e-1") or 0) <= TASK_TTL_S


def test_nothing_is_known_of_other_groups_tasks(first: RedisBackend, admin: RedisAdmin) -> None:
    """Nor of one that has expired; and nothing is written for it, which would stay without end."""
    assert first.stored_times([WorkerAttempt("e-9", 1, 1), WorkerAttempt("e-9")]) == [None, None]
    assert first.store_gone_time([WorkerAttempt("e-9", 1, 1)]) == [0]
    assert admin.task("e-9") == {}


def test_what_was_damaged_is_not_known(first: RedisBackend, admin: RedisAdmin, client: Any) -> None:
    """A person may have edited the hash."""
    task = opened(first, admin, event_id="e-1")
    name = f"{admin.prefix}task:{task.event.event_id}"
    client.hset(
        name,
        mapping={"received_at": "soon", "intent:1:1": "x", "intent:1:2": "9" * 30, "ended:1:1": "[1]", "gone:1": "-1"},
    )
    client.hset(name, "ended:1:2", "{")
    (times,) = first.stored_times([WorkerAttempt("e-1", 1, 3)])
    assert times is not None
    assert (times.received_ms, times.intended_ms, times.ended, times.gone_ms) == (None, {}, {1: {}, 2: {}, 3: {}}, None)


def test_a_key_of_another_type_is_no_task(first: RedisBackend, admin: RedisAdmin, client: Any) -> None:
    """And hides no other."""
    opened(first, admin, event_id="e-1")
    client.set(f"{admin.prefix}task:e-2", "a text")
    found = first.stored_times([WorkerAttempt("e-2", 1, 1), WorkerAttempt("e-1", 1, 1)])
    assert [one is not None for one in found] == [False, True]


def test_a_stream_of_another_type_is_reported(replica: Replica, admin: RedisAdmin, client: Any) -> None:
    """By the error that all calls have."""
    stream = replica("c1")
    client.set(f"{admin.prefix}results", "a text")
    for call in (stream.begin_results, lambda: stream.read_results(1), lambda: stream.claim_results(0, 1)):
        with pytest.raises(RedisUnavailable):
            cast("Callable[[], Any]", call)()


def test_a_refused_event_has_a_trace_too(first: RedisBackend, admin: RedisAdmin) -> None:
    """Its result is of kind task; the hash that remembers it has its entry."""
    from_entry = send(admin, type="scale_sideways")
    (entry,) = first.read(1)
    bad = parse(entry.stream_id, entry.fields or {}, 10)
    assert isinstance(bad, BadEvent)
    first.dead_letter(entry, bad)
    ((_, fields),) = first.read_results(5)
    (times,) = first.stored_times([WorkerAttempt(fields["event_id"])])
    assert (fields["reason"], times and times.stream_id) == ("Rejected", from_entry)


def _now_ms(client: Any) -> int:
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000
