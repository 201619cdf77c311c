"""Puts together what sends traces, where that is on. Otherwise there is no thread, and nothing more is imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Final

from ottoscaler.core.spans import SpanBuilder
from ottoscaler.errors import ConfigError
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Clock
from ottoscaler.settings import Settings
from ottoscaler.trace_ports import ResultLog

#: The name of the exporter's thread.
TRACES: Final = "traces"
#: What the exporter imports, beside what the controller does.
_NEEDED: Final = ("google.protobuf", "opentelemetry.proto")
#: After how many LEASE_S of silence a replica loses its pending results; it loses its tasks after one.
_CLAIM_AFTER_LEASES: Final = 2


class Tracing:
    """The trace exporter. The main thread's own."""

    def __init__(
        self, settings: Settings, *, results: ResultLog, registry: PodRegistry, metrics: Metrics, stop: StopSignal,
        clock: Clock,
    ) -> None:  # fmt: skip
        """Raises ConfigError where traces are on and a package that they need is not installed."""
        #: For the workers; None where traces are off.
        self.spans: SpanBuilder | None = None
        self._stop = stop
        self._run: Callable[[], None] | None = None
        endpoint = settings.traces.endpoint
        if endpoint is None:
            return
        if missing := [name for name in _NEEDED if not _is_installed(name)]:
            raise ConfigError(
                (
                    f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint!r}: traces need the packages of"
                    f" ottoscaler/adapters/traces-requirements.txt, and {', '.join(missing)} is not installed; install"
                    " them, or unset the variable",
                )
            )
        # by name, so that a controller without traces pays nothing for them
        adapter = importlib.import_module("ottoscaler.adapters.trace_collector")
        flow = importlib.import_module("ottoscaler.flow.trace_exporter")
        keys = settings.keys
        self.spans = SpanBuilder(settings.instance, settings.kube.namespace, keys.stream, keys.group)
        self._run = flow.TraceExporter(
            results=results, sink=adapter.TraceCollector(endpoint, settings.traces.headers), registry=registry,
            builder=self.spans, stop=stop, metrics=metrics, clock=clock,
            claim_after_s=float(_CLAIM_AFTER_LEASES * settings.flow.lease_s),
        ).run  # fmt: skip

    def begin(self) -> None:
        """Start the thread, if there is one. It is not vital, and no loop of /livez: where the collector hangs, or the
        name server that is asked for it, all else goes on, and so does the stop.
        """
        if self._run is not None:
            self._stop.spawn(TRACES, self._run, vital=False)


def _is_installed(name: str) -> bool:
    """Without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
