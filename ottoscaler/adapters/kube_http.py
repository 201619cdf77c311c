"""HTTP to the Kubernetes API: the official client's configuration, credentials and connection pool, raw bodies both
ways.

The typed models of the client cost 39 to 70 times the CPU per watch event and refuse fields they do not know, so they
are not used. Retries are off: retries.py is the only place where anything is tried twice. Every call has a time-out,
for the client has none of its own.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from ottoscaler.adapters.kube_access import KubeAccess
from ottoscaler.adapters.kube_answers import Verb, error_for_response
from ottoscaler.adapters.throttle import Throttle
from ottoscaler.api_server import ApiServer
from ottoscaler.core.wording import one_line
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.settings import KubeSettings

CONNECT_TIMEOUT_S = 3.0
#: How long an answer may take, seconds, by what the server may take. The API server ends a request after 60 s
#: (kube-apiserver --request-timeout), and a create may wait for several webhooks in a row, 30 s each: a client that
#: gives up before the server does never gets a pod. A loop that /livez watches makes the other calls, so these end
#: within `health.FROZEN_S`. An Event may be lost, and the stop waits for the call that is under way.
TIMEOUTS_S: Mapping[Verb, float] = {
    Verb.CREATE: 65.0,
    Verb.DELETE: 50.0,
    Verb.GET: 30.0,
    Verb.LIST: 30.0,
    Verb.LIST_EVENTS: 30.0,
    Verb.CREATE_EVENT: 5.0,
    Verb.PATCH_EVENT: 5.0,
    Verb.REVIEW: 30.0,
    Verb.LOOK: 30.0,
}

#: A link on which nothing comes back, not even from the server's kernel, is given up after about 25 s, however long
#: the answer may take. Without this a create to a node that is gone would be waited for to the end of its time-out.
_KEEPALIVE = (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


#: What gets a request's verb, the HTTP status of its answer (0: none came), and for how long it was under way, seconds.
OnRequest = Callable[[str, int, float], None]


def ignore_request(verb: str, status: int, seconds: float) -> None:
    """An `on_request` that does nothing."""


class KubeHttp:
    """Sends requests to one API server. Any thread; `close` ends what is in flight."""

    def __init__(
        self,
        settings: KubeSettings,
        on_reply: Callable[[str], None] = lambda error: None,
        urgent: Callable[[], bool] = lambda: False,
        on_request: OnRequest = ignore_request,
        on_wait: Callable[[str, float], None] = lambda cause, seconds: None,
        acting_as: str = "",
    ) -> None:
        """`on_reply` gets for each request how it ended: empty for an answer, otherwise the error. `urgent` says
        whether the calling thread's requests wait for no other's. `on_wait` gets what a request has waited for before
        it was sent (see Throttle). `acting_as`: the user that ours impersonates. Raises ConfigError if there is no way
        to a cluster.
        """
        self._on_reply = on_reply
        self._on_request = on_request
        self._urgent = urgent
        self._acting_as = acting_as
        self._access = KubeAccess(settings)
        self._host = self._access.configuration.host
        self._manager = self._access.manager
        self._base = urlsplit(self._host).path
        if isinstance(self._manager, urllib3.ProxyManager) and not self._host.startswith("https"):
            self._base = self._host  # without TLS a proxy wants the whole URL
        self._manager.connection_pool_kw["socket_options"] = _socket_options()
        self._pool = self._manager.connection_from_url(self._host)
        self._throttle = Throttle(settings.inflight, settings.qps, settings.burst, on_wait)
        self._lock = threading.Lock()
        self._streams: set[Any] = set()  # guarded by _lock: responses that are being followed
        self._closed = False

    @property
    def address(self) -> str:
        """Where the API server is."""
        return str(self._host)

    @property
    def server(self) -> ApiServer | None:
        """See KubeAccess.handed_over."""
        return self._access.handed_over

    def close(self) -> None:
        """Cut what is being followed and refuse everything from now on; idempotent."""
        # Marked under the lock: a response that `open_stream` adds after this sees the mark there, and none is
        # forgotten.
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        self._throttle.close()  # before the sockets: a call that still waits for its turn must not open another one
        for response in streams:
            _shutdown_response(response)
        self.drop_idle()

    def call(
        self,
        verb: Verb,
        path: str,
        *,
        name: str = "",
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
    ) -> bytes:
        """One request and its whole answer, where that is a success; `name` is the pod that it is about.
        Raises what `kube_answers.error_for_response` makes of any other answer, and ClusterUnavailable for none.
        """
        token = self._access.authorization_header()  # before the slot: a plugin that is slow must not hold it
        with self._throttle.slot(urgent=self._urgent()):
            status, began = 0, time.monotonic()
            try:
                response = self._send(verb, path, query, body, TIMEOUTS_S[verb], token)
                data = self._body(response)
                status = response.status
            finally:
                self._on_request(verb, status, time.monotonic() - began)
        self._raise_for_status(response, data, verb, name, token)
        return data

    def date_header(self) -> str:
        """The API server's time as HTTP writes it; empty where it gives none. Raises ClusterUnavailable."""
        token = self._access.authorization_header()
        response = self._send(Verb.LOOK, "/version", None, None, TIMEOUTS_S[Verb.LOOK], token)
        self._body(response)
        return str(response.headers.get("Date", ""))

    def open_stream(
        self, path: str, *, query: Mapping[str, object], read_timeout_s: float, verb: Verb = Verb.WATCH,
        name: str = "", content_type: str = "application/json",
    ) -> Any:  # fmt: skip
        """A response with a body that is read as it comes; hand it to `close_stream` in the end. Raises as `call`.

        `content_type`: what a body of the Kubernetes API has here; an answer with another one is not of it.
        """
        token = self._access.authorization_header()
        # Outside the throttle: a watch lasts for minutes, and would take the place of a worker's call all the time.
        status, began = 0, time.monotonic()
        try:
            response = self._send(verb, path, query, None, read_timeout_s, token)
            status = response.status
        finally:
            self._on_request(verb, status, time.monotonic() - began)
        if response.status >= 300:
            self._raise_for_status(response, self._body(response), verb, name, token)
        if response.status != 204 and not response.headers.get("Content-Type", "").startswith(content_type):
            response.close()
            other = ClusterUnavailable(f"{self.address} answered to {verb} with what is not of the Kubernetes API")
            self._on_reply(str(other))
            raise other
        self._on_reply("")
        # Added and looked at in one step: `close` cuts what is in the set, and what comes later is cut here. Otherwise
        # the watch thread could go on reading for minutes after the stop.
        with self._lock:
            self._streams.add(response)
            closed = self._closed
        if closed:
            _shutdown_response(response)
        return response

    def close_stream(self, response: Any) -> None:
        """The response is not followed any more; its connection goes, for there may be half an answer on it."""
        with self._lock:
            self._streams.discard(response)
        response.close()

    def _send(
        self,
        verb: Verb,
        path: str,
        query: Mapping[str, object] | None,
        body: bytes | None,
        read_s: float,
        token: str | None,
    ) -> Any:
        if self._closed:
            raise ClusterUnavailable("the connection to the Kubernetes API is closed", unclear=False)
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = verb.content_type
        if self._acting_as:
            headers["Impersonate-User"] = self._acting_as
        if token:
            headers["Authorization"] = token
        target = f"{self._base}{path}" + (f"?{urlencode(query)}" if query else "")
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=read_s)
        try:
            # of the pool itself: its manager would look it up for each request, which costs a quarter of the whole
            return self._pool.urlopen(
                verb.method, target, body=body, headers=headers, timeout=timeout, preload_content=False, retries=False,
                assert_same_host=False,
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # Without a connection nothing was sent, and the caller may repeat; with one, the server may have acted.
            refused = isinstance(error, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
            raise self._connection_error(error, unclear=not refused) from error

    def _body(self, response: Any) -> bytes:
        """The whole answer. One that breaks off is an outage, also where it would have been a refusal."""
        try:
            data: bytes = response.read()
            return data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._connection_error(error, unclear=True) from error
        finally:
            response.release_conn()  # also of half an answer: the pool is bounded, and a lost place stays lost

    def _raise_for_status(self, response: Any, data: bytes, verb: Verb, name: str, token: str | None) -> None:
        """Raises what the answer means. A server that says no is there. One that is broken, or does not know us, is
        not there for us, and neither is one of which we only see a proxy.
        """
        if 200 <= response.status < 300:
            self._on_reply("")
            return
        error = error_for_response(response.status, data, verb, name, response.headers.get("Retry-After"))
        if response.status == 401:
            self._access.token_rejected(token)
        unclear = isinstance(error, ClusterUnavailable) and error.unclear
        self._on_reply(str(error) if unclear or response.status == 401 else "")
        raise error

    def drop_idle(self) -> None:
        """Close the idle connections: when one is dead, so may be the others, and each would cost its next user a
        time-out. What is in flight goes on, and its connection is not used again.
        """
        self._manager.clear()
        self._pool = self._manager.connection_from_url(self._host)

    def _connection_error(self, error: Exception, *, unclear: bool) -> ClusterUnavailable:
        self.drop_idle()
        unavailable = ClusterUnavailable(
            f"the Kubernetes API at {self.address} does not answer ({one_line(error)})", unclear=unclear
        )
        self._on_reply(str(unavailable))
        return unavailable


def _socket_options() -> list[tuple[int, int, int]]:
    """What urllib3 sets itself, and keep-alive as far as this platform has it."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            options.append((level, getattr(socket, name), value))
    return options


def _shutdown_response(response: Any) -> None:
    """Wake the thread that reads this response."""
    try:
        response.shutdown()
    except (OSError, ValueError, RuntimeError):
        response.close()
