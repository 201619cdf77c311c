"""What the controller and its log forwarder say to each other over a socket pair.

    controller -> forwarder   Start, then Masks, Follow, PodEnded, GiveUp
    forwarder -> controller   Acknowledged, Ended, Figures, Notice

A message is its size, four bytes, and its MessagePack. Either side may die between any two: the controller keeps what
it has asked for, and asks a new forwarder again, from the last place that was acknowledged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from ottoscaler.api_server import ApiServer
from ottoscaler.core.log_figures import LogFigures
from ottoscaler.core.log_progress import LogProgress
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_log_handler import LogHandlerSettings

_SIZE: Final = struct.Struct(">I")


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message: how both servers are reached."""

    kube: KubeSettings
    handler: LogHandlerSettings
    cpus: Sequence[int] = ()
    """Where the forwarder may run: a child inherits where its parent runs, and the controller may have chosen one CPU
    for itself. Empty: as inherited."""
    masks: Sequence[str] = ()
    """See Masks."""
    server: ApiServer | None = None
    """How the API server is reached; None: the forwarder reads the kubeconfig itself."""


class Masks(msgspec.Struct, frozen=True, tag=True):
    """What the policy masks in logs from now on: regular expressions."""

    patterns: Sequence[str]


class Follow(msgspec.Struct, frozen=True, tag=True):
    """Follow the log of this pod, behind this place."""

    progress: LogProgress
    pod: str
    task_id: str
    node: str = ""
    labels: Mapping[str, str] = {}
    ended: bool = False
    """Whether it has ended: see PodEnded."""


class PodEnded(msgspec.Struct, frozen=True, tag=True):
    """The pod with this UID has ended: what is left of its log is read once, and then its end is sent."""

    uid: str


class GiveUp(msgspec.Struct, frozen=True, tag=True):
    """The log of the pod with this UID is followed no longer: the pod goes, or it is another replica's now."""

    uid: str


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """How far the handler has acknowledged the logs of some pods."""

    progress: Sequence[LogProgress]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The log of the pod with this UID is followed no longer."""

    uid: str
    acknowledged: bool
    """To its end. Otherwise the handler wants no log of this pod."""
    lines: int = 0
    dropped: int = 0


class Figures(msgspec.Struct, frozen=True, tag=True):
    """For the controller's metrics; sent once a second, unless nothing has happened."""

    figures: LogFigures


class Notice(msgspec.Struct, frozen=True, tag=True):
    """A sentence for people."""

    sentence: str
    pod: str = ""


Message = Start | Masks | Follow | PodEnded | GiveUp | Acknowledged | Ended | Figures | Notice
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Message)


def encode_message(message: Message) -> bytes:
    """As it goes over the socket."""
    body = _encoder.encode(message)
    return _SIZE.pack(len(body)) + body


class MessageBuffer:
    """Puts messages together from what a socket gives. Not thread-safe."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete with these bytes."""
        self._rest += data
        while len(self._rest) >= _SIZE.size:
            end = _SIZE.size + _SIZE.unpack_from(self._rest)[0]
            if len(self._rest) < end:
                return
            body = bytes(self._rest[_SIZE.size : end])
            del self._rest[:end]
            yield _decoder.decode(body)
