"""The stream suite on RedisBackend: on the embedded server, and on the installed Redis or the one at TEST_REDIS_URL."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim, VictimSelection
from ottoscaler.errors import RedisUnavailable
from ottoscaler.local.redis import find_binary
from ottoscaler.ports import RedisPorts, ScriptStatus
from ottoscaler.settings import KeySettings, RedisSettings
from tests.adapters import contract_attempts, contract_event_log, contract_keys, contract_leases, contract_scale_downs
from tests.adapters.contract_attempts import *  # noqa: F403
from tests.adapters.contract_event_log import *  # noqa: F403
from tests.adapters.contract_keys import *  # noqa: F403
from tests.adapters.contract_leases import *  # noqa: F403
from tests.adapters.contract_scale_downs import *  # noqa: F403
from tests.adapters.redis_admin import RedisAdmin, Server, local_server, named, open_stream
from tests.adapters.streams import (
    BLOCK_S,
    LEASE_S,
    TASK_TTL_S,
    StreamAdmin,
    StreamFactory,
    accept,
    claim,
    intend,
    note_states,
    opened,
    receive,
    record,
    send,
    taken_over,
)
from tests.conftest import require
from tests.e2e.redis_nodes import Cluster
from tests.fakes.wait import eventually

__all__ = [
    *contract_event_log.__all__,
    *contract_leases.__all__,
    *contract_keys.__all__,
    *contract_attempts.__all__,
    *contract_scale_downs.__all__,
    "TestServer",
]


_real = pytest.mark.real


@pytest.fixture(
    scope="module", params=["embedded", pytest.param("installed", marks=_real), pytest.param("cluster", marks=_real)]
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded Valkey; the Redis at TEST_REDIS_URL, or a redis-server from the PATH; one node of a cluster."""
    if request.param == "cluster":
        cluster = Cluster(tmp_path_factory.mktemp("cluster"))
        node = cluster.masters[1]
        yield Server(RedisSettings(host="127.0.0.1", port=node.port, block_ms=int(BLOCK_S * 1000)), False, cluster=True)
        cluster.close()
        return
    if request.param == "installed" and (url := os.environ.get("TEST_REDIS_URL")):
        yield named(url)
        return
    binary = find_binary() if request.param == "embedded" else Path(require("redis-server"))
    with local_server(tmp_path_factory.mktemp("redis"), binary) as started:
        yield started


@pytest.fixture
def admin(server: Server) -> Iterator[RedisAdmin]:
    """Keys of this test's own, which go when it is over."""
    with server.client() as client:
        made = RedisAdmin(client)
        yield made
        made.flush()


@pytest.fixture
def stream_factory(server: Server, admin: RedisAdmin) -> Iterator[StreamFactory]:
    """Streams on that server, closed when the test is over."""
    made: list[RedisBackend] = []

    def make(consumer: str, *, incarnation: str = "boot-1", lease_s: float = LEASE_S) -> RedisPorts:
        made.append(open_stream(server, admin, consumer, incarnation=incarnation, lease_s=lease_s))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


class TestServer:
    """What only a real server does: refuse, forget its scripts, be large."""

    def test_out_of_reach_is_unavailable(self) -> None:
        """No process listens at port 1: reported at once, as something that was certainly not carried out."""
        keys, replies = KeySettings(consumer="c1"), list[str]()
        stream = RedisBackend(
            RedisCalls(
                RedisSettings(host="127.0.0.1", port=1),
                keys,
                lease_s=15,
                consumer="c1",
                incarnation="b",
                on_reply=replies.append,
            )
        )
        with pytest.raises(RedisUnavailable):
            stream.ensure_group()
        with pytest.raises(RedisUnavailable):
            stream.renew({})  # otherwise a process without tasks would not know that renewals are impossible
        stream.close()
        assert ["cannot be reached" in error for error in replies] == [True, True]

    @pytest.mark.parametrize(("count", "sent"), [(3, 103), (600, 750), (0, 1000)])
    def test_few_more_candidates_are_sent_than_are_to_end(
        self, stream: RedisPorts, admin: RedisAdmin, monkeypatch: pytest.MonkeyPatch, count: int, sent: int
    ) -> None:
        """The script reads each of them, and Redis answers no other client meanwhile."""
        seen, run = list[int](), RedisCalls.run

        def counted(calls: RedisCalls, name: str, keys: Any, *arguments: Any, **options: Any) -> Any:
            if name == "select_victims":
                seen.append(len(json.loads(f"[{arguments[3]}]")))
            return run(calls, name, keys, *arguments, **options)

        monkeypatch.setattr(RedisCalls, "run", counted)
        opened(stream, admin, event_id="e-1", task_id="t-1", pod_count="1000")
        limit = {"pod_count": str(count)} if count else {}
        task = opened(stream, admin, type="scale_down", task_id="t-1", event_id="d-1", **limit)
        listed = [Victim("e-1", index, f"pod-{index}") for index in range(1, 1001)]
        assert isinstance(stream.select_victims("d-1", task.owner, claim(*listed, count=count)), VictimSelection)
        assert seen == [1000 - sent]

    def test_an_answer_is_reported(self, server: Server, admin: RedisAdmin) -> None:
        """Also that of a script: `/readyz` goes by it."""
        replies: list[str] = []
        names = {"result_stream": f"{admin.prefix}results", "dead_letter_stream": f"{admin.prefix}dead"}
        keys = KeySettings(consumer="c1", stream=admin.stream, prefix=admin.prefix, **names)
        stream = RedisBackend(
            RedisCalls(server.settings, keys, lease_s=15, consumer="c1", incarnation="b", on_reply=replies.append)
        )
        stream.ensure_group()
        stream.renew({"e-1": "c1/b/1"})
        stream.close()
        assert replies == [""] * len(replies) != []

    def test_a_closed_stream_leaves_no_connection(self, server: Server, admin: RedisAdmin) -> None:
        """Nor a file descriptor: a process may make many streams, one after the other."""
        if not server.ours:
            pytest.skip("others may come and go at the server at TEST_REDIS_URL")
        with server.client() as client:
            count = len(cast("Any", client).client_list())
            stream = open_stream(server, admin, "c1", incarnation="boot-1")
            stream.ensure_group()
            stream.read(1)
            stream.peek("0-0", 1, block=True)
            stream.renew({"e-1": "c1/boot-1/1"})
            assert len(cast("Any", client).client_list()) > count
            stream.close()
            eventually(lambda: len(cast("Any", client).client_list()) == count, what="its connections to be closed")

    def test_the_last_result_ends_its_task_in_the_same_command(
        self, server: Server, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A process that dies between two would leave a task that has all results and never ends."""
        if not server.ours:
            pytest.skip("others may use the server at TEST_REDIS_URL")
        task = opened(stream, admin)
        intend(stream, task)
        with server.client() as client:
            cast("Any", client).config_resetstat()
            record(stream, task)
            calls = cast("Any", client).info("commandstats")
        assert len(admin.results("task")) == 1
        assert sum(calls.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha", "fcall")) == 1

    def test_a_task_that_an_older_version_started_holds_a_place(
        self, server: Server, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """That version knows no concurrency keys. The task's next attempts need the place."""
        first = opened(stream, admin, event_id="a", concurrency_key="k")
        task = opened(stream, admin, event_id="b", concurrency_key="k")
        assert (first.holds, task.holds) == (True, False)
        with server.client() as client:
            client.hset(f"{admin.prefix}task:b", "state", "running")
        taken = taken_over(other, admin, task)
        assert taken.holds
        assert intend(other, taken).status is ScriptStatus.OK

    def test_a_key_of_another_type_does_not_hold_up_an_entry_that_is_known(
        self, server: Server, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """A person has to mend it, and until then the reader goes on."""
        fields = {"event_id": "a", "concurrency_key": "k"}
        assert opened(stream, admin, **fields).holds
        with server.client() as client:
            client.set(f"{admin.prefix}key:k", "a text")
        send(admin, **fields)
        assert accept(stream, receive(stream)) is None

    def test_a_result_that_a_key_of_another_type_holds_up_says_which_and_what_to_do(
        self, server: Server, stream: RedisPorts, admin: StreamAdmin
    ) -> None:
        """In one sentence, which the worker's thread logs; nothing is changed, and once it is mended it is recorded."""
        task = opened(stream, admin, event_id="a", concurrency_key="k")
        intend(stream, task)
        with server.client() as client:
            client.set(f"{admin.prefix}key:k", "a text")
            with pytest.raises(RedisUnavailable) as raised:
                record(stream, task)
            assert f"the key {admin.prefix}key:k holds something else than a" in str(raised.value)
            assert "rename or delete that key" in str(raised.value)
            client.delete(f"{admin.prefix}key:k")
        assert record(stream, task).status is ScriptStatus.OK

    def test_forgotten_scripts_are_loaded_again(self, server: Server, stream: RedisPorts, admin: StreamAdmin) -> None:
        """After a restart or fail-over the server does not know them."""
        task = opened(stream, admin)
        with server.client() as client:
            cast("Any", client).script_flush()
        assert intend(stream, task).status.name == "OK"
        with server.client() as client:
            cast("Any", client).script_flush()
        assert opened(stream, admin).owner == "c1/boot-1/1"

    def test_takes_the_largest_events(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """As many fields as an event may have, and nearly as many bytes."""
        many = {f"f{number}": "x" * 240 for number in range(250)}
        task = opened(stream, admin, event_id="e-1", **many)
        assert record(stream, task).status.name == "OK"
        assert many.items() <= admin.results("task")[0].items()

    def test_a_large_event_is_not_kept_with_each_worker(
        self, server: Server, stream: RedisPorts, admin: RedisAdmin
    ) -> None:
        """Its hash has it a few times, however many workers and cancels there are; results have what is passed on."""
        count, size = 40, 60_000
        task = opened(stream, admin, event_id="e-1", pod_count=str(count), blob="x" * size)
        for index in range(1, count + 1):
            intend(stream, task, index)
            stream.store_termination("e-1", None, index, Termination(EndReason.SCALED_DOWN, "asked", by="d"))
            record(stream, task, index, reason=EndReason.ERROR)
        with server.client() as client:
            kept = cast("Any", client).memory_usage(f"{admin.prefix}task:e-1", samples=0)
            replies = cast("Any", client).memory_usage(f"{admin.prefix}results", samples=0)
        assert kept < 5 * size
        assert size * count < replies < 1.5 * size * (count + 1)
        assert all(len(result["blob"]) == size for result in admin.results("worker"))

    def test_takes_the_largest_bad_events(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """And they end as dead letters."""
        sent = send(admin, event_id="e-1", blob="x" * 2_000_000)
        entry = receive(stream)
        stream.dead_letter(entry, contract_event_log.TestDeadLetters.bad(entry))
        assert [letter["stream_id"] for letter in admin.dead_letters()] == [sent]

    def test_shows_the_states_of_many_workers(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """MAX_PODS_PER_EVENT is the operator's choice."""
        task = opened(stream, admin, event_id="e-1", pod_count="1000")
        many = {index: ("running", 1, f"pod-{index}") for index in range(1, 9001)}
        note_states(stream, "e-1", task.owner, many)
        assert "worker:9000" in admin.task("e-1")

    def test_serves_many_threads(self, stream: RedisPorts, admin: StreamAdmin) -> None:
        """As many as there are workers: none fails for want of a connection."""
        task = opened(stream, admin, event_id="e-1", pod_count="60")
        statuses: list[str] = []

        def work(index: int) -> None:
            intend(stream, task, index)
            statuses.append(record(stream, task, index).status.name)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(1, 61)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert statuses == ["OK"] * 60
        assert [result["succeeded"] for result in admin.results("task")] == ["60"]

    def test_gives_advice(self, server: Server, stream: RedisPorts) -> None:
        """None for the server that we start; a sentence for one that forgets."""
        if not server.ours:
            pytest.skip("the server at TEST_REDIS_URL is not ours to reconfigure")
        assert stream.server_warnings() == []
        with server.client() as client:
            cast("Any", client).config_set("appendonly", "no")
            advice = stream.server_warnings()
            cast("Any", client).config_set("appendonly", "yes")
        assert len(advice) == 1
        assert "append-only" in advice[0]

    def test_entries_survive_being_accepted_twice_at_once(
        self, stream: RedisPorts, other: RedisPorts, admin: StreamAdmin
    ) -> None:
        """Two consumers accept one entry at the same time: one of them has the task."""
        send(admin, event_id="e-1")
        entry = receive(stream)
        found: list[str] = []

        def work(each: RedisPorts) -> None:
            task = accept(each, entry)
            found.extend([task.owner] if task else [])

        threads = [threading.Thread(target=work, args=(each,)) for each in (stream, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == [admin.task("e-1")["owner"]]

    def test_a_marker_of_a_dead_letter_goes_after_the_window_of_its_event(
        self, server: Server, stream: RedisPorts, admin: RedisAdmin
    ) -> None:
        """Otherwise the set of them would grow without limit; a younger one stays, so that its entry is buried once."""
        with server.client() as client:
            now_ms, markers = time.time() * 1000, f"{admin.prefix}buried"
            old, young = now_ms - (TASK_TTL_S + 60) * 1000, now_ms - (TASK_TTL_S - 60) * 1000
            cast("Any", client).zadd(markers, {"old": old, "young": young})
            send(admin, pod_count="many")
            entry = receive(stream)
            stream.dead_letter(entry, BadEvent(DeadReason.INVALID, "no number"))
            assert cast("Any", client).zscore(markers, "old") is None
            assert cast("Any", client).zscore(markers, "young") == pytest.approx(young, abs=1)
            assert cast("Any", client).zcard(markers) == 2

    def test_each_figure_of_the_streams_stands_in_its_own_place(
        self, server: Server, stream: RedisPorts, admin: RedisAdmin
    ) -> None:
        """All of them differ. Of two groups that read the results, the slower one counts."""
        now_ms = int(time.time() * 1000)
        for number in range(3):
            admin.add({"type": "scale_up"}, f"{now_ms - 3_600_000 + number}-0")
        receive(stream)
        with server.client() as client:
            raw, results = cast("Any", client), f"{admin.prefix}results"
            for number in range(1, 6):
                raw.xadd(results, {"kind": "worker"}, id=f"{now_ms - 7_200_000 + number}-0")
            for name, read in (("fast", 4), ("slow", 1), ("last", 5)):
                raw.xgroup_create(results, name, id=f"{now_ms - 7_200_000 + read}-0")
            for _ in range(7):
                raw.xadd(f"{admin.prefix}dead", {"dead_reason": "Invalid"})
        found = stream.stream_levels()
        assert (found.unread, found.pending, found.results, found.results_unread, found.dead_letters) == (2, 1, 5, 4, 7)
        assert (found.oldest_s, found.results_oldest_s) == (pytest.approx(3600, abs=60), pytest.approx(7200, abs=60))
