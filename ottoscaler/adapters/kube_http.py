"""HTTP to the Kubernetes API: the official client's configuration, credentials and connection pool, raw bodies both
ways.

The typed models of the client cost 39 to 70 times the CPU per watch event and refuse fields they do not know, so they
are not used. Retries are off: retries.py is the only place where anything is tried twice. Every call has a time-out,
for the client has none of its own.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from kubernetes import client, config

from ottoscaler.adapters.kube_answers import Verb, refusal
from ottoscaler.adapters.throttle import Throttle
from ottoscaler.errors import ClusterUnavailable, ConfigError
from ottoscaler.settings import KubeSettings

CONNECT_TIMEOUT_S = 3.0
#: How long an answer may take, seconds, by what the server may take. The API server ends a request after 60 s
#: (kube-apiserver --request-timeout), and a create may wait for several webhooks in a row, 30 s each: whoever gives up
#: before the server does never gets a pod. A loop that /livez watches makes the other calls, so these end within
#: `health.FROZEN_S`.
TIMEOUTS_S: Mapping[Verb, float] = {
    Verb.CREATE: 65.0,
    Verb.DELETE: 50.0,
    Verb.GET: 30.0,
    Verb.LIST: 30.0,
    Verb.REVIEW: 30.0,
}
#: How long a token is used without asking the library for it, seconds.
TOKEN_S = 1.0

#: A link on which nothing comes back, not even from the server's kernel, is given up after about 25 s, however long
#: the answer may take. Without this a create to a node that is gone would be waited for to the end of its time-out.
_KEEPALIVE = (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class KubeHttp:
    """Sends requests to one API server. Any thread; `close` ends what is in flight."""

    def __init__(self, settings: KubeSettings, heard: Callable[[str], None] = lambda error: None) -> None:
        """`heard` is told of each request how it ended: empty for an answer, else the error."""
        self._heard = heard
        configuration = _configuration(settings)
        configuration.retries = urllib3.Retry(total=0, redirect=0)
        configuration.keep_alive = True
        configuration.connection_pool_maxsize = settings.inflight + 8
        self._configuration = configuration
        self._api = client.ApiClient(configuration)
        self._manager = self._api.rest_client.pool_manager
        self._base = urlsplit(configuration.host).path
        if configuration.host.startswith("https"):
            _share_context(self._manager, configuration)
        elif isinstance(self._manager, urllib3.ProxyManager):
            self._base = configuration.host  # without TLS a proxy wants the whole URL
        self._manager.connection_pool_kw["socket_options"] = _socket_options()
        self._pool = self._manager.connection_from_url(configuration.host)
        self._token: str | None = None
        self._asked_until = 0.0
        self._throttle = Throttle(settings.inflight, settings.qps, settings.burst)
        self._lock = threading.Lock()
        self._streams: set[Any] = set()  # guarded by _lock: responses that are being followed
        self._closed = False

    @property
    def address(self) -> str:
        """Where the API server is."""
        return str(self._configuration.host)

    def close(self) -> None:
        """Cut what is being followed and refuse everything from now on; idempotent."""
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        self._throttle.close()
        for response in streams:
            _shut(response)
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
        Raises what `kube_answers.refusal` makes of any other answer, and ClusterUnavailable for none.
        """
        with self._throttle.slot():
            response = self._send(verb.method, path, query, body, TIMEOUTS_S[verb])
            try:
                data: bytes = response.read()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise self._broken(error, unclear=True) from error
            finally:
                response.release_conn()
        self._answered(response, data, verb, name)
        return data

    def follow(self, path: str, *, query: Mapping[str, object], read_timeout_s: float) -> Any:
        """A response whose body is read as it comes; hand it to `done` in the end. Raises as `call`."""
        response = self._send("GET", path, query, None, read_timeout_s)
        if response.status >= 300:
            data = response.read()
            response.release_conn()
            self._answered(response, data, Verb.WATCH, "")
        if not response.headers.get("Content-Type", "").startswith("application/json"):
            response.close()
            other = ClusterUnavailable(f"{self.address} answered to a watch with what is not of the Kubernetes API")
            self._heard(str(other))
            raise other
        self._heard("")
        with self._lock:
            self._streams.add(response)
            closed = self._closed
        if closed:
            _shut(response)
        return response

    def done(self, response: Any) -> None:
        """The response is not followed any more; its connection goes, for there may be half an answer on it."""
        with self._lock:
            self._streams.discard(response)
        response.close()

    def _send(
        self, method: str, path: str, query: Mapping[str, object] | None, body: bytes | None, read_s: float
    ) -> Any:
        if self._closed:
            raise ClusterUnavailable("the connection to the Kubernetes API is closed", unclear=False)
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        token = self._bearer()
        if token:
            headers["Authorization"] = token
        target = f"{self._base}{path}" + (f"?{urlencode(query)}" if query else "")
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=read_s)
        try:
            # of the pool itself: its manager would find it anew for each request, which costs a quarter of the whole
            return self._pool.urlopen(
                method, target, body=body, headers=headers, timeout=timeout, preload_content=False, retries=False,
                assert_same_host=False,
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError) as error:
            refused = isinstance(error, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
            raise self._broken(error, unclear=not refused) from error

    def _bearer(self) -> str | None:
        """Who we are, as the library says it: it reads a ServiceAccount's file once a minute, for bound tokens rotate.

        Asked for once a second: it settles its whole configuration anew each time, proxies included, which cost a sixth
        of each request. Raises ClusterUnavailable.
        """
        now = time.monotonic()
        if now >= self._asked_until:
            try:
                self._token = self._configuration.get_api_key_with_prefix("BearerToken")
            except (OSError, config.ConfigException) as error:
                reason = f"the ServiceAccount's token cannot be read: {error}"
                raise ClusterUnavailable(reason, unclear=False) from error
            self._asked_until = now + TOKEN_S
        return self._token

    def _answered(self, response: Any, data: bytes, verb: Verb, name: str) -> None:
        """Raises what the answer means. A server that says no is there. One that is broken, or does not know us, is
        not there for us, and neither is one of which we only see a proxy.
        """
        if 200 <= response.status < 300:
            self._heard("")
            return
        error = refusal(response.status, data, verb, name, response.headers.get("Retry-After"))
        unclear = isinstance(error, ClusterUnavailable) and error.unclear
        self._heard(str(error) if unclear or response.status == 401 else "")
        raise error

    def drop_idle(self) -> None:
        """Close the connections that nobody uses just now: when one is dead, so may be the others, and each would cost
        whoever uses it next a time-out. What is in flight goes on, and its connection is not used again.
        """
        self._manager.clear()
        self._pool = self._manager.connection_from_url(self._configuration.host)

    def _broken(self, error: Exception, *, unclear: bool) -> ClusterUnavailable:
        self.drop_idle()
        text = " ".join(str(error).split())[:300]
        told = ClusterUnavailable(f"the Kubernetes API at {self.address} does not answer ({text})", unclear=unclear)
        self._heard(str(told))
        return told


def _configuration(settings: KubeSettings) -> Any:
    configuration = client.Configuration()
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and not settings.kubeconfig
    try:
        if in_cluster:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(config_file=settings.kubeconfig, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        where = "the pod's ServiceAccount" if in_cluster else f"KUBECONFIG={settings.kubeconfig or '(default)'}"
        fault = f"{where} gives no access to a Kubernetes cluster: {error}; set KUBECONFIG to a kubeconfig file"
        raise ConfigError((fault,)) from error
    return configuration


def _share_context(pool: Any, configuration: Any) -> None:
    """One SSLContext for all connections: a new one costs 13 to 17 ms of CPU each.

    Python 3.13 refuses certificates that RFC 5280 would have otherwise, such as those of many API servers
    (kubernetes-client/python #2394); whom we talk to is checked all the same.
    """
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.ca_cert_data:
        context.load_verify_locations(cadata=configuration.ca_cert_data)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    for name in ("ca_certs", "ca_cert_data", "cert_file", "key_file", "cert_reqs"):
        pool.connection_pool_kw.pop(name, None)
    pool.connection_pool_kw["ssl_context"] = context


def _socket_options() -> list[tuple[int, int, int]]:
    """What urllib3 sets itself, and keep-alive as far as this platform has it."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            options.append((level, getattr(socket, name), value))
    return options


def _shut(response: Any) -> None:
    """Wake whoever reads this response."""
    try:
        response.shutdown()
    except (OSError, ValueError, RuntimeError):
        response.close()
