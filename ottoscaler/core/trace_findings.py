"""What `doctor` says of a trace collector, by the status that it answers to a request without a span."""

from __future__ import annotations

from typing import Final

from ottoscaler.core.findings import Finding, broken, fine, unknown, warning

#: Behind the endpoint: https://opentelemetry.io/docs/specs/otlp/#otlphttp-request
TRACES_PATH: Final = "/v1/traces"
#: The answers after which OTLP says to try again: https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes
RETRYABLE: Final = frozenset({429, 502, 503, 504})
_TOKEN: Final = "OTEL_EXPORTER_OTLP_HEADERS"


def status_finding(url: str, status: int, *, with_headers: bool) -> Finding:
    """`url`: what was asked. `with_headers`: whether the request had headers of the configuration."""
    answers = f"The trace collector answers {status} at {url}"
    if status == 200:
        return fine("traces.reach", f"The trace collector takes traces at {url}")
    if status in (401, 403):
        todo = f"is the token in {_TOKEN} right?" if with_headers else f"set {_TOKEN}=authorization=Bearer%20TOKEN"
        return broken("traces.auth", f"{answers}: {todo}")
    if status in RETRYABLE:
        return warning("traces.busy", f"{answers}: it is overloaded, or not there behind a proxy; spans wait for it")
    if status == 400:
        sentence = "it refuses a request without a span, so whether it takes others is not known; does it speak TLS?"
        return unknown("traces.reach", f"{answers}: {sentence} Then the URL begins with https")
    if status >= 500:
        return broken("traces.reach", f"{answers}, and spans that it answers so are lost: see its log")
    sentence = f"it is no receiver of OTLP over HTTP, or another path belongs in front of {TRACES_PATH}"
    return broken("traces.path", f"{answers}: {sentence}; mend OTEL_EXPORTER_OTLP_ENDPOINT")
