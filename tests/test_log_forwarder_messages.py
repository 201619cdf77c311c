"""Messages between the controller and its log forwarder, however the socket cuts them."""

from __future__ import annotations

import pytest

from ottoscaler.api_server import ApiServer, PluginCommand
from ottoscaler.core.log_figures import LineDrop, LogFigures, LogServer
from ottoscaler.core.log_progress import LogCursor, LogProgress
from ottoscaler.log_forwarder_messages import (
    Acknowledged,
    Ended,
    Figures,
    Follow,
    GiveUp,
    Masks,
    Message,
    MessageBuffer,
    Notice,
    PodEnded,
    Start,
    encode_message,
)
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_log_handler import LogHandlerSettings

PROGRESS = LogProgress("uid-1", LogCursor("2026-05-01T12:00:00Z", "ab", 3, "2026-05-01T12:00:00.5Z"), 7, 6, 1, 90, 0)
SERVER = ApiServer(
    "https://api:6443", token_file="/token", plugin=PluginCommand(["aws"], {"A": "1"}, None, "v1", {"server": "x"})
)
MESSAGES: list[Message] = [
    Start(KubeSettings(namespace="ns"), LogHandlerSettings(address=("h", 1), drain_s=3), [0, 1], ["corp-.+"]),
    Start(KubeSettings(), LogHandlerSettings(), [], [], SERVER),
    Masks(["corp-.+"]),
    Follow(PROGRESS, "pod-1", "t-1", "node-1", {"a": "b"}, ended=True),
    PodEnded("uid-1"),
    GiveUp("uid-1"),
    Acknowledged([PROGRESS, LogProgress("uid-2")]),
    Ended("uid-1", True, 9, 1),
    Figures(LogFigures(5, 80, {LineDrop.REFUSED: 2}, 1, {LogServer.HANDLER: 3}, 4, 6, 0.5, 7)),
    Figures(LogFigures()),
    Notice("Log handler h:1: UNAVAILABLE", "pod-1"),
]


@pytest.mark.parametrize("size", [1, 3, 5, 100_000])
def test_each_message_arrives_as_it_was_sent(size: int) -> None:
    """In order, in pieces of any size."""
    stream = b"".join(map(encode_message, MESSAGES))
    buffer = MessageBuffer()
    pieces = [stream[place : place + size] for place in range(0, len(stream), size)]
    assert [message for piece in pieces for message in buffer.feed(piece)] == MESSAGES
