"""A log forwarder as the controller runs it, for pods of a Kubernetes API and with a handler."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ottoscaler.adapters import log_forwarder
from ottoscaler.adapters.log_forwarder import LogForwarderProcess
from ottoscaler.core.log_progress import LogProgress
from ottoscaler.local.handle import LocalCluster
from ottoscaler.log_forwarder_messages import Start
from ottoscaler.metrics import Metrics
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests import warm
from tests.local.kube import Kube, Space, eventually

LONG_S = 40.0


class Following:
    """A forwarder process, and what it has reported. Its thread ends with `close`."""

    def __init__(
        self, kubeconfig: Path, namespace: str, port: int, drain_s: int = 20, cpus: Sequence[int] = ()
    ) -> None:
        self.ended: dict[str, tuple[bool, int, int]] = {}
        self.progress: dict[str, LogProgress] = {}
        self.metrics = Metrics()
        self.masks: Sequence[str] = ()
        """What the policy masks, now."""
        self._stop = threading.Event()
        handler = LogHandlerSettings(address=("127.0.0.1", port), drain_s=drain_s)
        start = Start(KubeSettings(kubeconfig=str(kubeconfig), namespace=namespace), handler, cpus)
        self.forwarder = LogForwarderProcess(
            start,
            on_progress=self._on_progress,
            on_end=self._on_end,
            on_figures=self.metrics.add_log_figures,
            masks=lambda: self.masks,
        )
        self._thread = threading.Thread(target=self.forwarder.run, args=(self._stop.wait,))
        self._thread.start()

    def _on_progress(self, progress: LogProgress) -> None:
        self.progress[progress.uid] = progress

    def _on_end(self, uid: str, acknowledged: bool, lines: int, dropped: int) -> None:
        self.ended[uid] = (acknowledged, lines, dropped)

    def follow(self, pod: dict[str, object], progress: LogProgress | None = None) -> str:
        """Follow the log of a pod; returns its UID."""
        metadata = pod["metadata"]
        assert isinstance(metadata, dict)
        uid = str(metadata["uid"])
        self.forwarder.follow(
            progress or LogProgress(uid), pod=str(metadata["name"]), task_id="t-1", node="", labels={}
        )
        return uid

    def end_of(self, uid: str) -> tuple[bool, int, int]:
        """What was reported at the end of a log: acknowledged or not, lines, dropped."""
        return eventually(lambda: self.ended.get(uid), LONG_S)  # type: ignore[return-value]

    def figure(self, name: str, **labels: str) -> float:
        """What the forwarder has reported: a metric of logs."""
        lines = self.metrics.render().decode().splitlines()
        series = ",".join(f'{label}="{value}"' for label, value in labels.items())
        wanted = f"ottoscaler_log_{name}{{{series}}} " if labels else f"ottoscaler_log_{name} "
        return float(next(line for line in lines if line.startswith(wanted)).rpartition(" ")[2])

    def kill(self) -> int:
        """End the forwarder as a crash does; returns its process id."""
        pid = self.forwarder.pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(LONG_S)
        assert not self._thread.is_alive()


@contextmanager
def following(
    cluster: LocalCluster, space: Space, port: int, drain_s: int = 20, cpus: Sequence[int] = ()
) -> Iterator[Following]:
    """A forwarder for the pods of a namespace. It is forked, which saves its imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_forwarder, "subprocess", warm)
        opened = Following(cluster.kubeconfig, space.name, port, drain_s, cpus)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def namespace(kube: Kube, name: str) -> Iterator[Space]:
    """A namespace for a test."""
    space = Space(kube, name)
    assert kube.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}}).status == 201
    yield space
    kube.call("DELETE", f"/api/v1/namespaces/{name}")
