"""The logs of pods over TLS, from a server in this process: some are quiet, and some are long."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ottoscaler.settings import KubeSettings
from tests.adapters.connections import serving
from tests.adapters.test_kube_http import settings
from tests.adapters.test_redis_client import certificate

#: Bytes of a long log.
LONG = 1_000_000
#: How long the server waits before it ends the handshake, seconds: the session tickets that it sends then come behind
#: the client's request, as they do from a server that is some way off.
_AWAY_S = 0.05


@contextmanager
def tls_pods(folder: Path) -> Iterator[KubeSettings]:
    """Settings for a server. The log of a pod named `long-x` is LONG times `x`. A pod named `gone-404` gets that answer
    together with the end of the connection. Others stay open and empty.
    """
    cert, key = certificate(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.num_tickets = 1
    with serving(lambda connection: _answer(connection, context)) as port:
        yield settings(folder, port, server=f"https://localhost:{port}", **{"certificate-authority": cert})


class _Tls:
    """The server's side of one connection. Bytes are encrypted in memory, so it decides when it sends what."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._connection.sendall(self._outgoing.read())
                self._receive()
                time.sleep(_AWAY_S)
            else:
                return

    def read(self) -> bytes:
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                self._receive()

    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._connection.sendall(self._outgoing.read())

    def write_and_close(self, data: bytes) -> None:
        """In one piece, so that the client sees both at once."""
        self._tls.write(data)
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._connection.sendall(self._outgoing.read())

    def _receive(self) -> None:
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionError("the client is gone")
        self._incoming.write(data)


def _answer(connection: socket.socket, context: ssl.SSLContext) -> None:
    tls = _Tls(connection, context)
    tls.handshake()
    pod = tls.read().split(b"/log?")[0].rpartition(b"/")[2]
    if pod.startswith(b"gone-"):
        tls.write_and_close(b"HTTP/1.0 " + pod[-3:] + b" No\r\nConnection: close\r\n\r\nwhy it is so")
        connection.shutdown(socket.SHUT_RDWR)
        return
    tls.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    if pod.startswith(b"long-"):
        for _ in range(LONG // 10_000):
            tls.write(b"2710\r\n" + pod[-1:] * 10_000 + b"\r\n")
        tls.write(b"0\r\n\r\n")
        connection.shutdown(socket.SHUT_RDWR)
    connection.recv(1)  # until the client is gone
