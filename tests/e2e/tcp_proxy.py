"""A bad network between two processes on this machine: it passes, delays, cuts, refuses, falls silent, stops in the
middle of a message, or swallows the answer to one request.

It knows no protocol: what is to be lost is named by bytes of the request.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

_LINGER_NOT = struct.pack("ii", 1, 0)  # close by RST, as a crashed host does


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and passes on to another. Any thread may make it fail."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._lock = threading.Lock()
        self._links: set[_Link] = set()  # guarded by _lock
        self._lose: list[bytes] = []  # guarded by _lock: requests with answers still to be lost
        self._halve = 0  # guarded by _lock: answers that are still to be cut in half
        self.lost = 0
        """Answers lost or halved so far."""
        self.accepted = 0
        """Connections so far."""
        self.delay_s = 0.0
        """How long each chunk is held back."""
        self._refusing = False
        self._silent = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and cut everything."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join(5)

    @property
    def links(self) -> int:
        """Connections now."""
        with self._lock:
            return len(self._links)

    def cut(self) -> int:
        """Break all connections with RST; returns how many there were."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()
        return len(links)

    def refuse(self) -> None:
        """Break all connections, and every new one at once."""
        self._refusing = True
        self.cut()

    def silence(self) -> None:
        """Accept everything and pass on nothing, in both directions, as behind a dead router."""
        self._silent = True

    def freeze(self) -> int:
        """Pass on nothing more for the connections there are, without a word; new ones are good. So a firewall does
        that has forgotten them. Returns how many there were.
        """
        with self._lock:
            for link in self._links:
                link.frozen = True
            return len(self._links)

    def heal(self) -> None:
        """No fault for new connections. Those that lived through a silence have lost bytes, so they are cut."""
        if self._silent:
            self.cut()
        self._refusing = self._silent = False
        self.delay_s = 0.0
        with self._lock:
            self._lose.clear()
            self._halve = 0

    def lose_answer_to(self, request: bytes, times: int = 1) -> None:
        """Requests with these bytes are passed on, and their answers are cut off."""
        with self._lock:
            self._lose += [request] * times

    def halve_answers(self, times: int = 1) -> None:
        """Of the next answers only the first half comes, then the connection is cut."""
        with self._lock:
            self._halve += times

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._refusing:
                _reset(near)
                continue
            with suppress(OSError):
                link = _Link(self, near, socket.create_connection(self._target, timeout=5))
                with self._lock:
                    self._links.add(link)
                link.start()
                continue
            _reset(near)

    # -- for the links

    def ended(self, link: _Link) -> None:
        """A connection is over."""
        with self._lock:
            self._links.discard(link)

    def swallows(self, request: bytes) -> bool:
        """Is the answer to this to be lost?"""
        with self._lock:
            for wanted in self._lose:
                if wanted in request:
                    self._lose.remove(wanted)
                    self.lost += 1
                    return True
        return False

    def halves(self) -> bool:
        """Is this answer to be cut in half?"""
        with self._lock:
            if not self._halve:
                return False
            self._halve -= 1
            self.lost += 1
            return True

    @property
    def silent(self) -> bool:
        """Is nothing passed on?"""
        return self._silent


class _Link:
    """One connection and its two directions, a thread each."""

    def __init__(self, proxy: TcpProxy, near: socket.socket, far: socket.socket) -> None:
        self._proxy = proxy
        self._near, self._far = near, far
        far.settimeout(None)
        self._lose_next = False
        self.frozen = False
        self._pause = threading.Event()

    def start(self) -> None:
        for name, pump in (("up", self._up), ("down", self._down)):
            threading.Thread(target=self._run, args=(pump,), name=f"proxy-{name}", daemon=True).start()

    def cut(self) -> None:
        self._pause.set()
        for end in (self._near, self._far):
            _reset(end)

    def _run(self, pump: Callable[[], None]) -> None:
        with suppress(OSError):
            pump()
        self.cut()
        self._proxy.ended(self)

    def _up(self) -> None:
        while data := self._near.recv(65536):
            self._hold()
            if self.frozen:
                continue
            if self._proxy.swallows(data):
                self._lose_next = True
            if not self._proxy.silent:
                self._far.sendall(data)

    def _down(self) -> None:
        while data := self._far.recv(65536):
            self._hold()
            if self._lose_next:
                return
            if self.frozen or self._proxy.silent:
                continue
            if self._proxy.halves():
                self._near.sendall(data[: len(data) // 2])
                return
            self._near.sendall(data)

    def _hold(self) -> None:
        if self._proxy.delay_s:
            self._pause.wait(self._proxy.delay_s)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
