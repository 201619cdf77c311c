"""Is the log handler there, and does its certificate fit? A connection and its TLS, without gRPC, which need not be
installed where `doctor` runs.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

from ottoscaler.core.wording import one_line
from ottoscaler.errors import LogHandlerUnavailable
from ottoscaler.settings_log_handler import LogHandlerSettings

TIMEOUT_S: Final = 3.0


def connect_once(settings: LogHandlerSettings) -> None:
    """Connect, and with TLS check the certificate against the host that is dialled. Raises LogHandlerUnavailable with
    what went wrong; `denied` is True where it is the TLS.
    """
    assert settings.address is not None
    try:
        with socket.create_connection(settings.address, TIMEOUT_S) as connection:
            if settings.is_tls:
                _shake_hands(connection, settings, settings.address[0])
    except (ssl.SSLError, ValueError) as error:
        raise LogHandlerUnavailable(one_line(error), denied=True) from error
    except OSError as error:
        raise LogHandlerUnavailable(one_line(error)) from error


def _shake_hands(connection: socket.socket, settings: LogHandlerSettings, host: str) -> None:
    context = ssl.create_default_context(cafile=settings.ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    with context.wrap_socket(connection, server_hostname=host) as secured:
        if secured.selected_alpn_protocol() != "h2":
            raise ValueError("the server speaks TLS, and not HTTP/2, which gRPC needs")
