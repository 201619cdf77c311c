"""How to reach the API server, and as which user, by the kubeconfig or the pod's ServiceAccount.

The official client reads the files. What it leaves to chance is done here: an unusable kubeconfig becomes one sentence,
a token file is read again, and credential plugins are our own affair (kube_plugin.py).
"""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.config import incluster_config
from kubernetes.config.exec_provider import ExecProvider
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigLoader

from ottoscaler.adapters.api_access import ApiAccess
from ottoscaler.adapters.kube_plugin import authorization_header, one_line_error
from ottoscaler.adapters.kubeconfig import merged_kubeconfig
from ottoscaler.api_server import ApiServer, PluginCommand
from ottoscaler.core.wording import one_line
from ottoscaler.errors import ConfigError
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_files import redact_value
from ottoscaler.settings_reader import is_host

#: What the official client raises for a file that is none: it has no error of its own for many of them.
_UNUSABLE: Final = (
    config.ConfigException, OSError, ValueError, TypeError, AttributeError, LookupError, ImportError,
    yaml.YAMLError, urllib3.exceptions.HTTPError,
)  # fmt: skip


class KubeAccess(ApiAccess):
    """Configuration, TLS and credential for the API server that the settings name. Any thread."""

    def __init__(self, settings: KubeSettings) -> None:
        """Raises ConfigError with one sentence if there is no way to a cluster."""
        in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and not settings.kubeconfig
        path = settings.kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION
        where = "the pod's ServiceAccount" if in_cluster else f"KUBECONFIG={path}"
        self.configuration: Any = client.Configuration()
        self._is_renewed = False
        try:
            if in_cluster:
                config.load_incluster_config(client_configuration=self.configuration)
                server = self._server(token_file=incluster_config.SERVICE_TOKEN_FILENAME)
            else:
                server = self._load(path)
            _check_url(server.url)
            super().__init__(server)
            self._api = _new_api_client(self.configuration, settings.inflight, self.context)
            self.manager: Any = self._api.rest_client.pool_manager
            self.manager.connection_from_url(server.url)
        except _UNUSABLE as error:
            fault = f"{where} gives no access to a Kubernetes cluster: {one_line_error(error)}"
            raise ConfigError((f"{fault}; set KUBECONFIG to a kubeconfig file that kubectl accepts",)) from error

    @property
    def handed_over(self) -> ApiServer | None:
        """What another process needs for the same access; None where only the official client renews the token."""
        return None if self._is_renewed else self.server

    def _load(self, path: str) -> ApiServer:
        files = merged_kubeconfig(path)
        if files.config is None:
            raise ValueError("it is empty" if files.empty else "there is no such file")
        loader: Any = cast(Any, _Loader)(files.config, config_base_path=None, config_persister=files.save_changes)
        loader.load_and_set(self.configuration)
        if "host" not in vars(loader):
            raise ValueError("its cluster has no server")
        loader.check_same_user()
        self._is_renewed = loader.is_renewed
        return self._server(
            authorization=vars(loader).get("token") or "", token_file=str(loader.token_file or ""),
            plugin=_plugin_command(loader.plugin),
        )  # fmt: skip

    def _server(self, **credential: Any) -> ApiServer:
        found = self.configuration
        return ApiServer(
            found.host, proxy=found.proxy or "", tls_server_name=found.tls_server_name or "", verify=found.verify_ssl,
            ca_file=found.ssl_ca_cert or "", cert_file=found.cert_file or "",
            key_file=found.key_file or "", **credential,
        )  # fmt: skip

    def _stated_token(self) -> str | None:
        """Of an identity provider, by which the official client renews it. It settles its whole configuration again
        each time, proxies included, which costs a sixth of each request: so it is not always asked.
        """
        if not self._is_renewed:
            return super()._stated_token()
        try:
            token: str | None = self.configuration.get_api_key_with_prefix("BearerToken")
        except config.ConfigException as error:
            raise ValueError(str(error)) from error
        return authorization_header(token) if token else None


class _Loader(KubeConfigLoader):
    """The official loader, which leaves plugins and token files to us: it asks both only once."""

    _user: Any
    _cluster: Any
    _current_context: Any
    plugin: Any = None
    token_file: Path | None = None
    is_renewed = False
    """Whether an identity provider gives the token, which the loader renews."""

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

    def _load_auth_provider_token(self) -> str | None:
        loaded: str | None = cast(Any, super())._load_auth_provider_token()
        self.is_renewed = bool(loaded)
        return loaded

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


def _plugin_command(provider: Any) -> PluginCommand | None:
    if provider is None:
        return None
    cluster = provider.cluster.value if provider.cluster else None
    return PluginCommand(provider.args, provider.env, provider.cwd, provider.api_version, cluster)


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
