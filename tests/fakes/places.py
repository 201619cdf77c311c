"""The places of concurrency keys in the fake Redis: who holds one, and who gets the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ottoscaler.core.events import ScaleEvent
from ottoscaler.stored import KeyPlaces


@dataclass(slots=True)
class Place:
    """An open task of a key: where its entry stands in the stream, its limit, whether it holds a place."""

    event: ScaleEvent
    order: tuple[int, int]
    holds: bool


@dataclass
class Places:
    """By key and event id. `is_open` and `is_preceded` are asked of the server."""

    is_open: Callable[[str], bool]
    is_preceded: Callable[[tuple[int, int]], bool]
    _keys: dict[str, dict[str, Place]] = field(default_factory=dict)

    def put(self, event: ScaleEvent, order: tuple[int, int], *, holds: bool) -> None:
        """A task of a key is stored."""
        if event.concurrency_key:
            self._keys.setdefault(event.concurrency_key, {})[event.event_id] = Place(event, order, holds)

    def join(self, event: ScaleEvent, order: tuple[int, int]) -> None:
        """A new task: it holds a place at once where none waits, and it may."""
        waiting = any(not place.holds for place in self._of(event.concurrency_key))
        self.put(event, order, holds=False)
        if event.concurrency_key and not waiting:
            self.admit(event.concurrency_key)

    def leave(self, event: ScaleEvent) -> None:
        """The task is closed: the next get its place."""
        if event.concurrency_key and self._keys.get(event.concurrency_key, {}).pop(event.event_id, None):
            self.admit(event.concurrency_key)

    def holds(self, event: ScaleEvent) -> bool:
        """May the task's workers start?"""
        if not event.concurrency_key:
            return True
        place = self._keys.get(event.concurrency_key, {}).get(event.event_id)
        return place is not None and place.holds

    def keep(self, event: ScaleEvent, order: tuple[int, int], *, started: bool) -> None:
        """Its key was removed by a person: a worker was created only with a place."""
        if event.event_id not in self._keys.get(event.concurrency_key, {}):
            self.put(event, order, holds=started)

    def admit(self, key: str, *, shown: int = 0, check_open: bool = False) -> KeyPlaces:
        """Places for those that wait, in the order of the stream."""
        for place in self._of(key):
            if not self.is_open(place.event.event_id) and (check_open or not place.holds):
                del self._keys[key][place.event.event_id]
        for place in [place for place in self._of(key) if not place.holds]:
            holders = [other for other in self._of(key) if other.holds]
            least = min(other.event.concurrency_limit for other in [*holders, place])
            if len(holders) >= least or self.is_preceded(place.order):
                break
            place.holds = True
        holding = [place.event for place in self._of(key) if place.holds]
        waiting = [place.event.event_id for place in self._of(key) if not place.holds][:shown]
        first = holding[0].task_id if holding else ""
        return KeyPlaces([event.event_id for event in holding], first, waiting)

    def drop(self, key: str) -> None:
        """Forget a key."""
        self._keys.pop(key, None)

    def by_key(self) -> dict[str, list[ScaleEvent]]:
        """Who holds a place of which key; for what a test has to see."""
        return {key: [place.event for place in self._of(key) if place.holds] for key in self._keys}

    def _of(self, key: str) -> list[Place]:
        return sorted(self._keys.get(key, {}).values(), key=lambda place: place.order)
