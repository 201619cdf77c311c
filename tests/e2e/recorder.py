"""A reverse proxy between the controller and the API server: it notes what is asked, and can be a bad network.

So the controller's requests are kept apart from those of the kubelet and other clients, and a request can be carried
out while its answer is lost.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from kubernetes import config

_POD = re.compile(r"/api/v1/namespaces/[^/]+/pods(?P<name>/[^/?]+)?")
_BROKEN = (
    b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"InternalError","message":"broken","code":500}'
)
_BUSY = (
    b'{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"TooManyRequests","message":"later","code":429}'
)


class Recorder:
    """Listens on 127.0.0.1 without encryption, and asks with the rights of a kubeconfig's client certificate."""

    def __init__(self, kubeconfig: Path, directory: Path) -> None:
        self._api: Any = config.new_client_from_config(config_file=str(kubeconfig))
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="recorder", daemon=True)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()  # guarded by _lock
        self._lose = 0  # guarded by _lock: answers to creates that are still to be lost
        self._refuse = 0  # guarded by _lock: creates that are still to be answered with 429
        self._fail = 0  # guarded by _lock: creates that are still to be answered with 500, and not carried out
        self._delay_s = 0.0
        self._hold = threading.Event()
        self._away = False
        self._held = threading.Event()  # set: nothing is held
        self._held.set()
        self._watches: set[Any] = set()  # guarded by _lock
        self._connections: set[socket.socket] = set()  # guarded by _lock
        self.kubeconfig = directory / "recorded.kubeconfig"

    def start(self) -> None:
        """Listen, and write the kubeconfig that leads here."""
        port = self._server.server_address[1]
        self.kubeconfig.write_text(
            f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: u, user: {{}}}}]
""",
            encoding="utf-8",
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and cut all connections."""
        self._server.shutdown()
        self.cut()
        self._server.server_close()
        self._api.close()

    def counts(self) -> dict[str, int]:
        """Requests on pods so far, by verb."""
        with self._lock:
            return dict(self._counts)

    def lose_answers(self, count: int) -> None:
        """The next creates are carried out, and their answers are lost."""
        with self._lock:
            self._lose = count

    def refuse(self, count: int) -> None:
        """The next creates are answered with 429 and Retry-After: 1."""
        with self._lock:
            self._refuse = count

    def fail(self, count: int) -> None:
        """The next creates are answered with 500, and not carried out."""
        with self._lock:
            self._fail = count

    def delay(self, seconds: float) -> None:
        """Hold each request so long before it is passed on."""
        self._delay_s = seconds

    def go_away(self) -> None:
        """Cut everything, and from now on every connection."""
        self._away = True
        self.cut()

    def come_back(self) -> None:
        """Be there again."""
        self._away = False

    def hold(self) -> None:
        """End the watches as the API server does when their time is over, and let every request wait for `release`."""
        self._held.clear()
        with self._lock:
            watches = list(self._watches)
        for response in watches:
            response.shutdown()

    def release(self) -> None:
        """Pass on what waits, and what comes."""
        self._held.set()

    def cut(self) -> None:
        """Break all connections, watches included."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _shut(connection)

    # -- for the handler

    def await_release(self) -> None:
        """While requests are held."""
        self._held.wait(60)

    @contextmanager
    def watched(self, response: Any) -> Iterator[None]:
        """Follow a watch; that it is ended by `hold` is no error."""
        with self._lock:
            self._watches.add(response)
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError):
            if self._held.is_set():
                raise
        finally:
            with self._lock:
                self._watches.discard(response)

    def entered(self, connection: socket.socket) -> bool:
        """A connection was made; False if it is to get no answer."""
        with self._lock:
            self._connections.add(connection)
        return not self._away

    def left(self, connection: socket.socket) -> None:
        """It is over."""
        with self._lock:
            self._connections.discard(connection)

    def note(self, method: str, path: str) -> str:
        """Count a request; returns what is to be done with it: `forward`, `lose`, `refuse` or `fail`."""
        if self._delay_s:
            self._hold.wait(self._delay_s)
        verb = _verb(method, path)
        with self._lock:
            if verb:
                self._counts[verb] += 1
            if verb == "create" and self._refuse:
                self._refuse -= 1
                return "refuse"
            if verb == "create" and self._fail:
                self._fail -= 1
                return "fail"
            if verb == "create" and self._lose:
                self._lose -= 1
                return "lose"
        return "forward"

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Any:
        """The API server's answer, its body not yet read."""
        timeout = urllib3.Timeout(connect=3, read=60)
        return self._api.rest_client.pool_manager.request(
            method, self._api.configuration.host + path, headers=headers, body=body, timeout=timeout,
            preload_content=False, retries=False,
        )  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle(self) -> None:
        recorder = self.server.recorder
        try:
            if recorder.entered(self.connection):
                super().handle()
        finally:
            recorder.left(self.connection)

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        recorder = self.server.recorder
        recorder.await_release()
        decision = recorder.note(self.command, self.path)
        if decision == "refuse":
            self._answer(429, {"Content-Type": "application/json", "Retry-After": "1"}, _BUSY)
            return
        if decision == "fail":
            self._answer(500, {"Content-Type": "application/json"}, _BROKEN)
            return
        kept = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
        response = recorder.forward(self.command, self.path, kept, body)
        try:
            if decision == "lose":
                response.read()
                self.close_connection = True
            elif "watch=true" in self.path:
                self._stream(response)
            else:
                given = {"Content-Type": response.headers.get("Content-Type", "application/json")}
                self._answer(response.status, given, response.read())
        finally:
            # a watch may have half an answer on its connection; any other can be used again
            response.close() if "watch=true" in self.path else response.release_conn()

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _pass_on

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, response: Any) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with self.server.recorder.watched(response):
            for chunk in response.stream(65536):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the counts are the log."""


def _verb(method: str, path: str) -> str:
    """The API's word for a request on pods; empty for other requests."""
    found = _POD.fullmatch(urlsplit(path).path)
    if found is None:
        return ""
    if method != "GET":
        return {"POST": "create", "DELETE": "delete"}.get(method, method.lower())
    if found["name"]:
        return "get"
    return "watch" if "watch=true" in path else "list"


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
