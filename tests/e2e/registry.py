"""An image registry that has nothing: it answers with the status that the image's name asks for.

The kubelet's container runtime speaks plain HTTP with 127.0.0.1, so the real texts of real refusals reach the pod.
"""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: How long the answer with status 0 takes, seconds: the kubelet does not end a pod while it waits for its image.
_SLOW_S = 8.0


class Registry:
    """Listens on 127.0.0.1. One thread starts and closes it."""

    def __init__(self) -> None:
        self._server = _Server()
        self._thread = threading.Thread(target=self._server.serve_forever, name="registry", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Answer no request any more."""
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def image(self, status: int) -> str:
        """The name of an image; its pull is answered with this status; 0: very late."""
        return f"127.0.0.1:{self._server.server_address[1]}/status-{status}:1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was kept waiting may have gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """https://distribution.github.io/distribution/spec/api/#detail: what matters is the status of the manifest."""
        found = re.match(r"/v2/status-(\d+)/", self.path)
        status = int(found[1]) if found else 200
        if not status:
            self.server.closing.wait(_SLOW_S)
        self.send_response(status or 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
