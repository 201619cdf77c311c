"""Spans as the bytes of an OTLP request: binary protobuf, written by hand.

The official classes, which the tests decode with, take five times as long to write the same: that is CPU time which the
workers of this process need. Most attributes of a worker are those of each of its spans, and are encoded once.

Messages and numbers of fields:
https://github.com/open-telemetry/opentelemetry-proto/blob/v1.9.0/opentelemetry/proto/trace/v1/trace.proto
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from ottoscaler import __version__
from ottoscaler.core.spans import Span, SpanKind

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_Attributes = dict[tuple[str, str | int], bytes]


def encode(spans: Sequence[Span]) -> bytes:
    """One request with these spans. Raises ValueError for a text that is not UTF-8, or a number beyond 64 bits."""
    encoded: _Attributes = {}
    of_scope = b"".join([_SCOPE, *(_field(_SPAN, _encode_span(span, encoded)) for span in spans)])
    return _field(_RESOURCE_SPANS, _RESOURCE + _field(_SCOPE_SPANS, of_scope))


def _encode_span(span: Span, encoded: _Attributes) -> bytes:
    parts = [_field(_TRACE_ID, span.trace_id), _field(_SPAN_ID, span.span_id)]
    if span.parent_id:
        parts.append(_field(_PARENT_ID, span.parent_id))
    parts += [
        _field(_SPAN_NAME, span.name.encode()), _KINDS[span.kind],
        _TIMES.pack(_START, span.start_ms * 1_000_000, _END, span.end_ms * 1_000_000),
    ]  # fmt: skip
    for attribute in span.attributes.items():
        if (found := encoded.get(attribute)) is None:
            found = encoded[attribute] = _field(_ATTRIBUTE, _attribute(*attribute))
        parts.append(found)
    if span.error is not None:
        parts.append(_field(_STATUS, _field(_STATUS_MESSAGE, span.error.encode()) + _STATUS_ERROR))
    parts.append(_SAMPLED)
    return b"".join(parts)


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
_TRACE_ID, _SPAN_ID, _PARENT_ID, _SPAN_NAME, _ATTRIBUTE, _STATUS = (_tag(number) for number in (1, 2, 4, 5, 9, 15))
_KINDS: Final = {kind: _tag(6, _VARINT) + _varint(kind.value) for kind in SpanKind}
_TIMES: Final = struct.Struct("<cQcQ")
_START, _END = _tag(7, _FIXED_64), _tag(8, _FIXED_64)
_SAMPLED: Final = _tag(16, _FIXED_32) + struct.pack("<I", 1)
_STATUS_MESSAGE, _STATUS_ERROR = _tag(2), _tag(3, _VARINT) + _varint(2)
#: Resource and InstrumentationScope, the same in each request.
_RESOURCE: Final = _field(_tag(1), _field(_tag(1), _attribute("service.name", "ottoscaler")))
_SCOPE: Final = _field(_tag(1), _field(_tag(1), b"ottoscaler") + _field(_tag(2), __version__.encode()))
