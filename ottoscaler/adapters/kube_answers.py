"""What an answer of the Kubernetes API means for the request that it answers.

Only the API server may give a verdict: that a pod is absent, that it is refused for good, that a name is taken, that a
version has expired. It gives one as a `Status` object with a reason and a code equal to the HTTP status
(https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/). A proxy, a load balancer or a portal
between us and the server uses the same numbers with other bodies (HTML, plain text, nothing): what became of the
request is then unclear, whatever the number.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from ottoscaler.core.admission_words import QUOTA, RIGHTS, TERMINATING
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, WatchExpired

_T = TypeVar("_T")

#: Longest wait that a server may ask for (Retry-After), seconds: a thread may be waiting it out.
MAX_RETRY_AFTER_S = 30.0

#: 403 is more than one thing; these mean "not now" (quota, a namespace that goes away) or "not with these rights", and
#: not "never this pod".
_TEMPORARY_403: Final = (*QUOTA, *TERMINATING, *RIGHTS)
#: What admission answers, with 403 as well, when it could not find out whether the pod is allowed: the API server has
#: just started and its caches are empty (`admission.WaitForReady`), or a lookup or a backend did not answer.
_UNDECIDED_403: Final = re.compile(
    r"not yet ready to handle request|caches? not sync|error looking up service account (?!.*not found)"
    r'|\b(?:Get|Post) "|context deadline exceeded|etcdserver: |timed out',
    re.DOTALL,
)
#: How the API server reports a denial by a webhook or by a policy. Webhooks choose code and reason freely.
_DENIED: Final = re.compile(r"denied (?:the )?request")
#: What a refused create may be refused for, by HTTP status, apart from denials
#: (https://pkg.go.dev/k8s.io/apimachinery/pkg/apis/meta/v1#StatusReason).
_REFUSALS: Final = {
    400: "BadRequest", 403: "Forbidden", 405: "MethodNotAllowed", 406: "NotAcceptable",
    413: "RequestEntityTooLarge", 415: "UnsupportedMediaType", 422: "Invalid",
}  # fmt: skip

#: Why a log is not served: no such container or none that has started, no right, no such pod.
_LOG_REFUSALS: Final = {400: "BadRequest", 403: "Forbidden", 404: "NotFound"}


class Verb(StrEnum):
    """What a request asks for. The value is the verb of the API's access rules, but for LOG and those on Events; a
    review creates nothing, and a look is at what only `doctor` reads.
    """

    CREATE = "create"
    GET = "get"
    LIST = "list"
    LIST_EVENTS = "list_events"
    CREATE_EVENT = "create_event"
    PATCH_EVENT = "patch_event"
    WATCH = "watch"
    LOG = "log"
    DELETE = "delete"
    REVIEW = "review"
    LOOK = "look"

    @property
    def method(self) -> str:
        """The HTTP method."""
        return _METHODS.get(self, "GET")

    @property
    def content_type(self) -> str:
        """Of the body of the request."""
        return "application/merge-patch+json" if self is Verb.PATCH_EVENT else "application/json"


_METHODS: Final = {
    Verb.CREATE: "POST", Verb.CREATE_EVENT: "POST", Verb.REVIEW: "POST", Verb.DELETE: "DELETE",
    Verb.PATCH_EVENT: "PATCH",
}  # fmt: skip
#: For these nothing is lost by a refusal of any kind.
_EVENT_WRITES: Final = (Verb.CREATE_EVENT, Verb.PATCH_EVENT)


class _Details(msgspec.Struct, frozen=True):
    name: str = ""
    retry_after_s: float = msgspec.field(default=0, name="retryAfterSeconds")


class _Status(msgspec.Struct, frozen=True):
    kind: str
    version: str = msgspec.field(name="apiVersion")
    status: str = "Failure"
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None

    def about(self, name: str) -> bool:
        """Does it speak of this object? `details` names the object; a Status for an unknown path names none."""
        return self.details is None or self.details.name == name

    @property
    def denied(self) -> bool:
        """A webhook or a policy said no, not the API server itself."""
        return _DENIED.search(self.message) is not None


def error_for_response(
    status: int, body: bytes, verb: Verb, name: str = "", retry_after: str | None = None
) -> Exception:
    """The error for an answer that is not a success.

    Arguments: HTTP status, body, verb, name of the pod asked about (empty for none), the Retry-After header, if any.
    Returns WatchExpired (list and watch), ClusterRejected with reason `AlreadyExists` (create), `NotFound` (get,
    delete, log), `Conflict` (delete), `Forbidden` (list events, log), `BadRequest` (log), any refusal of a look or of
    the write of an Event, or what a create is refused for; otherwise ClusterUnavailable.
    """
    answer = _decode_status(status, body)
    if answer is None:
        text = " ".join(body[:200].decode("utf-8", "replace").split())
        if status == 429:  # nothing was done yet; the API server itself sends this as plain text
            return _unavailable_error(f"429 to {verb} ({text or 'no reason given'})", retry_after, unclear=False)
        message = f"{status} to {verb} with a body that is not of the Kubernetes API ({text or 'empty'})"
        return _unavailable_error(f"{message}; is there a proxy in between?", retry_after, unclear=True)
    message = f"the Kubernetes API answered {status} to {verb}: {answer.message or answer.reason or 'no reason given'}"
    if verb in (Verb.LIST, Verb.WATCH) and status == 410 and answer.reason in ("Expired", "Gone"):
        return WatchExpired(message)
    if _is_final(status, answer, verb, name):
        return ClusterRejected(message, status=status, reason=answer.reason)
    if verb is Verb.CREATE and status == 404:
        message = f"{message}: does NAMESPACE exist?"
    if not retry_after and answer.details is not None and answer.details.retry_after_s > 0:
        retry_after = str(int(answer.details.retry_after_s))
    return _unavailable_error(message, retry_after, unclear=status >= 500 or status in (408, 410) or status < 400)


def _unavailable_error(message: str, retry_after: str | None, *, unclear: bool) -> ClusterUnavailable:
    decimal = retry_after is not None and retry_after.isascii() and retry_after.isdigit()
    seconds = min(float(retry_after), MAX_RETRY_AFTER_S) if retry_after and decimal else None
    return ClusterUnavailable(message, retry_after_s=seconds, unclear=unclear)


def _decode_status(status: int, body: bytes) -> _Status | None:
    """The Status that a body is; None for anything else, and for one that is not about this answer."""
    try:
        answer = _status_body.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    genuine = (answer.kind, answer.version, answer.status) == ("Status", "v1", "Failure") and answer.code in (0, status)
    return answer if genuine else None


def _is_final(status: int, answer: _Status, verb: Verb, name: str) -> bool:
    if verb is Verb.CREATE:
        return _is_create_refused(status, answer, name)
    if verb in (Verb.REVIEW, Verb.LOOK):
        return status in (403, 404, 405)
    if verb in _EVENT_WRITES:
        return 400 <= status < 500 and status not in (401, 408, 429)
    if verb is Verb.LIST_EVENTS:  # final, unlike those on pods: the program works without this right
        return status == 403 and answer.reason == "Forbidden"
    if verb is Verb.LOG:
        return _LOG_REFUSALS.get(status) == answer.reason
    if answer.denied:  # by a webhook: it knows nothing of what there is
        return False
    if status == 404 and answer.reason == "NotFound":
        return verb in (Verb.GET, Verb.DELETE) and answer.about(name)
    return status == 409 and answer.reason == "Conflict" and verb is Verb.DELETE


def _is_create_refused(status: int, answer: _Status, name: str) -> bool:
    """Is a create refused for good? Any 409 but AlreadyExists is a quota's or another writer's: there was no create."""
    if status == 409:
        return answer.reason == "AlreadyExists" and answer.about(name) and not answer.denied
    if status == 403 and any(text in answer.message for text in _TEMPORARY_403):
        return False
    if answer.denied:
        return 400 <= status < 500 and status not in (408, 429)
    if status == 403 and _UNDECIDED_403.search(answer.message):
        return False
    return status in _REFUSALS and answer.reason == _REFUSALS[status]


def is_deletion_accepted(body: bytes) -> bool:
    """Is this the body of a deletion that was accepted: the pod, or a Status of success?"""
    try:
        answer = _accepted_body.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return answer.kind == "Pod" or (answer.kind, answer.status) == ("Status", "Success")


class _Accepted(msgspec.Struct, frozen=True):
    kind: str
    status: object = None


_status_body: Final = msgspec.json.Decoder(_Status)  # at import: see core/events.py
_accepted_body: Final = msgspec.json.Decoder(_Accepted)


def decoded(decoder: msgspec.json.Decoder[_T], body: bytes | msgspec.Raw) -> _T:
    """What a body says. Raises ClusterUnavailable where it is not what the Kubernetes API sends."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ClusterUnavailable(f"the Kubernetes API sent what cannot be read: {error}") from error
