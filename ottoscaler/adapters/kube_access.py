"""How to reach the API server, and as which user: the kubeconfig or the pod's ServiceAccount, TLS, and the credential.

The official client reads the files. What it leaves to chance is done here: an unusable kubeconfig becomes one sentence,
a token file is read again, and credential plugins are our own affair (kube_plugin.py).
"""

from __future__ import annotations

import os
import shutil
import ssl
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.config.exec_provider import ExecProvider
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigLoader

from ottoscaler.adapters.kube_plugin import CredentialPlugin, authorization_header, one_line_error
from ottoscaler.adapters.kubeconfig import merged_kubeconfig
from ottoscaler.core.wording import one_line
from ottoscaler.errors import ClusterUnavailable, ConfigError
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_files import redact_value
from ottoscaler.settings_reader import is_host

#: How long a token is used without asking the library, or reading its file, again, seconds.
TOKEN_CACHE_S: Final = 1.0

#: What the official client raises for a file that is none: it has no error of its own for many of them.
_UNUSABLE: Final = (
    config.ConfigException, OSError, ValueError, TypeError, AttributeError, LookupError, ImportError,
    yaml.YAMLError, urllib3.exceptions.HTTPError,
)  # fmt: skip


class KubeAccess:
    """Configuration, TLS and credential for one API server. Any thread."""

    def __init__(self, settings: KubeSettings) -> None:
        """Raises ConfigError with one sentence if there is no way to a cluster."""
        in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and not settings.kubeconfig
        path = settings.kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
        where = "the pod's ServiceAccount" if in_cluster else f"KUBECONFIG={path}"
        self.configuration: Any = client.Configuration()
        self.context: ssl.SSLContext | None = None
        self._plugin: CredentialPlugin | None = None
        self._token_file: Path | None = None
        self._token: str | None = None
        self._asked_until = 0.0
        self._lock = threading.Lock()
        try:
            if in_cluster:
                config.load_incluster_config(client_configuration=self.configuration)
            else:
                self._load(path)
            _check_url(self.configuration.host)
            if self.configuration.host.startswith("https"):
                self.context = _new_ssl_context(self.configuration)
            self._api = _new_api_client(self.configuration, settings.inflight, self.context)
            self.manager: Any = self._api.rest_client.pool_manager
            self.manager.connection_from_url(self.configuration.host)
        except _UNUSABLE as error:
            fault = f"{where} gives no access to a Kubernetes cluster: {one_line_error(error)}"
            raise ConfigError((f"{fault}; set KUBECONFIG to a kubeconfig file that kubectl accepts",)) from error

    def _load(self, path: str) -> None:
        files = merged_kubeconfig(path)
        if files.config is None:
            raise ValueError("it is empty" if files.empty else "there is no such file")
        loader: Any = cast(Any, _Loader)(files.config, config_base_path=None, config_persister=files.save_changes)
        loader.load_and_set(self.configuration)
        if "host" not in vars(loader):
            raise ValueError("its cluster has no server")
        loader.check_same_user()
        self._token_file = loader.token_file
        if loader.plugin is not None:
            self._plugin = CredentialPlugin(loader.plugin, self._use_certificate)

    def authorization_header(self) -> str | None:
        """The value of the Authorization header. Raises ClusterUnavailable while there is none to be had."""
        if self._plugin is not None:
            return self._plugin.bearer()
        # Looked at twice: without the lock, so that requests do not wait for each other here; and with it, so that of
        # many threads at the end of a minute one reads the file and not all.
        if time.monotonic() >= self._asked_until:
            with self._lock:
                if time.monotonic() >= self._asked_until:
                    # The token first: a thread that needs no lock must not find the new time with the old token.
                    self._token = self._read()
                    self._asked_until = time.monotonic() + TOKEN_CACHE_S
        return self._token

    def token_rejected(self, token: str | None) -> None:
        """The server does not accept this token (401): a plugin is asked for another."""
        if self._plugin is not None:
            self._plugin.credential_rejected(token)

    def _read(self) -> str | None:
        """The library reads a ServiceAccount's file once a minute, for bound tokens rotate. It settles its whole
        configuration again each time, proxies included, which costs a sixth of each request: so it is not always asked.
        """
        try:
            if self._token_file is not None:
                return authorization_header(f"Bearer {self._token_file.read_text(encoding='utf-8')}")
            token: str | None = self.configuration.get_api_key_with_prefix("BearerToken")
            return authorization_header(token) if token else None
        except (OSError, ValueError, config.ConfigException) as error:
            raise ClusterUnavailable(f"our token cannot be read: {error}", unclear=False) from error

    def _use_certificate(self, certificate: str, key: str) -> None:
        """Connections that are opened from now on show this certificate."""
        if self.context is None:
            return
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # mode 0600, gone at once
            file.write(f"{certificate}\n{key}\n")
            file.flush()
            self.context.load_cert_chain(file.name, password=_no_password)


class _Loader(KubeConfigLoader):
    """The official loader, which leaves plugins and token files to us: it asks both only once."""

    _user: Any
    _cluster: Any
    _current_context: Any
    plugin: Any = None
    token_file: Path | None = None

    def _base_folder(self, node: Any) -> str:
        """The folder of the file that this part comes from: paths are relative to it."""
        return str(cast(Any, self)._get_base_path(node.path))

    def check_same_user(self) -> None:
        """Raises ValueError where we would act as another user than kubectl does: the library goes on without a user
        that is not there, sends any token, and does not impersonate.
        """
        name = self._current_context["context"].safe_get("user")
        if name and self._user is None:
            raise ValueError(f"its context names the user {name!r}, which is not there")
        if self._user is not None and self._user.safe_get("as"):
            raise ValueError("its user impersonates another one (`as`), which is not supported")
        if token := vars(self).get("token"):
            authorization_header(token)

    def _load_from_exec_plugin(self) -> bool | None:
        if "exec" not in self._user:
            return None
        base = self._base_folder(self._cluster)
        self.plugin = ExecProvider(self._user["exec"], base, self._cluster)
        command = self.plugin.args[0]
        local = os.path.join(base, command) if os.sep in command else command
        if shutil.which(local, path=self.plugin.env.get("PATH")) is None:
            hint = self._user["exec"].safe_get("installHint") or "install it"
            raise ValueError(f"its credential plugin {command!r} is not there ({one_line(hint, 200)})")
        self.plugin.args[0] = local
        return True

    def _load_user_token(self) -> bool | None:
        name = self._user.safe_get("tokenFile")
        if not name:
            loaded: bool | None = cast(Any, super())._load_user_token()
            return loaded
        self.token_file = Path(self._base_folder(self._user), name)
        self.token_file.read_text(encoding="utf-8")
        return True


def _check_url(url: str) -> None:
    """Raises ValueError for a server that no connection can be made to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not is_host(parts.hostname or "") or parts.port == 0:
        raise ValueError(f"server {redact_value(url)} is not of the form https://HOST:PORT")


def _new_api_client(configuration: Any, inflight: int, context: ssl.SSLContext | None) -> Any:
    """The official client: its connection pools know proxies and all of TLS. Its own retries are off."""
    configuration.retries = urllib3.Retry(total=0, redirect=0)
    configuration.keep_alive = True
    configuration.connection_pool_maxsize = inflight + 8
    api = client.ApiClient(configuration)
    if context is not None:
        options = api.rest_client.pool_manager.connection_pool_kw
        for name in ("ca_certs", "ca_cert_data", "cert_file", "key_file", "cert_reqs"):
            options.pop(name, None)
        options["ssl_context"] = context
    return api


def _new_ssl_context(configuration: Any) -> ssl.SSLContext:
    """One SSLContext for all connections: a new one costs 13 to 17 ms of CPU each.

    Python 3.13 refuses certificates that RFC 5280 would have otherwise, such as those of many API servers
    (kubernetes-client/python #2394); the identity of the server is checked all the same.
    """
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
        if configuration.ca_cert_data:
            context.load_verify_locations(cadata=configuration.ca_cert_data)
    except (OSError, ValueError) as error:
        raise ValueError(f"its certificate authority cannot be used ({one_line_error(error)})") from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        try:
            context.load_cert_chain(configuration.cert_file, configuration.key_file, _no_password)
        except (OSError, ValueError) as error:
            raise ValueError(f"its client certificate and key cannot be used ({one_line_error(error)})") from error
    return context


def _no_password() -> str:
    """For an encrypted key: without this OpenSSL asks on the terminal, and waits."""
    return ""
