"""What commands read of Redis: part by part, and each part behind the one before. Without a server."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from ottoscaler.adapters import explain_reader, status_reader
from ottoscaler.adapters.explain_reader import ExplainReader, QueuedEvent
from ottoscaler.adapters.redis_client import address
from ottoscaler.adapters.redis_inspector import RedisInspector, access_code
from ottoscaler.adapters.status_reader import Backlog
from ottoscaler.core.redis_findings import QueueFacts
from ottoscaler.errors import RedisUnavailable
from ottoscaler.settings import KeySettings, RedisSettings

KEYS = KeySettings(consumer="c1")
Entry = tuple[bytes, dict[bytes, bytes]]


class Server:
    """One stream with these entries, of which the group has been delivered the first ones."""

    def __init__(self, entries: Sequence[Entry] = (), delivered: bytes = b"0-0", pending: Sequence[Any] = ()) -> None:
        self.entries, self.delivered, self.waiting = list(entries), delivered, list(pending)
        self.ranges: list[tuple[str, str]] = []
        self.no_group = False

    def xpending_range(self, _stream: str, group: str, **_: Any) -> list[dict[str, Any]]:
        if self.no_group:
            raise redis.ResponseError("NOGROUP No such key or consumer group")
        assert group == KEYS.group
        names = ("message_id", "consumer", "time_since_delivered")
        return [dict(zip(names, one, strict=True)) for one in self.waiting]

    def xpending(self, _stream: str, _group: str) -> dict[str, Any]:
        return {"pending": len(self.waiting), "min": self.waiting[0][0] if self.waiting else None}

    def xinfo_groups(self, _stream: str) -> list[dict[str, Any]]:
        if self.no_group:
            raise redis.ResponseError("no such key")
        other = {"name": b"other", "last-delivered-id": b"9-9", "pending": 7}
        mine = {"name": KEYS.group.encode(), "last-delivered-id": self.delivered, "pending": len(self.waiting)}
        return [other, mine]

    def xrange(self, _stream: str, first: str = "-", last: str = "+", count: int = 10_000) -> list[Entry]:
        self.ranges.append((first, last))
        after = tuple(map(int, first.lstrip("(").split("-"))) if first != "-" else (0, 0)

        def within(entry: Entry) -> bool:
            place = tuple(map(int, entry[0].split(b"-")))
            return (place > after if first.startswith("(") else place >= after) and (last in ("+", entry[0].decode()))

        return [entry for entry in self.entries if within(entry)][:count]

    def xrevrange(self, _stream: str, max: str = "+", count: int = 10_000) -> list[Entry]:
        before = tuple(map(int, max.lstrip("(").split("-"))) if max != "+" else (10**9, 0)
        older = [entry for entry in self.entries if tuple(map(int, entry[0].split(b"-"))) < before]
        return older[::-1][:count]

    def zrange(self, _key: str, first: int, last: int, withscores: bool = False) -> list[tuple[bytes, float]]:
        assert (first, withscores) == (0, True)
        scored = [(f"e-{number}".encode(), 1500.0 * number) for number in range(1, 4)]
        return scored[: last + 1 if last >= 0 else None]

    def zscore(self, _key: str, event_id: str) -> float | None:
        return 2500.0 if event_id == "e-1" else None


def entry(number: int, **fields: str) -> Entry:
    """One entry of a stream, with an id of one millisecond each."""
    return f"{number}-0".encode(), {name.encode(): value.encode() for name, value in fields.items()}


def reader_of(server: Server) -> ExplainReader:
    """A reader of this server."""
    reader = ExplainReader(RedisSettings(), KEYS)
    reader._client = server  # type: ignore[assignment]
    return reader


@pytest.mark.parametrize("number", range(3, 9))
def test_an_unread_event_is_found_in_any_part_with_the_number_of_those_before_it(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """By its entry id, its event id or its task id; each part begins behind the last entry of the one before."""
    monkeypatch.setattr(explain_reader, "_CHUNK", 3)
    entries = [entry(each, event_id=f"e-{each}", task_id=f"t-{each}", n=str(each)) for each in range(1, 9)]
    server = Server(entries, b"2-0")
    for name in (f"{number}-0", f"e-{number}", f"t-{number}"):
        fields = {"event_id": f"e-{number}", "task_id": f"t-{number}", "n": str(number)}
        assert reader_of(server).queued(name) == QueuedEvent(f"{number}-0", fields, number - 3)
    assert reader_of(server).queued("e-1") is None  # it was delivered
    assert reader_of(server).queued("none") is None
    assert server.ranges[-3:] == [("(2-0", "+"), ("(5-0", "+"), ("(8-0", "+")]


def test_an_unread_event_is_searched_for_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog of millions is not read."""
    monkeypatch.setattr(explain_reader, "_CHUNK", 2)
    monkeypatch.setattr(explain_reader, "SEARCHED", 4)
    server = Server([entry(each, event_id=f"e-{each}") for each in range(1, 20)])
    found = [reader_of(server).queued(f"e-{number}") is not None for number in (1, 4, 5, 9)]
    assert found == [True, True, False, False]


def test_an_event_that_was_read_names_its_reader() -> None:
    """And since when, in seconds; an entry that is gone is none."""
    server = Server([entry(2, event_id="e-2")], b"2-0", [(b"1-0", b"c1", 500), (b"2-0", b"c2", 1500)])
    assert reader_of(server).queued("e-2") == QueuedEvent("2-0", {"event_id": "e-2"}, consumer="c2", idle_s=1.5)
    server.no_group = True
    assert reader_of(server).queued("e-2") == QueuedEvent("2-0", {"event_id": "e-2"}, 0)


def test_dead_letters_are_found_in_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first, without the event; not those of another group."""
    monkeypatch.setattr(explain_reader, "_CHUNK", 2)
    ours = [
        entry(each, event_id=f"e-{each % 2}", stream_id=f"{each}-7", group=KEYS.group, event="{}")
        for each in range(1, 6)
    ]
    reader = reader_of(Server([*ours, entry(7, event_id="e-1", group="other")]))
    assert [letter["id"] for letter in reader.dead_letters_of("e-1")] == ["5-0", "3-0", "1-0"]
    assert [letter["id"] for letter in reader.dead_letters_of("2-7")] == ["2-0"]
    assert reader.dead_letters_of("4-0") == [{"id": "4-0", "event_id": "e-0", "stream_id": "4-7", "group": KEYS.group}]


def test_leases_are_in_seconds() -> None:
    """All of them, or those that end first."""
    reader = reader_of(Server())
    assert reader.lease_ends() == {"e-1": 1.5, "e-2": 3.0, "e-3": 4.5}
    assert reader.lease_ends(2) == {"e-1": 1.5, "e-2": 3.0}
    assert (reader.lease_end("e-1"), reader.lease_end("e-2")) == (2.5, None)


@pytest.mark.parametrize(
    ("stream_id", "begins"),
    [("100000-3", "40000-0"), ("60000-0", "0-0"), ("59999-1", "0-0"), ("own-id", "0-0"), ("", "0-0")],
)
def test_a_search_begins_a_minute_before_the_entry(
    monkeypatch: pytest.MonkeyPatch, stream_id: str, begins: str
) -> None:
    """Clocks of two masters may differ; an id that is no time is searched for from the beginning."""
    monkeypatch.setattr(status_reader, "_COUNT_CHUNK", 2)
    server = Server([entry(each) for each in (40_000, 50_000, 70_000, 80_000, 90_000)])
    found = list(reader_of(server)._entries_since("x", stream_id))
    assert [each[0] for each in found] == ["40000-0", "50000-0", "70000-0", "80000-0", "90000-0"]
    assert [first for first, _ in server.ranges] == [begins, "(50000-0", "(80000-0"]


def inspector_of(client: object) -> RedisInspector:
    """An inspector with a lease of 15 s."""
    names = SimpleNamespace(stream="s", group=KEYS.group, result_stream="r")
    key = SimpleNamespace(consumer="consumer:{}".format, open="open", group="group")
    calls = SimpleNamespace(names=names, client=client, lease_ms=15_000, key=key, translate_errors=lambda: _Nothing())
    return RedisInspector(calls)  # type: ignore[arg-type]


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("server", "oldest"),
    [
        (Server([entry(3), entry(4)], b"2-0"), "3-0"),
        (Server([entry(3), entry(4)], b"3-0"), "4-0"),
        (Server([entry(3), entry(4)], b"4-0"), ""),
        (Server([entry(3), entry(4)], b"4-0", [(b"3-0", b"c", 1)]), "3-0"),
    ],
)
def test_the_oldest_entry_that_waits_is_pending_or_unread(server: Server, oldest: str) -> None:
    """Of our group: another one has its own."""
    assert inspector_of(server)._oldest_waiting() == oldest
    server.no_group = True
    assert inspector_of(server)._oldest_waiting() == "3-0"  # nothing was read


def test_each_fact_of_a_queue_is_in_its_place() -> None:
    """All figures differ, so that none can be taken for another."""
    server = Server([entry(70_000), entry(90_000)], b"60000-0")
    server.zcard = {"open": 5}.__getitem__  # type: ignore[attr-defined]
    server.xinfo_consumers = lambda *_: [{"name": b"c1"}, {"name": b"c2"}]  # type: ignore[attr-defined]
    server.hget = lambda key, _: b"99000" if key == "consumer:c2" else None  # type: ignore[attr-defined]
    for exact in (True, False):
        reader: Any = SimpleNamespace(now=lambda: 100.0, backlog=lambda exact=exact: Backlog(11, 2, exact=exact))
        found = inspector_of(server).queue(reader)
        assert found == QueueFacts(
            stream="s", group=KEYS.group, waiting=13, exact=exact, oldest_s=30.0, open_tasks=5, live=["c2"]
        )
    reader.now = lambda: 60.0  # by the clock of another master
    assert inspector_of(server).queue(reader).oldest_s == 0
    server.entries = []
    assert inspector_of(server).queue(reader).oldest_s == 0


def test_results_are_counted_and_the_oldest_has_its_age() -> None:
    """Zero where there is none, or where its time is yet to come."""
    server, reader = Server([entry(70_000), entry(90_000)]), cast("Any", SimpleNamespace(now=lambda: 100.0))
    server.xlen = {"r": 9}.__getitem__  # type: ignore[attr-defined]
    assert inspector_of(server).results(reader) == (9, 30.0)
    reader.now = lambda: 60.0
    assert inspector_of(server).results(reader) == (9, 0.0)
    server.entries, server.xlen = [], lambda _: 0  # type: ignore[attr-defined]
    assert inspector_of(server).results(reader) == (0, 0.0)


def test_a_prefix_belongs_to_a_group_and_a_cluster() -> None:
    """Each of them, or none yet."""
    held = [b"g", b"cluster/1"]
    client = SimpleNamespace(hmget=lambda key, names: held if (key, names) == ("group", ["group", "cluster"]) else [])
    assert inspector_of(client).holders() == ("g", "cluster/1")
    held[:] = [None, None]  # type: ignore[list-item]
    assert inspector_of(client).holders() == ("", "")


def test_a_consumer_lives_for_two_leases() -> None:
    """By the clock of Redis, which wrote when it was last there."""
    seen = {"a": b"970000", "b": b"969999", "c": None, "d": b"1000000"}
    server = Server()
    server.xinfo_consumers = lambda *_: [{"name": name.encode()} for name in "dcba"]  # type: ignore[attr-defined]
    server.hget = lambda key, _: seen[key.removeprefix("consumer:")]  # type: ignore[attr-defined]
    assert inspector_of(server)._live_consumers(1000.0) == ["a", "d"]
    server.no_group = True
    assert inspector_of(server)._live_consumers(1000.0) == []


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (redis.AuthenticationError("x"), "redis.auth"),
        (redis.exceptions.NoPermissionError("x"), "redis.acl"),
        (redis.ReadOnlyError("x"), "redis.role"),
        (redis.exceptions.OutOfMemoryError("x"), "redis.memory"),
        (redis.ResponseError("ACL failure in script"), "redis.acl"),
        (redis.ResponseError("The user can't run this command"), "redis.acl"),
        (redis.ResponseError("WRONGTYPE Operation"), "redis.type"),
        (redis.ResponseError("novel"), "redis.reach"),
        (redis.ConnectionError("SSL: wrong version"), "redis.tls"),
        (redis.ConnectionError("certificate verify failed"), "redis.tls"),
        (redis.ConnectionError("refused"), "redis.reach"),
        (redis.TimeoutError("WRONGTYPE SSL"), "redis.reach"),
        (None, "redis.reach"),
    ],
)
def test_a_redis_that_does_not_serve_us_has_a_code(cause: Exception | None, code: str) -> None:
    """By what it answered."""
    error = RedisUnavailable("x")
    error.__cause__ = cause
    assert access_code(error) == code


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (RedisSettings(host="h", port=1), "h:1"),
        (RedisSettings(host="h", port=1, username="u", password="p"), "h:1 (user u)"),
        (
            RedisSettings(sentinels=(("a", 1), ("b", 2)), sentinel_master="m", username="u", password="p"),
            "m (by sentinels a:1, b:2) (user u)",
        ),
        (RedisSettings(sentinels=(("a", 1),), sentinel_master="m"), "m (by sentinels a:1)"),
    ],
)
def test_an_address_names_the_server_and_never_a_password(settings: RedisSettings, text: str) -> None:
    """For messages."""
    assert address(settings) == text
