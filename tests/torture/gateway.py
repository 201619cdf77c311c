"""`gateway.py KUBECONFIG COUNT LOG_PORT`: a reverse proxy before the API server, as a process with COUNT ports, that
answers for it now and then: a quota's conflict, a web page of a proxy that has no good word for it, times that are not
true.

It is led by lines of JSON on standard input, and writes to standard output what it did, a line of JSON each. A request
may be carried out before its answer is replaced: then the caller does not learn what was done. Logs of pods come from
the port of the node, where the API server has them from.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from kubernetes import config

_POD: Final = re.compile(r"/api/v1/namespaces/[^/]+/pods(?P<name>/[^/?]+)?")
_LOG: Final = re.compile(r"/api/v1/namespaces/[^/]+/pods/[^/?]+/log")
_QUOTA: Final = (
    b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Operation cannot be fulfilled on '
    b'resourcequotas \\"none\\": the object has been modified; please apply your changes to the latest version and try '
    b'again","reason":"Conflict","details":{"name":"none","kind":"resourcequotas"},"code":409}'
)
_PAGE: Final = (
    b"<html>\r\n<head><title>%d</title></head>\r\n<body><center><h1>not here</h1></center></body>\r\n</html>\r\n"
)
#: Times of the API server in its answers: what it says of the node is the kubelet's business.
_TIMES: Final = re.compile(rb'("(?:creationTimestamp|deletionTimestamp)":")([0-9TZ:-]+)(")')


def _end(response: Any) -> None:
    """End a watch, unless it ends by itself in the same moment: urllib3 says so with one of these."""
    with suppress(OSError, ValueError, RuntimeError):
        response.shutdown()


class Faults:
    """What is still to be done to which request. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []  # guarded by _lock
        self._watches: set[Any] = set()  # guarded by _lock
        self.shift_s = 0

    def lead(self) -> None:
        """Read commands until the other end closes."""
        for line in sys.stdin:
            order = json.loads(line)
            with self._lock:
                if order["fault"] == "clear":
                    self._waiting.clear()
                    self.shift_s = 0
                elif order["fault"] == "shift":
                    self.shift_s = order["seconds"]
                else:
                    self._waiting.append(order)
                    watches = list(self._watches) if order["verb"] == "watch" else ()
                    for response in watches:  # otherwise the next one would come in minutes
                        _end(response)

    @contextmanager
    def watched(self, response: Any) -> Iterator[None]:
        """Follow a watch: a fault that is meant for the next one ends it."""
        with self._lock:
            self._watches.add(response)
        try:
            yield
        finally:
            with self._lock:
                self._watches.discard(response)

    def for_request(self, verb: str, port: int) -> dict[str, Any] | None:
        """The fault of this request, if it is to have one."""
        with self._lock:
            for order in self._waiting:
                if order["verb"] in (verb, "any") and order["port"] in (port, 0):
                    self._waiting.remove(order)
                    return order
        return None

    def hit(self, order: dict[str, Any], verb: str) -> None:
        """Report it."""
        with self._lock:
            print(json.dumps({**order, "verb": verb}), flush=True)


class Server(ThreadingHTTPServer):
    """One port."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 200

    def __init__(self, api: Any, faults: Faults, log_port: str) -> None:
        self.api = api
        self.logs = f"http://127.0.0.1:{log_port}"
        self.faults = faults
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is what this is for."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def _pass_on(self) -> None:
        if _LOG.fullmatch(urlsplit(self.path).path):
            self._give_log()
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        verb = verb_of(self.command, self.path)
        faults = self.server.faults
        order = faults.for_request(verb, int(self.server.server_address[1])) if verb else None
        if order is not None and not order.get("after"):
            faults.hit(order, verb)
            self._answer(*answer_of(order))
            return
        try:
            self._forward(verb, body, order)
        except (urllib3.exceptions.HTTPError, OSError):
            self.close_connection = True  # as the API server's own end would show

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _pass_on

    def _forward(self, verb: str, body: bytes | None, order: dict[str, Any] | None) -> None:
        kept = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
        watching = verb == "watch"
        response = self.server.api.rest_client.pool_manager.request(
            self.command, self.server.api.configuration.host + self.path, headers=kept, body=body, retries=False,
            timeout=urllib3.Timeout(connect=3, read=400 if watching else 60), preload_content=False,
        )  # fmt: skip
        try:
            if order is not None:
                response.read() if not watching else None
                self.server.faults.hit(order, verb)
                self._answer(*answer_of(order))
            elif watching and response.status == 200:
                self._stream(response)
            else:
                kind = response.headers.get("Content-Type", "application/json")
                self._answer(response.status, {"Content-Type": kind}, self._shifted(response.read()))
        finally:
            response.close() if watching else response.release_conn()

    def _give_log(self) -> None:
        self.close_connection = True
        with suppress(urllib3.exceptions.HTTPError, OSError):
            response: Any = urllib3.request(
                "GET",
                self.server.logs + self.path,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(3, 60),
            )
            try:
                self.send_response(response.status)
                self.send_header("Connection", "close")
                self.end_headers()
                while data := response.read1(65536):
                    self.wfile.write(data)
                    self.wfile.flush()
            finally:
                response.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _stream(self, response: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        over = threading.Event()
        threading.Thread(target=self._end_with_client, args=(response, over), daemon=True).start()
        try:
            rest = b""
            with self.server.faults.watched(response), suppress(urllib3.exceptions.HTTPError):
                for chunk in response.stream(65536):
                    lines, _, rest = (rest + chunk).rpartition(b"\n")
                    if lines:
                        self._chunk(self._shifted(lines) + b"\n")
            self.wfile.write(b"0\r\n\r\n")
        finally:
            over.set()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _end_with_client(self, response: Any, over: threading.Event) -> None:
        """A client says nothing during a watch: what can be read is its end, and then the watch behind it ends, too."""
        with suppress(OSError, ValueError):
            while not over.is_set():
                if select.select([self.connection], [], [], 1)[0]:
                    _end(response)
                    return

    def _shifted(self, body: bytes) -> bytes:
        shift_s = self.server.faults.shift_s
        if not shift_s:
            return body
        return _TIMES.sub(lambda found: found[1] + shifted(found[2], shift_s) + found[3], body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def verb_of(method: str, path: str) -> str:
    """The API's word for a request on pods; empty for other requests."""
    found = _POD.fullmatch(urlsplit(path).path)
    if found is None:
        return ""
    if method != "GET":
        return {"POST": "create", "DELETE": "delete"}.get(method, method.lower())
    if found["name"]:
        return "get"
    return "watch" if re.search(r"[?&]watch=(true|1)", path) else "list"


def answer_of(order: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a fault."""
    if order["fault"] == "conflict":
        return 409, {"Content-Type": "application/json"}, _QUOTA
    status = int(order["status"])
    body = _PAGE % status if order["body"] == "html" else b"%d not here\n" % status
    headers = {"Content-Type": "text/html" if order["body"] == "html" else "text/plain; charset=utf-8"}
    return status, headers | ({"Location": "/login"} if status == 302 else {}), body


def shifted(stamp: bytes, seconds: int) -> bytes:
    """A time of the API (RFC 3339 in whole seconds), later by this much."""
    at = datetime.strptime(stamp.decode(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return (at + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def main(kubeconfig: str, count: str, log_port: str) -> int:
    """Serve until standard input ends."""
    api: Any = config.new_client_from_config(config_file=kubeconfig)
    api.rest_client.pool_manager.connection_pool_kw["maxsize"] = 200
    faults = Faults()
    servers = [Server(api, faults, log_port) for _ in range(int(count))]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps([server.server_address[1] for server in servers]), flush=True)
    faults.lead()
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with suppress(socket.error):
        sys.exit(main(*sys.argv[1:]))
