"""An HTTP/2 server that resets each stream at once. It writes frames itself, since no gRPC server can do that."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.adapters.connections import serving

_PREFACE = 24
_HEADERS, _RST_STREAM, _SETTINGS, _PING = 1, 3, 4, 6
_ACK = 1


@contextmanager
def resetting(code: int, resets: list[int]) -> Iterator[int]:
    """Each stream is reset with this error code, and its number added to `resets`; yields the port."""
    with serving(lambda connection: _serve(connection, code, resets)) as port:
        yield port


def _serve(connection: socket.socket, code: int, resets: list[int]) -> None:
    read = connection.makefile("rb").read
    read(_PREFACE)
    connection.sendall(_frame(_SETTINGS, 0, 0))
    while len(head := read(9)) == 9:
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        body = read(int.from_bytes(head[:3], "big"))
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            connection.sendall(_frame(_PING, _ACK, 0, body))
        elif kind == _HEADERS:
            resets.append(stream)
            connection.sendall(_frame(_RST_STREAM, 0, stream, struct.pack(">I", code)))


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + body
