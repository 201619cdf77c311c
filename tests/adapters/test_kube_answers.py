"""Which replies of the API server count: verb x status x body, over a real connection, through `KubeCluster`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.kube_answers import MAX_RETRY_AFTER_S, Verb, error_for_response
from ottoscaler.adapters.kube_http import TIMEOUTS_S
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, WatchExpired
from ottoscaler.flow.health import FROZEN_S
from ottoscaler.ports import CreateOutcome
from ottoscaler.settings import FlowSettings, KubeSettings

NAME = "otto-agent-1234567890-1"
BODY = json.dumps({"kind": "Pod", "metadata": {"name": NAME}}).encode()
VERBS = ("create", "get", "list", "watch", "delete")


class Answers(ThreadingHTTPServer):
    """A server, or a proxy, that gives one answer to everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.body = b""
        self.headers: Mapping[str, str] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Answers

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    """The server."""
    server = Answers()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(scope="module")
def cluster(answers: Answers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeCluster]:
    """A client of it."""
    kubeconfig = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{answers.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "abc"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path: Path = tmp_path_factory.mktemp("kube") / "kubeconfig"
    path.write_text(json.dumps(kubeconfig), encoding="utf-8")
    client = KubeCluster(KubeSettings(kubeconfig=str(path)), instance="i")
    yield client
    client.close()


def status(code: int, reason: str, message: str = "", name: str | None = NAME, **other: object) -> bytes:
    """A Status of the API server; `name` None: it speaks of no object."""
    told: dict[str, object] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    told |= {"message": message, "reason": reason, "code": code}
    told |= {"details": {"name": name, "kind": "pods"}} if name is not None else {}
    return json.dumps(told | other).encode()


def ask(cluster: KubeCluster, verb: str) -> object:
    """One request of each kind; what it returned."""
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: cluster.create(BODY),
        "get": lambda: cluster.get(NAME),
        "list": cluster.list,
        "watch": lambda: list(cluster.watch("1")),
        "delete": lambda: cluster.delete(NAME, "some-uid", "1"),
    }
    return calls[verb]()


HTML = b"<html><body><h1>Sign in</h1></body></html>"
_CUT = status(404, "NotFound")[:-20]
BODIES = {
    "html": HTML,
    "plain text": b"404 page not found\n",
    "empty": b"",
    "truncated JSON": _CUT,
    "JSON, but no Status": b'{"message":"not found","reason":"NotFound"}',
    "JSON, but no object": b'["Status"]',
    "not UTF-8": b'{"kind":"Status\xff"}',
    "a Status of another API": b'{"kind":"Status","apiVersion":"v2","status":"Failure","reason":"NotFound"}',
    "a Status of success": b'{"kind":"Status","apiVersion":"v1","status":"Success","reason":"NotFound"}',
    "a Status with another code": status(499, "NotFound"),
}


NUMBERS = [300, 302, 400, 401, 403, 404, 405, 408, 409, 410, 413, 418, 422, 500, 502, 503, 504]


class TestNoStatus:
    """What is not of the API decides nothing, whatever its number."""

    @pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
    @pytest.mark.parametrize(
        "code", [300, 302, 400, 401, 403, 404, 405, 408, 409, 410, 413, 418, 422, 500, 502, 503, 504]
    )
    @pytest.mark.parametrize("verb", VERBS)
    def test_is_unclear(self, answers: Answers, cluster: KubeCluster, verb: str, code: int, body: bytes) -> None:
        """For all verbs, watch and list included."""
        answers.status, answers.body = code, body
        answers.headers = {"Content-Type": "text/html", "Location": "/login"}
        with pytest.raises(ClusterUnavailable, match=str(code)) as caught:
            ask(cluster, verb)
        assert caught.value.unclear

    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
    @pytest.mark.parametrize("kind", ["text/html", "application/json"])
    def test_is_no_success(self, answers: Answers, cluster: KubeCluster, verb: str, body: bytes, kind: str) -> None:
        """A portal answers 200 as well: neither a pod, nor no pods, nor a deletion."""
        if (verb, body) == ("delete", BODIES["a Status of success"]):
            return  # that is how a deletion may be answered
        if (verb, body, kind) == ("watch", b"", "application/json"):
            return  # a watch that ends: two in a row are followed by a list
        answers.status, answers.body, answers.headers = 200, body, {"Content-Type": kind}
        with pytest.raises(ClusterUnavailable) as caught:
            ask(cluster, verb)
        assert caught.value.unclear

    @pytest.mark.parametrize("verb", ["create", "get"])
    def test_another_pod_is_no_success(self, answers: Answers, cluster: KubeCluster, verb: str) -> None:
        """Nor is any other object of that name."""
        for kind, name in (("Pod", "another"), ("Service", NAME)):
            body = json.dumps({"kind": kind, "metadata": {"name": name, "uid": "u"}}).encode()
            answers.status, answers.body, answers.headers = 200, body, {"Content-Type": "application/json"}
            with pytest.raises(ClusterUnavailable):
                ask(cluster, verb)

    def test_another_list_is_not_a_list_of_no_pods(self, answers: Answers, cluster: KubeCluster) -> None:
        """An object of any kind has no items."""
        answers.status, answers.headers = 200, {"Content-Type": "application/json"}
        for body in (b"{}", b'{"kind":"APIVersions","versions":["v1"]}', b'{"kind":"ServiceList","items":[]}'):
            answers.body = body
            with pytest.raises(ClusterUnavailable):
                cluster.list()

    def test_429_comes_before_anything_was_done(self, answers: Answers, cluster: KubeCluster) -> None:
        """The API server's own is plain text."""
        answers.status, answers.body = 429, b"Too many requests, please try again later.\n"
        answers.headers = {"Retry-After": "1"}
        with pytest.raises(ClusterUnavailable) as caught:
            ask(cluster, "create")
        assert (caught.value.unclear, caught.value.retry_after_s) == (False, 1)


def webhook(code: int, reason: str) -> bytes:
    """A webhook's denial, with a code and a reason of its own choice."""
    return status(code, reason, 'admission webhook "w.example" denied the request: no')


_QUOTA = 'Operation cannot be fulfilled on resourcequotas "q": the object has been modified'
_RIGHTS = 'pods is forbidden: User "x" cannot create resource "pods" in API group ""'
_POLICY = "pods is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"
_CALLING = 'Internal error occurred: failed calling webhook "w.example": context deadline exceeded'
#: Admission could not find out whether the pod is allowed, or the quota does not allow it now.
_UNDECIDED = (
    "not yet ready to handle request",
    "caches not synchronized",
    "insufficient quota to match these scopes: [{PriorityClass In [high]}]",
    "status unknown for quota: q, resources: pods",
    'error looking up service account ns/default: Get "https://10.0.0.1/api/v1": connect: connection refused',
    "error looking up service account ns/default: etcdserver: request timed out",
    'Post "https://images.example/check": dial tcp 10.0.0.1:443: connect: connection refused',
    "unable to read the policy: context deadline exceeded",
)
#: Admission found out, and says no.
_DECIDED = (
    'error looking up service account ns/worker: serviceaccount "worker" not found',
    "failed quota: q: must specify cpu for: agent",
    "maximum cpu usage per Container is 500m, but limit is 1",
    "no PriorityClass with name high was found",
    'violates PodSecurity "restricted:latest": runAsNonRoot != true',
    "image policy webhook backend denied one or more images: not signed",
)
LATER, UNCLEAR = "later", "unclear"
#: verb, code, body -> what it means: a reason of ClusterRejected, WatchExpired, or one of the two above.
TABLE = [
    ("create", 409, status(409, "AlreadyExists"), "AlreadyExists"),
    ("create", 409, status(409, "AlreadyExists", name=None), "AlreadyExists"),
    ("create", 409, status(409, "AlreadyExists", name="another"), LATER),
    ("create", 409, webhook(409, "AlreadyExists"), LATER),
    ("create", 409, status(409, "Conflict", _QUOTA, name="q"), LATER),
    ("create", 409, status(409, "Conflict"), LATER),
    ("create", 409, status(409, ""), LATER),
    ("create", 403, status(403, "Forbidden", "pods is forbidden: exceeded quota: q, requested: pods=1"), LATER),
    ("create", 403, status(403, "Forbidden", _RIGHTS), LATER),
    ("create", 403, status(403, "Forbidden", "violates PodSecurity restricted"), "Forbidden"),
    ("create", 403, status(403, "Unknown", "no"), LATER),
    *(("create", 403, status(403, "Forbidden", f"pods is forbidden: {text}"), LATER) for text in _UNDECIDED),
    *(("create", 403, status(403, "Forbidden", f"pods is forbidden: {text}"), "Forbidden") for text in _DECIDED),
    ("create", 403, status(403, "Forbidden", 'users "b" is forbidden: cannot impersonate resource "users"'), LATER),
    ("create", 401, status(401, "Unauthorized"), LATER),
    ("create", 404, status(404, "NotFound", 'namespaces "x" not found', name="x"), LATER),
    ("create", 408, status(408, "Timeout"), UNCLEAR),
    ("create", 410, status(410, "Gone"), UNCLEAR),
    ("create", 422, status(422, "Invalid"), "Invalid"),
    ("create", 422, status(422, ""), LATER),
    ("create", 400, status(400, "BadRequest"), "BadRequest"),
    ("create", 413, status(413, "RequestEntityTooLarge"), "RequestEntityTooLarge"),
    ("create", 429, status(429, "TooManyRequests"), LATER),
    ("create", 500, status(500, "InternalError", _CALLING), UNCLEAR),
    ("create", 503, status(503, "ServiceUnavailable"), UNCLEAR),
    ("create", 504, status(504, "Timeout"), UNCLEAR),
    ("create", 400, webhook(400, ""), ""),
    ("create", 403, webhook(403, "Forbidden"), "Forbidden"),
    ("create", 404, webhook(404, "NotFound"), "NotFound"),
    ("create", 410, webhook(410, "Gone"), "Gone"),
    ("create", 401, status(401, "Unauthorized", _POLICY), "Unauthorized"),
    ("create", 422, status(422, "Invalid", _POLICY), "Invalid"),
    ("create", 429, webhook(429, "TooManyRequests"), LATER),
    ("create", 503, webhook(503, "ServiceUnavailable"), UNCLEAR),
    ("get", 404, status(404, "NotFound"), "NotFound"),
    ("get", 404, status(404, "NotFound", name="another"), LATER),
    ("get", 404, status(404, "NotFound", "the server could not find the requested resource", details={}), LATER),
    ("get", 404, status(404, ""), LATER),
    ("get", 403, status(403, "Forbidden", 'User "x" cannot get resource "pods"'), LATER),
    ("get", 410, status(410, "Gone"), UNCLEAR),
    ("get", 422, status(422, "Invalid"), LATER),
    ("delete", 404, status(404, "NotFound"), "NotFound"),
    ("delete", 404, status(404, "NotFound", name="another"), LATER),
    ("delete", 404, webhook(404, "NotFound"), LATER),
    ("delete", 409, status(409, "Conflict", "Precondition failed: UID in precondition: a"), "Conflict"),
    ("delete", 409, status(409, "AlreadyExists"), LATER),
    ("delete", 409, webhook(409, "Conflict"), LATER),
    ("delete", 403, status(403, "Forbidden"), LATER),
    ("delete", 422, status(422, "Invalid"), LATER),
    ("list", 410, status(410, "Expired"), "Expired"),
    ("list", 410, status(410, "Gone"), "Expired"),
    ("list", 410, status(410, ""), UNCLEAR),
    ("list", 404, status(404, "NotFound"), LATER),
    ("list", 403, status(403, "Forbidden"), LATER),
    ("watch", 410, status(410, "Expired"), "Expired"),
    ("watch", 410, status(410, "NotFound"), UNCLEAR),
    ("list", 500, status(500, "Expired"), UNCLEAR),
    ("watch", 503, status(503, "Gone"), UNCLEAR),
    ("watch", 404, status(404, "NotFound"), LATER),
    ("watch", 500, status(500, "InternalError"), UNCLEAR),
    ("review", 403, status(403, "Forbidden"), "Forbidden"),
    ("review", 404, status(404, "NotFound"), "NotFound"),
    ("review", 405, status(405, "MethodNotAllowed"), "MethodNotAllowed"),
    ("review", 400, status(400, "BadRequest"), LATER),
    ("review", 406, status(406, "NotAcceptable"), LATER),
    ("review", 503, status(503, "ServiceUnavailable"), UNCLEAR),
]


@pytest.mark.parametrize(("verb", "code", "body", "meaning"), TABLE)
def test_what_a_status_means(verb: str, code: int, body: bytes, meaning: str) -> None:
    """Each answer of the API has one meaning: a verdict, later, or unclear."""
    error = error_for_response(code, body, Verb(verb), NAME)
    if meaning in (LATER, UNCLEAR):
        assert isinstance(error, ClusterUnavailable)
        assert error.unclear == (meaning == UNCLEAR)
    elif meaning == "Expired":
        assert isinstance(error, WatchExpired)
    else:
        assert isinstance(error, ClusterRejected)
        assert error.reason == meaning
    assert (json.loads(body)["message"] or "answered") in str(error)


@pytest.mark.parametrize(
    ("verb", "code", "asks"), [("create", 404, True), ("create", 429, False), ("list", 404, False), ("get", 404, False)]
)
def test_only_a_create_without_its_namespace_asks_whether_there_is_one(verb: str, code: int, asks: bool) -> None:
    """What the reader can do about it."""
    error = error_for_response(code, status(code, "NotFound", name="other"), Verb(verb), NAME)
    assert ("does NAMESPACE exist?" in str(error)) is asks


@pytest.mark.parametrize(
    ("verb", "code", "reason", "result"),
    [
        ("create", 409, "AlreadyExists", CreateOutcome.ALREADY_THERE),
        ("get", 404, "NotFound", None),
        ("delete", 404, "NotFound", True),
        ("delete", 409, "Conflict", False),
    ],
)
def test_a_verdict_is_a_value(
    answers: Answers, cluster: KubeCluster, verb: str, code: int, reason: str, result: object
) -> None:
    """What the API says of our pod reaches the caller as an answer, not as an error."""
    answers.status, answers.body, answers.headers = code, status(code, reason), {}
    assert ask(cluster, verb) == result


def test_retry_after_is_kept() -> None:
    """What the server asks for reaches the caller that tries again, in the header or in the body."""
    for error in (
        error_for_response(429, b"", Verb.CREATE, retry_after="7"),
        error_for_response(504, status(504, "Timeout", details={"retryAfterSeconds": 7}), Verb.CREATE),
    ):
        assert isinstance(error, ClusterUnavailable)
        assert error.retry_after_s == 7


@pytest.mark.parametrize("details", [{}, {"retryAfterSeconds": 0}, {"retryAfterSeconds": -1}, None])
def test_a_status_that_asks_for_no_pause_is_none(details: dict[str, int] | None) -> None:
    """Zero seconds would be a pause of the server's choice, and take the place of ours."""
    error = error_for_response(504, status(504, "Timeout", details=details), Verb.CREATE)
    assert isinstance(error, ClusterUnavailable)
    assert error.retry_after_s is None


def test_retry_after_has_a_bound() -> None:
    """A thread waits it out, and may be the only one that does what it does."""
    error = error_for_response(503, b"{}", Verb.GET, retry_after="86400")
    assert isinstance(error, ClusterUnavailable)
    assert error.retry_after_s == MAX_RETRY_AFTER_S


@pytest.mark.parametrize("text", ["\xb2", "\u0663", "1.5", "-1", "", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_retry_after_that_is_no_number_of_seconds_is_left_out(text: str) -> None:
    """A digit of another script is none of HTTP's."""
    error = error_for_response(503, b"{}", Verb.GET, retry_after=text)
    assert isinstance(error, ClusterUnavailable)
    assert error.retry_after_s is None


_LABELS = {"ottoscaler.io/event": "1234567890", "ottoscaler.io/worker": "1", "ottoscaler.io/attempt": "1"}
_GOOD = {"name": NAME, "labels": _LABELS | {"managed-by": "ottoscaler", "ottoscaler.io/instance": "i"}}
#: What may be wrong with one pod: its metadata, or its status.
UNREADABLE: list[dict[str, object]] = [
    {"metadata": _GOOD | {"creationTimestamp": "yesterday"}},
    {"metadata": _GOOD | {"creationTimestamp": "12024-01-01T00:00:00Z"}},
    {"metadata": _GOOD | {"finalizers": None}},
    {"metadata": _GOOD | {"labels": None}},
    {"metadata": _GOOD, "status": {"conditions": None}},
    {"metadata": _GOOD, "status": {"containerStatuses": [{"name": "agent", "state": 7}]}},
    {"metadata": None},
    {},
]


@pytest.mark.parametrize("pod", UNREADABLE)
@pytest.mark.parametrize("first", [True, False])
def test_one_pod_that_cannot_be_read_hides_no_other(
    answers: Answers, cluster: KubeCluster, pod: dict[str, object], first: bool
) -> None:
    """Without a list nothing is seen and nothing is created."""
    items = [pod, {"metadata": _GOOD}] if first else [{"metadata": _GOOD}, pod]
    listed = {"kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": items}
    answers.status, answers.headers, answers.body = 200, {}, json.dumps(listed).encode()
    found = cluster.list()
    assert ([one.name for one in found.pods], found.resource_version) == ([NAME], "9")


def test_a_list_of_none_is_one_of_no_pods(answers: Answers, cluster: KubeCluster) -> None:
    """How Go writes a list that was never filled."""
    answers.status, answers.headers, answers.body = 200, {}, b'{"kind":"PodList","metadata":{},"items":null}'
    assert not cluster.list().pods


@pytest.mark.parametrize("verb", ["create", "get"])
def test_a_pod_that_cannot_be_read_is_an_answer_that_cannot_be_read(
    answers: Answers, cluster: KubeCluster, verb: str
) -> None:
    """It is no defect of ours, and no verdict on the worker."""
    pod = {"kind": "Pod", "metadata": _GOOD | {"creationTimestamp": "yesterday"}}
    answers.status, answers.headers, answers.body = 200, {}, json.dumps(pod).encode()
    with pytest.raises(ClusterUnavailable, match="cannot be read") as caught:
        cluster.get(NAME) if verb == "get" else cluster.create(json.dumps({"metadata": _GOOD}).encode())
    assert caught.value.unclear


@pytest.mark.parametrize("kind", ["NOVEL", "added", ""])
def test_a_watch_with_an_event_of_another_type_has_ended(answers: Answers, cluster: KubeCluster, kind: str) -> None:
    """It is not from the API server: what it left out only a list shows."""
    answers.status, answers.headers = 200, {"Content-Type": "application/json"}
    answers.body = json.dumps({"type": kind, "object": {"kind": "Pod", "metadata": _GOOD}}).encode() + b"\n"
    with pytest.raises(ClusterUnavailable, match=f"event of unknown type '{kind}'"):
        next(iter(cluster.watch("1")))


def test_a_call_waits_as_long_as_the_server_may_take() -> None:
    """A create: longer than the API server's own time-out, so that it is certain to be over when we look. Whatever the
    supervised loops do is shorter than what `/livez` calls frozen. An Event may be lost, and the stop waits for it.
    """
    writes = (Verb.CREATE_EVENT, Verb.PATCH_EVENT)
    assert TIMEOUTS_S[Verb.CREATE] > 60
    others = {verb: seconds for verb, seconds in TIMEOUTS_S.items() if verb not in (Verb.CREATE, *writes)}
    assert all(30 <= seconds < FROZEN_S - 3 for seconds in others.values())
    assert all(TIMEOUTS_S[verb] < FlowSettings().shutdown_grace_s / 2 for verb in writes)


#: Of the requests beside those on pods: which refusals are final, by status and reason.
OTHERS: list[tuple[Verb, int, str, bool]] = [
    *((verb, code, "x", code in (403, 404, 405)) for verb in (Verb.REVIEW, Verb.LOOK) for code in NUMBERS),
    *((verb, code, "x", 400 <= code < 500 and code not in (401, 408, 429))
      for verb in (Verb.CREATE_EVENT, Verb.PATCH_EVENT)
      for code in (*NUMBERS, 429, 499)),
    *((Verb.LIST_EVENTS, code, "Forbidden", code == 403) for code in NUMBERS),
    (Verb.LIST_EVENTS, 403, "NotFound", False),
    *((Verb.LOG, code, reason, code == right) for code in NUMBERS
      for right, reason in ((400, "BadRequest"), (403, "Forbidden"), (404, "NotFound"))),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "code", "reason", "final"), OTHERS)
def test_a_look_an_event_and_a_log_are_refused_for_good_only_by_their_own_answers(
    verb: Verb, code: int, reason: str, final: bool
) -> None:
    """Everything else may be another answer the next time."""
    error = error_for_response(code, status(code, reason), verb, NAME)
    assert isinstance(error, ClusterRejected if final else ClusterUnavailable)


@pytest.mark.parametrize("reason", ["Expired", "Gone", "NotFound"])
@pytest.mark.parametrize("code", [409, 410])
@pytest.mark.parametrize("verb", [Verb.LIST, Verb.WATCH, Verb.GET])
def test_a_version_expires_only_by_the_status_for_it(verb: Verb, code: int, reason: str) -> None:
    """Of a list or a watch."""
    expired = verb is not Verb.GET and code == 410 and reason in ("Expired", "Gone")
    assert isinstance(error_for_response(code, status(code, reason), verb, NAME), WatchExpired) is expired
