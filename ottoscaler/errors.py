"""The one tree of errors: each class says what the catcher does.

Adapters translate the exceptions of their SDK into these (`raise ... from`), so no layer above knows a foreign
exception. A pod that fails is not here: that is an outcome, a value.
"""

from __future__ import annotations


class OttoscalerError(Exception):
    """Base of everything this project raises on purpose."""


class ConfigError(OttoscalerError):
    """The configuration is wrong: print every fault and end with exit code 2."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class LocalSystemError(OttoscalerError):
    """The local system (embedded Redis, embedded Kubernetes API) could not be started: say so and end."""


class Stopping(OttoscalerError):
    """The process is shutting down: leave all as it is; the next owner goes on from there."""


class ConsumerReplaced(OttoscalerError):
    """Another process runs under our consumer name: end with exit code 1, touching nothing more."""


class Unavailable(OttoscalerError):
    """A server did not answer or was not able to: try again later.

    `retry_after_s` is what the server asked for, if it did. `unclear` is True when the request may have been carried
    out.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, unclear: bool = True) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.unclear = unclear


class RedisUnavailable(Unavailable):
    """Redis cannot be reached, is loading, read-only or full, or refuses the request: try again later."""


class ClusterUnavailable(Unavailable):
    """The Kubernetes API cannot be reached, is overloaded or refuses for now: try again later."""


class LogHandlerUnavailable(Unavailable):
    """The log handler cannot be reached, or ended the stream: try again later.

    `unimplemented` is True where the handler has no such method. `denied` is True where it will say the same again
    until a person changes something: wrong token, no right, invalid argument. `refused` is True where it, or a proxy,
    has refused to open the stream (REFUSED_STREAM of HTTP/2). `timed_out` is True where no answer came within our own
    deadline.
    """

    def __init__(
        self, message: str, *, unimplemented: bool = False, denied: bool = False, refused: bool = False
    ) -> None:
        super().__init__(message)
        self.unimplemented = unimplemented
        self.denied = denied
        self.refused = refused
        self.timed_out = False


class CollectorUnavailable(Unavailable):
    """The trace collector cannot be reached, or takes nothing now: try again later."""


class PodLogUnavailable(Unavailable):
    """The log of a pod cannot be had now: try again later. `status` is that of the HTTP answer, 0 where none came: 404:
    the pod is gone; 400: its container has not started.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ClusterRejected(OttoscalerError):
    """The Kubernetes API understood the request and said no: asking again changes nothing."""

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class CollectorRejected(OttoscalerError):
    """The trace collector understood the request and said no: asking again changes nothing."""


class ReadTooLarge(OttoscalerError):
    """One read would bring more bytes than it may: nothing was brought. What was read is pending: take it in parts."""


class WatchExpired(OttoscalerError):
    """A watch cannot go on from its resource version (410): list again."""
