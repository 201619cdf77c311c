"""Puts together what streams the logs of workers, where that is on. Otherwise there is no process, and no thread."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

from ottoscaler.adapters.log_forwarder import LogForwarderProcess
from ottoscaler.api_server import ApiServer
from ottoscaler.cli.rules import masks_of
from ottoscaler.core.policy import NO_RULES, Rules
from ottoscaler.errors import ConfigError
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.log_drain import THREADS, LogDrain
from ottoscaler.flow.stop import StopSignal
from ottoscaler.log_forwarder_messages import Start
from ottoscaler.metrics import Metrics
from ottoscaler.ports import Attempts, Clock, Cluster
from ottoscaler.settings import Settings

#: What the forwarder imports, beside what the controller does.
_NEEDED: Final = ("grpc", "google.protobuf", "aiohttp")


class LogForwarding:
    """The log forwarder and the pods that wait for it. The main thread's own."""

    def __init__(
        self, settings: Settings, *, cluster: Cluster, attempts: Attempts, stop: StopSignal, heartbeat: Heartbeat,
        metrics: Metrics, clock: Clock, rules: Callable[[], Rules] = lambda: NO_RULES, server: ApiServer | None = None,
    ) -> None:  # fmt: skip
        """`rules`: what events may override, now. `server`: how the API server is reached, where that is known.
        Raises ConfigError where logs are on and a package that the forwarder needs is not installed.
        """
        self.drain: LogDrain | None = None
        self._stop = stop
        if not settings.may_forward_logs or (missing_packages() and not settings.forwards_logs):
            return
        if missing := missing_packages():
            raise ConfigError(
                (
                    f"LOG_HANDLER_ADDRESS={settings.log_handler.target!r}: logs need the packages of "
                    f"ottoscaler/forwarder/requirements.txt, and {', '.join(missing)} is not installed; install them, "
                    "or set WORKER_LOGS=none",
                )
            )
        # before a thread may have chosen one CPU for the controller
        cpus = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
        self._forwarder = LogForwarderProcess(
            Start(settings.kube, settings.log_handler, cpus, server=server), beat=heartbeat.beat,
            waits_for_log=not settings.forwards_logs,
            on_figures=metrics.add_log_figures, masks=lambda: masks_of(rules()),
            on_progress=lambda progress: drain.progressed(progress),
            on_end=lambda uid, acknowledged, lines, dropped: drain.log_ended(uid, acknowledged, lines, dropped),
        )  # fmt: skip
        self.drain = drain = LogDrain(
            forwarder=self._forwarder, cluster=cluster, attempts=attempts, stop=stop, heartbeat=heartbeat,
            metrics=metrics, clock=clock, drain_s=float(settings.log_handler.drain_s),
            worker_logs=settings.worker_logs,
        )  # fmt: skip

    def begin(self, begin: Callable[[str, Callable[[], None]], None]) -> None:
        """Start the threads, if there are any: `begin` gets the name and the body of each."""
        if self.drain is None:
            return
        begin("logs", partial(self._forwarder.run, self._stop.wait))
        for number in range(1, THREADS + 1):
            begin(f"log-drain-{number}", self.drain.run)


def missing_packages() -> list[str]:
    """What the forwarder needs and is not installed."""
    return [name for name in _NEEDED if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    """Without importing it: the controller never does."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
