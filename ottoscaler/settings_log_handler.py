"""How the log handler is reached: settings with a reader of their own, since `agent` has none of the others."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from ottoscaler.errors import ConfigError
from ottoscaler.settings_reader import EnvironmentReader, address


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHandlerSettings:
    """How the log handler is reached. Immutable: any thread."""

    address: tuple[str, int] | None = None
    """LOG_HANDLER_ADDRESS: host and port of the gRPC server; None: no logs are streamed."""
    ca_file: str | None = None
    """LOG_HANDLER_CA_FILE: the authorities to trust; without it those that come with grpcio."""
    cert_file: str | None = None
    """LOG_HANDLER_CERT_FILE: our certificate, where the handler wants one (mutual TLS)."""
    key_file: str | None = None
    """LOG_HANDLER_KEY_FILE: the key of that certificate."""
    token_file: str | None = None
    """LOG_HANDLER_TOKEN_FILE: sent as `authorization: Bearer ...`. Like the other files it is read for each connection,
    so that a rotated one takes effect without a restart."""
    plaintext: bool = False
    """LOG_HANDLER_PLAINTEXT: no TLS. To this machine itself that is the default, as long as there is no CA_FILE."""
    drain_s: int = 10
    """LOG_DRAIN_S: how long the last lines may take to be acknowledged, in seconds."""

    @property
    def target(self) -> str:
        """The address as gRPC takes it; empty without one."""
        if self.address is None:
            return ""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        local = self.address is not None and is_loopback(self.address[0])
        return not self.plaintext and not (local and self.ca_file is None)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> LogHandlerSettings:
        """Read the group out of the environment. Raises ConfigError with all faults, one line each."""
        reader = EnvironmentReader(environ)
        settings = cls.read(reader)
        if reader.faults:
            raise ConfigError(tuple(reader.faults))
        return settings

    @classmethod
    def read(cls, reader: EnvironmentReader) -> LogHandlerSettings:
        """The group; what is wrong is a fault of the reader's."""
        found = address(reader, "LOG_HANDLER_ADDRESS")
        settings = cls(
            address=found,
            ca_file=reader.certificates("LOG_HANDLER_CA_FILE"),
            cert_file=reader.text_file("LOG_HANDLER_CERT_FILE"),
            key_file=reader.text_file("LOG_HANDLER_KEY_FILE"),
            token_file=reader.text_file("LOG_HANDLER_TOKEN_FILE"),
            plaintext=reader.boolean("LOG_HANDLER_PLAINTEXT", False),
            drain_s=reader.integer("LOG_DRAIN_S", 10, 0, 3600),
        )
        if settings.cert_file and not settings.key_file:
            reader.fault("LOG_HANDLER_KEY_FILE", "a file, because LOG_HANDLER_CERT_FILE is set")
        if settings.key_file and not settings.cert_file:
            reader.fault("LOG_HANDLER_CERT_FILE", "a file, because LOG_HANDLER_KEY_FILE is set")
        if settings.plaintext and (settings.ca_file or settings.cert_file):
            reader.fault("LOG_HANDLER_PLAINTEXT", "false, because certificates are set")
        if settings.cert_file and not settings.ca_file and found and is_loopback(found[0]):
            # otherwise the certificate would never be sent, and no one would see it
            reader.fault("LOG_HANDLER_CA_FILE", "a file, because LOG_HANDLER_CERT_FILE is set")
        return settings


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on the machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
