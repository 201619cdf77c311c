"""Where traces go."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from ottoscaler.settings_reader import EnvironmentReader, is_host

_EXPECTED: Final = (
    "a URL of OTLP over HTTP, http://host:port or https://host:port, if need be with a path, without user, query and"
    " fragment; port 4317 is that of OTLP over gRPC, and collectors have 4318 for HTTP"
)
_EXPECTED_HEADERS: Final = (
    "name=value,name=value, each value percent-encoded, such as authorization=Bearer%20TOKEN; each name once, and none"
    " that HTTP needs itself"
)
#: Name and value, without what separates them: https://www.w3.org/TR/baggage/#definition. A space is taken as it is.
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*((?:[!#$&-+\--:<-\[\]-~ ]|%[0-9A-Fa-f]{2})+)")
#: Headers that each request has anyway.
_OWN_HEADERS: Final = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "host", "transfer-encoding", "user-agent"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Where traces go. Immutable: any thread."""

    endpoint: str | None = None
    """OTEL_EXPORTER_OTLP_ENDPOINT: the collector's URL, in front of /v1/traces; None: no traces."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """OTEL_EXPORTER_OTLP_HEADERS: name and value of what each request has besides, decoded; the values are secret."""

    @classmethod
    def read(cls, reader: EnvironmentReader) -> TraceSettings:
        """The group; what is wrong is a fault of the reader's."""
        endpoint = reader.raw("OTEL_EXPORTER_OTLP_ENDPOINT")
        if endpoint and not _is_endpoint(endpoint):
            reader.fault("OTEL_EXPORTER_OTLP_ENDPOINT", _EXPECTED)
            endpoint = ""
        headers = _headers(reader.secret("OTEL_EXPORTER_OTLP_HEADERS") or "")
        if headers is None:
            reader.secret_fault("OTEL_EXPORTER_OTLP_HEADERS", _EXPECTED_HEADERS)
        return cls(endpoint=endpoint.rstrip("/") or None, headers=headers or ())


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


def _headers(value: str) -> tuple[tuple[str, str], ...] | None:
    """The headers in this text, with names in lower case; None if it is not of the form that is expected."""
    found: dict[str, str] = {}
    for member in value.split(",") if value.strip() else ():
        fitting = _HEADER.fullmatch(member.strip())
        if fitting is None:
            return None
        name, text = fitting[1].lower(), unquote(fitting[2], "latin-1").strip()
        # what is not printable would end the header, or be refused with the value in the error
        if name in found or name in _OWN_HEADERS or not text or not (text.isascii() and text.isprintable()):
            return None
        found[name] = text
    return tuple(found.items())
