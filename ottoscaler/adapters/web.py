"""The HTTP port: probes and figures of the process, for kubelet and monitoring. It only asks, and decides nothing.

Any host that reaches the port may open connections, so nothing that a client does may cost more than a little: one
request per connection, a few threads, an end for every connection; when all threads are taken, the oldest connection
makes room. So a client that sends a byte a second keeps no other from an answer.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from ottoscaler import logs
from ottoscaler.adapters.viewers import MOST_VIEWERS, Viewers
from ottoscaler.errors import ConfigError
from ottoscaler.settings import WebSettings

#: Connections at once, so threads.
CONNECTIONS: Final = 16
#: Longest wait for the next byte, and longest life of a connection, seconds.
READ_TIMEOUT_S: Final = 5.0
MAX_CONNECTION_AGE_S: Final = 10.0
#: How often the end is looked for, seconds.
TICK_S: Final = 0.25
TEXT: Final = "text/plain; charset=utf-8"
#: All addresses of the machine, IPv4 and IPv6.
ALL_ADDRESSES: Final = "::"
#: What bind answers where there is an address of this kind, and we cannot have the port: another kind is no way out.
_TAKEN: Final = (errno.EADDRINUSE, errno.EACCES)
#: Bodies of requests that we refuse are read so far, so that the client sees our answer and not a broken connection.
_BODY_BYTES: Final = 65536
#: Answers from this size on are compressed where the client takes that, bytes; below it nothing is gained.
_GZIP_BYTES: Final = 1024

FULL: Final = f"{MOST_VIEWERS} people look at this page already: close one of them, and it is shown here\n".encode()
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Connection": "close"}

_ZERO: Final = re.compile(r"0(\.0*)?")

_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class WebResponse:
    """An answer."""

    body: bytes
    status: int = 200
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further ones."""
    viewers: Viewers | None = None
    """These are given the connection, for what comes later; None: the answer is complete."""


@dataclass(frozen=True, slots=True)
class WebRequest:
    """What a page may look at: the query (behind the `?`), and the headers by their names in lower case."""

    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def accepts(self, name: str, header: str = "accept") -> Mapping[str, str] | None:
        """The parameters with which a header of choices lists this name; None where it does not, or refuses it by
        `q=0`. Names and parameters in lower case.
        """
        for each in self.headers.get(header, "").lower().split(","):
            kind, *rest = (part.strip() for part in each.split(";"))
            parameters = {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in rest)}
            if kind == name:
                return None if _ZERO.fullmatch(parameters.get("q", "1")) else parameters
        return None


Page = Callable[[WebRequest], WebResponse]


def probe_response(troubles: Sequence[str]) -> WebResponse:
    """A probe's answer: `ok`, or 503 with one line for each thing that is wrong."""
    if not troubles:
        return WebResponse(b"ok\n")
    return WebResponse("".join(f"{line}\n" for line in troubles).encode(), 503)


class WebServer:
    """Serves pages. `run` is the body of one thread; `close` ends it; both are called once."""

    def __init__(self, settings: WebSettings, pages: Mapping[str, Page], viewers: Viewers | None = None) -> None:
        """Bind the port. Arguments: where, what is to be found at which path, and the viewers: their connections
        end with the server. Raises ConfigError if it cannot.

        `::` is all addresses of both families; where the machine has no IPv6, those of IPv4.
        """
        try:
            self._server = _bind_server(settings.address, settings.port, pages)
        except OSError as error:
            where = f"HTTP_PORT={settings.port}: expected a port that is free at HTTP_ADDRESS={settings.address}"
            raise ConfigError((f"{where} ({error.strerror or error}); 0 for none",)) from error
        self._closing = threading.Event()
        self._viewers = viewers

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def run(self) -> None:
        """Answer until `close`."""
        while not self._closing.is_set():
            self._server.handle_request()
            self._server.close_old_connections()
        self._server.server_close()

    def close(self) -> None:
        """Let `run` come to its end; does not wait."""
        self._closing.set()
        if self._viewers is not None:
            self._viewers.close()


def _bind_server(address: str, port: int, pages: Mapping[str, Page]) -> _Server:
    """Bound to the first address of this name that the machine has. Raises OSError."""
    failed: OSError | None = None
    for family, found in _candidate_addresses(address, port):
        try:
            return _Server(family, found, port, pages)
        except OSError as error:
            failed = failed or error
            if error.errno in _TAKEN:
                break
    raise failed or OSError(errno.EADDRNOTAVAIL, "the name has no address")


def _candidate_addresses(address: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if address == ALL_ADDRESSES:
        return [(socket.AF_INET6, address), (socket.AF_INET, "0.0.0.0")]  # the latter is the same, where IPv6 is off
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    return [
        (wanted, address if "%" in address else str(place[0]))
        for wanted in (socket.AF_INET, socket.AF_INET6)  # a name such as localhost has both, and clients try IPv4 too
        for family, _, _, _, place in found
        if family == wanted
    ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    timeout = TICK_S

    def __init__(self, family: socket.AddressFamily, address: str, port: int, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self.address_family = family
        self._lines = logs.RateLimited()
        self._lock = threading.Lock()
        self._open: dict[Any, float] = {}  # guarded by _lock: connection -> when it ends; the oldest first
        self._handed_over: set[Any] = set()  # guarded by _lock: connections that are a viewer's now
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        #: Whether a request is being answered on the thread that accepts, which has to end soon.
        self.is_short_of_threads = False
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        """As the plain TCP server does: HTTPServer would ask the DNS for our name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.server_address[0] == ALL_ADDRESSES:  # IPv4 clients too, whatever net.ipv6.bindv6only says
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own; the oldest connection makes room. Where that takes too long, this one is closed."""
        # Bounded, and the oldest goes: clients that connect and send nothing must not keep the kubelet's probes out.
        if not self._free.acquire(blocking=False):
            self._close_oldest_connection()
            if not self._free.acquire(timeout=TICK_S):  # this thread accepts: while it waits, no other client is served
                self.shutdown_request(request)
                return
        with self._lock:
            self._open[request] = time.monotonic() + MAX_CONNECTION_AGE_S
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:
            # A limit of pids: an unanswered probe would have the kubelet restart a process that does its work. One
            # client at a time is answered, each for as long as it keeps sending.
            if self._lines.is_due("no thread"):
                _log.warning("web.no_thread", "Answering on the server's own thread", error=str(error))
            self.is_short_of_threads = True
            try:
                self._answer(request, client_address)
            finally:
                self.is_short_of_threads = False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The body of that thread."""
        threading.current_thread().name = "web-request"
        self._answer(request, client_address)

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release_connection(request)

    def close_old_connections(self) -> None:
        """End the connections that have lived too long."""
        now = time.monotonic()
        with self._lock:
            old = [
                request for request, until in self._open.items() if until < now
            ]  # cut outside: `_release_connection` takes the lock
        for request in old:
            _shut(request)

    def _release_connection(self, request: Any) -> None:
        with self._lock:
            mine = self._open.pop(request, None) is not None
            self._handed_over.discard(request)
        if mine:
            self._free.release()

    def hand_over(self, request: Any) -> socket.socket:
        """The connection as a viewer's own: it lives on, and keeps no place from a probe."""
        with self._lock:
            self._handed_over.add(request)
            del self._open[request]
        self._free.release()
        return socket.socket(fileno=os.dup(request.fileno()))

    def shutdown_request(self, request: Any) -> None:
        """Close a connection with a complete answer. That of a viewer goes on: only this copy of it is closed."""
        with self._lock:
            kept = request in self._handed_over
        if kept:
            request.close()
        else:
            super().shutdown_request(request)

    def _close_oldest_connection(self) -> None:
        with self._lock:
            oldest = next(iter(self._open), None)
        if oldest is not None:
            _shut(oldest)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error; anything else is a defect of ours, and the next request may be well."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("web.failed", "Our own code failed on an HTTP request")


class _Handler(BaseHTTPRequestHandler):
    timeout = READ_TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        """The page, or that there is none."""
        path, _, query = self.path.partition("?")
        page = self.server.pages.get(path)
        request = WebRequest(query, {name.lower(): value for name, value in self.headers.items()})
        response = WebResponse(b"not found\n", 404) if page is None else page(request)
        if response.viewers is not None and self.command == "GET":
            self._stream(response.viewers)
            return
        takes_gzip = request.accepts("gzip", "accept-encoding") is not None
        self._send(response, compress=takes_gzip and len(response.body) >= _GZIP_BYTES)

    do_HEAD = do_GET

    def _stream(self, viewers: Viewers) -> None:
        """Hand the connection to the viewers. The thread of this request may be the one that serves all of them."""
        if self.server.is_short_of_threads or not viewers.reserve():
            self._send(WebResponse(FULL, 503))
            return
        given = False
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            # a proxy of the kind of nginx keeps back what comes, unless it is asked not to
            self._send_headers({"X-Accel-Buffering": "no"})
            connection = self.server.hand_over(self.connection)
            given = True
        finally:
            if not given:
                viewers.release()
        viewers.add(connection)

    def _refuse(self) -> None:
        length = self.headers.get("Content-Length") or ""
        # int() refuses thousands of digits, and of what isdigit() calls digits it does not know all
        self.rfile.read(min(int(length[:9]), _BODY_BYTES) if length.isdecimal() else 0)
        self._send(WebResponse(b"only GET and HEAD\n", 405))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself, in our own form: a method of no known name, a broken request."""
        status = 405 if code == 501 else code
        self._send(WebResponse(f"{message or 'bad request'}\n".encode("ascii", "replace"), status))

    def _send(self, page: WebResponse, *, compress: bool = False) -> None:
        # the fastest level: of text that repeats itself as much as this, it leaves a tenth
        body = gzip.compress(page.body, 1, mtime=0) if compress else page.body
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        if compress:
            self.send_header("Content-Encoding", "gzip")
        self._send_headers({**page.headers} | ({"Allow": "GET, HEAD"} if page.status == 405 else {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_headers(self, more: Mapping[str, str]) -> None:
        """What all answers have, and more; these are the last ones."""
        for name, value in {**_HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        """Not which Python it is."""
        return "ottoscaler"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: probes come all the time."""


def _shut(request: Any) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
