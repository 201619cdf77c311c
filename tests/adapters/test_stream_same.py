"""The fake stream and the real one, side by side through the same random calls: what one answers, the other answers.

The suites test the cases that an author thought of. This tests the rest, so that tests on the fake mean something.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ottoscaler.core.events import BadEvent, ScaleEvent, content_digest, parse
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim, VictimRequest
from ottoscaler.errors import RedisUnavailable
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.ports import Entry, OpenTask, RedisPorts
from ottoscaler.settings import RedisSettings
from tests.adapters.redis_admin import RedisAdmin, Server, open_stream
from tests.adapters.streams import (
    BLOCK_S,
    LEASE_S,
    RESULT_MAXLEN,
    TASK_TTL_S,
    StreamAdmin,
    note_states,
    note_why,
    result_of,
)
from tests.fakes.stream import FakeRedis, FakeStream

CONSUMERS = (("c1", "boot-1"), ("c1", "boot-2"), ("c2", "boot-1"))
#: Good ones, one sent twice, one in conflict with it, bad ones with and without an id.
EVENTS: tuple[dict[str, str], ...] = (
    {"type": "scale_up", "event_id": "a", "pod_count": "2"},
    {"type": "scale_up", "event_id": "a", "pod_count": "2"},
    {"type": "scale_up", "event_id": "a", "pod_count": "3", "reason": "other"},
    {"type": "scale_up", "event_id": "b", "pod_count": "1", "supersedes": "k", "repository": "r"},
    {"type": "scale_down", "event_id": "d", "task_id": "a"},
    {"type": "scale_up", "event_id": "b", "pod_count": "0"},
    {"type": "scale_up", "event_id": "bad", "pod_count": "0"},
    {"type": "scale_up", "event_id": "no id"},
)
TERMINATIONS = (
    Termination(EndReason.SCALED_DOWN, "asked", by="d"),
    Termination(EndReason.SCALED_DOWN, "asked", by="d", drain=True),
    Termination(EndReason.SUPERSEDED, "newer", by="b", drain=True),
    Termination(EndReason.PENDING_TIMEOUT, "late", 1),
    Termination(EndReason.UNSCHEDULABLE, "no node", 1),
    Termination(EndReason.PENDING_TIMEOUT, "late", 2),
)
REASONS = (EndReason.COMPLETED, EndReason.ERROR, EndReason.POD_DELETED, EndReason.SCALED_DOWN)
FAR_FUTURE_MS = 9_999_999_990_000


class ThreeConsumers:
    """One server with three processes on it. Each method is a step of the test; what it returns is compared."""

    def __init__(self, admin: StreamAdmin, streams: Sequence[RedisPorts]) -> None:
        self.admin = admin
        self.streams = streams
        self.sent = 0
        self.entries: list[Entry] = []
        self.tokens = ["c9/boot-9/9"]
        streams[0].ensure_group()

    def send(self, which: int) -> object:
        self.sent += 1
        return self.admin.add(EVENTS[which], f"{FAR_FUTURE_MS + self.sent}-0")

    def read(self, who: int) -> object:
        found = list(self.streams[who].read_now(2))
        self.entries += found
        return found

    def deal(self, who: int, which: int) -> object:
        """Accept or bury an entry that was read, perhaps for the second time."""
        if not self.entries:
            return None
        entry = self.entries[which % len(self.entries)]
        fields = entry.fields or {}
        event = parse(entry.stream_id, fields, 1000)
        if isinstance(event, BadEvent):
            return self.streams[who].dead_letter(entry, event)
        [task] = self.streams[who].accept([(event, content_digest(fields))], [fields])
        return self._known(task)

    def pending(self, who: int, own: bool) -> object:
        return self.streams[who].claim_pending(own=own, min_idle_s=0)

    def trim(self) -> None:
        self.admin.trim()

    def ask(self, who: int, sent: int) -> object:
        stream = self.streams[who]
        return (
            stream.last_delivered_id(),
            stream.blocker(f"{FAR_FUTURE_MS + sent}-0"),
            stream.peek("0-0", 9, block=False),
        )

    def expire(self, event_id: str) -> None:
        if event_id in self.admin.open_ids():
            self.admin.expire_lease(event_id)

    def take(self, who: int, event_id: str, same: bool, times: int) -> object:
        for _ in range(times):
            self.expire(event_id)
            self._known(self.streams[who].take_over(event_id, same_consumer=same))
        return self._known(self.streams[who].take_over(event_id, same_consumer=same))

    def lease(self, who: int, event_id: str, token: int, keep: bool) -> object:
        owners = {event_id: self._token(token)}
        if keep:
            return self.streams[who].renew(owners)
        self.streams[who].release(owners)
        return None

    def intend(self, event_id: str, index: int, attempt: int, token: int) -> object:
        owner = self._token(token)
        more = {"infra_used": attempt - 1, "oom_kills": attempt - 1}
        return self.streams[0].store_attempt(event_id, owner, index, attempt=attempt, pod="p", **more)

    def refused(self, event_id: str, index: int, attempt: int, token: int) -> object:
        return self.streams[0].store_refusal(event_id, self._token(token), index, attempt)

    def check(self, event_id: str, index: int, attempt: int, token: int) -> object:
        return self.streams[0].mark_pod_seen(event_id, self._token(token), index, attempt)

    def store_termination(self, event_id: str, index: int, termination: Termination, token: int) -> object:
        owner = None if token == 0 and termination.is_cancel else self._token(token)
        return self.streams[0].store_termination(event_id, owner, index, termination)

    def clear_termination(self, event_id: str, index: int, termination: Termination, token: int) -> object:
        return self.streams[0].clear_termination(event_id, self._token(token), index, termination)

    def record(self, event_id: str, index: int, attempt: int, reason: EndReason, started: bool, token: int) -> object:
        event = parse("1-1", {b"type": b"scale_up", b"event_id": event_id.encode()}, 9)
        assert isinstance(event, ScaleEvent)
        fields = result_of(OpenTask(event, ""), index, attempt, reason) | ({"started_at": "then"} if started else {})
        return self.streams[0].record_result(event_id, self._token(token), index, attempt=attempt, fields=fields)

    def choose(self, event_id: str, termination: Termination, count: int, token: int) -> object:
        if event_id == "a":
            return None  # it has no worker to choose
        listed = [Victim("a", 2, "p2"), Victim("b", 1, "p1"), Victim("a", 1, "p3")]
        return self.streams[0].select_victims(
            event_id, self._token(token), VictimRequest(termination, listed, count, ["s"])
        )

    def finish(self, token: int) -> object:
        return self.streams[0].finish("d", self._token(token), {"kind": "scale_down", "event_id": "d"})

    def note(self, event_id: str, index: int, token: int) -> None:
        owner = self._token(token)
        note_states(self.streams[0], event_id, owner, {index: ("running", 1, "p")})
        note_why(self.streams[0], event_id, owner, "why", "when")

    def state(self) -> object:
        """All that a caller can see, except times."""
        ids = ("a", "b", "d", "bad", "never")
        shown = [_timeless(self.admin.task(event_id), self.SHOWN) for event_id in ids]
        results = [_timeless(result) for result in self.admin.results()]
        letters = [(each["dead_reason"], each["event_id"], each["stream_id"]) for each in self.admin.dead_letters()]
        stored = [self._known(self.streams[0].reload_task(event_id)) for event_id in ids]
        mine = [sorted(stream.expired(same_consumer=same)) for stream in self.streams for same in (True, False)]
        views = sorted(self.streams[0].open_scale_ups(), key=lambda view: view.event.event_id)
        expiry = [self.admin.expires_in(event_id) is None for event_id in ids]
        known = self.streams[0].known_tasks(ids)
        counts = self.admin.pending_count(), self.admin.open_ids()
        return shown, results, letters, stored, mine, views, expiry, known, counts

    SHOWN = ("state", "task_id", "pod_count", "owner", "why", "next_at", "worker:1", "worker:2")

    def _token(self, which: int) -> str:
        """Mostly the newest; older ones are those of processes that were replaced."""
        return self.tokens[-1 - which % len(self.tokens)]

    def _known(self, task: OpenTask | BadEvent | None) -> OpenTask | BadEvent | None:
        if not isinstance(task, OpenTask):
            return task
        self.tokens.append(task.owner)
        return replace(task, received_at="")


def _timeless(fields: dict[str, str], only: Sequence[str] = ()) -> dict[str, Any]:
    """Without times; of a hash only what operators read, empty where it is not there."""
    if only:
        shown = {name: fields.get(name, "") for name in only}
        return {name: _timeless(json.loads(text)) if text.startswith("{") else text for name, text in shown.items()}
    return {name: value for name, value in fields.items() if name not in ("finished_at", "received_at")}


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A call of a method of ThreeConsumers."""
    return st.tuples(st.just(name), *arguments)


WHO, INDEX, ATTEMPT, TOKEN = st.integers(0, 2), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2)
IDS, TERMINATION, YES = st.sampled_from(["a", "a", "b", "d"]), st.sampled_from(TERMINATIONS), st.booleans()
STEPS = st.one_of(
    step("send", st.integers(0, len(EVENTS) - 1)),
    step("read", WHO),
    step("deal", WHO, st.integers(0, 3)),
    step("deal", WHO, st.integers(0, 3)),
    step("pending", WHO, YES),
    step("trim"),
    step("ask", WHO, st.integers(1, 6)),
    step("expire", IDS),
    step("take", WHO, IDS, YES, st.sampled_from([0, 1, 1, 9, 20])),
    step("lease", WHO, IDS, TOKEN, YES),
    step("intend", IDS, INDEX, ATTEMPT, TOKEN),
    step("refused", IDS, INDEX, ATTEMPT, TOKEN),
    step("check", IDS, INDEX, ATTEMPT, TOKEN),
    step("store_termination", IDS, INDEX, TERMINATION, TOKEN),
    step("clear_termination", IDS, INDEX, TERMINATION, TOKEN),
    step("record", IDS, INDEX, ATTEMPT, st.sampled_from(REASONS), YES, TOKEN),
    step("choose", IDS, st.sampled_from(TERMINATIONS[:3]), st.integers(0, 2), TOKEN),
    step("finish", TOKEN),
    step("note", IDS, INDEX, TOKEN),
)
#: Where most examples should begin: everything sent and accepted.
PREAMBLE: list[tuple[Any, ...]] = [("send", 0), ("send", 3), ("read", 0), ("deal", 0, 1), ("deal", 0, 0)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded server."""
    started = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    started.start()
    yield Server(RedisSettings(host=started.host, port=started.port, block_ms=int(BLOCK_S * 1000)), ours=True)
    started.close()


def attempt(side: ThreeConsumers, name: str, arguments: Sequence[Any]) -> object:
    """What a step answers; that the server refused is an answer as well."""
    try:
        return getattr(side, name)(*arguments)
    except RedisUnavailable:
        return "unavailable"


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@example(prepared=True, steps=[("intend", "a", 1, 1, 0), ("note", "a", 1, 0)])
@given(prepared=st.booleans(), steps=st.lists(STEPS, max_size=40))
def test_the_fake_answers_like_the_real_one(server: Server, prepared: bool, steps: list[tuple[Any, ...]]) -> None:
    """Each answer, and in the end all that can be seen."""
    _compare(server, prepared, steps)


@pytest.mark.full
@pytest.mark.timeout(300)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(prepared=st.booleans(), steps=st.lists(STEPS, max_size=40))
def test_the_fake_answers_like_the_real_one_for_longer(
    server: Server, prepared: bool, steps: list[tuple[Any, ...]]
) -> None:
    """The same, for longer than `make test` may take."""
    _compare(server, prepared, steps)


def _compare(server: Server, prepared: bool, steps: list[tuple[Any, ...]]) -> None:
    fake = FakeRedis(result_maxlen=RESULT_MAXLEN, task_ttl_s=TASK_TTL_S)
    fakes = [FakeStream(fake, name, incarnation=incarnation, lease_s=LEASE_S) for name, incarnation in CONSUMERS]
    with ExitStack() as stack:
        admin = RedisAdmin(stack.enter_context(server.client()))
        stack.callback(admin.flush)
        streams = [
            stack.enter_context(closing(open_stream(server, admin, name, incarnation=incarnation)))
            for name, incarnation in CONSUMERS
        ]
        sides = ThreeConsumers(fake, fakes), ThreeConsumers(admin, streams)
        for name, *arguments in [*(PREAMBLE if prepared else []), *steps, ("state",)]:
            left, right = (attempt(side, name, arguments) for side in sides)
            assert left == right, name
