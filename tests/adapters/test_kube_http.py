"""HTTP to the API server at its edges: silence, refusals, and what each answer means."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ottoscaler.adapters import cluster as cluster_module
from ottoscaler.adapters import kube_http
from ottoscaler.adapters.api_access import TOKEN_CACHE_S
from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.kube_answers import Verb
from ottoscaler.adapters.kube_http import TIMEOUTS_S, KubeHttp
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, ConfigError
from ottoscaler.settings import KubeSettings
from tests.adapters.connections import serving
from tests.fakes.wait import eventually

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def served(answer: Callable[[socket.socket], None], asked: list[bytes] | None = None) -> Iterator[int]:
    """A server that calls `answer` for each connection, and leaves it open until the end; yields its port. What each
    connection begins with is added to `asked`.
    """

    def begin(connection: socket.socket) -> None:
        begun = connection.recv(65536)
        if asked is not None:
            asked.append(begun)
        answer(connection)

    with serving(begin) as port:
        yield port


def empty_answer(connection: socket.socket) -> None:
    """An empty object, and the end of the connection: the next request comes on another."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


def settings(folder: Path, port: int, user: dict[str, str] | None = None, **cluster: str) -> KubeSettings:
    """Settings with a kubeconfig for a plain server on loopback; `user` and `cluster` are what it says instead."""
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"} | cluster}],
        "users": [{"name": "u", "user": user or {"token": "abc"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(kubeconfig), encoding="utf-8")
    return KubeSettings(kubeconfig=str(path))


def test_a_silent_watch_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link on which nothing comes any more is noticed by our own time-out: the server's never reaches us."""
    monkeypatch.setattr(cluster_module, "WATCH_SILENCE_S", 0.2)
    with served(lambda connection: connection.sendall(HEAD)) as port:
        cluster = KubeCluster(settings(tmp_path, port), instance="i")
        with pytest.raises(ClusterUnavailable):
            list(cluster.watch("1"))
        cluster.close()


def test_the_silence_is_longer_than_the_servers_time() -> None:
    """A healthy quiet watch is ended by the server, a dead one by us, within 42 s."""
    assert cluster_module.WATCH_S < cluster_module.WATCH_SILENCE_S <= 42


def test_a_call_to_a_deaf_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer within the time-out: the request may have been carried out."""
    monkeypatch.setattr(kube_http, "TIMEOUTS_S", dict.fromkeys(TIMEOUTS_S, 0.2))
    with served(lambda connection: None) as port:
        http = KubeHttp(settings(tmp_path, port))
        with pytest.raises(ClusterUnavailable) as caught:
            http.call(Verb.GET, "/version")
        http.close()
    assert caught.value.unclear


def test_one_dead_connection_closes_the_other_idle_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answers once and never again: the first that is used again costs a time-out, and no other does.

    They are answered in pairs, so that two calls at once have a connection each.
    """
    monkeypatch.setattr(kube_http, "TIMEOUTS_S", dict.fromkeys(TIMEOUTS_S, 1.0))
    held: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        held.append(connection)
        for each in held[-2:] if len(held) % 2 == 0 else []:
            each.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with served(answer) as port, ThreadPoolExecutor(2) as two:
        http = KubeHttp(settings(tmp_path, port))
        assert list(two.map(http.call, [Verb.GET] * 2, ["/"] * 2)) == [b"{}"] * 2
        with pytest.raises(ClusterUnavailable):
            http.call(Verb.GET, "/")
        assert list(two.map(http.call, [Verb.GET] * 2, ["/"] * 2)) == [b"{}"] * 2
        http.close()


def test_the_connection_of_a_watch_ends_with_it(tmp_path: Path) -> None:
    """There may be half an answer on it, so no other request may use it, and the server need not keep it."""
    held: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        held.append(connection)
        connection.sendall(HEAD)

    with served(answer) as port:
        http = KubeHttp(settings(tmp_path, port))
        response = http.open_stream("/", query={}, read_timeout_s=10)
        http.close_stream(response)
        held[0].settimeout(5)
        assert held[0].recv(1) == b""
        http.close()


def test_a_refused_connection_is_clear(tmp_path: Path) -> None:
    """No process listens: the request was certainly not carried out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    http = KubeHttp(settings(tmp_path, port))
    with pytest.raises(ClusterUnavailable) as caught:
        http.call(Verb.CREATE, "/api/v1/namespaces/default/pods", body=b"{}")
    http.close()
    assert not caught.value.unclear


def test_half_an_answer_is_unclear(tmp_path: Path) -> None:
    """The connection breaks in the middle of the answer."""
    head = b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{"

    def cut(connection: socket.socket) -> None:
        connection.sendall(head)
        connection.shutdown(socket.SHUT_RDWR)

    with served(cut) as port:
        http = KubeHttp(settings(tmp_path, port))
        with pytest.raises(ClusterUnavailable) as caught:
            http.call(Verb.CREATE, "/x", body=b"{}")
        http.close()
    assert caught.value.unclear


@pytest.mark.parametrize("status", [b"500 Internal Server Error", b"403 Forbidden", b"302 Found"])
def test_half_a_refusal_of_a_watch_is_an_outage(tmp_path: Path, status: bytes) -> None:
    """The watch is opened again, as after every other outage; it is no defect of ours."""
    replies: list[str] = []

    def cut(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        connection.shutdown(socket.SHUT_RDWR)

    with served(cut) as port:
        cluster = KubeCluster(settings(tmp_path, port), instance="i", on_reply=replies.append)
        with pytest.raises(ClusterUnavailable, match="does not answer"):
            list(cluster.watch("1"))
        cluster.close()
    assert len(replies) == 1
    assert "does not answer" in replies[0]


def test_a_watch_that_is_left_ends_its_connection(tmp_path: Path) -> None:
    """Also one that is left in the middle; nothing of it is kept."""
    mark = json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}).encode() + b"\n"
    held: list[socket.socket] = []

    def answer(connection: socket.socket) -> None:
        held.append(connection)
        connection.sendall(HEAD + b"%x\r\n%b\r\n" % (len(mark), mark))

    with served(answer) as port:
        cluster = KubeCluster(settings(tmp_path, port), instance="i")
        events = cluster.watch("1")
        assert next(iter(events)).resource_version == "7"
        assert len(cluster._http._streams) == 1
        events.close()  # type: ignore[attr-defined]
        assert not cluster._http._streams
        held[0].settimeout(5)
        assert held[0].recv(1) == b""
        cluster.close()


def test_each_slot_and_each_loop_has_its_connection(tmp_path: Path) -> None:
    """One that does not fit into the pool is closed after each request, and the next one makes another."""
    http = KubeHttp(replace(settings(tmp_path, 1), inflight=40))
    assert http._pool.pool.maxsize == 48
    assert not http._pool.block
    assert http.address == "http://127.0.0.1:1"
    http.close()


def test_an_unreadable_pod_does_not_end_the_watch(tmp_path: Path) -> None:
    """It is skipped, what follows it arrives."""
    mark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    body = b'{"type": "ADDED", "object": {"kind": "Pod", "metadata": 5}}\n' + json.dumps(mark).encode() + b"\n"

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    with served(answer) as port:
        cluster = KubeCluster(settings(tmp_path, port), instance="i")
        events = list(cluster.watch("1"))
        cluster.close()
    assert [event.resource_version for event in events] == ["7"]


def test_each_request_is_reported_with_its_verb_and_status(tmp_path: Path) -> None:
    """Also a watch and what is refused; 0 where no answer came."""
    found: list[tuple[str, int]] = []

    def note(verb: str, status: int, seconds: float) -> None:
        assert 0 <= seconds < 20
        found.append((verb, status))

    # a connection that is kept could be used again before its end is known
    given = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    refused = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    silent = b""
    for answer in (given, refused, silent):

        def say(connection: socket.socket, answer: bytes = answer) -> None:
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)

        with served(say) as port:
            http = KubeHttp(settings(tmp_path, port), on_request=note)
            with suppress(ClusterUnavailable):
                http.call(Verb.LIST, "/pods")
            with suppress(ClusterUnavailable):
                http.close_stream(http.open_stream("/pods", query={}, read_timeout_s=5.0))
            http.close()
    assert found == [("list", 200), ("watch", 200), ("list", 503), ("watch", 503), ("list", 0), ("watch", 0)]


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
def test_a_line_of_a_watch_may_come_in_two_parts(tmp_path: Path, cut: int) -> None:
    """Wherever it is cut, and whatever follows in the second part."""
    body = b"".join(
        json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}).encode() + b"\n"
        for version in ("7", "8", "9")
    )
    parts = [part for part in (body[:cut], body[cut:]) if part]

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n")

    with served(answer) as port:
        cluster = KubeCluster(settings(tmp_path, port), instance="i")
        events = list(cluster.watch("1"))
        cluster.close()
    assert [event.resource_version for event in events] == ["7", "8", "9"]


@pytest.mark.parametrize(("status", "missing"), [({}, True), ({"allowed": False}, True), ({"allowed": True}, False)])
def test_a_right_counts_as_given_only_where_the_review_says_so(
    tmp_path: Path, status: dict[str, bool], missing: bool
) -> None:
    """The API server may leave out what is false."""
    body = json.dumps({"kind": "SelfSubjectAccessReview", "status": status}).encode()
    head = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with served(lambda connection: connection.sendall(head % len(body) + body)) as port:
        cluster = KubeCluster(settings(tmp_path, port), instance="i")
        assert bool(cluster.missing_rights()) is missing
        cluster.close()


def test_a_review_asks_for_each_verb_in_our_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About ourselves: a right elsewhere is of no use."""
    asked: list[object] = []

    def call(_self: KubeHttp, verb: Verb, _path: str, *, body: bytes) -> bytes:
        asked.append((verb, _path, json.loads(body)))
        return b'{"kind": "SelfSubjectAccessReview", "status": {"allowed": true}}'

    monkeypatch.setattr(KubeHttp, "call", call)
    cluster = KubeCluster(replace(settings(tmp_path, 1), namespace="ours"), instance="i")
    assert cluster.missing_rights() == []
    assert asked == [
        (
            Verb.REVIEW,
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {
                    "resourceAttributes": {"namespace": "ours", "verb": verb, "resource": "pods", "name": ""},
                },
            },
        )
        for verb in ("create", "get", "list", "watch", "delete")
    ]


def test_the_kernel_gives_up_a_dead_link_after_25_seconds(tmp_path: Path) -> None:
    """Far sooner than the time-out of a create, and no sooner than a short break of the link lasts."""
    with served(lambda connection: connection.sendall(HEAD)) as port:
        http = KubeHttp(settings(tmp_path, port))
        response = http.open_stream("/", query={}, read_timeout_s=10)
        link = response.connection.sock
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, times = (
            link.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * times == 25
        http.close_stream(response)
        http.close()


def test_no_kubeconfig_is_a_clear_fault(tmp_path: Path) -> None:
    """The sentence names the variable, its value and what to do."""
    path = tmp_path / "none"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="KUBECONFIG"):
        KubeHttp(KubeSettings(kubeconfig=str(path)))


@pytest.mark.usefixtures("strict_tls")
def test_certificates_are_checked_as_before_python_313(tmp_path: Path) -> None:
    """Authority and host, but not which extensions they have: API servers of EKS have some that Python 3.13 refuses."""
    http = KubeHttp(settings(tmp_path, 1, server="https://127.0.0.1:1"))
    context = http._pool.conn_kw["ssl_context"]
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_an_api_server_may_be_behind_a_path(tmp_path: Path) -> None:
    """As a Rancher gives access to the clusters that it manages."""
    asked: list[bytes] = []
    with served(empty_answer, asked) as port:
        http = KubeHttp(settings(tmp_path, port, server=f"http://127.0.0.1:{port}/k8s/clusters/c-1"))
        http.call(Verb.GET, "/api/v1/pods", query={"limit": 5})
        http.close()
    assert asked[0].splitlines()[0] == b"GET /k8s/clusters/c-1/api/v1/pods?limit=5 HTTP/1.1"


@pytest.mark.parametrize(
    ("verb", "body", "line", "type_"),
    [
        (Verb.GET, None, b"GET /x HTTP/1.1", []),
        (Verb.CREATE, b"{}", b"POST /x HTTP/1.1", [b"application/json"]),
        (Verb.DELETE, b"{}", b"DELETE /x HTTP/1.1", [b"application/json"]),
        (Verb.REVIEW, b"{}", b"POST /x HTTP/1.1", [b"application/json"]),
    ],
)
def test_a_request_says_what_it_sends_and_what_it_wants(
    tmp_path: Path, verb: Verb, body: bytes | None, line: bytes, type_: list[bytes]
) -> None:
    """The API server takes JSON only where it is called JSON, and could answer in Protobuf."""
    asked: list[bytes] = []
    with served(empty_answer, asked) as port:
        http = KubeHttp(settings(tmp_path, port))
        http.call(verb, "/x", body=body)
        http.close()
    assert asked[0].splitlines()[0] == line
    assert re.findall(rb"Accept: (.*)\r", asked[0]) == [b"application/json"]
    assert re.findall(rb"Authorization: (.*)\r", asked[0]) == [b"Bearer abc"]
    assert re.findall(rb"Content-Type: (.*)\r", asked[0]) == type_


def test_a_new_token_is_used_soon(tmp_path: Path) -> None:
    """Its file is read again, and not for each request."""
    asked: list[bytes] = []
    file = tmp_path / "token"
    file.write_text("one")
    with served(empty_answer, asked) as port:
        http = KubeHttp(settings(tmp_path, port, user={"tokenFile": str(file)}))
        http.call(Verb.GET, "/")
        file.write_text("two")
        http.call(Verb.GET, "/")
        threading.Event().wait(TOKEN_CACHE_S)
        http.call(Verb.GET, "/")
        http.close()
    tokens = [re.findall(rb"Authorization: (.*)\r", each) for each in asked]
    assert tokens == [[b"Bearer one"], [b"Bearer one"], [b"Bearer two"]]


def test_loops_wait_for_no_worker(tmp_path: Path) -> None:
    """Neither for a place (all are taken by creates that hang) nor for their turn (KUBE_QPS=1, and a long queue)."""
    loops = {"watch", "reconciler"}

    def answer(connection: socket.socket, begun: bytes) -> None:
        if not begun.startswith(b"POST"):
            empty_answer(connection)

    asked: list[bytes] = []
    with ThreadPoolExecutor(8) as workers, served(lambda connection: answer(connection, asked[-1]), asked) as port:
        narrow = replace(settings(tmp_path, port), inflight=1, qps=1, burst=1)
        http = KubeHttp(narrow, urgent=lambda: threading.current_thread().name in loops)
        hanging = [workers.submit(http.call, Verb.CREATE, "/x", body=b"{}") for _ in range(8)]
        eventually(lambda: len(asked) == 1, what="a create to be in flight")
        took: dict[str, float] = {}

        def look() -> None:
            began = time.monotonic()
            http.call(Verb.LIST, "/x")
            took[threading.current_thread().name] = time.monotonic() - began

        for name in loops:
            thread = threading.Thread(target=look, name=name)
            thread.start()
            thread.join(10)
        assert set(took) == loops
        assert max(took.values()) < 1
        http.close()
    assert all(isinstance(each.exception(), ClusterUnavailable) for each in hanging)


def test_a_proxy_receives_the_whole_address(tmp_path: Path) -> None:
    """Without TLS, that is: through TLS it is a tunnel, and knows no path."""
    asked: list[bytes] = []
    with served(empty_answer, asked) as port:
        proxy = {"proxy-url": f"http://127.0.0.1:{port}"}
        http = KubeHttp(settings(tmp_path, port, server="http://far.example", **proxy))
        http.call(Verb.GET, "/api/v1/pods")
        http.close()
    first, *headers = asked[0].splitlines()
    assert first == b"GET http://far.example/api/v1/pods HTTP/1.1"
    assert b"Host: far.example" in headers


def test_it_receives_how_each_call_ended(tmp_path: Path) -> None:
    """A server that answers is there, also with no; one that fails, or does not know us, is not there for us."""
    replies: list[str] = []
    answers = {200: "", 404: "", 403: "", 429: "", 500: "500 to get", 503: "503 to get", 401: "401 to get"}
    for status, error in answers.items():

        def answer(connection: socket.socket, status: int = status) -> None:
            body = b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":%d}' % status
            connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

        with served(answer) as port:
            http = KubeHttp(settings(tmp_path, port), replies.append)
            with suppress(ClusterUnavailable, ClusterRejected):
                http.call(Verb.GET, "/x")
            http.close()
        assert len(replies) == 1
        assert (error in replies[0]) if error else replies == [""], (status, replies)
        replies.clear()


def test_it_receives_that_a_server_is_gone_and_the_calls_of_a_watch(tmp_path: Path) -> None:
    """Each piece of a watch is an answer, and its breaking off an error."""
    replies: list[str] = []
    with served(lambda connection: connection.sendall(HEAD + b"1\r\n\n\r\n1\r\n")) as port:
        cluster = KubeCluster(settings(tmp_path, port), instance="i", on_reply=replies.append)
        events = iter(cluster.watch("1"))
        timer = threading.Timer(0.3, cluster.close)
        timer.start()
        with pytest.raises(ClusterUnavailable):
            list(events)
        timer.join()
    assert replies[:2] == ["", ""]
    assert "broke off" in replies[-1]
    replies.clear()
    http = KubeHttp(settings(tmp_path, port), replies.append)
    with pytest.raises(ClusterUnavailable):
        http.call(Verb.GET, "/x")
    http.close()
    assert len(replies) == 1
    assert "does not answer" in replies[0]
