"""The one place where anything is tried twice: the SDKs' own retries are off.

A retry has a named error (`Unavailable`), pauses that grow and jitter, respects what the server asks for (Retry-After),
is logged and counted, and ends when the process stops. tenacity's own defaults (no pause, no end) are never used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity

from ottoscaler import logs
from ottoscaler.errors import ClusterUnavailable, Stopping, Unavailable
from ottoscaler.metrics import Metrics

#: Longest pause between two tries, seconds: short enough that a server that is back is used within two.
MAX_PAUSE_S = 1.0
FIRST_PAUSE_S = 0.1
#: At most this much of what a server asks for (Retry-After) is granted, seconds: the pause holds a thread, and a server
#: that asks for an hour must not have one for so long.
MAX_ASKED_S = 15.0

_T = TypeVar("_T")
_log = logs.get(__name__)


class Retries:
    """Tries again. Any thread."""

    def __init__(
        self, stopping: threading.Event, metrics: Metrics, on_failure: Callable[[str], None] = lambda reason: None
    ) -> None:
        """`on_failure` is called with each failed try that is followed by another, on the thread that tries."""
        self._stopping = stopping
        self._metrics = metrics
        self._on_failure = on_failure
        self._limited = logs.RateLimited()

    def try_again(self, what: str, first: Unavailable, attempt: Callable[[], _T], *, times: int = 4) -> _T:
        """The result of `attempt` after a first try that failed with `first`: at most `times` tries in all, then the
        last Unavailable. Stopping ends it between two tries. The caller makes the first try, so that the ordinary case,
        several for each worker, is spared the cost of a retry that is not needed.
        """
        return self._retrying(what, tenacity.stop_after_attempt(times))(_after(first, attempt))

    def retry_forever(self, what: str, attempt: Callable[[], _T]) -> _T:
        """The result of `attempt`, however long its server is away.
        Raises Stopping when the process stops meanwhile.
        """
        try:
            return self._retrying(what, tenacity.stop_never)(attempt)
        except Unavailable as error:
            raise Stopping(f"stopped while trying to {what}") from error

    def _retrying(self, what: str, stop: tenacity.stop.stop_base) -> tenacity.Retrying:
        return tenacity.Retrying(
            stop=tenacity.stop_any(stop, tenacity.stop_when_event_set(self._stopping)),
            wait=_pause,
            retry=tenacity.retry_if_exception_type(Unavailable),
            sleep=tenacity.sleep_using_event(self._stopping),
            before_sleep=lambda state: self._log_retry(what, state),
            reraise=True,
        )

    def _log_retry(self, what: str, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        tries = state.attempt_number
        self._on_failure(f"cannot {what}: {error}")
        target = server_of(error)
        self._metrics.retries.inc(target, _reason(error))
        if self._limited.is_due(f"{what}: {error}"):
            _log.warning(
                "retry.scheduled", "Cannot %s, trying again (try %d)", what, tries,
                target=target, try_number=tries, error=str(error),
            )  # fmt: skip


def server_of(error: BaseException | None) -> str:
    """Which server an error is about, as labels of metrics and log lines have it: `kubernetes` or `redis`."""
    return "kubernetes" if isinstance(error, ClusterUnavailable) else "redis"


def _after(first: Unavailable, attempt: Callable[[], _T]) -> Callable[[], _T]:
    """Tries of which the first has been made, and failed."""
    failed = [first]

    def again() -> _T:
        if failed:
            raise failed.pop()
        return attempt()

    return again


_growing = tenacity.wait_exponential_jitter(multiplier=FIRST_PAUSE_S, max=MAX_PAUSE_S, jitter=FIRST_PAUSE_S)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, Unavailable) and error.retry_after_s else 0.0
    return max(min(asked, MAX_ASKED_S), _growing(state))


def _reason(error: BaseException | None) -> str:
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        return "throttled"
    return "unreachable"
