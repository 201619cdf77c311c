"""OTLP over HTTP to a receiver that decodes it, and to one that is away, slow, or refuses."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.trace.v1 import trace_pb2 as trace

from ottoscaler import __version__
from ottoscaler.adapters import trace_collector
from ottoscaler.adapters.otlp_encoding import encode
from ottoscaler.adapters.trace_collector import TraceCollector
from ottoscaler.core.spans import TOO_LATE_MS, Span, SpanKind
from ottoscaler.errors import CollectorRejected, CollectorUnavailable
from tests.adapters.otlp_receiver import Receiver, attributes, receiver

pytestmark = pytest.mark.contract("2.OTEL_EXPORTER_OTLP_ENDPOINT")
SPAN = Span(b"t" * 16, b"s" * 8, b"p" * 8, "run", SpanKind.INTERNAL, 1500, 2750, {"a": "text", "n": -3}, "it failed")
ROOT = Span(b"t" * 16, b"p" * 8, b"", "scale_up", SpanKind.SERVER, 1000, 3000, {})


@pytest.fixture(name="opened")
def _opened() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture(name="collector")
def _collector(opened: Receiver) -> Iterator[TraceCollector]:
    made = TraceCollector(opened.endpoint)
    yield made
    made.close()


def test_spans_arrive_as_they_are(opened: Receiver, collector: TraceCollector) -> None:
    """Ids, times in nanoseconds, attributes by their type, and how it ended."""
    assert collector.send([ROOT, SPAN]) == 0
    root, span = opened.spans()
    assert (root.trace_id, root.span_id, root.parent_span_id) == (b"t" * 16, b"p" * 8, b"")
    assert (root.name, root.kind, root.status.code) == ("scale_up", trace.Span.SPAN_KIND_SERVER, 0)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_500_000_000, 2_750_000_000)
    assert attributes(span) == {"a": "text", "n": -3}
    assert (span.status.code, span.status.message) == (trace.Status.STATUS_CODE_ERROR, "it failed")
    (of_resource,) = opened.requests[0].resource_spans
    assert attributes(of_resource.resource) == {"service.name": "ottoscaler"}
    assert of_resource.scope_spans[0].scope.version == __version__


@pytest.mark.parametrize("path", ["", "/", "/collect", "/collect/"])
def test_the_path_of_traces_is_behind_that_of_the_endpoint(opened: Receiver, path: str) -> None:
    """As OTLP says of this variable."""
    collector = TraceCollector(opened.endpoint + path)
    collector.send([ROOT])
    collector.close()
    assert opened.paths == [path.rstrip("/") + "/v1/traces"]


def test_what_the_collector_refuses_of_a_request_is_counted(opened: Receiver, collector: TraceCollector) -> None:
    """By its answer; one that cannot be read refuses nothing."""
    answer = service.ExportTraceServiceResponse(partial_success={"rejected_spans": 1, "error_message": "too old"})
    opened.answers += [(200, {}, answer.SerializeToString()), (200, {}, b"\xff\xff")]
    assert [collector.send([ROOT, SPAN]), collector.send([ROOT])] == [1, 0]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_collector_that_is_overloaded_is_asked_again(
    opened: Receiver, collector: TraceCollector, status: int
) -> None:
    """After the time that it names, if it names one in seconds."""
    opened.answers += [
        (status, {"Retry-After": "7"}, b""),
        (status, {"Retry-After": "soon"}, b"busy\nnow"),
        (200, {}, b""),
    ]
    with pytest.raises(CollectorUnavailable) as first:
        collector.send([ROOT])
    with pytest.raises(CollectorUnavailable, match=f"/v1/traces answers {status} busy now$") as second:
        collector.send([ROOT])
    assert (first.value.retry_after_s, second.value.retry_after_s) == (7.0, None)
    assert collector.send([ROOT]) == 0


@pytest.mark.parametrize("status", [301, 400, 401, 404, 500])
def test_what_a_collector_refuses_is_not_sent_again(opened: Receiver, collector: TraceCollector, status: int) -> None:
    """Its words are in the error."""
    opened.answers.append((status, {"Location": "/elsewhere"}, b"no such thing"))
    with pytest.raises(CollectorRejected, match=f"answers {status} no such thing"):
        collector.send([ROOT])


@pytest.mark.parametrize("attributes_", [{"a": "\ud800"}, {"a": 2**63}])
def test_what_cannot_be_written_is_not_sent_again(
    opened: Receiver, collector: TraceCollector, attributes_: dict[str, str | int]
) -> None:
    """It would fail each time; what comes after it goes on."""
    span = Span(b"t" * 16, b"s" * 8, b"", "run", SpanKind.INTERNAL, 1, 2, attributes_)
    with pytest.raises(CollectorRejected, match="the spans cannot be written as OTLP"):
        collector.send([ROOT, span])
    assert collector.send([ROOT]) == 0
    assert len(opened.requests) == 1


def test_a_collector_that_is_away() -> None:
    """Also in the middle of an answer."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        collector = TraceCollector(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(CollectorUnavailable, match="refused"):
            collector.send([ROOT])
        unused.listen()
        cut = threading.Thread(target=lambda: unused.accept()[0].close())
        cut.start()
        with pytest.raises(CollectorUnavailable):
            collector.send([ROOT])
        cut.join()
        collector.close()


def test_a_collector_that_does_not_answer_costs_one_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter's thread is watched by /livez."""
    assert trace_collector.TIMEOUT_S <= 10
    monkeypatch.setattr(trace_collector, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        collector = TraceCollector(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(CollectorUnavailable, match="timed out"):
            collector.send([ROOT])
        collector.close()
        assert 0.2 <= time.monotonic() - began < 5


def test_a_collector_that_takes_no_connection_costs_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one behind a firewall that drops: the server's queue of connections is full."""
    monkeypatch.setattr(trace_collector, "TIMEOUT_S", 4.0)
    with ExitStack() as opened:
        full = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        opened.enter_context(socket.create_connection(full.getsockname()))
        collector = TraceCollector(f"http://127.0.0.1:{full.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(CollectorUnavailable, match="timed out"):
            collector.send([ROOT])
        collector.close()
        assert 2.0 <= time.monotonic() - began < 4.0


def test_a_request_of_the_greatest_size_is_small() -> None:
    """512 spans with what a worker's have: receivers take 20 MiB by default."""
    attributes_ = {f"k8s.some.attribute.{n}": "x" * 100 for n in range(12)}
    span = Span(b"t" * 16, b"s" * 8, b"p" * 8, "run", SpanKind.INTERNAL, 1, 2, attributes_, "y" * 1000)
    assert len(encode([span] * 512)) < 4 * 1024 * 1024


def official(spans: list[Span]) -> bytes:
    """The same request by the official classes."""
    request = service.ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.add(key="service.name").value.string_value = "ottoscaler"
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name, of_scope.scope.version = "ottoscaler", __version__
    for span in spans:
        message = of_scope.spans.add(
            trace_id=span.trace_id, span_id=span.span_id, parent_span_id=span.parent_id, name=span.name,
            kind=trace.Span.SpanKind.ValueType(span.kind.value), start_time_unix_nano=span.start_ms * 1_000_000,
            end_time_unix_nano=span.end_ms * 1_000_000, flags=1,
        )  # fmt: skip
        for name, value in span.attributes.items():
            attribute = message.attributes.add(key=name)
            if isinstance(value, int):
                attribute.value.int_value = value
            else:
                attribute.value.string_value = value
        if span.error is not None:
            message.status.code, message.status.message = trace.Status.STATUS_CODE_ERROR, span.error
    return request.SerializeToString()


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(100, 70_000).map(lambda size: "x" * size)
TIMES = st.integers(0, TOO_LATE_MS - 1)
SPANS = st.builds(
    Span, st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8),
    st.just(b"") | st.binary(min_size=8, max_size=8), st.text("abc", min_size=1), st.sampled_from(SpanKind),
    TIMES, TIMES,
    st.dictionaries(TEXTS, TEXTS | st.integers(-(2**63), 2**63 - 1), max_size=5), st.none() | TEXTS,
)  # fmt: skip


@given(st.lists(SPANS, max_size=5))
def test_the_bytes_are_those_of_the_official_classes(spans: list[Span]) -> None:
    """As a collector reads them: they are decoded, and written again by the official classes."""
    for one in (spans, spans * 2):
        read = service.ExportTraceServiceRequest.FromString(encode(one))
        assert read == service.ExportTraceServiceRequest.FromString(official(one))
