"""A relay between a client and an HTTP server on loopback that counts: requests, bytes, and how many are under way."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from contextlib import suppress

_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")


class Meter:
    """Listens on a free port of 127.0.0.1 and passes on to another. Answers are held back for `delay_s`, so that
    requests meet. The figures may be read by any thread.

    A client sends no request on a connection before it has the last answer: so each one is a chunk that begins with it.
    """

    def __init__(self, target_port: int, delay_s: float) -> None:
        self._target = ("127.0.0.1", target_port)
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []  # guarded by _lock
        self.requests: Counter[str] = Counter()  # guarded by _lock: method, and what follows the last slash
        self.received: Counter[str] = Counter()  # guarded by _lock: bytes of answers, by the same
        self._under_way = 0  # guarded by _lock
        self.most = 0
        """Most requests under way at once, watches apart."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="meter", daemon=True).start()

    def close(self) -> None:
        """Stop listening and cut everything."""
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._sockets += [client, server]
            link = _Link(self, client, server)
            for relay in (link.ask, link.answer):
                threading.Thread(target=relay, name="meter-link", daemon=True).start()

    def begun(self, what: str) -> None:
        """A request is on its way."""
        with self._lock:
            self.requests[what] += 1
            if what != "WATCH":
                self._under_way += 1
                self.most = max(self.most, self._under_way)

    def ended(self, what: str) -> None:
        """Its answer is about to reach the client."""
        if what != "WATCH":
            with self._lock:
                self._under_way -= 1

    def add(self, what: str, count: int) -> None:
        """Bytes of an answer."""
        with self._lock:
            self.received[what] += count

    def hold(self) -> None:
        """The delay."""
        self._closing.wait(self._delay_s)


class _Link:
    """One connection, relayed by two threads; what is asked is set by the one before the other can see its answer."""

    def __init__(self, meter: Meter, client: socket.socket, server: socket.socket) -> None:
        self._meter = meter
        self._client = client
        self._server = server
        self._asked = ""
        self._open = False

    def ask(self) -> None:
        """Client to server."""
        with suppress(OSError):
            while chunk := self._client.recv(65536):
                if found := _REQUEST.match(chunk):
                    self._asked, self._open = _named(found[1].decode(), found[2].decode()), True
                    self._meter.begun(self._asked)
                self._server.sendall(chunk)
            self._server.shutdown(socket.SHUT_WR)

    def answer(self) -> None:
        """Server to client."""
        with suppress(OSError):
            while chunk := self._server.recv(65536):
                self._meter.add(self._asked, len(chunk))
                if self._open and self._asked != "WATCH":
                    self._meter.hold()
                if self._open:
                    self._open = False
                    self._meter.ended(self._asked)
                self._client.sendall(chunk)
            self._client.shutdown(socket.SHUT_WR)


def _named(method: str, path: str) -> str:
    path, _, query = path.partition("?")
    if "watch=true" in query:
        return "WATCH"
    resource = path.rstrip("/").rsplit("/", 2)
    name = resource[-1] if resource[-1] in ("pods", "selfsubjectaccessreviews", "events") else resource[-2]
    return f"{method} {name}"
