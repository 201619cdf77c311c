"""Where traces go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ottoscaler.settings_reader import EnvironmentReader, is_host

_EXPECTED: Final = (
    "a URL of OTLP over HTTP, http://host:port or https://host:port, if need be with a path, without user, query and"
    " fragment; port 4317 is that of OTLP over gRPC, and collectors have 4318 for HTTP"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Where traces go. Immutable: any thread."""

    endpoint: str | None = None
    """OTEL_EXPORTER_OTLP_ENDPOINT: the collector's URL, in front of /v1/traces; None: no traces."""

    @classmethod
    def read(cls, reader: EnvironmentReader) -> TraceSettings:
        """The group; what is wrong is a fault of the reader's."""
        name = "OTEL_EXPORTER_OTLP_ENDPOINT"
        value = reader.raw(name)
        if value and not _is_endpoint(value):
            reader.fault(name, _EXPECTED)
            return cls()
        return cls(endpoint=value.rstrip("/") or None)


def _is_endpoint(value: str) -> bool:
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        return False
    if any(char.isspace() or char in '\\"<>' or not char.isprintable() for char in value):
        return False
    named = url.scheme in ("http", "https") and url.hostname is not None and is_host(url.hostname)
    # 4317 is OTLP over gRPC, which is not spoken here: a collector that gets HTTP there closes without a word
    return named and port not in (0, 4317) and "@" not in url.netloc and not url.query and not url.fragment
