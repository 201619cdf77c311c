"""Each script happens as a whole or not at all: every function of the Lua files x everything that Redis can refuse.

The functions, commands and keys are read from the Lua files, so that a new one is in the table or the test is red.
While something is refused, nothing may have changed or everything; once it is mended, the same call again leads to
where it leads without the fault: nothing is lost and nothing is there twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import pytest

import ottoscaler.adapters
from ottoscaler.adapters import event_log, redis_client
from ottoscaler.adapters.dead import DeadLetters
from ottoscaler.adapters.page_reader import PageReader
from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.scripts import EPILOGUE_FILES, PRELUDE_FILES, SCRIPT_MODULES
from ottoscaler.core.events import BadEvent, DeadReason
from ottoscaler.core.spans import encode_ended
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim
from ottoscaler.errors import RedisUnavailable
from ottoscaler.local.redis import find_binary
from ottoscaler.ports import OpenTask
from ottoscaler.settings import KeySettings
from ottoscaler.stored import WorkerAttempt
from tests.adapters.redis_admin import RedisAdmin, Server, local_server
from tests.adapters.streams import (
    LEASE_S,
    OLD_ID,
    RESULT_MAXLEN,
    TASK_TTL_S,
    cancel,
    claim,
    event_of,
    intend,
    note_logs,
    note_states,
    note_why,
    opened,
    receive,
    record,
    result_of,
    send,
    taken_over,
)
from tests.conftest import require

FOLDER = Path(ottoscaler.adapters.__file__).parent
FILES = (*PRELUDE_FILES, *(f"{port}.lua" for port in SCRIPT_MODULES), *EPILOGUE_FILES)
SOURCES = {name: (FOLDER / name).read_text(encoding="utf-8") for name in (*FILES, "dead.lua")}
FUNCTIONS = {name for text in SOURCES.values() for name in re.findall(r"^function F\.(\w+)", text, re.M)}
WRITES = {name for text in SOURCES.values() for name in re.findall(r"\bwrite\('([A-Z]+)'", text)}
#: `redis.call` and the probes of atomic.lua, `HSET = 'HLEN', ...`.
READS = {name for text in SOURCES.values() for name in re.findall(r"(?:p?call\(| = )'([A-Z]+)'", text)}
PASSWORD = "secret"
#: The largest reply of Redis here: megabytes in each cell would make this the longest of all tests.
MOST_BYTES = 200_000
#: The keys that are no task's, by their ends; and a task's.
KEYS = (
    "events",
    "open",
    "results",
    "dead",
    "buried",
    "redriven",
    "group",
    "consumer:c1",
    "task:e-1",
    "task:redrive",
    "choices",
    "key:any",
)


@dataclass
class Rig:
    """One set of keys: `strong` may do everything, `weak` is the same process under a user that loses rights."""

    client: Any
    admin: RedisAdmin
    strong: RedisBackend
    weak: RedisBackend
    letters: DeadLetters
    page: PageReader

    def allow(self, *rules: str) -> None:
        """The rights that deploy/REFERENCE.md lists, and then these rules."""
        self.client.acl_setuser(
            "weak", enabled=True, reset=True, passwords=[f"+{PASSWORD}"], keys=[f"{self.admin.prefix}*"],
            categories=["-@all", "+@stream", "+@hash", "+@sortedset"],
            commands=["+exists", "+expire", "+evalsha", "+script|load", "+script|exists", "+time", "+info", "+ping"],
        )  # fmt: skip
        if rules:
            self.client.execute_command("ACL", "SETUSER", "weak", *rules)

    def names(self) -> list[str]:
        """All keys of this test."""
        return sorted(self.client.scan_iter(f"{self.admin.prefix}*"))

    def dump(self) -> dict[str, Stored]:
        """Everything that there is, by the end of its name, read in one command."""
        found = sorted(self.client.eval_ro(DUMP, 0, f"{self.admin.prefix}*"))
        return {name.removeprefix(self.admin.prefix): Stored.read(*rest) for name, *rest in found}

    def shown(self) -> object:
        """All that matters, without times and ids."""
        stored = self.dump()
        nothing = Stored("", {}, [], True)

        def of(name: str) -> Stored:
            return stored.get(name, nothing)

        return (
            {name: _timeless(each.content) for name, each in stored.items() if name.startswith("task:")},
            sorted(sorted(_timeless(fields).items()) for fields in of("results").content.values()),
            [(fields["dead_reason"], fields["event_id"]) for fields in of("dead").content.values()],
            sum(each[0] == "group" for each in of("events").pending),
            {name: min(float(score), 1) for name, score in of("open").content.items()},
            len(of("events").content),
            len(of("buried").content),
            [re.sub(".*[|]", "", place) for place in of("choices").content],
            [(re.sub(".*[|]", "", member), float(score)) for member, score in of("key:any").content.items()],
        )


#: Each key: name, type, whether it stays, content; and of what is pending group, id, consumer and deliveries.
DUMP = """
local found = {}
for _, name in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind, content, pending = redis.call('TYPE', name)['ok'], {}, {}
  if kind == 'hash' then
    content = redis.call('HGETALL', name)
  elseif kind == 'zset' then
    content = redis.call('ZRANGE', name, 0, -1, 'WITHSCORES')
  elseif kind == 'stream' then
    content = redis.call('XRANGE', name, '-', '+')
    for _, entry in ipairs(content) do
      for place, value in ipairs(entry[2]) do
        if #value > 10000 then entry[2][place] = redis.sha1hex(value) end
      end
    end
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', name)) do
      for _, each in ipairs(redis.call('XPENDING', name, group[2], '-', '+', 100)) do
        pending[#pending + 1] = {group[2], each[1], each[2], each[4]}
      end
    end
  end
  found[#found + 1] = {name, kind, redis.call('TTL', name) < 0 and 1 or 0, content, pending}
end
return found
"""


@dataclass(frozen=True)
class Stored:
    """What a key holds: its fields, members or entries, in order."""

    kind: str
    content: dict[str, Any]
    pending: list[list[object]]
    stays: bool

    @classmethod
    def read(cls, kind: str, stays: int, content: list[Any], pending: list[list[object]]) -> Self:
        """From an answer of DUMP."""
        if kind == "stream":
            fields = {entry: dict(pairs_of(pairs)) for entry, pairs in content}
        else:
            fields = dict(pairs_of(content))
            if kind == "hash":
                fields.pop("seen", None)  # a sign of life is given by each renewal, also by one that is refused then
        return cls(kind, fields, pending, bool(stays))


def pairs_of(values: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of values that follow each other."""
    return zip(values[::2], values[1::2], strict=True)


def _timeless(fields: dict[str, str]) -> dict[str, str]:
    times = ("finished_at", "received_at", "sid", "worker", "event", "at")
    return {
        # milliseconds: that there is such a time matters, and not which
        name: "" if name.startswith(("intent:", "gone:")) else re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "", value)
        for name, value in fields.items()
        if name not in times
    }


# -- one situation for each way through a function: what was there before, and the call

Call = Callable[[], object]
SITUATIONS: dict[str, Callable[[Rig], Call]] = {}


def situation(make: Callable[[Rig], Call]) -> Callable[[Rig], Call]:
    """Of the name `_<function>` or `_<function>__<what about it>`."""
    SITUATIONS[make.__name__[1:]] = make
    return make


def _task(rig: Rig, **fields: str) -> OpenTask:
    return opened(rig.strong, rig.admin, event_id="e-1", **{"task_id": "t", **fields})


@situation
def _reserve_prefix(rig: Rig) -> Call:
    return rig.weak.reserve_prefix


@situation
def _bind_queue_to_cluster(rig: Rig) -> Call:
    return lambda: rig.weak.bind_queue_to_cluster("default/uid")


@situation
def _key_problems(rig: Rig) -> Call:
    return rig.weak.key_problems


@situation
def _announce(rig: Rig) -> Call:
    return rig.weak.announce


@situation
def _dead_letter(rig: Rig) -> Call:
    send(rig.admin, event_id="e-1", pod_count="0")
    entry = receive(rig.strong)
    return lambda: rig.weak.dead_letter(entry, BadEvent(DeadReason.INVALID, "wrong", "e-1", "t"))


@situation
def _dead_letter__again(rig: Rig) -> Call:
    call = _dead_letter(rig)
    rig.strong.dead_letter(
        rig.strong.claim_pending(own=True, min_idle_s=0)[0], BadEvent(DeadReason.INVALID, "wrong", "e-1", "t")
    )
    return call


def _accepting(rig: Rig, stream_id: str | None = None, **fields: str) -> Call:
    rig.admin.add({"type": "scale_up", "event_id": "e-1", "task_id": "t", **fields}, stream_id)
    entry = receive(rig.strong)
    event, content = event_of(entry), "d"
    return lambda: [
        isinstance(found, BadEvent) and found for found in rig.weak.accept([(event, content)], [entry.fields or {}])
    ]


@situation
def _accept(rig: Rig) -> Call:
    return _accepting(rig)


@situation
def _accept__superseding(rig: Rig) -> Call:
    return _accepting(rig, supersedes="k")


@situation
def _accept__with_a_key(rig: Rig) -> Call:
    return _accepting(rig, concurrency_key="any")


@situation
def _accept__with_a_key_that_is_held(rig: Rig) -> Call:
    _waiting(rig)
    return _accepting(rig, concurrency_key="any")


@situation
def _accept__too_old(rig: Rig) -> Call:
    return _accepting(rig, OLD_ID)


@situation
def _accept__in_conflict(rig: Rig) -> Call:
    _task(rig)
    return _accepting(rig, reason="another")


@situation
def _restore(rig: Rig) -> Call:
    task = replace(_task(rig, pod_count="2"), received_at="")
    rig.client.delete(f"{rig.admin.prefix}task:e-1", f"{rig.admin.prefix}open")
    return lambda: rig.weak.restore(task)


@situation
def _restore__undecided(rig: Rig) -> Call:
    task = replace(_task(rig, type="scale_down"), received_at="")
    rig.client.delete(*(f"{rig.admin.prefix}{name}" for name in ("task:e-1", "open", "choices")))
    return lambda: rig.weak.restore(task)


@situation
def _restore__with_a_key(rig: Rig) -> Call:
    task = replace(_task(rig, concurrency_key="any"), received_at="")
    rig.client.delete(*(f"{rig.admin.prefix}{name}" for name in ("task:e-1", "open", "key:any")))
    return lambda: rig.weak.restore(task)


@situation
def _admit(rig: Rig) -> Call:
    _task(rig, concurrency_key="any")
    _waiting(rig)
    rig.client.delete(f"{rig.admin.prefix}task:e-1")
    return lambda: bool(rig.weak.admit(["any"], shown=9, check_open=True))


@situation
def _renew(rig: Rig) -> Call:
    task = _task(rig)
    rig.admin.expire_lease("e-1")
    return lambda: rig.weak.renew({"e-1": task.owner}).cancel_counts


@situation
def _renew__at_rest(rig: Rig) -> Call:
    call = _renew(rig)
    rig.client.hset(f"{rig.admin.prefix}task:e-1", mapping={"tries": 3})
    return call


@situation
def _renew__with_a_key_that_was_removed(rig: Rig) -> Call:
    task = _task(rig, concurrency_key="any")
    rig.client.delete(f"{rig.admin.prefix}key:any")
    return lambda: rig.weak.renew({"e-1": task.owner}).cancel_counts


@situation
def _release(rig: Rig) -> Call:
    task = _task(rig)
    return lambda: rig.weak.release({"e-1": task.owner})


def _waiting(rig: Rig) -> None:
    """A task of a key that waits, or gets the first place."""
    opened(rig.strong, rig.admin, event_id="e-2", task_id="t-2", concurrency_key="any")


def _taking(rig: Rig, tries: int, **fields: str) -> Call:
    task = taken_over(rig.strong, rig.admin, _task(rig, **fields))
    rig.client.hset(f"{rig.admin.prefix}task:e-1", mapping={"tries": tries, "owner": "c2/b/1"})
    rig.admin.expire_lease(task.event.event_id)
    return lambda: isinstance(rig.weak.take_over("e-1", same_consumer=False), (OpenTask, BadEvent))


@situation
def _take_over(rig: Rig) -> Call:
    return _taking(rig, 1)


@situation
def _take_over__poison(rig: Rig) -> Call:
    return _taking(rig, 9, pod_count="2")


@situation
def _take_over__poison_scale_down(rig: Rig) -> Call:
    return _taking(rig, 9, type="scale_down", task_id="t")


@situation
def _take_over__for_the_last_time(rig: Rig) -> Call:
    return _taking(rig, 19, pod_count="3")


@situation
def _take_over__with_a_key_that_was_removed(rig: Rig) -> Call:
    call = _taking(rig, 1, concurrency_key="any")
    rig.client.delete(f"{rig.admin.prefix}key:any")
    return call


@situation
def _take_over__for_the_last_time_with_a_key(rig: Rig) -> Call:
    call = _taking(rig, 19, concurrency_key="any")
    _waiting(rig)
    return call


@situation
def _take_over__of_nothing(rig: Rig) -> Call:
    call = _take_over(rig)
    rig.client.delete(f"{rig.admin.prefix}task:e-1")
    return call


@situation
def _store_attempt(rig: Rig) -> Call:
    task = _task(rig)
    return lambda: intend(rig.weak, task)


@situation
def _store_attempt__after_a_termination(rig: Rig) -> Call:
    task = _task(rig)
    intend(rig.strong, task)
    rig.strong.store_termination("e-1", task.owner, 1, Termination(EndReason.PENDING_TIMEOUT, attempt=1))
    return lambda: intend(rig.weak, task, attempt=2)


@situation
def _store_attempt__with_traces(rig: Rig) -> Call:
    task = _task(rig)
    intend(rig.strong, task)
    ended = encode_ended(result_of(task))
    return lambda: rig.weak.store_attempt("e-1", task.owner, 1, attempt=2, infra_used=0, pod="p", traced=ended)


@situation
def _store_refusal(rig: Rig) -> Call:
    task = _task(rig)
    intend(rig.strong, task)
    return lambda: rig.weak.store_refusal("e-1", task.owner, 1, 1)


@situation
def _mark_pod_seen(rig: Rig) -> Call:
    task = _task(rig)
    return lambda: rig.weak.mark_pod_seen("e-1", task.owner, 1, 1)


@situation
def _store_termination(rig: Rig) -> Call:
    _task(rig)
    return lambda: rig.weak.store_termination("e-1", None, 1, cancel())


@situation
def _clear_termination(rig: Rig) -> Call:
    task = _task(rig)
    mark = cancel(drain=True)
    rig.strong.store_termination("e-1", None, 1, mark)
    return lambda: rig.weak.clear_termination("e-1", task.owner, 1, mark)


def _recording(rig: Rig, count: str, reason: EndReason = EndReason.COMPLETED) -> Call:
    task = _task(rig, pod_count=count)
    intend(rig.strong, task)
    return lambda: record(rig.weak, task, reason=reason).status


@situation
def _record_result(rig: Rig) -> Call:
    return _recording(rig, "2", EndReason.ERROR)


@situation
def _record_result__the_last(rig: Rig) -> Call:
    return _recording(rig, "1")


@situation
def _record_result__the_last_with_a_key(rig: Rig) -> Call:
    task = _task(rig, concurrency_key="any")
    _waiting(rig)
    intend(rig.strong, task)
    return lambda: record(rig.weak, task).status


@situation
def _record_result__poison(rig: Rig) -> Call:
    return _recording(rig, "1", EndReason.POISON)


@situation
def _note_status(rig: Rig) -> Call:
    task = _task(rig, pod_count="2")
    states = {1: ("running", 1, "p"), 2: ("pending", 1, "q")}
    return lambda: note_states(rig.weak, "e-1", task.owner, states)


@situation
def _store_gone_time(rig: Rig) -> Call:
    _task(rig)
    return lambda: rig.weak.store_gone_time([WorkerAttempt("e-1", 1, 1)])


@situation
def _stored_times(rig: Rig) -> Call:
    _task(rig)
    return lambda: rig.weak.stored_times([WorkerAttempt("e-1", 1, 1)])


@situation
def _fields_of_tasks(rig: Rig) -> Call:
    _task(rig)
    return lambda: rig.page.passed_on(["e-1"])


@situation
def _note_logs(rig: Rig) -> Call:
    task = _task(rig, pod_count="2")
    return lambda: note_logs(rig.weak, "e-1", task.owner, {1: "a", 2: "b"})


@situation
def _note_status__of_the_task(rig: Rig) -> Call:
    task = _task(rig)
    return lambda: note_why(rig.weak, "e-1", task.owner, "why", "when")


def _choosing(rig: Rig, **fields: str) -> Call:
    _task(rig, pod_count="2")
    task = opened(rig.strong, rig.admin, event_id="d-1", **{"task_id": "t", **fields})
    asked = claim(Victim("e-1", 1, "p"), Victim("e-1", 2, "q"), count=1, spared=["s"])
    return lambda: bool(rig.weak.select_victims("d-1", task.owner, asked))


@situation
def _select_victims(rig: Rig) -> Call:
    return _choosing(rig, type="scale_down")


@situation
def _select_victims__superseding(rig: Rig) -> Call:
    return _choosing(rig, supersedes="k")


@situation
def _select_victims__again(rig: Rig) -> Call:
    call = _select_victims(rig)
    call()
    return call


def _behind(rig: Rig) -> str:
    _task(rig, type="scale_down", task_id="t")
    return send(rig.admin, event_id="d-1")


@situation
def _blocker(rig: Rig) -> Call:
    entry = _behind(rig)
    return lambda: rig.weak.blocker(entry)


@situation
def _clear_place(rig: Rig) -> Call:
    entry = _behind(rig)
    rig.client.delete(f"{rig.admin.prefix}task:e-1")
    return lambda: rig.weak.blocker(entry)


@situation
def _finish(rig: Rig) -> Call:
    task = _task(rig, type="scale_down", task_id="t")
    fields = {"kind": "scale_down", "event_id": "e-1"}
    return lambda: rig.weak.finish("e-1", task.owner, fields).status


@situation
def _claim_pending(rig: Rig) -> Call:
    other = rig.client
    for _ in range(2):
        send(rig.admin, event_id="e-1")
    other.xreadgroup("group", "c9", {rig.admin.stream: ">"}, count=2)
    return lambda: len(rig.weak.claim_pending(own=False, min_idle_s=0))


@situation
def _peek(rig: Rig) -> Call:
    for _ in range(6):
        send(rig.admin, blob="x" * (MOST_BYTES // 4))  # too much for one reply, so that the script is asked
    return lambda: len(rig.weak.peek("0-0", 10, block=False))


@situation
def _count_try(rig: Rig) -> Call:
    entry = send(rig.admin, event_id="e-1")
    receive(rig.strong)
    return lambda: bool(rig.weak.count_try(entry))


@situation
def _expired(rig: Rig) -> Call:
    _task(rig)
    rig.admin.expire_lease("e-1")
    return lambda: rig.weak.expired(same_consumer=False)


@situation
def _stream_levels(rig: Rig) -> Call:
    send(rig.admin)
    receive(rig.strong)
    send(rig.admin)

    def counts() -> tuple[int, ...]:
        levels = rig.weak.stream_levels()  # without the ages, which grow
        return levels.unread, levels.pending, levels.results, levels.results_unread, levels.dead_letters

    return counts


@situation
def _release_pending(rig: Rig) -> Call:
    send(rig.admin, event_id="e-1")
    receive(rig.strong)
    return rig.weak.release_pending


@situation
def _remove_consumers(rig: Rig) -> Call:
    for name in ("c8", "c9"):
        rig.client.xgroup_createconsumer(rig.admin.stream, "group", name)
    return lambda: rig.weak.remove_consumers(0)


@situation
def _trim(rig: Rig) -> Call:
    pipe = rig.client.pipeline()
    for _ in range(250):
        pipe.xadd(rig.admin.stream, {"a": "b"})
    pipe.xgroup_setid(rig.admin.stream, "group", "$")
    pipe.execute()
    return lambda: rig.weak.trim(10)


def _letter(rig: Rig) -> str:
    _dead_letter(rig)()
    return str(rig.client.xrange(f"{rig.admin.prefix}dead")[0][0])


@situation
def _redrive(rig: Rig) -> Call:
    dead_id = _letter(rig)
    return lambda: rig.letters.redrive(dead_id, {b"type": b"scale_up"})[0] is not None


@situation
def _purge(rig: Rig) -> Call:
    dead_id = _letter(rig)
    return lambda: rig.letters.purge(dead_id) is not None


# -- what Redis can refuse: `begin` makes the fault


@contextmanager
def denied(rig: Rig, command: str) -> Iterator[None]:
    """The user has lost one command."""
    rig.allow(f"-{command.lower()}")
    yield
    rig.allow()


@contextmanager
def locked(rig: Rig, key: str) -> Iterator[None]:
    """The user has lost one key, and may still read it."""
    name = f"{rig.admin.prefix}{key}"
    others = [f"~{each}" for each in {*rig.names(), *(f"{rig.admin.prefix}{each}" for each in KEYS)} - {name}]
    rig.allow("resetkeys", f"%R~{name}", *others)
    yield
    rig.allow()


@contextmanager
def moved(rig: Rig, key: str, put: Callable[[Any, str], object]) -> Iterator[None]:
    """A key holds another value."""
    name = f"{rig.admin.prefix}{key}"
    there = bool(rig.client.exists(name))
    if there:
        rig.client.rename(name, f"kept:{name}")
    put(rig.client, name)
    yield
    rig.client.delete(name)
    if there:
        rig.client.rename(f"kept:{name}", name)


@contextmanager
def configured(rig: Rig, name: str, value: str, normal: str) -> Iterator[None]:
    """The server takes no writes, or none that needs memory."""
    rig.client.config_set(name, value)
    yield
    rig.client.config_set(name, normal)


PUTS: dict[str, Callable[[Any, str], object]] = {
    "string": lambda client, name: client.set(name, "x"),
    "list": lambda client, name: client.rpush(name, "x"),
    "hash": lambda client, name: client.hset(name, "x", "y"),
    "stream": lambda client, name: client.xadd(name, {"x": "y"}),
}
Fault = Callable[[Rig], Any]


def faults() -> dict[str, Fault]:
    """The whole column of the table, by name."""
    found: dict[str, Fault] = {f"denied {command}": partial(denied, command=command) for command in WRITES | READS}
    for key in KEYS:
        found[f"locked {key}"] = partial(locked, key=key)
        wrong = {kind: put for kind, put in PUTS.items() if kind != _kind(key)}
        found |= {f"{key} is a {kind}": partial(moved, key=key, put=put) for kind, put in wrong.items()}
    for key in ("results", "dead"):
        found[f"{key} is full"] = partial(moved, key=key, put=partial(_last, room=0))
        found[f"{key} is all but full"] = partial(moved, key=key, put=partial(_last, room=1))
    found["no memory"] = partial(configured, name="maxmemory", value="1", normal="0")
    found["no replica"] = partial(configured, name="min-replicas-to-write", value="1", normal="0")
    return found


def _last(client: Any, name: str, *, room: int) -> None:
    """A stream that has given its last ids, but for some."""
    client.xadd(name, {"x": "y"}, id=f"{2**64 - 1}-{2**64 - 1 - room}")


def _kind(key: str) -> str:
    return {
        "events": "stream",
        "results": "stream",
        "dead": "stream",
        "open": "sorted set",
        "buried": "sorted set",
        "choices": "sorted set",
        "key:any": "sorted set",
    }.get(key, "hash")


FAULTS = faults()


@pytest.fixture(scope="module", params=["embedded", pytest.param("installed", marks=pytest.mark.real)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that is only for this table: it is reconfigured."""
    binary = find_binary() if request.param == "embedded" else Path(require("redis-server"))
    with local_server(tmp_path_factory.mktemp("redis"), binary) as started:
        yield started


@pytest.fixture(scope="module")
def rig(server: Server) -> Iterator[Rig]:
    """The same two processes for the whole table."""
    with server.client() as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_client, "MAX_REPLY_BYTES", MOST_BYTES)
        patch.setattr(event_log, "PENDING_BYTES", MOST_BYTES // 2)
        admin = RedisAdmin(client)
        keys = KeySettings(
            stream=admin.stream, group="group", consumer="c1", result_stream=f"{admin.prefix}results",
            dead_letter_stream=f"{admin.prefix}dead", prefix=admin.prefix, result_maxlen=RESULT_MAXLEN,
            task_ttl_s=TASK_TTL_S,
        )  # fmt: skip
        user = replace(server.settings, username="weak", password=PASSWORD)
        strong, weak = (
            RedisBackend(RedisCalls(settings, keys, lease_s=LEASE_S, consumer="c1", incarnation="b"))
            for settings in (server.settings, user)
        )
        made = Rig(client, admin, strong, weak, DeadLetters(user, keys), PageReader(user, keys))
        made.allow()
        yield made
        for each in (strong, weak, made.letters, made.page):
            each.close()


def test_every_function_is_in_the_table() -> None:
    """By name: a new one without its row is a gap."""
    assert {name.split("__")[0] for name in SITUATIONS} == FUNCTIONS


def test_no_function_writes_by_itself(rig: Rig) -> None:
    """Writes are planned: what `redis.call` is given is a read, by what Redis says of the command."""
    found = cast("dict[str, Any]", rig.client.execute_command("COMMAND"))
    assert {name for name in READS if "write" in found[name.lower()]["flags"]} == set()
    assert {name for name in WRITES if "write" not in found[name.lower()]["flags"]} == set()


def test_rights_are_asked_for_with_as_many_arguments_as_a_command_has(rig: Rig) -> None:
    """Redis 8 answers other questions with an error, and no controller would start there."""
    function = SOURCES["preflight.lua"].partition("function arguments_needed()")[2].partition("}")[0]
    table = re.findall(r"([A-Z]+) = (\d)", function)
    lists = re.findall(r"\{'[a-z ]+', \{(.*?)\}\}", SOURCES["preflight.lua"])
    asked = {word.split()[0] for each in lists for word in re.findall(r"'([A-Z ]+)'", each)}
    assert {name for name, _ in table} == asked - {"XREAD", "XREADGROUP"}
    of_reads = re.findall(r"refusal\('([A-Z]+)', \w+, (\d)\)", "".join(SOURCES.values()))
    assert of_reads
    info = cast("dict[str, Any]", rig.client.execute_command("COMMAND"))
    for name, behind in table + of_reads:
        words = 2 if name in ("XGROUP", "XINFO") else 1
        arity = {"XGROUP": -5, "XINFO": -3}.get(name) or info[name.lower()]["arity"]  # of CREATE, STREAM and GROUPS
        given = words + 1 + int(behind)
        assert given == arity or given >= -arity > 0, name


def test_nothing_is_in_the_way(rig: Rig) -> None:
    """With the rights that deploy/REFERENCE.md lists, whether the keys are there or not."""
    _prepared(rig, "record_result__the_last")()
    assert rig.weak.key_problems() == []
    rig.admin.flush()
    assert rig.weak.key_problems() == []


#: What the controller can do without, and says so when it would be due.
TIDYING = {"XTRIM"}
OF_CONTROLLER = re.findall(r"(?:p?call\(|write\(|= \{)'([A-Z]+)'", "".join(SOURCES[name] for name in FILES[1:]))


@pytest.mark.parametrize(
    "command", sorted({*OF_CONTROLLER} - TIDYING | {"XREADGROUP", "XREAD", "XGROUP", "ZRANGE", "ZRANGEBYSCORE"})
)
def test_each_missing_right_is_named_before_it_is_needed(rig: Rig, command: str) -> None:
    """Every command of the scripts and of the reads around them: a sentence for each key that it is needed on."""
    with denied(rig, command):
        found = rig.weak.key_problems()
    assert found
    assert all(command in sentence and "REFERENCE" in sentence for sentence in found)


@pytest.mark.parametrize("key", [key for key in KEYS if not key.startswith(("redriven", "task"))])
def test_each_key_of_another_type_is_named(rig: Rig, key: str) -> None:
    """With the key, what it should hold and the setting to change: one sentence."""
    _prepared(rig, "record_result__the_last")()
    with moved(rig, key, PUTS["string"]):
        [sentence] = rig.weak.key_problems()
    setting = {"events": "REDIS_STREAM", "results": "RESULT_STREAM", "dead": "DEAD_LETTER_STREAM"}.get(
        key, "KEY_PREFIX"
    )
    assert f"the key {rig.admin.prefix}{key} holds something else than a {_kind(key)}" in sentence
    assert setting in sentence
    with locked(rig, key):
        assert [each for each in rig.weak.key_problems() if f"{rig.admin.prefix}{key}:" in each]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", sorted(SITUATIONS))
def test_all_or_nothing(rig: Rig, name: str, whole: bool) -> None:
    """One row of the table; or what differs in it."""
    call = _prepared(rig, name)
    rig.client.config_resetstat()
    call()
    called = {name.removeprefix("cmdstat_").upper() for name in rig.client.info("commandstats")}
    expected = rig.shown()
    chosen = FAULTS if whole else _differing(called, turn=sorted(SITUATIONS).index(name))
    found = {fault: _cell(rig, name, fault, expected) for fault in chosen}
    assert {fault: cell for fault, cell in found.items() if cell != "right"} == {}


def _differing(called: set[str], turn: int) -> list[str]:
    """The column without commands that a function does not call, and with one wrong type for each key, in turn."""
    types: dict[str, list[str]] = {}
    chosen = []
    for fault in FAULTS:
        key, _, wrong = fault.partition(" is a ")
        if wrong:
            types.setdefault(key, []).append(fault)
        elif not fault.startswith("denied ") or fault.removeprefix("denied ") in called:
            chosen.append(fault)
    return chosen + [each[(turn + place) % len(each)] for place, each in enumerate(types.values())]


def _cell(rig: Rig, name: str, fault: str, expected: object) -> str:
    """One cell: the answer is what is wrong with it."""
    call, refused = _prepared(rig, name), False
    with FAULTS[fault](rig):
        before = rig.dump()
        try:
            call()
        except RedisUnavailable:
            refused = True
            if rig.dump() != before:
                return "half done"
    if refused:
        call()
    elif "full" in fault:
        return "right"  # what it did is in the stream that is gone now
    elif fault.startswith(
        ("task:e-1 is a", "key:any is a")
    ):  # an answer of its own: a dead letter, or left for the next take-over
        known = rig.admin.open_ids() | {letter["event_id"] for letter in rig.admin.dead_letters()}
        if "e-1" in known:
            return "right"
    return "right" if rig.shown() == expected else "lost or twice"


def _prepared(rig: Rig, name: str) -> Call:
    rig.admin.flush()
    rig.strong.ensure_group()
    rig.strong.announce()
    return SITUATIONS[name](rig)
