"""The logs of pods from the Kubernetes API, over aiohttp: a thousand follows need no thread each.

All objects belong to the event loop in which they are made.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import importlib
import socket
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp

from ottoscaler.adapters.api_access import ApiAccess
from ottoscaler.adapters.pod_log_query import log_query
from ottoscaler.api_server import ApiServer
from ottoscaler.core.manifest import CONTAINER
from ottoscaler.core.wording import one_line
from ottoscaler.errors import ClusterUnavailable, PodLogUnavailable
from ottoscaler.settings import KubeSettings

#: How long a connection may take, and how long a log may be silent before it is opened again, seconds. A link on which
#: not even the other kernel answers is noticed earlier, by keep-alive.
CONNECT_S: Final = 10.0
SILENCE_S: Final = 3600.0
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
#: How much of an answer waits in memory while no one reads it, about, bytes: there may be a thousand.
_BUFFER: Final = 16 * 1024


def _share_read_buffer() -> None:
    """Let all TLS connections of this process read into one buffer. asyncio gives each its own of 256 KiB, filled with
    zeros: a thousand of them are 256 MiB. One event loop fills the buffer and copies it out in one step, so no two
    connections use it at once; two event loops in threads must not. A socket that has more is read again at once.
    """
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    ordinary = asyncio.sslproto.SSLProtocol.get_buffer

    def get_buffer(protocol: Any, wanted: int) -> memoryview:
        if "_ssl_buffer_view" not in vars(protocol):  # another asyncio than we know
            return ordinary(protocol, wanted)
        protocol._ssl_buffer, protocol._ssl_buffer_view = buffer, view
        return view

    asyncio.sslproto.SSLProtocol.max_size = _BUFFER
    asyncio.sslproto.SSLProtocol.get_buffer = get_buffer  # type: ignore[method-assign,assignment]


_share_read_buffer()


class PodLog:
    """One answer that is being read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def read(self) -> bytes:
        """The next bytes; empty at the end of the answer. Raises PodLogUnavailable."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PodLogUnavailable(f"the log broke off: {one_line(error) or type(error).__name__}") from error

    def cut(self) -> None:
        """End the answer: `read` raises PodLogUnavailable."""
        self._response.close()


class PodLogClient:
    """The logs of the pods in one namespace."""

    def __init__(self, settings: KubeSettings, server: ApiServer | None = None) -> None:
        """`server`: how it is reached, where that is known; None: as the settings say. Raises ConfigError if there is
        no way to a cluster.
        """
        self._access = _access_to(server, settings)
        self._base = f"{self._access.server.url}/api/v1/namespaces/{settings.namespace}/pods"
        self._session: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def open(self, pod: str, *, since: str, follow: bool) -> AsyncIterator[PodLog]:
        """The log of a pod with times, from a whole second on (RFC 3339; empty: from its beginning). An answer that
        follows ends when the container does. Raises PodLogUnavailable.
        """
        try:
            # a credential plugin may take its time, and a thread may wait for it
            token = await asyncio.to_thread(self._access.authorization_header)
        except ClusterUnavailable as error:
            raise PodLogUnavailable(str(error)) from error
        query = log_query(CONTAINER, since=since, follow=follow)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": token} if token else {})
        server = self._access.server
        try:
            response = await self._opened().get(
                f"{self._base}/{pod}/log", params=query, headers=headers, allow_redirects=False,
                proxy=server.proxy or None, server_hostname=server.tls_server_name or None,
            )  # fmt: skip
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise PodLogUnavailable(
                f"the Kubernetes API does not answer ({one_line(error) or type(error).__name__})"
            ) from error
        try:
            _release_write_buffer(response)
            if response.status != 200:
                await self._refuse(response, token)
            yield PodLog(response)
        finally:
            response.close()

    async def close(self) -> None:
        """End what is open."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0, ssl=self._access.context or False, force_close=True, socket_factory=_socket
            )
            timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=_BUFFER)
        return self._session

    async def _refuse(self, response: aiohttp.ClientResponse, token: str | None) -> None:
        if response.status == 401:
            self._access.token_rejected(token)
        try:
            text = (await response.content.read(_BUFFER)).decode(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError):
            text = ""
        raise PodLogUnavailable(
            f"the Kubernetes API answers {response.status}: {one_line(text)}", status=response.status
        )


def _access_to(server: ApiServer | None, settings: KubeSettings) -> ApiAccess:
    if server is not None:
        with contextlib.suppress(ValueError):  # its certificates stood in temporary files, and those are gone
            return ApiAccess(server)
    # imported only here: it loads the official client
    found: ApiAccess = importlib.import_module("ottoscaler.adapters.kube_access").KubeAccess(settings)
    return found


def _release_write_buffer(response: aiohttp.ClientResponse) -> None:
    """Free 16 KiB. OpenSSL 3.0 allocates its buffer for writing again for each session ticket of TLS 1.3, which comes
    after our request, and keeps it until the next write. A write of no bytes sends nothing, and frees the buffer.
    """
    connection = response.connection  # None where the answer has ended already
    transport = connection.transport if connection is not None else None
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    if tls is not None:
        with contextlib.suppress(OSError):  # the server has ended the connection: that is seen when it is read
            tls.write(b"")


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
