"""The check of `doctor` that looks at the trace collector."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from ottoscaler.adapters.collector_probe import NoHttp, NoTrust, ask_once
from ottoscaler.core.findings import Finding, broken, warning
from ottoscaler.core.trace_findings import TRACES_PATH, status_finding
from ottoscaler.errors import CollectorUnavailable
from ottoscaler.settings import TraceSettings
from ottoscaler.settings_log_handler import is_loopback


def trace_findings(settings: TraceSettings) -> Sequence[Finding]:
    """Is the collector there, and does it take traces? Nothing where no endpoint is set."""
    if settings.endpoint is None:
        return []
    url = settings.endpoint + TRACES_PATH
    return [_answer(settings, url), *_readable_secret(settings, urlsplit(url))]


def _answer(settings: TraceSettings, url: str) -> Finding:
    try:
        status = ask_once(url, settings.headers)
    except NoTrust as error:
        return broken(
            "traces.tls",
            f"The TLS of the trace collector at {url} fails ({error}): does it speak TLS at that"
            " port, with a certificate that this machine trusts?",
        )
    except NoHttp as error:
        return broken(
            "traces.http",
            f"What listens at {url} answers no HTTP ({error}): OTLP over gRPC, usually port"
            " 4317, is not spoken; set OTEL_EXPORTER_OTLP_ENDPOINT to the port of OTLP over HTTP, usually 4318",
        )
    except CollectorUnavailable as error:
        return broken(
            "traces.reach",
            f"The trace collector at {url} cannot be reached ({error}): is"
            " OTEL_EXPORTER_OTLP_ENDPOINT right, and do network policies allow it?",
        )
    return status_finding(url, status, with_headers=bool(settings.headers))


def _readable_secret(settings: TraceSettings, url: SplitResult) -> Sequence[Finding]:
    if not settings.headers or url.scheme == "https" or is_loopback(url.hostname or ""):
        return []
    sentence = "the network may read the headers of OTEL_EXPORTER_OTLP_HEADERS: use https"
    return [warning("traces.plaintext", f"The trace collector at {url.geturl()} is asked without TLS, so {sentence}")]
