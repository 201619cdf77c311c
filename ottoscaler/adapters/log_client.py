"""The client's side of ottoscaler/proto/log_streaming.proto, over grpc.aio. Messages that are sent are bytes already.

grpcio's synchronous API needs a thread and a poll ten times a second for each stream; this one needs neither. All
objects belong to the event loop in which they are made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from ottoscaler.errors import LogHandlerUnavailable
from ottoscaler.proto.log_streaming_pb2 import LogResponse, RegistrationResponse, WorkerRegistration
from ottoscaler.settings_log_handler import LogHandlerSettings

#: How long a registration may take, seconds.
REGISTER_S: Final = 10.0
#: Workers that are registered at once. Where the connection takes no more streams, their registrations wait inside
#: gRPC for one to be free; those of all other workers would only run into REGISTER_S, again and again.
MAX_REGISTERING: Final = 16
_SERVICE: Final = "/ottoscaler.v1.LogStreamingService/"
_OPTIONS: Final = (
    # Servers of other languages end a connection with pings that come more often than this without data.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    # We open lost streams again. gRPC would also retry by itself, and would keep 5.5 KiB more for each stream and all
    # that was sent until the handler answers.
    ("grpc.enable_retries", 0),
    # otherwise two channels to one address share their connection, and so the certificates of the first
    ("grpc.use_local_subchannel_pool", 1),
)
_DENIED: Final = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
)
#: REFUSED_STREAM of HTTP/2. gRPC has no status for it, and names it only in the text.
_REFUSED: Final = "RST_STREAM with error code 7"
_LONGEST_DETAIL: Final = 300


class LogStream:
    """One open stream of one worker."""

    def __init__(self, call: Any, target: str) -> None:
        self._call = call
        self._target = target

    async def write(self, message: bytes) -> None:
        """Send one message; returns when the connection has taken it. Raises LogHandlerUnavailable."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, self._target) from error
        except asyncio.InvalidStateError as error:  # the call has ended; the reader finds out how
            raise LogHandlerUnavailable(f"Log handler {self._target}: the stream has ended") from error

    async def read(self) -> Any:
        """The next LogResponse; None when the handler has ended the stream. Raises LogHandlerUnavailable."""
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _translated(error, self._target) from error
        return None if response is grpc.aio.EOF else response

    async def half_close(self) -> None:
        """Say that no more messages come."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    def cancel(self) -> None:
        """End the stream at once."""
        self._call.cancel()


class LogHandlerClient:
    """One channel to the log handler, made again when its files have changed."""

    def __init__(self, settings: LogHandlerSettings) -> None:
        self._settings = settings
        self._channel: Any = None
        self._files: list[tuple[int, int, int]] = []
        self.turns = asyncio.Semaphore(MAX_REGISTERING)
        """Held by a worker that is registered; the others wait for it in the order in which they came."""
        self.open_streams = 0
        """Streams that were opened and have not ended."""

    @property
    def target(self) -> str:
        """Where the handler is."""
        return self._settings.target

    async def register(self, registration: WorkerRegistration) -> Any:
        """Returns the RegistrationResponse. Raises LogHandlerUnavailable."""
        channel = await self._current()
        call = channel.unary_unary(
            f"{_SERVICE}RegisterWorker",
            request_serializer=WorkerRegistration.SerializeToString,
            response_deserializer=RegistrationResponse.FromString,
        )
        begin = time.monotonic()
        try:
            return await call(registration, timeout=REGISTER_S, metadata=self._metadata())
        except grpc.aio.AioRpcError as error:
            found = _translated(error, self.target)
            # our own deadline, and not an answer of a proxy's, which may come at once
            waited = time.monotonic() - begin >= REGISTER_S * 0.9
            found.timed_out = waited and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            raise found from error

    @contextlib.asynccontextmanager
    async def stream(self, session_id: str, *, batches: bool) -> AsyncIterator[LogStream]:
        """A stream of entries, or of batches; it has ended when the block is left. Raises LogHandlerUnavailable."""
        channel = await self._current()
        method = "StreamLogBatches" if batches else "StreamLogs"
        call = channel.stream_stream(
            f"{_SERVICE}{method}", request_serializer=None, response_deserializer=LogResponse.FromString
        )(metadata=(*self._metadata(), ("otto-session-id", session_id)))
        self.open_streams += 1
        try:
            yield LogStream(call, self.target)
        finally:
            self.open_streams -= 1
            call.cancel()

    async def close(self) -> None:
        """End what is open."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _current(self) -> Any:
        """The channel, with the certificates as the files have them now."""
        files = self._signatures()
        if self._channel is None or files != self._files:
            await self.close()
            self._files = files
            if self._settings.is_tls:
                self._channel = grpc.aio.secure_channel(self.target, self._credentials(), options=_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self.target, options=_OPTIONS)
        return self._channel

    def _signatures(self) -> list[tuple[int, int, int]]:
        """What changes when a file of certificates does, however it is replaced."""
        settings = self._settings
        named = filter(None, (settings.ca_file, settings.cert_file, settings.key_file))
        return [(found.st_ino, found.st_mtime_ns, found.st_size) for found in map(_stat, named)]

    def _credentials(self) -> Any:
        settings = self._settings
        return grpc.ssl_channel_credentials(
            _bytes(settings.ca_file), _bytes(settings.key_file), _bytes(settings.cert_file)
        )

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """The token as its file has it now."""
        token = _bytes(self._settings.token_file)
        return (("authorization", f"Bearer {token.decode().strip()}"),) if token is not None else ()


def _stat(path: str) -> os.stat_result:
    try:
        return Path(path).stat()
    except OSError as error:
        raise LogHandlerUnavailable(f"Cannot read {path}: {error.strerror}") from error


def _bytes(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LogHandlerUnavailable(f"Cannot read {path}: {error.strerror}") from error


def _translated(error: grpc.aio.AioRpcError, target: str) -> LogHandlerUnavailable:
    code = error.code()
    detail = " ".join((error.details() or "no details").split())[:_LONGEST_DETAIL]
    return LogHandlerUnavailable(
        f"Log handler {target}: {code.name}: {detail}",
        unimplemented=code is grpc.StatusCode.UNIMPLEMENTED,
        denied=code in _DENIED,
        refused=_REFUSED in detail,
    )
