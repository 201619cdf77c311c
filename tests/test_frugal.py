"""What the whole process asks of the API server, counted between the two: requests, bytes, and requests under way.

The embedded servers answer, so this needs neither a cluster nor a fast machine; a real API server adds fields of its
own to each pod, and nothing to the number of requests.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import redis

from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from tests import bytecode
from tests.fakes.wait import eventually
from tests.meter import Meter

pytestmark = pytest.mark.timeout(180)

_SCRIPT: Final = Path(__file__).resolve().parents[1] / "ottoscaler.py"
_EVENTS: Final = 4
_PODS: Final = 8
_WORKERS: Final = _EVENTS * _PODS
_INFLIGHT: Final = 4
_RIGHTS: Final = "POST selfsubjectaccessreviews"
#: Bytes per pod of what the process has to read; the figures of the day when this was written, and a tenth more.
_CREATED, _DELETED, _WATCHED = 2800, 3900, 23900


@dataclass(frozen=True)
class Cost:
    """What was counted while all events were carried out."""

    meter: Meter
    scripts: int


@pytest.fixture(scope="module")
def cost(tmp_path_factory: pytest.TempPathFactory) -> Cost:
    """A controller that may have four requests under way, and thirty-two workers that all want one."""
    folder = tmp_path_factory.mktemp("frugal")
    with ExitStack() as stack:
        server = stack.enter_context(closing(EmbeddedRedis(folder / "redis")))
        server.start()
        cluster = stack.enter_context(closing(LocalCluster(folder / "cluster")))
        cluster.start()
        meter = stack.enter_context(closing(Meter(int(cluster.url.rpartition(":")[2]), delay_s=0.02)))
        known = cluster.kubeconfig.read_text(encoding="utf-8")
        known = known.replace(cluster.url, f"http://127.0.0.1:{meter.port}")
        (folder / "kubeconfig").write_text(known, encoding="utf-8")
        scripts = _carry_out(folder, server, meter)
    return Cost(meter, scripts)


def _carry_out(folder: Path, server: EmbeddedRedis, meter: Meter) -> int:
    """Run all events through a controller; returns how many scripts Redis was sent."""
    settings = {
        "REDIS_HOST": server.host, "REDIS_PORT": server.port, "KUBECONFIG": folder / "kubeconfig", "HTTP_PORT": 0,
        "KUBE_INFLIGHT": _INFLIGHT, "OTTO_AGENT_COMMAND": '["sleep", "0.2"]', "LOG_FORMAT": "json",
        "KUBERNETES_EVENTS": "false",  # written over a connection of their own, one at a time
    }  # fmt: skip
    environ = {**bytecode.environ(), **{name: str(value) for name, value in settings.items()}}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([sys.executable, str(_SCRIPT), "run"], env=environ, stdout=log, stderr=log) as process,
        redis.Redis(host=server.host, port=server.port, decode_responses=True) as plain,
    ):
        try:
            for _ in range(_EVENTS):
                plain.xadd("otto:scale:events", {"type": "scale_up", "pod_count": str(_PODS)})
            eventually(lambda: meter.requests["DELETE pods"] == _WORKERS, 120, "all pods to be deleted")
            eventually(lambda: not plain.zcard("otto:scale:open"), 20, "all events to be over")
            return int(plain.info("commandstats")["cmdstat_evalsha"]["calls"])
        finally:
            process.terminate()


def test_two_requests_for_each_pod(cost: Cost) -> None:
    """One create and one delete; one list, one watch, the cluster's identity and the question what we may do for all
    of them together.
    """
    requests = {what: count for what, count in cost.meter.requests.items() if what not in ("WATCH", _RIGHTS)}
    assert requests == {"POST pods": _WORKERS, "DELETE pods": _WORKERS, "GET pods": 1, "GET namespaces": 1}
    assert cost.meter.requests["WATCH"] <= 2  # one, and another where all this took longer than it may stay open


@pytest.mark.contract("2.KUBE_INFLIGHT")
def test_no_more_requests_under_way_than_allowed(cost: Cost) -> None:
    """All of what is allowed is used, and nothing more."""
    assert cost.meter.most == _INFLIGHT


@pytest.mark.parametrize(
    ("what", "most"), [("POST pods", _CREATED), ("DELETE pods", _DELETED), ("WATCH", _WATCHED)], ids=str
)
def test_bytes_for_each_pod(cost: Cost, what: str, most: int) -> None:
    """What has to be read and decoded."""
    each = cost.meter.received[what] / _WORKERS
    print(f"{what}: {each:.0f} bytes per pod")
    assert 0 < each < most


def test_scripts_for_each_worker(cost: Cost) -> None:
    """Three of its own; accepting, leases, and what is noted for a reader come once for each event and tick."""
    print(f"{cost.scripts / _WORKERS:.2f} scripts per worker")
    assert 3 * _WORKERS <= cost.scripts < 6 * _WORKERS
