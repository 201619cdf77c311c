"""Sends spans to a trace collector: OTLP over HTTP, binary protobuf
(https://opentelemetry.io/docs/specs/otlp/#otlphttp).

Only a process that sends traces imports this module: the packages that it needs are an optional extra.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import urllib3
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

from ottoscaler import __version__
from ottoscaler.adapters.otlp_encoding import encode
from ottoscaler.core.spans import Span
from ottoscaler.core.trace_findings import RETRYABLE, TRACES_PATH
from ottoscaler.core.wording import one_line
from ottoscaler.errors import CollectorRejected, CollectorUnavailable

#: How long one request waits for the collector at most, each time that nothing comes from it, seconds.
TIMEOUT_S: Final = 10.0
_HEADERS: Final = {"Content-Type": "application/x-protobuf", "User-Agent": f"ottoscaler/{__version__}"}
_MAX_ANSWER: Final = 64 * 1024
_MAX_SHOWN: Final = 200


class TraceCollector:
    """`trace_ports.SpanSink` over OTLP. One thread."""

    def __init__(self, endpoint: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """`endpoint`: the URL in front of `/v1/traces`. `headers`: what each request has besides, in no error."""
        self._headers = {**_HEADERS, **dict(headers)}
        self._url = endpoint.rstrip("/") + TRACES_PATH
        self._pool = urllib3.PoolManager(
            maxsize=1, retries=False, timeout=urllib3.Timeout(connect=TIMEOUT_S / 2, read=TIMEOUT_S)
        )

    def send(self, spans: Sequence[Span]) -> int:
        """See trace_ports.SpanSink."""
        try:
            body = encode(spans)
        except (ValueError, struct.error) as error:  # such as a text that is not UTF-8: it would be the same each time
            raise CollectorRejected(f"the spans cannot be written as OTLP: {error}") from error
        try:
            answer = self._pool.request("POST", self._url, body=body, headers=self._headers, preload_content=False)
            with answer:
                status, content = answer.status, answer.read(_MAX_ANSWER)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise CollectorUnavailable(f"{self._url}: {one_line(str(error))}") from error
        if status == 200:
            return _refused(content)
        sentence = f"{self._url} answers {status} {one_line(content[:_MAX_SHOWN].decode('utf-8', 'replace'))}".strip()
        if status in RETRYABLE:
            raise CollectorUnavailable(sentence, retry_after_s=_seconds(answer.headers.get("Retry-After", "")))
        raise CollectorRejected(sentence)

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()


def _refused(body: bytes) -> int:
    """How many spans of a request the collector did not take, by its answer."""
    answer: Any = service.ExportTraceServiceResponse()
    try:
        answer.ParseFromString(body)
    except DecodeError:
        return 0
    return int(answer.partial_success.rejected_spans)


def _seconds(retry_after: str) -> float | None:
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else None
