"""TLS and the credential for an API server. A process that has no more to do with a kubeconfig than this does not load
the official client, which takes 20 MiB.
"""

from __future__ import annotations

import ssl
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from ottoscaler.adapters.kube_plugin import CredentialPlugin, authorization_header, one_line_error
from ottoscaler.api_server import ApiServer
from ottoscaler.errors import ClusterUnavailable

#: How long a token is used without reading its file again, seconds: tokens of ServiceAccounts rotate.
TOKEN_CACHE_S: Final = 1.0


class ApiAccess:
    """TLS and credential for one API server. Any thread."""

    def __init__(self, server: ApiServer) -> None:
        """Raises ValueError if its certificates cannot be used."""
        self.server = server
        self.context = _new_ssl_context(server) if server.url.startswith("https") else None
        self._plugin = CredentialPlugin(server.plugin, self._use_certificate) if server.plugin is not None else None
        self._token: str | None = None
        self._asked_until = 0.0
        self._lock = threading.Lock()

    def authorization_header(self) -> str | None:
        """The value of the Authorization header. Raises ClusterUnavailable while there is none to be had."""
        if self._plugin is not None:
            return self._plugin.bearer()
        # Looked at twice: without the lock, so that requests do not wait for each other here; and with it, so that of
        # many threads that find the token too old one reads the file and not all.
        if time.monotonic() >= self._asked_until:
            with self._lock:
                if time.monotonic() >= self._asked_until:
                    # The token first: a thread that needs no lock must not find the new time with the old token.
                    self._token = self._read_token()
                    self._asked_until = time.monotonic() + TOKEN_CACHE_S
        return self._token

    def token_rejected(self, token: str | None) -> None:
        """The server does not accept this token (401): a plugin is asked for another."""
        if self._plugin is not None:
            self._plugin.credential_rejected(token)

    def _read_token(self) -> str | None:
        try:
            if self.server.token_file:
                return authorization_header(f"Bearer {Path(self.server.token_file).read_text(encoding='utf-8')}")
            return self._stated_token()
        except (OSError, ValueError) as error:
            raise ClusterUnavailable(f"our token cannot be read: {error}", unclear=False) from error

    def _stated_token(self) -> str | None:
        """Raises ValueError where no header can carry it."""
        return authorization_header(self.server.authorization) if self.server.authorization else None

    def _use_certificate(self, certificate: str, key: str) -> None:
        """Connections that are opened from now on show this certificate."""
        if self.context is None:
            return
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # mode 0600, gone at once
            file.write(f"{certificate}\n{key}\n")
            file.flush()
            self.context.load_cert_chain(file.name, password=_no_password)


def _new_ssl_context(server: ApiServer) -> ssl.SSLContext:
    """One SSLContext for all connections: a new one costs 13 to 17 ms of CPU each.

    Python 3.13 refuses certificates that RFC 5280 would have otherwise, such as those of many API servers
    (kubernetes-client/python #2394); the identity of the server is checked all the same.
    """
    try:
        context = ssl.create_default_context(cafile=server.ca_file or None)
    except (OSError, ValueError) as error:
        raise ValueError(f"its certificate authority cannot be used ({one_line_error(error)})") from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not server.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if server.cert_file:
        try:
            context.load_cert_chain(server.cert_file, server.key_file or None, _no_password)
        except (OSError, ValueError) as error:
            raise ValueError(f"its client certificate and key cannot be used ({one_line_error(error)})") from error
    return context


def _no_password() -> str:
    """For an encrypted key: without this OpenSSL asks on the terminal, and waits."""
    return ""
