"""Twenty rollouts under a steady flow of events: no event waits for a lease."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from tests import bytecode, warm
from tests.cli.conftest import LONG_S, SCRIPT
from tests.fakes.wait import eventually

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

ROLLOUTS = 20
EVERY_S = 0.2
#: From an event's entry to its worker: the promise is one second.
LONGEST_S = 1.0


class Process:
    """One controller, as a pod of a Deployment runs it. One thread."""

    def __init__(self, name: str, environ: dict[str, str], folder: Path) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = warm.Popen(
                [sys.executable, str(SCRIPT)], env={**environ, "REDIS_CONSUMER": name}, stdout=log, stderr=log
            )

    def await_start(self) -> None:
        """Return when it takes events."""
        eventually(lambda: "controller.started" in self._log.read_text(encoding="utf-8"), LONG_S, "its start")

    def stop(self) -> None:
        """SIGTERM, and its orderly end."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(LONG_S) == 0, self._log.read_text(encoding="utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Redis and a cluster, and how a controller finds them."""
    server, cluster = EmbeddedRedis(tmp_path / "redis"), LocalCluster(tmp_path / "cluster")
    server.start()
    cluster.start()
    yield {
        **bytecode.environ(), "REDIS_HOST": server.host, "REDIS_PORT": str(server.port), "HTTP_PORT": "0",
        "KUBECONFIG": str(cluster.kubeconfig), "NAMESPACE": "default", "OTTO_AGENT_COMMAND": "true",
        "LOG_FORMAT": "json",
    }  # fmt: skip
    cluster.close()
    server.close()


class Producer:
    """One event every 0.2 s, on a thread of its own."""

    def __init__(self, client: Any) -> None:
        self.sent: dict[str, float] = {}
        """Entry id -> when it was sent, by the clock of this machine, seconds since the epoch."""
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Send no more."""
        self._over.set()
        self._thread.join(LONG_S)

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            entry = self._client.xadd("otto:scale:events", {"type": "scale_up"})
            self.sent[entry] = int(entry.partition("-")[0]) / 1000


@pytest.mark.contract("2.SHUTDOWN_GRACE_S")
@pytest.mark.contract("5.exactly-once")
def test_no_event_waits_for_a_lease(environ: dict[str, str], tmp_path: Path) -> None:
    """A new process starts, the old one gets SIGTERM: twenty times, and each worker is created within a second."""
    processes = [Process("c0", environ, tmp_path)]
    processes[0].await_start()
    with redis.Redis(environ["REDIS_HOST"], int(environ["REDIS_PORT"]), decode_responses=True) as client:
        producer = Producer(client)
        for number in range(1, ROLLOUTS + 1):
            processes.append(Process(f"c{number}", environ, tmp_path))
            processes[-1].await_start()
            processes[-2].stop()
        producer.close()
        eventually(lambda: len(_ended(client)) >= len(producer.sent), LONG_S, "all tasks to end")
        processes[-1].stop()
        assert sorted(_ended(client)) == sorted(producer.sent)
    created = [line for process in processes for line in process.lines() if line["event"] == "worker.created"]
    waited = {line["event_id"]: _at(line) - producer.sent[line["event_id"]] for line in created}
    assert {name: round(wait_s, 2) for name, wait_s in waited.items() if wait_s > LONGEST_S} == {}
    assert waited.keys() == producer.sent.keys()


def _ended(client: Any) -> list[str]:
    results = [fields for _, fields in client.xrange("otto:scale:results")]
    assert {result["outcome"] for result in results} <= {"succeeded"}
    return [result["event_id"] for result in results if result["kind"] == "task"]


def _at(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()
