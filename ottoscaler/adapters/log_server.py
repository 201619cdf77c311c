"""The server's side of ottoscaler/proto/log_streaming.proto, over grpc.aio. A receiver decides what becomes of entries.

In grpc.aio a message is read when the method asks for the next one, so a handler that is slow slows the sender down,
and holds no more than the connection's own window.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from ottoscaler.errors import ConfigError
from ottoscaler.proto.log_streaming_pb2_grpc import (
    LogStreamingServiceServicer,
    add_LogStreamingServiceServicer_to_server,
)

#: The largest message that is taken, bytes.
MAX_MESSAGE: Final = 4 * 1024 * 1024


class Receiver(Protocol):
    """What is done with registrations and entries."""

    def register(self, registration: Any) -> Any:
        """The RegistrationResponse to a WorkerRegistration."""
        ...

    def receive(self, worker_id: str, entries: Iterable[Any]) -> Iterable[Any]:
        """The answers to the entries of one message."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the server listens, and to which clients. Immutable: any thread."""

    address: str
    """Host and port; port 0: any free one."""
    cert_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None
    """Set: clients need a certificate of one of these authorities."""
    token_file: str | None = None
    """Set: clients need this token."""
    max_streams: int = 0
    """Streams on one connection; 0: no limit."""
    delay_s: float = 0.0
    """Pause after each message."""
    cut: tuple[type[Exception], ...] = ()
    """What the receiver raises to end a stream."""


class _Service(LogStreamingServiceServicer):
    """The three methods."""

    def __init__(self, receiver: Receiver, settings: ServerSettings) -> None:
        self._receiver = receiver
        self._settings = settings

    async def RegisterWorker(self, request: Any, context: Any) -> Any:
        """The answer of the receiver."""
        await self._check(context)
        return self._receiver.register(request)

    async def StreamLogs(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """One entry per message."""
        async for answer in self._answers(requests, context, lambda entry: (entry,)):
            yield answer

    async def StreamLogBatches(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Many entries per message."""
        async for answer in self._answers(requests, context, lambda batch: batch.entries):
            yield answer

    async def _answers(
        self, requests: AsyncIterator[Any], context: Any, entries_of: Callable[[Any], Iterable[Any]]
    ) -> AsyncIterator[Any]:
        await self._check(context)
        worker_id = ""
        async for request in requests:
            entries = list(entries_of(request))
            worker_id = worker_id or next((entry.worker_id for entry in entries), "")
            if any(entry.worker_id != worker_id for entry in entries):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "one worker per stream")
            try:
                answers = list(self._receiver.receive(worker_id, entries))
            except self._settings.cut:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the stream was cut on purpose")
            if self._settings.delay_s:
                await asyncio.sleep(self._settings.delay_s)
            for answer in answers:
                yield answer

    async def _check(self, context: Any) -> None:
        if self._settings.token_file is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        wanted = f"Bearer {Path(self._settings.token_file).read_text(encoding='utf-8').strip()}"
        if not hmac.compare_digest(str(given).encode(), wanted.encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")


async def start(receiver: Receiver, settings: ServerSettings) -> tuple[Any, int]:
    """Start a server; returns it with its port. Raises ConfigError if the address is not to be had."""
    options = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.so_reuseport", 0)]
    if settings.max_streams:
        options.append(("grpc.max_concurrent_streams", settings.max_streams))
    server = grpc.aio.server(options=options)
    add_LogStreamingServiceServicer_to_server(_Service(receiver, settings), server)
    try:
        if settings.cert_file:
            port = server.add_secure_port(settings.address, _credentials(settings))
        else:
            port = server.add_insecure_port(settings.address)
    except RuntimeError as error:
        raise ConfigError((f"--address={settings.address!r}: cannot listen there ({error})",)) from error
    await server.start()
    return server, port


def _credentials(settings: ServerSettings) -> Any:
    pair = tuple(Path(str(name)).read_bytes() for name in (settings.key_file, settings.cert_file))
    authority = Path(settings.client_ca_file).read_bytes() if settings.client_ca_file else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
