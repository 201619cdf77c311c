"""Many leases in one renewal: in parts that one script can take, and some scripts in one trip."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ottoscaler.adapters.leases import RedisLeases
from ottoscaler.adapters.scripts import ScriptCall


class Server:
    """Stands in for Redis: notes each trip, and answers a task as its name begins."""

    consumer, incarnation, lease_ms = "c1", "b1", 15000
    leasing = taking = object()
    key = SimpleNamespace(task="task:{}".format, consumer="consumer:{}".format)

    def __init__(self) -> None:
        self.trips: list[list[int]] = []
        self.released: list[str] = []

    def run(self, name: str, keys: list[str], *arguments: Any, client: object) -> bytes:
        if name == "release":
            assert keys == [f"task:{event_id}" for event_id in arguments[::2]]
            self.released += [f"{event_id}={owner}" for event_id, owner in zip(*[iter(arguments)] * 2, strict=True)]
        return b""

    def run_many(self, client: object, calls: list[ScriptCall]) -> list[list[tuple[bytes, bytes, bytes]]]:
        self.trips.append([len(call.keys) for call in calls])
        return [[self.answer(*task) for task in zip(call.keys, *self.flat(call), strict=True)] for call in calls]

    @staticmethod
    def flat(call: ScriptCall) -> tuple[Any, ...]:
        lease_ms, *flat = call.arguments
        assert (call.function, lease_ms) == ("renew", 15000)
        return flat[::3], flat[1::3], flat[2::3]

    @staticmethod
    def answer(key: str, event_id: str, owner: str, at_work: int) -> tuple[bytes, bytes, bytes]:
        assert (key, owner) == (f"task:{event_id}", f"owner of {event_id}")
        number = event_id.partition("-")[2].encode()
        if event_id.startswith("ok"):
            return b"ok", number, b"1500" if at_work else b""
        return (b"lost", b"c2/" + number, b"") if event_id.startswith("lost") else (b"forgotten", b"", b"")


@pytest.mark.parametrize(
    ("count", "trips"),
    [
        (0, []), (1, [[1]]), (200, [[200]]), (201, [[200, 1]]), (2000, [[200] * 10]), (2001, [[200] * 10, [1]]),
        (4300, [[200] * 10, [200] * 10, [200, 100]]),
    ],
)  # fmt: skip
def test_each_of_many_leases_has_its_own_answer(count: int, trips: list[list[int]]) -> None:
    """Whichever part it is in; what is left until not_after is in seconds, and missing where there is none."""
    server, kinds = Server(), ("ok", "lost", "gone", "ok")
    names = [f"{kinds[number % 4]}-{number}" for number in range(count)]
    owners = {name: f"owner of {name}" for name in names}
    at_work = {name for name in names if name.startswith("ok") and name.endswith("3")}
    renewal = RedisLeases(server).renew(owners, at_work)  # type: ignore[arg-type]
    assert server.trips == trips
    assert renewal.cancel_counts == {name: int(name[3:]) for name in names if name.startswith("ok")}
    assert renewal.lost == {name: f"c2/{name[5:]}" for name in names if name.startswith("lost")}
    assert renewal.forgotten == [name for name in names if name.startswith("gone")]
    assert renewal.left_s == dict.fromkeys(at_work, 1.5)
    assert not renewal.replaced
    RedisLeases(server).release(owners)  # type: ignore[arg-type]
    assert server.released == [f"{name}=owner of {name}" for name in names]
