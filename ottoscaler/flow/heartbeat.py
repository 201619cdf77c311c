"""Signs of life of the process: when each loop last did something, how each server last answered, and how often a
worker made progress.

Only noted here; what is too old is decided in health.py. A loop is known by the name of its thread, so that the clients
of the servers and the retries, which know no loop, can note for whichever is calling them.

Ages are counted in time that this process was awake: between two looks at the clock at most SUSPEND_GAP_S counts. A
process that was stopped as a whole (SIGSTOP, a paused machine) would otherwise wake up with old signs of life, and the
kubelet would restart it at once although each loop is about to go on. Every sign and every probe is a look, so in a
process that runs nothing is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

from ottoscaler import logs
from ottoscaler.ports import Clock

#: More than a probe's usual period, and little enough beside FROZEN_S that a loop which was in the middle of its
#: longest wait has time to come round.
SUSPEND_GAP_S: Final = 10.0
REDIS: Final = "Redis"
KUBERNETES: Final = "Kubernetes"
#: The log has no line of the end of an outage that was shorter than this, seconds: one call that failed and was
#: repeated at once, of hundreds in flight, is no outage.
SHORTEST_OUTAGE_S: Final = 1.0

_NOT_REACHED: Final = "not reached yet"
#: The end of an outage in the log: the line's name, and how the server is called there.
_BACK: Final = {REDIS: ("redis.back", "Redis"), KUBERNETES: ("kubernetes.back", "The API server")}
_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class HealthFinding:
    """What is wrong, since when (seconds since the epoch), and for how long the process was awake meanwhile."""

    what: str
    reason: str
    since: float
    lasted_s: float


@dataclass(frozen=True, slots=True)
class _Sign:
    """A moment by both clocks, and what was wrong then."""

    at: float
    awake_s: float
    reason: str = ""


class Heartbeat:
    """Signs of life. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = clock.now()
        #: A worker got a step further. Many threads call it: one step of the interpreter, and no lock to wait for.
        self.progressed: Callable[[], int] = count(1).__next__
        # all guarded by _lock
        self._awake_s = 0.0
        self._beats: dict[str, _Sign] = {}
        self._failures: dict[str, _Sign] = {}
        start = self._current_sign()
        self._servers = {name: replace(start, reason=_NOT_REACHED) for name in (REDIS, KUBERNETES)}
        self._phase = replace(start, reason="starting")
        self._stalled_since = start
        self._steps_seen = 0
        self._worked = False

    # -- loops

    def add_loop(self, name: str) -> None:
        """Register a loop: from now on its heartbeat is expected."""
        with self._lock:
            self._beats[name] = self._current_sign()

    def is_loop(self) -> bool:
        """Is the calling thread a registered loop? Its requests do not queue behind those of workers."""
        return threading.current_thread().name in self._beats

    def beat(self) -> None:
        """The loop that calls has finished an iteration."""
        name = threading.current_thread().name
        with self._lock:
            if name in self._beats:
                self._beats[name] = self._current_sign()
                self._failures.pop(name, None)

    def report_failure(self, reason: str) -> None:
        """An iteration of the loop that calls failed, and this was handled: a sign of life all the same."""
        name = threading.current_thread().name
        with self._lock:
            if name in self._beats:
                now = self._beats[name] = self._current_sign()
                first = self._failures.get(name, now)
                self._failures[name] = replace(first, reason=reason)

    # -- servers

    def report_call(self, server: str, error: str = "") -> None:
        """A call was answered, or failed with this error. It is a sign of life of the loop that made it, too."""
        name = threading.current_thread().name
        if not error and server not in self._servers and name not in self._beats:
            # As good as always, and several times for each worker: nothing is to be changed, so the lock is not taken,
            # for which thousands of threads would wait. A failure that comes in between stays until the next answer.
            return
        with self._lock:
            now = self._current_sign()
            # Worker threads make calls too: added here, they would count as loops that hang as soon as they wait.
            if name in self._beats:
                self._beats[name] = now
            if error:
                first = self._servers.get(server, now)
                self._servers[server] = replace(first, reason=error)
                return
            sign = self._servers.pop(server, None)
        # Each call that fails in an outage has a line; without this one the end would show nowhere. Removed and looked
        # at in one step: of many threads that get answers at the same time, one writes it.
        if sign is not None and sign.reason != _NOT_REACHED and (away_s := now.at - sign.at) >= SHORTEST_OUTAGE_S:
            event, name = _BACK[server]
            _log.info(event, "%s is back: it was away for %.1f s", name, away_s, away_s=round(away_s, 3))

    # -- the whole

    def set_phase(self, reason: str) -> None:
        """Why the process takes no work now ("starting", "stopping", …); empty: it does."""
        with self._lock:
            self._phase = replace(self._current_sign(), reason=reason)

    # -- for the probes

    def ages(self) -> list[HealthFinding]:
        """Each loop, since its last sign of life."""
        with self._lock:
            return [self._finding_since(name, sign) for name, sign in self._beats.items()]

    def failing(self) -> list[HealthFinding]:
        """Loops that failed in the last iteration, since the first failure in a row."""
        with self._lock:
            return [self._finding_since(name, sign) for name, sign in self._failures.items()]

    def unreachable(self) -> list[HealthFinding]:
        """Servers that did not answer the last call, since the first that failed."""
        with self._lock:
            return [self._finding_since(name, sign) for name, sign in self._servers.items()]

    def idle_phase(self) -> list[HealthFinding]:
        """Why the process takes no work, if it does not."""
        with self._lock:
            return [self._finding_since("controller", self._phase)] if self._phase.reason else []

    def stalled_for(self, work: bool) -> HealthFinding:
        """Since when there has been work at every look while no worker got a step further."""
        with self._lock:
            now = self._current_sign()
            steps = self.progressed()  # the look counts as one, too
            if not (work and self._worked) or steps != self._steps_seen + 1:
                self._stalled_since = now
            self._steps_seen = steps
            self._worked = work
            return self._finding_since("workers", self._stalled_since)

    # -- under the lock

    def _current_sign(self) -> _Sign:
        now = self._clock.now()
        self._awake_s += min(now - self._looked_at, SUSPEND_GAP_S)
        self._looked_at = now
        return _Sign(now, self._awake_s)

    def _finding_since(self, what: str, sign: _Sign) -> HealthFinding:
        return HealthFinding(
            what, sign.reason, self._clock.wall_time(sign.at), self._current_sign().awake_s - sign.awake_s
        )
