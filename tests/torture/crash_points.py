"""Where a controller can be made to die: after each call that writes, and after each that decides what is written next.

All that a controller does to the world goes through two adapters, so the points are laid around them from outside. The
program itself knows nothing of this: there is no switch in it that could be left on.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.victim_selection import VictimSelection
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.ports import CreateOutcome, KeyPlaces, ScriptReply, ScriptStatus

#: The points of a call, from its arguments by name and its answer.
Namer = Callable[[Mapping[str, Any], Any], Iterator[str]]


def _always(name: str) -> Namer:
    return lambda arguments, answer: iter((name,))


def _if_any(name: str) -> Namer:
    """Only if there was something in the answer."""
    return lambda arguments, answer: iter((name,) if answer else ())


def _on(fates: Mapping[ScriptStatus, str]) -> Namer:
    return lambda arguments, answer: iter((fates[answer.status],) if answer.status in fates else ())


def _pending(arguments: Mapping[str, Any], answer: Any) -> Iterator[str]:
    if answer:
        yield "own pending read" if arguments["own"] else "pending claimed"


def _accepted(arguments: Mapping[str, Any], answer: Any) -> Iterator[str]:
    yield "accepted" if any(answer) else "duplicate accepted"


def _admitted(arguments: Mapping[str, Any], answer: Mapping[str, KeyPlaces]) -> Iterator[str]:
    if any(places.holding for places in answer.values()):
        yield "places given"


def _renewed(arguments: Mapping[str, Any], answer: Any) -> Iterator[str]:
    if arguments["owners"]:
        yield "renewed"


def _terminated(arguments: Mapping[str, Any], answer: ScriptReply) -> Iterator[str]:
    if answer.status is ScriptStatus.OK:
        yield "mark stored" if arguments["owner"] is None else "terminated"


def _chosen(arguments: Mapping[str, Any], answer: Any) -> Iterator[str]:
    if isinstance(answer, VictimSelection):
        yield "superseded" if arguments["claim"].termination.reason is EndReason.SUPERSEDED else "victims stored"


def _recorded(arguments: Mapping[str, Any], answer: ScriptReply) -> Iterator[str]:
    if answer.status is ScriptStatus.OK:
        yield "recorded"
        if answer.task_result_message:
            yield "last result"


def _created(arguments: Mapping[str, Any], answer: Any) -> Iterator[str]:
    if isinstance(answer, ClusterUnavailable):
        yield "create unclear" if answer.unclear else "create refused"
    else:
        yield "create in conflict" if answer is CreateOutcome.ALREADY_THERE else "created"


def _looked(arguments: Mapping[str, Any], answer: Any) -> Iterator[str]:
    yield "found absent" if answer is None else "adopted"


def _deleted(arguments: Mapping[str, Any], answer: bool) -> Iterator[str]:
    if arguments["resource_version"] is None:
        yield "deleted"
    else:
        yield "killed" if answer else "killed too late"


#: Points before a call: what was seen or decided is lost with the process.
BEFORE: Final[Mapping[str, str]] = {
    "record_result": "terminal seen",
    "release": "releasing",
    "finish": "victims gone",
}
#: Points after a call on Redis.
AFTER_STREAM: Final[Mapping[str, Namer]] = {
    "read": _if_any("read"),
    "read_now": _if_any("read ahead"),
    "claim_pending": _pending,
    "accept": _accepted,
    "dead_letter": _always("buried"),
    "store_attempt": _on({ScriptStatus.OK: "intended", ScriptStatus.CANCELLED: "intend cancelled"}),
    "mark_pod_seen": _always("checked"),
    "store_refusal": _always("refusal noted"),
    "store_termination": _terminated,
    "clear_termination": _always("withdrawn"),
    "record_result": _recorded,
    "select_victims": _chosen,
    "finish": _always("scale_down finished"),
    "renew": _renewed,
    "take_over": _if_any("taken over"),
    "admit": _admitted,
    "release": _always("released"),
    "restore": _always("restored"),
    "rebuild_from_pods": _always("taken up from pods"),
}
#: Points after a call on Kubernetes.
AFTER_CLUSTER: Final[Mapping[str, Namer]] = {"create": _created, "get": _looked, "delete": _deleted}

#: Two points that only a wiped Redis leads to: a scenario of their own, since results may repeat there.
WIPED: Final = ("restored", "taken up from pods")
#: Points on the way out: they need a stop in order.
STOPPING: Final = ("releasing", "released")
#: Points that an ordinary run cannot be made to reach; where they are met, they are used.
RARE: Final = (
    "create in conflict",
    "killed too late",
    "withdrawn",
    "intend cancelled",
    "pending claimed",
    "mark stored",
    "places given",
)
#: Points that each run has to reach.
USUAL: Final = (
    "read", "own pending read", "accepted", "duplicate accepted", "buried", "intended", "create unclear",
    "create refused", "refusal noted", "created", "found absent", "adopted", "checked", "terminal seen", "terminated",
    "killed", "recorded", "last result", "deleted", "renewed", "taken over", "read ahead", "victims stored",
    "victims gone", "scale_down finished", "superseded", *STOPPING,
)  # fmt: skip


class Crash:
    """Counts visits, and ends the process at the one that was asked for. Any thread."""

    def __init__(self, armed: Mapping[str, int], note: Path) -> None:
        """`armed` is the number of visits that each point has; at the last, its name is written to `note`."""
        self._left = dict(armed)  # guarded by _lock
        self._note = note
        self._lock = threading.Lock()

    def visit(self, point: str) -> None:
        """The process is at this point. Does not return if it is the time to die."""
        with self._lock:
            if point not in self._left:
                return
            self._left[point] -= 1
            if self._left[point]:
                return
            self._note.write_text(point, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)


def with_crash_points(crash: Crash) -> tuple[type[RedisBackend], type[KubeCluster]]:
    """The two adapters with points around their calls."""
    stream = {name: _wrapped(getattr(RedisBackend, name), AFTER_STREAM[name], crash) for name in AFTER_STREAM}
    cluster = {name: _wrapped(getattr(KubeCluster, name), AFTER_CLUSTER[name], crash) for name in AFTER_CLUSTER}
    return type("RedisBackend", (RedisBackend,), stream), type("KubeCluster", (KubeCluster,), cluster)


def _wrapped(method: Callable[..., Any], after: Namer, crash: Crash) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named)
        given.apply_defaults()
        if method.__name__ in BEFORE:
            crash.visit(BEFORE[method.__name__])
        try:
            answer = method(*arguments, **named)
        except ClusterUnavailable as error:
            if method.__name__ == "create":
                _visit(crash, after(given.arguments, error))
            raise
        _visit(crash, after(given.arguments, answer))
        return answer

    return call


def _visit(crash: Crash, points: Iterator[str]) -> None:
    for point in points:
        crash.visit(point)
