"""The protocol against a handler and a network that do what the interface allows: each line comes once, in order, or is
counted as dropped, and the account at the end is right.
"""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from ottoscaler.forwarder.entries import WorkerIdentity
from ottoscaler.forwarder.limits import Limits
from ottoscaler.forwarder.worker_stream import Status, WorkerStream
from tests.forwarder.handler_model import Store, decoded, lines

#: How a handler answers what it has taken.
ECHO, CUMULATIVE, POSITIONAL = "echo", "cumulative", "positional"
STEP_S = 0.5
#: Steps that hypothesis decides; after those handler and network are good.
DECIDED = 60
MANY = 600


class World:
    """A sender, a wire in both directions that can be cut, and a handler."""

    def __init__(self, data: st.DataObject, how: str, limits: Limits, count: int) -> None:
        self.data, self.how, self.limits = data, how, limits
        self.store = Store()
        self.stream = WorkerStream(WorkerIdentity("w-1", "t-1"), random=lambda: 0.5)
        self.lines = deque(lines(*(f"line {number}" for number in range(count))))
        self.offered = 0
        self.now, self.steps = 0.0, 0
        self.there: deque[bytes] = deque()  # on the way to the handler
        self.back: deque[tuple[Status, int]] = deque()
        self.connected = False
        self.statuses: list[tuple[Status, int]] = []  # owed by a cumulative handler

    def choose(self, *options: object) -> object:
        return options[0] if self.steps > DECIDED else self.data.draw(st.sampled_from(options))

    def run(self) -> None:
        while not self.stream.done:
            self.steps += 1
            assert self.steps < MANY
            self.now += STEP_S
            self.step(str(self.choose("go", "go", "go", "cut", "idle")))

    def step(self, action: str) -> None:
        for _ in range(int(str(self.choose(3, 0, 20)))):
            if self.lines:
                self.stream.offer(self.lines.popleft())
                self.offered += 1
        if not self.lines:
            self.stream.finish("end")
        if action == "cut" or (self.connected and self.stream.is_overdue(self.now)):
            self.cut()
        if action == "go":
            self.go()

    def cut(self) -> None:
        """What is on the way may arrive all the same; answers that are on the way do not."""
        for _ in range(int(str(self.choose(0, 1, 5)))):
            self.deliver()
        self.there.clear()
        self.back.clear()
        self.connected = False
        self.stream.cut()

    def go(self) -> None:
        if not self.connected:
            self.connected = True
            self.stream.connected(self.limits, self.store.last_sequence, self.now)
        while message := self.stream.take(self.now):
            assert len(message) <= self.limits.batch
            self.there.extend(message)
        for _ in range(int(str(self.choose(50, 0, 1, 7)))):
            self.deliver()
        self.answer_all()
        for _ in range(int(str(self.choose(50, 0, 3)))):
            if self.back:
                self.stream.answered(*self.back.popleft(), self.now)

    def deliver(self) -> None:
        if self.there:
            (entry,) = decoded([self.there.popleft()])
            status = self.choose(Status.ACK, Status.ACK, Status.ACK, Status.ACK, Status.RETRY, Status.DROP)
            if entry.sequence in self.store.entries:
                status = Status.ACK
            elif entry.sequence in self.store.dropped:
                status = Status.DROP  # as it was answered before
            assert isinstance(status, Status)
            self.store.take(entry, status)
            self.back_or_later(status, entry.sequence)

    def back_or_later(self, status: Status, sequence: int) -> None:
        if self.how == POSITIONAL:
            self.back.append((status, 0))
        elif self.how == CUMULATIVE and status is Status.ACK:
            self.statuses = [(status, sequence)]
        else:
            self.answer_all()
            self.back.append((status, sequence))

    def answer_all(self) -> None:
        self.back.extend(self.statuses)
        self.statuses = []


@settings(max_examples=150)
@given(
    data=st.data(),
    how=st.sampled_from([ECHO, CUMULATIVE, POSITIONAL]),
    buffer=st.sampled_from([1, 2, 7, 1000]),
    batch=st.sampled_from([1, 3, 100]),
    rate=st.sampled_from([0, 20]),
    count=st.integers(0, 60),
)
def test_each_line_comes_once_or_is_counted(
    data: st.DataObject, how: str, buffer: int, batch: int, rate: int, count: int
) -> None:
    """Whatever is cut, refused, dropped or answered late."""
    limits = Limits(rate=rate, buffer=buffer, batch=batch)
    world = World(data, how, limits, count)
    world.run()
    store, account = world.store, world.stream.account
    found = store.texts()
    numbers = [int(text.split()[1]) for text in found]
    assert numbers == sorted(set(numbers))
    assert account.lines == count == world.offered
    if account.ended:
        end = store.end
        assert end is not None
        assert (end.end.lines, end.end.dropped) == (count, account.dropped)
        assert end.sequence == max(store.entries)
    # nothing is taken for acknowledged that the handler has not got, or dropped with an answer that was lost
    assert len(found) + len(store.dropped) >= account.acknowledged
    assert len(found) + account.dropped >= count - len(store.dropped)
    remarks = [entry for entry in store.entries.values() if entry.metadata.get("dropped")]
    assert sum(int(entry.metadata["dropped"]) for entry in remarks) <= account.dropped
