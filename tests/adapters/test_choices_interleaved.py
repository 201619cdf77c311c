"""Choices of victims in any interleaving: several replicas, drains, supersedes, ends, take-overs and deaths.

On a real Redis and on the fake. Each replica reads the workers, and chooses later: what it read may be old by then. In
the end as many workers have ended as were asked for and there were, each by one event, in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ottoscaler.core.events import EventType
from ottoscaler.core.termination import Termination
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import Victim, VictimRequest, VictimSelection
from ottoscaler.ports import OpenTask, RedisPorts
from tests.adapters.redis_admin import RedisAdmin, Server, local_server, open_stream
from tests.adapters.streams import LEASE_S, StreamAdmin, accept, record
from tests.fakes.stream import FakeRedis, FakeStream

WORKERS = 6
REPLICAS = 3


@dataclass
class Asked:
    """An event that chooses, as the test knows it: how many it asks for (0: all), and what it got."""

    task: OpenTask
    count: int
    victims: list[tuple[str, int]] | None = None
    could: int = 0


@dataclass
class ChoosingReplicas:
    """One Redis with the replicas on it."""

    admin: StreamAdmin
    streams: Sequence[RedisPorts]
    ups: dict[str, OpenTask] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    claims: dict[str, VictimRequest] = field(default_factory=dict)
    ended: dict[tuple[str, int], str] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.streams[0].ensure_group()
        self._accept(0, event_id="e-0", supersedes="k", pod_count=str(WORKERS))
        self.choose(0, 0)

    def _accept(self, who: int, **fields: str) -> None:
        self.admin.add({"type": "scale_up", **fields})
        for entry in self.streams[who].read_now(1):
            task = accept(self.streams[who], entry)
            assert isinstance(task, OpenTask)
            if task.event.type is EventType.SCALE_UP:
                self.ups[task.event.event_id] = task
            if task.selection_pending:
                count = task.event.pod_count if task.event.type is EventType.SCALE_DOWN else 0
                self.asked[task.event.event_id] = Asked(task, count)

    def down(self, who: int, count: int, drain: bool) -> None:
        name = f"d-{len(self.asked)}"
        fields = {"type": "scale_down", "event_id": name, "mode": "drain" if drain else "kill"}
        self._accept(who, **fields, **({"pod_count": str(count)} if count else {"task_id": "e-0"}))

    def supersede(self, who: int) -> None:
        self._accept(who, event_id=f"e-{len(self.asked)}", supersedes="k")

    def read(self, which: int) -> None:
        """A replica looks at the workers, in its order of preference; it is to choose later."""
        if not self.asked:
            return
        event_id = list(self.asked)[which % len(self.asked)]
        event = self.asked[event_id].task.event
        if self.streams[0].blocker(event.stream_id) is not None:
            return
        reason = EndReason.SCALED_DOWN if event.type is EventType.SCALE_DOWN else EndReason.SUPERSEDED
        found = [
            Victim(name, index)
            for name, up in self.ups.items()
            if name != event_id and _id(up.event.stream_id) < _id(event.stream_id)
            for index in range(1, up.event.pod_count + 1)
        ]
        termination = Termination(reason, "asked", drain=reason is EndReason.SUPERSEDED, by=event_id)
        self.claims[event_id] = VictimRequest(
            termination, found[::-1] if which % 2 else found, self.asked[event_id].count
        )

    def choose(self, which: int, who: int) -> None:
        """A replica chooses by what it had read, perhaps for the second time."""
        self.read(which) if which == 0 and not self.claims else None
        if not self.claims:
            return
        event_id = list(self.claims)[which % len(self.claims)]
        one, claim = self.asked[event_id], self.claims[event_id]
        free = [(each.event_id, each.index) for each in claim.candidates if self._is_free(each)]
        answer = self.streams[who].select_victims(event_id, one.task.owner, claim)
        if isinstance(answer, VictimSelection) and one.victims is None:
            one.victims, one.could = [(each.event_id, each.index) for each in answer.victims], len(free)
            self.order.append(event_id)

    def _is_free(self, victim: Victim) -> bool:
        taken = {worker for one in self.asked.values() for worker in one.victims or ()}
        return (victim.event_id, victim.index) not in taken and (victim.event_id, victim.index) not in self.ended

    def end(self, which: int) -> None:
        """A worker ends by itself, or because a scale_down ended it."""
        workers = [(name, i) for name, up in self.ups.items() for i in range(1, up.event.pod_count + 1)]
        name, index = workers[which % len(workers)]
        waits = name in self.asked and self.asked[name].victims is None  # a task that ends first would never choose
        if (name, index) not in self.ended and not waits:
            record(self.streams[0], self.ups[name], index, attempt=1, reason=EndReason.ERROR)
            self.ended[name, index] = "ended"

    def take_over(self, which: int, who: int) -> None:
        """The owner of a choice dies; another replica goes on, and does not know what was read."""
        if self.asked:
            event_id = list(self.asked)[which % len(self.asked)]
            if event_id in self.admin.open_ids():
                self.admin.expire_lease(event_id)
                task = self.streams[who].take_over(event_id, same_consumer=False)
                if isinstance(task, OpenTask):
                    self.asked[event_id].task = task
                    self.claims.pop(event_id, None)
                    self.ups.update({event_id: task} if event_id in self.ups else {})

    def finish(self) -> None:
        """All choose what they have still to choose."""
        for _ in range(len(self.asked) + 1):
            for number in range(len(self.asked)):
                self.read(number)
            for number in range(len(self.claims)):
                self.choose(number, 0)

    def check(self) -> None:
        taken: dict[tuple[str, int], str] = {}
        for event_id, one in self.asked.items():
            assert one.victims is not None, f"{event_id} has not chosen"
            assert len(one.victims) == (min(one.count, one.could) if one.count else one.could)
            for worker in one.victims:
                assert taken.setdefault(worker, event_id) == event_id, f"{worker} is a victim of two"
        assert self.order == sorted(self.order, key=lambda name: _id(self.asked[name].task.event.stream_id))
        for (name, index), by in taken.items():
            stored = self.streams[0].stored_workers([Victim(name, index)])[0]
            assert stored is not None
            assert stored.termination is not None
            assert stored.termination.by == by


def _id(stream_id: str) -> tuple[int, ...]:
    return tuple(map(int, stream_id.split("-")))


WHO, SMALL = st.integers(0, REPLICAS - 1), st.integers(0, 9)
STEPS = st.one_of(
    st.tuples(st.just("down"), WHO, st.integers(0, 4), st.booleans()),
    st.tuples(st.just("supersede"), WHO),
    st.tuples(st.just("read"), SMALL),
    st.tuples(st.just("read"), SMALL),
    st.tuples(st.just("choose"), SMALL, WHO),
    st.tuples(st.just("choose"), SMALL, WHO),
    st.tuples(st.just("end"), SMALL),
    st.tuples(st.just("take_over"), SMALL, WHO),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded server."""
    with local_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.mark.contract("3.pod_count")
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=30))
def test_as_many_end_as_were_asked_for_and_there_were(server: Server, steps: list[tuple[Any, ...]]) -> None:
    """Whichever replica chooses when, by whatever it believed: on the fake, and on the server."""
    _play(server, steps)


@pytest.mark.full
@pytest.mark.timeout(300)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=30))
def test_as_many_end_in_more_interleavings(server: Server, steps: list[tuple[Any, ...]]) -> None:
    """The same, for longer than `make test` may take."""
    _play(server, steps)


def _play(server: Server, steps: list[tuple[Any, ...]]) -> None:
    fake = FakeRedis()
    with ExitStack() as stack:
        admin = RedisAdmin(stack.enter_context(server.client()))
        stack.callback(admin.flush)
        names = [f"c{number}" for number in range(REPLICAS)]
        real = [stack.enter_context(closing(open_stream(server, admin, name, incarnation="b"))) for name in names]
        sides = (
            ChoosingReplicas(fake, [FakeStream(fake, name, incarnation="b", lease_s=LEASE_S) for name in names]),
            ChoosingReplicas(admin, real),
        )
        for side in sides:
            side.begin()
            for name, *arguments in steps:
                getattr(side, name)(*arguments)
            side.finish()
            side.check()
