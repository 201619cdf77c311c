"""The composition of what writes Kubernetes Events: nothing of it is there where they are off."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ottoscaler.cli import kubernetes_events
from ottoscaler.cli.kubernetes_events import THREAD, KubernetesEvents
from ottoscaler.core.outgoing_kube_events import EventReason, KubeEvent
from ottoscaler.flow.stop import StopSignal
from ottoscaler.local.handle import LocalCluster
from ottoscaler.metrics import Metrics
from ottoscaler.settings import Settings
from tests.fakes.clock import SystemClock
from tests.fakes.wait import PATIENCE_S, eventually
from tests.readme import ROOT

pytestmark = [pytest.mark.contract("2.KUBERNETES_EVENTS"), pytest.mark.timeout(120)]

OFF = """
import sys, threading
import ottoscaler.cli.run
from ottoscaler.cli.kubernetes_events import KubernetesEvents
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metrics import Metrics
from ottoscaler.clock import SystemClock
from ottoscaler.settings import Settings
settings = Settings.load({"KUBERNETES_EVENTS": "false"}, "host", None)
events = KubernetesEvents(settings, stop=StopSignal(), metrics=Metrics(), clock=SystemClock())
events.begin()
events.close()
parts = ["ottoscaler.flow.event_recorder", "ottoscaler.adapters.kube_events", "ottoscaler.core.event_series"]
print(events.record.__name__, [part for part in parts if part in sys.modules], threading.active_count())
"""


def test_off_there_is_no_thread_and_nothing_is_imported() -> None:
    """Not even by the controller's own imports."""
    done = subprocess.run([sys.executable, "-c", OFF], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "record_nothing [] 1\n"


def test_on_one_thread_writes_them(local_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the stop."""
    monkeypatch.setattr(kubernetes_events, "own_namespace", lambda: None)
    settings = Settings.load({"KUBECONFIG": str(local_cluster.kubeconfig)}, "host", None)
    stop, metrics, clock = StopSignal(), Metrics(), SystemClock()
    events = KubernetesEvents(settings, stop=stop, metrics=metrics, clock=clock)
    events.begin()
    assert [thread.name for thread in threading.enumerate()].count(THREAD) == 1
    events.record(KubeEvent(EventReason.DEAD_LETTER, "outside a cluster there is no pod for it"))
    stop.set()
    events.close()
    assert stop.join(clock, clock.now() + PATIENCE_S) == []
    eventually(lambda: THREAD not in [thread.name for thread in threading.enumerate()])
    assert stop.cause is None


@pytest.fixture(scope="module")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The embedded Kubernetes API."""
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.start()
    yield local
    local.close()
