"""Spans as the bytes of an OTLP request: binary protobuf, written by hand.

The official classes, which the tests decode with, take five times as long to write the same: that is CPU time which the
workers of this process need. Most attributes of a worker are those of each of its spans, and are encoded once.

Messages and numbers of fields:
https://github.com/open-telemetry/opentelemetry-proto/blob/v1.9.0/opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from ottoscaler import __version__
from ottoscaler.core.spans import Span

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


def encode(spans: Sequence[Span]) -> bytes:
    """One request with these spans. Raises ValueError for a text that is not UTF-8, or a number beyond 64 bits."""
    # Each attribute is encoded once, and so are those that several spans have in one mapping; that is known by its
    # id, since the spans keep it alive.
    mappings: dict[int, bytes] = {}
    known: dict[tuple[str, str | int], bytes] = {}
    parts = [_SCOPE]
    for span in spans:
        mapping = id(span.attributes)
        if (attributes := mappings.get(mapping)) is None:
            attributes = mappings[mapping] = _encode_attributes(span.attributes, known)
        content = _encode_span(span, attributes)
        parts += (_SPAN, _varint(len(content)), content)
    return _field(_RESOURCE_SPANS, _RESOURCE + _field(_SCOPE_SPANS, b"".join(parts)))


def _encode_attributes(attributes: Mapping[str, str | int], known: dict[tuple[str, str | int], bytes]) -> bytes:
    parts = []
    for each in attributes.items():
        if (found := known.get(each)) is None:
            found = known[each] = _field(_ATTRIBUTE, _attribute(*each))
        parts.append(found)
    return b"".join(parts)


def _encode_span(span: Span, attributes: bytes) -> bytes:
    parent_id, error = span.parent_id, span.error
    return b"%b%b%b%b%b%b%b%b%b%b" % (
        _TRACE_ID, span.trace_id, _SPAN_ID, span.span_id, _PARENT_ID + parent_id if parent_id else b"",
        _name_and_kind(span.name, span.kind.value),
        _TIMES.pack(_START, span.start_ms * 1_000_000, _END, span.end_ms * 1_000_000),
        attributes, b"" if error is None else _status(error), _SAMPLED,
    )  # fmt: skip


@lru_cache(64)
def _name_and_kind(name: str, kind: int) -> bytes:
    return _field(_SPAN_NAME, name.encode()) + _tag(6, _VARINT) + _varint(kind)


def _status(error: str) -> bytes:
    return _field(_STATUS, _field(_STATUS_MESSAGE, error.encode()) + _STATUS_ERROR)


def _attribute(name: str, value: str | int) -> bytes:
    """A KeyValue."""
    if isinstance(value, str):
        content = _field(_TEXT, value.encode())
    elif -(2**63) <= value < 2**63:
        content = _NUMBER + _varint(value % 2**64)
    else:
        raise ValueError(f"{name}: {value} has more than 64 bits")
    return _field(_KEY, name.encode()) + _field(_VALUE, content)


def _field(tag: bytes, content: bytes) -> bytes:
    """A field that has a length."""
    return b"%b%b%b" % (tag, _varint(len(content)), content)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; each byte but the last has the highest bit set. `number` is not negative."""
    if number < 128:
        return _SMALL[number]
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _tag(number: int, form: int = _BYTES) -> bytes:
    return _varint(number << 3 | form)


_SMALL: Final = [bytes([number]) for number in range(128)]
#: ExportTraceServiceRequest, ResourceSpans, ScopeSpans.
_RESOURCE_SPANS, _SCOPE_SPANS, _SPAN = _tag(1), _tag(2), _tag(2)
#: KeyValue and AnyValue.
_KEY, _VALUE, _TEXT, _NUMBER = _tag(1), _tag(2), _tag(1), _tag(3, _VARINT)
#: Span and Status.
_SPAN_NAME, _ATTRIBUTE, _STATUS = (_tag(number) for number in (5, 9, 15))
#: With the length of each id.
_TRACE_ID, _SPAN_ID, _PARENT_ID = (_tag(number) + _varint(length) for number, length in ((1, 16), (2, 8), (4, 8)))
_TIMES: Final = struct.Struct("<cQcQ")
_START, _END = _tag(7, _FIXED_64), _tag(8, _FIXED_64)
_SAMPLED: Final = _tag(16, _FIXED_32) + struct.pack("<I", 1)
_STATUS_MESSAGE, _STATUS_ERROR = _tag(2), _tag(3, _VARINT) + _varint(2)
#: Resource and InstrumentationScope, the same in each request.
_RESOURCE: Final = _field(_tag(1), _field(_tag(1), _attribute("service.name", "ottoscaler")))
_SCOPE: Final = _field(_tag(1), _field(_tag(1), b"ottoscaler") + _field(_tag(2), __version__.encode()))
