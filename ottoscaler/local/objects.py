"""The words shared by the emulator's parts:
API objects, requests, replies, and the Status objects that the API answers errors with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ottoscaler.errors import OttoscalerError

Object = dict[str, Any]
"""A Kubernetes object as JSON. Stored objects are shared between threads and never changed in
place: copy, change, store.
"""

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True, slots=True)
class ResourceType:
    """A resource that the emulator serves: its kind, scope, short name and the verbs it takes."""

    kind: str
    namespaced: bool
    short: str
    verbs: frozenset[str]


_READ = frozenset({"get", "list", "watch"})
KINDS = {
    "pods": ResourceType("Pod", True, "po", _READ | {"create", "delete", "patch"}),
    "events": ResourceType("Event", True, "ev", _READ | {"create", "patch"}),
    "serviceaccounts": ResourceType("ServiceAccount", True, "sa", _READ | {"create"}),
    "namespaces": ResourceType("Namespace", False, "ns", _READ | {"create", "delete"}),
    "nodes": ResourceType("Node", False, "no", _READ),
}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; of a repeated query parameter only the last value is kept."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    content_type: str
    accept: str = ""

    def flag(self, name: str) -> bool:
        """A boolean query parameter, as the API server reads it."""
        return self.query.get(name) in ("1", "true", "True")

    def number(self, name: str) -> int | None:
        """A whole-number query parameter, None when absent. Raises ApiError 400."""
        text = self.query.get(name) or None
        try:
            return None if text is None else int(text)
        except ValueError:
            raise ApiError(400, f'strconv.ParseInt: parsing "{text}": invalid syntax') from None

    def json(self) -> Object:
        """The body as a JSON object, empty when there is none. Raises ApiError 400."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise ApiError(400, f"the object provided is unrecognized (must be of type Pod): {error}") from None
        if not isinstance(value, dict):
            raise ApiError(400, "the object provided is unrecognized (must be a JSON object)")
        return value


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP reply."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """A chunked reply. An empty chunk means "nothing now": the server then looks whether the client is still there."""

    chunks: Iterator[bytes]
    content_type: str = "application/json"


class ApiError(OttoscalerError):
    """An error the API answers with, as a Status object."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: Object | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Take the HTTP code, the message and, where they differ from the code's own, reason and details."""
        super().__init__(message)
        self.code = code
        self.reason = _REASONS.get(code, "") if reason is None else reason
        self.details = details or ({} if retry_after is None else {"retryAfterSeconds": retry_after})
        self.retry_after = retry_after

    def status(self) -> Object:
        """The Status object."""
        status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
        }
        status |= {"reason": self.reason} if self.reason else {}
        status |= {"details": self.details} if self.details else {}
        return {**status, "code": self.code}

    def reply(self) -> Reply:
        """The whole reply, with Retry-After where one is due."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return Reply(encode(self.status()), self.code, headers=headers)


def not_found(resource: str, name: str) -> ApiError:
    """404, as for an object that is not there."""
    return ApiError(404, f'{resource} "{name}" not found', details={"name": name, "kind": resource})


def conflict(resource: str, name: str, reason: str) -> ApiError:
    """409 Conflict with the API server's sentence."""
    message = f'Operation cannot be fulfilled on {resource} "{name}": {reason}'
    return ApiError(409, message, details={"name": name, "kind": resource})


def invalid(name: str, causes: Sequence[tuple[str, str]]) -> ApiError:
    """422 for a pod, with (field, message) causes."""
    text = "; ".join(f"{where}: {what}" for where, what in causes)
    listed = [{"reason": "FieldValueInvalid", "message": what, "field": where} for where, what in causes]
    return ApiError(422, f'Pod "{name}" is invalid: {text}', details={"name": name, "kind": "Pod", "causes": listed})


def encode(value: Object) -> bytes:
    """JSON as the API server writes it: no spaces, UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def timestamp(ahead_s: float = 0.0, now: float | None = None) -> str:
    """Now (seconds since the epoch; None: by this machine's clock), or later, as metav1.Time is written: RFC 3339,
    UTC, whole seconds.
    """
    at = (time.time() if now is None else now) + ahead_s
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime:
    """An RFC 3339 time. Raises ApiError 400."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise ApiError(400, f'parsing time "{text}" as RFC 3339 failed') from None
