"""What is to be found at the HTTP port: probes for the kubelet, figures for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ottoscaler.adapters.web import Page, WebRequest, WebResponse, probe_response
from ottoscaler.flow.health import Health
from ottoscaler.metric_kinds import OPENMETRICS_TYPE, PLAIN_TYPE
from ottoscaler.metrics import Metrics

#: The versions of OpenMetrics that our text is valid in.
_OPENMETRICS_VERSIONS: Final = ("1.0.0", "0.0.1")


def pages(health: Health, metrics: Metrics) -> Mapping[str, Page]:
    """Path -> page."""
    return {
        "/livez": lambda _: probe_response(health.livez()),
        "/readyz": lambda _: probe_response(health.readyz()),
        "/metrics": lambda request: metrics_response(metrics, request),
    }


def metrics_response(metrics: Metrics, request: WebRequest) -> WebResponse:
    """All figures: as OpenMetrics where that is asked for, in a version that we write or in none."""
    wanted = request.accepts("application/openmetrics-text")
    openmetrics = wanted is not None and wanted.get("version", "1.0.0") in _OPENMETRICS_VERSIONS
    content_type = OPENMETRICS_TYPE if openmetrics else PLAIN_TYPE
    return WebResponse(metrics.render(openmetrics=openmetrics), content_type=content_type)
