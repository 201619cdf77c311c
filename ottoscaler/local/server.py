"""HTTP in front of the API: one thread per connection, whole replies and chunked streams, injected faults.

The standard library's threading server is enough here: about a thousand creates and tens of thousands of watch events
per second.
"""

from __future__ import annotations

import socket
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from ottoscaler.local.api import Api
from ottoscaler.local.faults import FaultRules
from ottoscaler.local.objects import ApiError, Reply, Request, Stream

_HOST = "127.0.0.1"  # never another: a client that reaches this port can run commands


class ApiServer(ThreadingHTTPServer):
    """Serves one Api on 127.0.0.1. start and close belong to one thread."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, api: Api, port: int) -> None:
        """Bind the port (0: a free one). Raises OSError when it is taken."""
        super().__init__((_HOST, port), _Handler)
        self.api = api
        self.faults = FaultRules()
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{_HOST}:{self.server_port}"

    def start(self) -> None:
        """Serve, in a thread."""
        threading.Thread(target=self.serve_forever, name="api-accept", daemon=True).start()

    def close(self) -> None:
        """Stop accepting; open connections end with the process."""
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error; any other exception is logged."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: ApiServer

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""

    def do_GET(self) -> None:
        """Answer one request, whatever its method."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(parts.path),
            query={key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()},
            body=body,
            content_type=(self.headers.get("Content-Type") or "").partition(";")[0],
            accept=self.headers.get("Accept") or "",
        )
        self._send(self._answer(request))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _answer(self, request: Request) -> Reply | Stream | None:
        """What to send back; None when the reply is to be lost."""
        try:
            if request.path.startswith("/_emulator/"):
                return self._control(request)
            fault = self.server.faults.take(request.method, self.path)
            if fault is not None:
                self.server.stopping.wait(fault.delay_s)
            refusal = fault.error() if fault is not None else None
            if refusal is not None:
                return refusal.reply()
            answer = self.server.api.handle(request)
            return None if fault is not None and fault.drop_reply else answer
        except ApiError as error:
            return error.reply()
        except Exception as error:  # top of a connection's thread
            traceback.print_exc()
            return ApiError(500, f"{type(error).__name__}: {error}").reply()

    def _control(self, request: Request) -> Reply:
        """The emulator's own interface, for tests."""
        if request.path == "/_emulator/compact" and request.method == "POST":
            self.server.api.compact()
        elif request.path == "/_emulator/faults" and request.method == "POST":
            self.server.faults.replace(request.body)
        elif request.path != "/_emulator/faults":
            raise ApiError(404, "the server could not find the requested resource")
        return Reply(self.server.faults.describe())

    def _send(self, answer: Reply | Stream | None) -> None:
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(answer, Stream):
            self._send_stream(answer)
        else:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

    def _send_stream(self, stream: Stream) -> None:
        self.send_response(200)
        self.send_header("Content-Type", stream.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        # The headers go out now: the client's watch has begun, even if nothing ever happens.
        self.wfile.flush()
        for chunk in stream.chunks:
            if chunk:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
            elif self._client_is_gone():
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _client_is_gone(self) -> bool:
        self.connection.setblocking(False)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        finally:
            self.connection.setblocking(True)
