"""A trace collector on the loopback: takes OTLP over HTTP, and decodes it with the official messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

from tests.fakes.wait import eventually

#: The spans of a worker with one attempt, below its own.
PHASES: Final = ("create", "delete", "pull", "queue", "record", "run", "schedule")
LONG_S: Final = 60.0


@dataclass(slots=True)
class Receiver:
    """What has come, and what is answered. Any thread."""

    server: ThreadingHTTPServer
    requests: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    token: str = ""
    """The `authorization` without which a request is answered 401; empty: none is needed."""
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    """Status, headers and body of the next answers; afterwards each request is taken."""

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Any]:
        """All spans that were taken, in the order in which they came."""
        return [
            span
            for request in list(self.requests)
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def named(self, name: str) -> list[Any]:
        """Those of a name."""
        return [span for span in self.spans() if span.name == name]


def attributes(span: Any) -> dict[str, str | int]:
    """The attributes of a span."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def trace_of(opened: Receiver, names: Sequence[str]) -> list[Any]:
    """The spans of the one trace, when all of these are there: each once in what a backend keeps, one root."""
    expected = sorted(names)
    eventually(
        lambda: sorted(span.name for span in {span.span_id: span for span in opened.spans()}.values()) == expected,
        LONG_S,
        f"{expected}",
    )
    spans = opened.spans()
    assert len({span.trace_id for span in spans}) == 1
    kept: dict[bytes, Any] = {}
    for span in spans:
        assert kept.setdefault(span.span_id, span) == span  # what comes again is the same
    own = {span.span_id for span in spans}
    assert [span.name for span in kept.values() if span.parent_span_id not in own] == ["scale_up"]
    for span in kept.values():
        parent = kept.get(span.parent_span_id)
        if parent is not None:
            assert parent.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano or span.name == "delete"
    return list(kept.values())


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    """A receiver that runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            opened.paths.append(self.path)
            status, headers, answer = opened.answers.pop(0) if opened.answers else (200, {}, b"")
            if opened.token and self.headers["authorization"] != opened.token:
                status, headers, answer = 401, {}, f"not {self.headers['authorization']}".encode()
            if status == 200:
                assert self.headers["Content-Type"] == "application/x-protobuf"
                opened.requests.append(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing on the console."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away, as the ones that are killed do."""

    opened = Receiver(Server(("127.0.0.1", port), Handler))
    thread = threading.Thread(target=opened.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield opened
    finally:
        opened.server.shutdown()
        opened.server.server_close()
        thread.join()
