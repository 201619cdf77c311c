"""The HTTP port: what it answers, and that no client can keep others from an answer."""

from __future__ import annotations

import errno
import gzip
import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from ottoscaler.adapters import web as web_module
from ottoscaler.adapters.web import CONNECTIONS, Page, WebRequest, WebResponse, WebServer, probe_response
from ottoscaler.errors import ConfigError
from ottoscaler.flow.stop import StopSignal
from ottoscaler.settings import WebSettings
from tests.adapters.web_server import serving
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually

pytestmark = pytest.mark.contract("2.probes")

PAGES: Mapping[str, Page] = {
    "/": lambda _: WebResponse(b"hello\n"),
    "/red": lambda _: probe_response(["a", "b"]),
    "/long": lambda _: WebResponse(b"a line of many\n" * 1000),
    "/query": lambda request: WebResponse(f"{request.query} {request.headers.get('x-one')}\n".encode()),
}


@pytest.fixture
def port() -> Iterator[int]:
    """A server with PAGES."""
    with serving(PAGES, end_s=5) as found:
        yield found


def ask(port: int, path: str = "/", method: str = "GET", body: bytes | None = None) -> tuple[int, bytes, str]:
    """Status, body and content type of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers["Content-Type"]
    finally:
        connection.close()


def test_a_page_is_answered(port: int) -> None:
    """With or without a query."""
    assert ask(port) == (200, b"hello\n", "text/plain; charset=utf-8")
    assert ask(port, "/?verbose")[0] == 200


def test_a_page_sees_query_and_headers(port: int) -> None:
    """Names of headers in lower case."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"GET /query?a=1&b HTTP/1.1\r\nX-One: two\r\n\r\n")
        assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"\r\n\r\na=1&b two\n")


@pytest.mark.parametrize(
    ("accepts", "compressed"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip;q=0", False), ("gzip;q=0.000", False), ("identity", False)],
)
def test_a_long_answer_is_compressed_for_those_who_take_it(port: int, accepts: str, compressed: bool) -> None:
    """A short one never; the length is that of what is sent."""
    for path, expected in (("/long", compressed), ("/", False)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path, headers={"Accept-Encoding": accepts})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.headers["Content-Encoding"] == ("gzip" if expected else None)
        assert int(answer.headers["Content-Length"]) == len(body)
        plain = gzip.decompress(body) if expected else body
        assert plain == PAGES[path](WebRequest()).body


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("text/plain", None),
        ("application/x", {}),
        ("text/plain, Application/X;Version=1 ; q=0.5", {"version": "1", "q": "0.5"}),
        ("application/x;q=0, text/plain", None),
        ("application/x;q=nonsense;;=", {"q": "nonsense", "": ""}),
        ("application/xy", None),
        ("", None),
        (",;,=;", None),
    ],
)
def test_what_a_header_of_choices_accepts(header: str, found: Mapping[str, str] | None) -> None:
    """Whatever a client writes, it is no failure."""
    assert WebRequest(headers={"accept": header}).accepts("application/x") == found


def test_a_probe_is_green_or_says_why_not() -> None:
    """One line for each thing that is wrong."""
    assert probe_response([]) == WebResponse(b"ok\n")
    assert probe_response(["a", "b"]) == WebResponse(b"a\nb\n", 503)


def test_red_is_503(port: int) -> None:
    """What a kubelet takes for a failure."""
    assert ask(port, "/red")[:2] == (503, b"a\nb\n")


def test_head_is_the_same_without_the_body(port: int) -> None:
    """With its length."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"HEAD /red HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    assert b" 503 " in head.splitlines()[0]
    assert b"Content-Length: 4" in head
    assert body == b""


def test_an_unknown_path_is_404(port: int) -> None:
    """Also one that only begins like a known one."""
    assert [ask(port, path)[0] for path in ("/livez2", "/red/", "/../etc/passwd")] == [404] * 3


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_another_method_is_405(port: int, method: str) -> None:
    """Whatever it is, with or without a body."""
    assert ask(port, "/", method)[0] == 405
    assert ask(port, "/", method, b"x" * 1000)[0] == 405


def exchange(port: int, request: bytes) -> tuple[list[bytes], bytes]:
    """Head and body of the answer, up to the end of the connection, which must not break off."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(request)
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


@pytest.mark.parametrize(
    ("request_", "status", "more", "body"),
    [
        (b"GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", b"200 OK", [], b"hello\n"),
        (b"GET /none HTTP/1.1\r\n\r\n", b"404 Not Found", [], b"not found\n"),
        (b"PUT / HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", [b"Allow: GET, HEAD"], b"only GET and HEAD\n"),
        (b"BREW / HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", [b"Allow: GET, HEAD"],
         b"Unsupported method ('BREW')\n"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", b"431 Request Header Fields Too Large", [],
         b"Too many headers\n"),
    ],
)  # fmt: skip
def test_an_answer_has_these_headers_and_ends_the_connection(
    port: int, request_: bytes, status: bytes, more: list[bytes], body: bytes
) -> None:
    """Nothing that a proxy may keep or a browser may guess at, and not which Python this is."""
    (first, *headers), found = exchange(port, request_)
    assert (first, found) == (b"HTTP/1.0 " + status, body)
    assert [each for each in headers if not each.startswith(b"Date: ")] == [
        b"Server: ottoscaler", b"Content-Type: text/plain; charset=utf-8", b"Content-Length: %d" % len(body),
        b"Cache-Control: no-store", b"X-Content-Type-Options: nosniff", b"Connection: close", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("length", [b"60000", b"0", b"", b"x", b"-1", b"\xb2"])
def test_the_body_of_a_refused_request_is_read_as_far_as_its_length_is_known(port: int, length: bytes) -> None:
    """Otherwise the client would see a broken connection in the place of our answer."""
    sent = b"x" * (60000 if length == b"60000" else 0)
    head, body = exchange(port, b"POST / HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n" + sent)
    assert head[0] == b"HTTP/1.0 405 Method Not Allowed"
    assert body == b"only GET and HEAD\n"


def test_of_a_large_body_a_part_is_read(port: int) -> None:
    """However large it is said to be; the client need not send all of it."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + b"x" * 65536)
        assert client.recv(4096).startswith(b"HTTP/1.0 405 Method Not Allowed\r\n")


@pytest.mark.parametrize(
    "request_", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"x" * 70_000, b"\x16\x03\x01\r\n\r\n"]
)
def test_nonsense_ends_only_its_own_connection(port: int, request_: bytes) -> None:
    """The next client is answered."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(5)
        while client.recv(4096):
            continue
    assert ask(port)[0] == 200


def test_slow_clients_keep_no_other_from_an_answer(port: int) -> None:
    """Many more of them than there are threads, each in the middle of its request."""
    with ExitStack() as opened:
        for _ in range(3 * CONNECTIONS):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert ask(port)[0] == 200
        requests = [thread for thread in threading.enumerate() if thread.name == "web-request"]
        assert len(requests) <= CONNECTIONS


def test_a_client_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that keeps sending a byte, so that it is never silent."""
    monkeypatch.setattr(web_module, "MAX_CONNECTION_AGE_S", 0.5)
    with serving(PAGES, end_s=5) as port, socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")

        def cut() -> bool:
            try:
                client.sendall(b"x")
            except OSError:
                return True
            return False

        eventually(cut, 5, "the connection to be cut")


def test_a_page_that_fails_ends_only_its_own_connection(port: int) -> None:
    """The log reports a defect of ours, and the port goes on."""

    def broken(_: WebRequest) -> WebResponse:
        raise ZeroDivisionError

    with serving({"/": lambda _: WebResponse(b"well\n"), "/broken": broken}, end_s=5) as other:
        with pytest.raises(http.client.RemoteDisconnected):
            ask(other, "/broken")
        assert ask(other)[1] == b"well\n"


@pytest.mark.contract("2.HTTP_PORT")
def test_a_port_in_use_is_a_fault_of_the_configuration(port: int) -> None:
    """Variable, value, what is expected and what is wrong."""
    with pytest.raises(ConfigError) as caught:
        WebServer(WebSettings(port=port), PAGES)
    (fault,) = caught.value.faults
    assert fault.startswith(f"HTTP_PORT={port}: expected a port that is free at HTTP_ADDRESS=127.0.0.1")
    assert "in use" in fault


def test_an_address_that_is_not_ours_is_one_too() -> None:
    """It is named."""
    with pytest.raises(ConfigError, match=r"HTTP_ADDRESS=192\.0\.2\.1"):
        WebServer(WebSettings(port=0, address="192.0.2.1"), PAGES)


def reach(address: str, port: int) -> bool:
    """Is a page answered at this address?"""
    try:
        connection = http.client.HTTPConnection(address, port, timeout=5)
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.contract("2.HTTP_ADDRESS")
@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("::", {"127.0.0.1": True, "::1": True}),
        ("0.0.0.0", {"127.0.0.1": True, "::1": False}),
        ("127.0.0.1", {"127.0.0.1": True, "::1": False}),
        ("::1", {"127.0.0.1": False, "::1": True}),
        ("localhost", {"127.0.0.1": True}),
    ],
)
def test_it_listens_where_it_is_asked_to(address: str, reached: Mapping[str, bool]) -> None:
    """`::` is IPv4 and IPv6: a kubelet asks by the address that the pod has."""
    with serving(PAGES, address=address, end_s=5) as found:
        assert {each: reach(each, found) for each in reached} == reached


@pytest.mark.contract("2.HTTP_ADDRESS")
@pytest.mark.parametrize("step", ["socket", "bind"])
def test_where_ipv6_is_off_all_addresses_are_those_of_ipv4(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without it has no such socket; one where it is disabled has no such address."""

    class Without(socket.socket):
        def __init__(self, family: int = -1, *more: int, **named: Any) -> None:
            if family == socket.AF_INET6 and step == "socket":
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *more, **named)

        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Without)
    with serving(PAGES, address="::", end_s=5) as found:
        assert reach("127.0.0.1", found)


@needs_ipv6
def test_a_port_in_use_on_one_family_is_not_left_for_the_other() -> None:
    """Otherwise another process would get half of the probes."""
    other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with other, pytest.raises(ConfigError, match="in use"):
        WebServer(WebSettings(port=other.getsockname()[1], address="::"), PAGES)


@pytest.mark.contract("2.probes")
def test_a_probe_is_answered_though_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """A limit of pids is no reason to restart the process."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "process_request_thread" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(CONNECTIONS + 2):
        assert ask(port, "/red")[:2] == (503, b"a\nb\n")
    monkeypatch.undo()
    assert ask(port)[0] == 200


def test_a_process_that_starts_again_gets_its_port() -> None:
    """Though connections of the one before are still in TIME_WAIT."""
    web = WebServer(WebSettings(port=0, address="127.0.0.1"), PAGES)
    assert web._server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    web._server.server_close()


def test_many_requests_leave_nothing_behind(port: int) -> None:
    """No thread, no connection."""
    for _ in range(300):
        assert ask(port)[0] == 200
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "web-request"])


def test_a_connection_that_is_over_is_forgotten() -> None:
    """Otherwise each probe would be kept for as long as the process lives."""
    stop = StopSignal()
    web = WebServer(WebSettings(port=0, address="127.0.0.1"), PAGES)
    stop.spawn("web", web.run)
    for _ in range(3):
        assert ask(web.port)[0] == 200
    eventually(lambda: not web._server._open, 5, "the connections to be forgotten")
    stop.set()
    web.close()
    assert stop.join(SystemClock(), SystemClock().now() + 5) == []


@pytest.mark.parametrize(
    ("address", "found", "expected"),
    [
        ("::", [], [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]),
        ("localhost", ["::1", "127.0.0.1"], [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]),
        ("fe80::1%eth0", ["fe80::1"], [(socket.AF_INET6, "fe80::1%eth0")]),
        ("10.0.0.1", ["10.0.0.1"], [(socket.AF_INET, "10.0.0.1")]),
    ],
)
def test_a_name_stands_for_each_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch, address: str, found: list[str], expected: list[tuple[int, str]]
) -> None:
    """IPv4 first; a zone stays, since the address is of no use without it."""
    places = [(socket.AF_INET6 if ":" in each else socket.AF_INET, 1, 6, "", (each, 8080)) for each in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    assert web_module._candidate_addresses(address, 8080) == expected
