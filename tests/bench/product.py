"""The system under test: `python ottoscaler.py run` as users start it, and what is seen of it from outside."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.lab import NAMESPACE, Lab
from tests.e2e.controller import Controller
from tests.e2e.waiting import wait_for

STREAM, RESULTS, OPEN = "otto:scale:events", "otto:scale:results", "otto:scale:open"
_STOP_S = 40.0
_DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"


@dataclass(slots=True)
class Faults:
    """What must be 0 of everything, whatever the machine."""

    leaked: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0

    def add(self, other: Faults) -> None:
        """Count another run's in."""
        self.leaked += other.leaked
        self.refused += other.refused
        self.lost += other.lost
        self.doubled += other.doubled


@dataclass
class Product:
    """One controller with an empty Redis. One thread; a `with` block ends it and takes its pods away."""

    lab: Lab
    settings: dict[str, object] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    """Event id -> how many workers it has to have."""

    def __enter__(self) -> Product:
        self.lab.clear()
        self.lab.audit.begin()
        self.redis = self.lab.redis.client()
        self.start()
        return self

    def start(self) -> None:
        """Launch it, again after `kill`, and wait until it takes events."""
        self.controller = self.launch().ready()

    def launch(self) -> Controller:
        """Start it and do not wait."""
        self.http_port = _free_port()
        environ = {
            "REDIS_HOST": "127.0.0.1", "REDIS_PORT": self.lab.redis.port, "REDIS_CONSUMER": "otto-0",
            "NAMESPACE": NAMESPACE, "KUBECONFIG": self.lab.kubeconfig, "HTTP_PORT": self.http_port,
            "MAX_WORKERS": 1000, "MAX_PODS_PER_EVENT": 10000, **self.settings,
        }  # fmt: skip
        answer = _image() | {name: str(value) for name, value in environ.items()}
        # warnings of the libraries are for tests: users do not ask for them
        self.controller = Controller(self.lab.directory, {"PYTHONWARNINGS": "ignore", **answer})
        return self.controller

    def __exit__(self, *error: object) -> None:
        if self.controller.process.poll() is None:
            self.controller.terminate()
            try:
                self.controller.exit_code(_STOP_S)
            except subprocess.TimeoutExpired:
                self.controller.kill()
                if error[0] is None:  # otherwise the error of the run goes on, which is worse
                    raise
        self.redis.close()
        self.lab.clear()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.controller.pid

    def send(self, pods: int, besides: Mapping[str, str] | None = None) -> float:
        """XADD an event of so many pods; returns when that had returned, seconds since the epoch. `besides`: further
        fields.
        """
        fields = {"type": "scale_up", "pod_count": str(pods), "task_id": "bench", **(besides or {})}
        event_id = self.redis.xadd(STREAM, fields)
        sent = time.time()
        self.expected[event_id] = pods
        return sent

    def until_done(self, timeout_s: float) -> bool:
        """Wait until every pod asked for was deleted and no task is open; False if that did not come."""
        wanted = sum(self.expected.values())
        audit = self.lab.audit

        def done() -> bool:
            assert self.controller.process.poll() is None, self.controller.text[-2000:]
            return len(audit.look().done("delete")) >= wanted and not self.redis.zcard(OPEN)

        try:
            wait_for(done, "all pods to be deleted", timeout_s)
        except AssertionError as error:
            print(f"   in vain: {error}", flush=True)
            return False
        return True

    def results(self) -> list[tuple[str, dict[str, str]]]:
        """All results with their stream ids."""
        entries: list[tuple[str, dict[str, str]]] = self.redis.xrange(RESULTS)
        return entries

    def faults(self) -> Faults:
        """What went wrong so far: to be asked when all is done."""
        workers, tasks = _counted(self.results())
        lost = sum(max(0, count - len(workers.get(event_id, {}))) for event_id, count in self.expected.items())
        lost += sum(event_id not in tasks for event_id in self.expected)
        doubled = sum(times - 1 for by_index in workers.values() for times in by_index.values())
        doubled += sum(times - 1 for times in tasks.values())
        return Faults(len(self.lab.pods()), self.lab.audit.look().refused, lost, doubled)


def _image() -> dict[str, str]:
    """How the image has malloc work."""
    (tunables,) = re.findall(r"^ENV (GLIBC_TUNABLES)=(\S+)$", _DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict([tunables])


def _counted(entries: list[tuple[str, dict[str, str]]]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    workers: dict[str, dict[str, int]] = {}
    tasks: dict[str, int] = {}
    for _, fields in entries:
        event_id = fields["event_id"]
        if fields["kind"] == "task":
            tasks[event_id] = tasks.get(event_id, 0) + 1
        elif fields["outcome"] == "succeeded":
            by_index = workers.setdefault(event_id, {})
            by_index[fields["index"]] = by_index.get(fields["index"], 0) + 1
    return workers, tasks


def recorded_at(entries: list[tuple[str, dict[str, str]]]) -> dict[str, float]:
    """Pod -> when its result was stored, by Redis' own clock: the middle of that millisecond."""
    times: dict[str, Any] = {}
    for stream_id, fields in entries:
        if fields["kind"] == "worker":
            times.setdefault(fields["pod"], int(stream_id.partition("-")[0]) / 1000 + 0.0005)
    return times


def as_json(value: object) -> str:
    """For the files of results."""
    return json.dumps(value, indent=1, default=str)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
