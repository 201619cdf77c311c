"""A thousand pods alive at once in one process: all results, little memory, and no more threads than workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.controller import Controller
from tests.e2e.fakekubelet import FakeKubelet
from tests.e2e.system import Fields, System
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

_WORKERS = 1000
_PEAK_MIB = 250
#: Besides the pool: main, signals, cpu, reader, control, scale-down, ender, lease, takeover, watch, reconciler, web and
#: some of the libraries.
_OTHER_THREADS = 17


@dataclass(frozen=True)
class Load:
    """What was seen while and after they ran."""

    task: Fields
    workers: list[Fields]
    peak_mib: float
    threads: int
    system: System
    controller: Controller


@pytest.fixture(scope="module")
def load(new_system: Callable[..., System], nodeless_kubeconfig: Path) -> Iterator[Load]:
    """One event of a thousand workers; a fake kubelet ends them all when the last one runs."""
    system = new_system(config=nodeless_kubeconfig)
    # on a cluster that has nodes, none of them touches these
    nowhere = '{"ottoscaler.test/nowhere": "true"}'
    controller = system.start(MAX_WORKERS=str(_WORKERS), KUBE_QPS="0", WORKER_NODE_SELECTOR=nowhere)
    kubelet = FakeKubelet(nodeless_kubeconfig, system.kube.namespace, _WORKERS)
    kubelet.start()
    event_id = system.send(type="scale_up", pod_count=_WORKERS, task_id="thousand")
    wait_for(lambda: kubelet.running == _WORKERS, "all to run", 120)
    threads = controller.status("Threads")
    task = system.finished(event_id, timeout_s=90)
    wait_for(lambda: len(controller.said("worker.deleted")) == _WORKERS, "all to be deleted")
    peak_mib = controller.status("VmHWM") / 1024
    kubelet.close()
    print(f"peak {peak_mib:.0f} MiB, {threads} threads")
    yield Load(task, system.results(event_id), peak_mib, threads, system, controller)
    system.close()


@pytest.mark.contract("5.exactly-once")
def test_all_results(load: Load) -> None:
    """One for each worker, none twice, and the task's."""
    assert Counter(worker["index"] for worker in load.workers) == Counter(map(str, range(1, _WORKERS + 1)))
    assert {(worker["outcome"], worker["attempt"]) for worker in load.workers} == {("succeeded", "1")}
    assert (load.task["outcome"], load.task["succeeded"]) == ("succeeded", str(_WORKERS))


def test_nothing_is_left(load: Load) -> None:
    """No pod and nothing open."""
    wait_for(lambda: not load.system.kube.pods(), "the pods to go")
    assert load.system.open_ids() == []


def test_memory(load: Load) -> None:
    """The peak of the whole process."""
    assert load.peak_mib < _PEAK_MIB


def test_threads(load: Load) -> None:
    """One for each worker, and a few."""
    assert load.threads <= _WORKERS + _OTHER_THREADS


def test_no_complaint(load: Load) -> None:
    """No error, no outage, no retry in the log. Where the cluster has a scheduler, a pod is unschedulable for a moment,
    until the fake kubelet takes it; `worker.waiting` may say so.
    """
    expected = ("config.not_yet", "worker.waiting")
    lines = [line for line in load.controller.lines if line["level"] != "INFO" and line["event"] not in expected]
    assert lines == []
