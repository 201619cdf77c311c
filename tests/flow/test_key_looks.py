"""When the places of concurrency keys are looked for, and what is written of the tasks that wait: on a clock of its
own, and with its own answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace as changed

from ottoscaler.errors import Unavailable
from ottoscaler.flow.key_waits import (
    CHECK_EVERY_S,
    LONGEST_PAUSE_S,
    NOTES_AT_ONCE,
    PAUSE_PER_KEY_S,
    SHOWN,
    KeyWaits,
)  # fmt: skip
from ottoscaler.stored import KeyPlaces, StatusUpdate
from tests.flow.ledger_driver import LedgerDriver, task

pytestmark = pytest.mark.contract("3.concurrency_key")


class Looks:
    """A ledger, the part under test, and Redis as this test says."""

    def __init__(self) -> None:
        self.driver = LedgerDriver()
        self.places: dict[str, KeyPlaces] = {}
        self.asked: list[tuple[list[str], int, bool]] = []
        self.written: list[StatusUpdate] = []
        self.broken = False
        redis: Any = SimpleNamespace(admit=self._admit, write_status=self._write)
        ledger, clock = self.driver.ledger, self.driver.clock
        self.waits = KeyWaits(leases=redis, attempts=redis, ledger=ledger, clock=clock)

    def _admit(self, keys: Sequence[str], *, shown: int, check_open: bool) -> dict[str, KeyPlaces]:
        self.asked.append((list(keys), shown, check_open))
        return {key: self.places.get(key, KeyPlaces(["x"], "t-x")) for key in keys}

    def _write(self, notes: Sequence[StatusUpdate]) -> None:
        if self.broken:
            raise Unavailable("Redis is away", unclear=True)
        self.written += notes

    def add(self, name: str, key: str = "k") -> None:
        """A task that waits for its key."""
        opened = task(name)
        self.driver.ledger.add(replace(opened, event=changed(opened.event, concurrency_key=key), holds=False))

    def look(self, after_s: float = 0.0) -> dict[str, str | None]:
        """Look after this time; what is written then, by event id."""
        self.driver.clock.advance(after_s)
        del self.written[:]
        self.waits.look()
        assert all((note.owner, note.workers) == ("c1/b1/1", {}) for note in self.written)
        notes = {note.event_id: note.task for note in self.written if note.task is not None}
        assert all(note.code == ("concurrency_key" if note.why else "") for note in notes.values())
        return {event_id: note.why for event_id, note in notes.items()}


@pytest.fixture
def looks() -> Looks:
    """Without any task."""
    return Looks()


def test_without_a_task_that_waits_nothing_is_asked(looks: Looks) -> None:
    """A key costs nothing where none is used."""
    assert looks.look() == {}
    assert looks.asked == []


def test_each_key_is_asked_for_once(looks: Looks) -> None:
    """However many tasks wait for it, in the order in which they came."""
    for name, key in (("e1", "b"), ("e2", "a"), ("e3", "b")):
        looks.add(name, key)
    looks.look()
    assert looks.asked == [(["b", "a"], SHOWN, True)]


def test_the_pause_grows_with_the_keys(looks: Looks) -> None:
    """A look at thousands of them must not keep Redis busy; and no place that is free waits much longer."""
    for number in range(1000):
        looks.add(f"e{number}", f"k{number}")
    looks.look()
    looks.look(1000 * PAUSE_PER_KEY_S - 0.01)
    assert len(looks.asked) == 1
    looks.look(0.01)
    assert len(looks.asked) == 2
    for number in range(1000, 5000):
        looks.add(f"e{number}", f"k{number}")
    looks.look(1)
    looks.look(LONGEST_PAUSE_S - 0.01)
    assert len(looks.asked) == 3
    looks.look(0.01)
    assert len(looks.asked) == 4


def test_places_that_are_not_of_open_tasks_are_looked_for_rarely(looks: Looks) -> None:
    """At the first look, and then each 30 seconds."""
    looks.add("e1")
    for after_s in (0, 1, CHECK_EVERY_S - 1.1, 0.1, 1, CHECK_EVERY_S - 1.1, 0.1):
        looks.look(after_s)
    assert [check for _, _, check in looks.asked] == [True, False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        (KeyPlaces(["x"], "t-x", ["e1"]), "waits for task t-x, which holds k, position 1"),
        (KeyPlaces(["x"], "t-x", ["e0", "e1"]), "waits for task t-x, which holds k, position 2"),
        (KeyPlaces(["x", "y"], "t-x", ["e1"]), "waits for task t-x and 1 more, which hold k, position 1"),
        (KeyPlaces(["x", "y", "z"], "t-x", ["e1"]), "waits for task t-x and 2 more, which hold k, position 1"),
        (KeyPlaces(["x"], "t-x", ["e0"]), f"waits for k, position over {SHOWN}"),
        (KeyPlaces([], "", ["e1"]), "waits for k, position 1, until all older events are accepted"),
        (KeyPlaces([], "", []), f"waits for k, position over {SHOWN}"),
        (
            KeyPlaces(readable=False),
            "waits for k: what Redis has under the name of this concurrency key is something else",
        ),
    ],
)
def test_a_task_says_what_it_waits_for(looks: Looks, places: KeyPlaces, reason: str) -> None:
    """Once, as long as that stays the same."""
    looks.add("e1")
    looks.places["k"] = places
    assert looks.look() == {"e1": reason}
    assert looks.look(1) == {}


def test_a_task_that_has_its_place_waits_for_nothing_more(looks: Looks) -> None:
    """Its worker starts; the others are at other positions, which is all that is written."""
    looks.add("e1")
    looks.add("e2")
    looks.places["k"] = KeyPlaces(["x"], "t-x", ["e1", "e2"])
    assert len(looks.look()) == 2
    assert looks.driver.ledger.take() is None
    looks.places["k"] = KeyPlaces(["e1"], "t-1", ["e2"])
    assert looks.look(1) == {"e1": "", "e2": "waits for task t-1, which holds k, position 1"}
    assert looks.driver.order(1) == ["e1/1"]
    assert looks.look(1) == {}
    assert looks.driver.ledger.take() is None


def test_of_very_many_notes_a_part_is_written_at_once(looks: Looks) -> None:
    """The rest comes with the next look, and none is forgotten."""
    for number in range(NOTES_AT_ONCE + 7):
        looks.add(f"e{number}")
    looks.places["k"] = KeyPlaces(["x"], "t-x", [])
    first = looks.look()
    assert (len(first), len(looks.look(1)), len(looks.look(1))) == (NOTES_AT_ONCE, 7, 0)
    looks.places["k"] = KeyPlaces([], "", [f"e{number}" for number in range(NOTES_AT_ONCE + 7)])
    assert [len(looks.look(1)) for _ in range(3)] == [NOTES_AT_ONCE, 7, 0]


def test_what_could_not_be_written_is_written_again(looks: Looks) -> None:
    """Any of it may be missing, so all of it; the caller learns of the outage."""
    looks.add("e1")
    looks.add("e2")
    assert len(looks.look()) == 2
    looks.places["k"] = KeyPlaces(["x"], "t-x", ["e1"])
    looks.broken = True
    with pytest.raises(Unavailable):
        looks.look(1)
    looks.broken = False
    assert set(looks.look(1)) == {"e1", "e2"}


def test_a_task_that_waits_again_says_so_again(looks: Looks) -> None:
    """After a time without any that waits, nothing is known of what was written."""
    looks.add("e1")
    assert len(looks.look()) == 1
    looks.driver.ledger.drop("e1", "c1/b1/1")
    assert looks.look(1) == {}
    looks.add("e1")
    assert len(looks.look(1)) == 1
