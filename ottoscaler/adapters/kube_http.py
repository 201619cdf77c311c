"""HTTP to the Kubernetes API: the official client's configuration, credentials and connection pool, raw bodies both
ways.

The typed models of the client cost 39 to 70 times the CPU per watch event and refuse fields they do not know, so they
are not used. Retries are off: retries.py is the only place where anything is tried twice. Every call has a time-out,
for the client has none of its own.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3
from kubernetes import client, config

from ottoscaler.adapters.throttle import Throttle
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, ConfigError, Expired
from ottoscaler.settings import KubeSettings

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
#: How long a token is used without asking the library for it, seconds.
TOKEN_S = 1.0
#: Longest wait that a server may ask for (Retry-After), seconds: a thread may be waiting it out.
MAX_RETRY_AFTER_S = 30.0

#: 403 is more than one thing; these mean "not now" (quota, a namespace that goes away) or "not with these rights", and
#: not "never this pod".
_WAITING_403 = ("exceeded quota", "cannot create resource", "being terminated", "status unknown for quota")


class _Status(msgspec.Struct, frozen=True):
    """The body of a refusal (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/)."""

    message: str = ""
    reason: str = ""
    code: int = 0


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
        self, method: str, path: str, *, query: Mapping[str, object] | None = None, body: bytes | None = None
    ) -> bytes:
        """One request and its whole answer. Raises ClusterUnavailable, ClusterRejected (4xx,
        404 and 409 included), Expired (410).
        """
        with self._throttle.slot():
            response = self._send(method, path, query, body, READ_TIMEOUT_S)
            try:
                data: bytes = response.read()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise self._broken(error, unclear=True) from error
            finally:
                response.release_conn()
        self._answered(response, data, method)
        return data

    def follow(self, path: str, *, query: Mapping[str, object], read_timeout_s: float) -> Any:
        """A response whose body is read as it comes; hand it to `done` in the end. Raises as `call`."""
        response = self._send("GET", path, query, None, read_timeout_s)
        if response.status >= 300:
            data = response.read()
            response.release_conn()
            self._answered(response, data, "WATCH")
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

    def _answered(self, response: Any, data: bytes, method: str) -> None:
        """Raises what the answer means. A server that says no is there; one that is broken, or does not know us, not
        for us.
        """
        if response.status < 300:
            self._heard("")
            return
        error = refusal(response.status, data, method, response.headers.get("Retry-After"))
        self._heard(str(error) if response.status >= 500 or response.status == 401 else "")
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


def refusal(status: int, body: bytes, method: str, retry_after: str | None = None) -> Exception:
    """The error for an answer that is not a success.
    Arguments: HTTP status, body, method, and the Retry-After header, if any.
    """
    try:
        told = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:
        told = _Status(message=body[:300].decode("utf-8", "replace"))
    message = f"the Kubernetes API answered {status} to {method}: {told.message or told.reason or 'no reason given'}"
    if status == 410:
        return Expired(message)
    waits = status == 403 and any(text in told.message for text in _WAITING_403)
    if status in (401, 408, 429) or status >= 500 or waits or (status == 403 and method != "POST"):
        seconds = min(float(retry_after), MAX_RETRY_AFTER_S) if retry_after and retry_after.isdigit() else None
        # 429 comes before anything was done; a 5xx may have been on the way back
        return ClusterUnavailable(message, retry_after_s=seconds, unclear=status >= 500 or status == 408)
    if status == 404 and method == "POST":
        return ClusterUnavailable(f"{message}: does NAMESPACE exist?", unclear=False)
    return ClusterRejected(message, status=status, reason=told.reason)


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


def _shut(response: Any) -> None:
    """Wake whoever reads this response."""
    try:
        response.shutdown()
    except (OSError, ValueError, RuntimeError):
        response.close()
