"""What lies between one process and a server: requests get lost, come late or twice, and take their time.

A mishap is given for the n-th request of a kind in what is done next; everything after it, and all that others do
meanwhile, goes well. So a plan is a few small values, which hypothesis can choose and shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ottoscaler.errors import ClusterUnavailable, Unavailable
from ottoscaler.ports import WatchEvent

if TYPE_CHECKING:
    from tests.simulation.replica import Replica
    from tests.simulation.world import World

#: What may happen to a request.
MISHAPS = (
    "meanwhile",  # others act before it arrives, its own process too: the network is slow
    "asleep",  # others act before it arrives: its whole process is stopped
    "afterwards",  # others act before its answer arrives
    "lost",  # it never arrives
    "unanswered",  # it is carried out, and the answer is lost
    "late",  # its sender gives up; it arrives at some other time
    "twice",  # it is sent again
    "refused",  # the server says: not now
    "crash",  # the process dies just before it
    "died",  # the process dies just after it
    "defect",  # our own code raises instead
)
#: Requests that change nothing: there is no need to let them arrive late.
#: Where something may happen to a request: each of these in turn is likelier to be met than the n-th of all.
KINDS = (
    "*", "announce", "owned", "read", "claim_pending", "accept", "dead_letter", "renew", "expired", "take_over",
    "release",
    "store_attempt", "create", "get", "mark_pod_seen", "store_termination", "clear_termination", "record_result",
    "delete",
    "store_refusal", "select_victims", "admit",
    "finish", "stored_workers", "blocker", "reload_task", "known_tasks", "list", "watch", "pod_events",
    "restore", "rebuild_from_pods",
)  # fmt: skip
_READS = frozenset(
    {
        "peek",
        "last_delivered_id",
        "blocker",
        "reload_task",
        "open_scale_ups",
        "known_tasks",
        "stored_workers",
        "owned",
        "list",
        "get",
        "pod_events",
    }
)

#: A kind of happening, the number of its replica or pod, and how it goes: `World.act` knows what they mean.
Move = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Mishap:
    """What happens to the `at`-th request of a kind (`*`: of any), and what others do meanwhile."""

    kind: str
    at: int
    what: str
    moves: tuple[Move, ...] = ()


class Crash(BaseException):
    """The process is gone in the middle of what it did. No `except Exception` of ours may hold it up."""


class Defect(RuntimeError):
    """What our own code raises in the simulation."""


class Link:
    """A port of one process, as its client sees it. `error` is what the client makes of a failure."""

    def __init__(self, port: Any, world: World, replica: Replica, error: type[Unavailable]) -> None:
        self._port = port
        self._world = world
        self._replica = replica
        self._error = error

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name in ("watch", "close"):
            return self._watch if name == "watch" else method
        return lambda *args, **kwargs: self._call(name, args, lambda: method(*args, **kwargs))

    def _call(self, name: str, args: Sequence[Any], request: Callable[[], Any]) -> Any:
        if name == "store_attempt" and args[0] in self._world.cursed:
            raise Defect(f"event {args[0]} is too much for us")
        mishap = self._before(name)
        if mishap.what == "late" and name not in _READS:
            self._world.hold(self._replica, name, request)
        if mishap.what in ("late", "lost"):
            raise self._error(f"{name}: no answer")
        with self._world.acting(self._replica):
            answer = request()
            if mishap.what == "twice":
                answer = request()
        self._after(mishap)
        return answer

    def _watch(self, version: str) -> Iterator[WatchEvent]:
        """A watch reports what there is by now, and may end, or break off, after any event."""
        mishap = self._before("watch")
        if mishap.what in ("late", "lost"):
            raise self._error("watch: no answer")
        for event in self._port.watch(version):
            yield event
            self._after(mishap)
            if mishap.what == "twice":
                return
            mishap = NOTHING

    def _before(self, name: str) -> Mishap:
        """What happens before the request arrives; returns what is to happen to it."""
        world, replica = self._world, self._replica
        replica.check_alive()
        mishap = world.next_mishap(name)
        if mishap.what:
            world.note(f"{replica.name} {name}: {mishap.what}")
        if mishap.what == "crash":
            replica.crash()
        elif mishap.what == "defect":
            raise Defect(f"in {name}")
        elif mishap.what in ("meanwhile", "asleep"):
            replica.asleep = mishap.what == "asleep"
            world.meanwhile(mishap.moves)
            replica.asleep = False
        replica.check_alive()
        is_cluster = self._error is ClusterUnavailable
        if mishap.what == "refused" or (is_cluster and world.kube_down):
            raise self._error(f"{name}: not now", retry_after_s=1.0 if is_cluster else None, unclear=False)
        return mishap

    def _after(self, mishap: Mishap) -> None:
        """What happens before the answer is there."""
        if mishap.what == "died":
            self._replica.crash()
        elif mishap.what == "afterwards":
            self._world.meanwhile(mishap.moves)
        self._replica.check_alive()
        if mishap.what == "unanswered":
            raise self._error("the answer was lost")


#: All goes well.
NOTHING = Mishap("", 0, "")
