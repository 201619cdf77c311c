"""An event that kills the process every time (SIGKILL, a real process, a real Redis): it ends after so many processes,
and the event beside it is carried out.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.local.handle import LocalCluster
from tests.conftest import require
from tests.e2e.controller import Controller
from tests.e2e.deadly import DEADLY
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.contract("3.dead-letter"), pytest.mark.timeout(500)]
ENTRY = str(Path(__file__).with_name("deadly.py"))
#: More processes than any of these events may cost.
MANY = 30


class Place:
    """A Redis, a small Kubernetes, and one controller after the other. One thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.server = RedisServer(directory / "redis")
        self.cluster = LocalCluster(directory / "cluster")
        self.deaths = 0

    def open(self) -> None:
        """Start both servers."""
        self.server.start()
        self.cluster.start()
        self.redis: Any = self.server.client()

    def live_through(self, step: str) -> None:
        """Start a controller as often as it is killed, until nothing is open or pending."""
        while not self._lives(step):
            self.deaths += 1
            assert self.deaths < MANY

    def _lives(self, step: str) -> bool:
        environ = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self.server.port),
            "REDIS_CONSUMER": "otto-0",
            "REDIS_BLOCK_MS": "100",
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "LEASE_S": "3",
            "OTTO_AGENT_COMMAND": '["true"]',
        }
        controller = Controller(self._directory, environ, (ENTRY, step))
        try:
            wait_for(lambda: controller.process.poll() is not None or self._over(), "an end", 120)
            if controller.process.poll() is None:
                wait_for(lambda: not self._pods(), "the pods to go", 60)
                return True
            assert controller.process.returncode == -signal.SIGKILL, controller.text[-3000:]
            return False
        finally:
            controller.close()

    def _over(self) -> bool:
        results = {fields["event_id"] for fields in self.letters()} | {
            each["event_id"] for each in self.results("task")
        }
        waiting = self.redis.xpending("otto:scale:events", "ottoscaler")["pending"] if results else 1
        return results == {DEADLY, "good"} and not waiting and not self.redis.zcard("otto:scale:open")

    def _pods(self) -> list[str]:
        command = [sys.executable, "-c", _PODS, str(self.cluster.kubeconfig)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    def letters(self) -> list[dict[str, str]]:
        """The dead letters."""
        return [fields for _, fields in self.redis.xrange("otto:scale:dead")]

    def results(self, kind: str) -> list[dict[str, str]]:
        """The results of a kind."""
        return [fields for _, fields in self.redis.xrange("otto:scale:results") if fields["kind"] == kind]

    def close(self) -> None:
        """End both servers."""
        self.redis.close()
        self.cluster.close()
        self.server.stop()


_PODS = """
import json, sys
from kubernetes import client, config
core = client.CoreV1Api(config.new_client_from_config(config_file=sys.argv[1]))
for pod in json.loads(core.list_namespaced_pod("default", _preload_content=False).data)["items"]:
    print(pod["metadata"]["name"])
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The servers, with two events sent: the deadly one first."""
    require("redis-server")
    made = Place(tmp_path)
    made.open()
    for event_id in (DEADLY, "good"):
        made.redis.xadd("otto:scale:events", {"type": "scale_up", "event_id": event_id, "pod_count": "2"})
    yield made
    made.close()


def test_one_that_kills_when_it_is_accepted_is_a_dead_letter(place: Place) -> None:
    """Ten processes have had it in hand, the last of them lives; it has made nothing."""
    place.live_through("accept")
    (letter,) = place.letters()
    assert (letter["dead_reason"], letter["event_id"]) == ("Poison", DEADLY)
    assert place.deaths == 9
    results = {fields["event_id"]: fields["reason"] for fields in place.results("task")}
    assert results == {DEADLY: "Rejected", "good": "Completed"}
    assert {fields["event_id"] for fields in place.results("worker")} == {"good"}


@pytest.mark.contract("5.Poison")
def test_one_that_kills_when_it_is_recorded_is_poison(place: Place) -> None:
    """A dead letter after ten tries without progress, once; results after twenty, once each; no pod is left."""
    place.live_through("record_result")
    (letter,) = place.letters()
    assert (letter["dead_reason"], letter["event_id"], letter["attempts"]) == ("Poison", DEADLY, "10")
    mine = [fields for fields in place.results("worker") if fields["event_id"] == DEADLY]
    assert sorted((fields["index"], fields["reason"]) for fields in mine) == [("1", "Poison"), ("2", "Poison")]
    results = {fields["event_id"]: fields["reason"] for fields in place.results("task")}
    assert results == {DEADLY: "Poison", "good": "Completed"}
    assert len(place.results("task")) == 2


@pytest.mark.contract("5.Poison")
def test_one_that_kills_when_its_pod_is_created_is_poison(place: Place) -> None:
    """No pod of it was ever seen, so no retry is used up, and storing the same attempt again is no progress."""
    place.live_through("create")
    (letter,) = place.letters()
    assert (letter["dead_reason"], letter["event_id"], letter["attempts"]) == ("Poison", DEADLY, "10")
    mine = [fields for fields in place.results("worker") if fields["event_id"] == DEADLY]
    assert sorted((fields["index"], fields["reason"]) for fields in mine) == [("1", "Poison"), ("2", "Poison")]
    assert len(place.results("task")) == 2
