"""A node that only says what it does: it binds pods, reports them running and ended, and ends those that are deleted.

Unlike the kubelet of the end-to-end tests it lives through an API server that is killed, and it keeps a book of every
program that it started and how each ended: the results are later held against that.
"""

from __future__ import annotations

import heapq
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import config

NODE = "torture-node"
#: Workers of events with ids that begin with this run for long, and to a good end.
LONG = "long-"
LONG_S = 12.0
AGAIN_S = 0.3
BUSY_S = 0.05
_PATCHERS = 6
_MERGE = {"Content-Type": "application/merge-patch+json", "Accept": "application/json"}
_JSON = {"Content-Type": "application/json", "Accept": "application/json"}

Worker = tuple[str, int]


@dataclass(frozen=True)
class Fate:
    """What becomes of a pod: when its program starts after the binding, how long it runs, and how it ends."""

    start_s: float
    run_s: float
    phase: str
    reason: str = ""
    obeys: bool = True
    """At SIGTERM it ends with an error; else with success."""


def draw(seed: int, event_id: str, index: int, attempt: int, pending_timeout_s: float) -> Fate:
    """A fate that depends on nothing but the attempt's name, so that a seed gives the same ones again."""
    if event_id.startswith(LONG):
        return Fate(0, LONG_S, "Succeeded")
    dice = random.Random(f"{seed}/{event_id}/{index}/{attempt}")
    late = dice.random() < 0.06  # the time without a node, and that of the start on it, are pending_timeout_s each
    # Most of the late ones are ended: the time counts from when a process first sees the pod, and few live for long.
    start_s = dice.uniform(0.9, 6.0) * pending_timeout_s if late else dice.uniform(0, 0.4)
    run_s, end = dice.uniform(0.2, 4.0), dice.random()
    obeys = dice.random() < 0.8
    if end < 0.04:
        return Fate(start_s, run_s, "Failed", "Evicted", obeys)
    return Fate(start_s, run_s, "Failed" if end < 0.14 else "Succeeded", obeys=obeys)


class Stage(Enum):
    """How far a pod has come here."""

    NEW = auto()
    BOUND = auto()
    STARTED = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass
class Run:
    """One pod. Guarded by the kubelet's lock, but for the thread that just carries a step out."""

    uid: str
    name: str
    event_id: str
    index: int
    attempt: int
    fate: Fate
    stage: Stage = Stage.NEW
    deleting: bool = False
    gone: bool = False
    busy: bool = False
    """Is a thread at it? Two steps of one pod never run side by side."""
    started_at: float = 0.0
    ended_at: float = 0.0
    deleted_at: float = 0.0
    """When it was seen that someone has asked for its end."""
    phase: str = ""
    reason: str = ""
    stopped: bool = False
    """Did it end because it was deleted?"""

    @property
    def worker(self) -> Worker:
        """The worker that this is an attempt of."""
        return self.event_id, self.index


@dataclass(order=True)
class _Due:
    at: float
    serial: int
    run: Run = field(compare=False)


class Kubelet:
    """Serves one namespace. `start` and `close` belong to one thread; the book may be read by any."""

    def __init__(self, kubeconfig: Path, namespace: str, seed: int, pending_timeout_s: float) -> None:
        self._api: Any = config.new_client_from_config(config_file=str(kubeconfig))
        self._api.rest_client.pool_manager.connection_pool_kw["maxsize"] = _PATCHERS + 2
        self._pods = f"{self._api.configuration.host}/api/v1/namespaces/{namespace}/pods"
        self._seed = seed
        self._pending_timeout_s = pending_timeout_s
        self._dice = random.Random(seed)
        self.shift_s = 0.0
        """How wrong the node's clock is: what it reports of itself is so much later."""
        self._wake = threading.Condition()
        self._runs: dict[str, Run] = {}  # guarded by _wake, as all below
        self._queue: list[_Due] = []
        self._serial = 0
        self._response: Any = None
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="kubelet-watch", daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, name=f"kubelet-{n}", daemon=True) for n in range(_PATCHERS)
        ]

    def start(self) -> None:
        """Take up pods from now on."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave the pods as they are."""
        self._stopping.set()
        if self._response is not None:
            with suppress(OSError, ValueError, RuntimeError):
                self._response.shutdown()
        with self._wake:
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(10)
        self._api.close()

    @property
    def book(self) -> list[Run]:
        """Every pod that there ever was, in the order in which they came."""
        with self._wake:
            return list(self._runs.values())

    @property
    def live(self) -> int:
        """Pods that have not ended."""
        return sum(1 for run in self.book if not run.gone and run.stage is not Stage.ENDED)

    def find(self, name: str) -> Run | None:
        """The newest pod of that name."""
        return next((run for run in reversed(self.book) if run.name == name), None)

    # -- what the API server says

    def _watch(self) -> None:
        while not self._stopping.is_set():
            with suppress(urllib3.exceptions.HTTPError, OSError, ValueError):
                self._follow(self._list())
            self._stopping.wait(AGAIN_S)

    def _list(self) -> str:
        answer = self._request("GET", self._pods)
        if answer.status != 200:
            raise OSError(f"list: {answer.status}")
        listed = json.loads(answer.data)
        present = {pod["metadata"]["uid"] for pod in listed["items"]}
        with self._wake:
            for run in self._runs.values():
                run.gone = run.gone or run.uid not in present
        for pod in listed["items"]:
            self._see(pod, gone=False)
        return str(listed["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> None:
        url = f"{self._pods}?watch=true&timeoutSeconds=300&resourceVersion={version}"
        self._response = self._request("GET", url, preload_content=False, timeout=urllib3.Timeout(3, 310))
        for line in _lines(self._response):
            answer = json.loads(line)
            if answer["object"]["kind"] != "Pod":
                return
            self._see(answer["object"], gone=answer["type"] == "DELETED")

    def _see(self, pod: Any, *, gone: bool) -> None:
        meta = pod["metadata"]
        labels, notes = meta.get("labels", {}), meta.get("annotations", {})
        with self._wake:
            run = self._runs.get(meta["uid"])
            if run is None:
                event_id = notes.get("ottoscaler.io/event-id", "")
                index, attempt = int(labels["ottoscaler.io/worker"]), int(labels["ottoscaler.io/attempt"])
                fate = draw(self._seed, event_id, index, attempt, self._pending_timeout_s)
                run = self._runs[meta["uid"]] = Run(meta["uid"], meta["name"], event_id, index, attempt, fate)
                self._put(run, 0)
            run.gone = run.gone or gone
            if "deletionTimestamp" in meta and not run.deleting and not run.gone:
                run.deleting, run.deleted_at = True, time.time()
                self._put(run, self._dice.uniform(0, 0.5))

    def _put(self, run: Run, delay_s: float) -> None:
        self._serial += 1
        heapq.heappush(self._queue, _Due(time.monotonic() + delay_s, self._serial, run))
        self._wake.notify()

    # -- what the node does

    def _work(self) -> None:
        while (run := self._next()) is not None:
            delay_s: float | None = AGAIN_S
            with suppress(urllib3.exceptions.HTTPError, OSError):
                delay_s = self._end(run) if run.deleting else self._advance(run)
            with self._wake:
                run.busy = False
                if delay_s is not None:
                    self._put(run, delay_s)

    def _next(self) -> Run | None:
        with self._wake:
            while not self._stopping.is_set():
                now = time.monotonic()
                while self._queue and self._queue[0].run.gone:
                    heapq.heappop(self._queue)
                if self._queue and self._queue[0].at <= now:
                    run = heapq.heappop(self._queue).run
                    if not run.busy:
                        run.busy = True
                        return run
                    self._put(run, BUSY_S)
                    continue
                self._wake.wait(min(0.5, self._queue[0].at - now) if self._queue else 0.5)
        return None

    def _advance(self, run: Run) -> float | None:
        """One step of a pod's life; returns when the next is due, None if there is none. Raises when it is to be
        done again.
        """
        if run.stage is Stage.NEW:
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": run.name}, "target": target}
            if self._send("POST", f"{self._pods}/{run.name}/binding", body, _JSON) == 404:
                return None
            run.stage = Stage.BOUND  # also when this kubelet bound it before, without receiving the answer
            return run.fate.start_s
        if run.stage is Stage.BOUND:
            run.started_at = time.time()
            run.stage = Stage.STARTED  # from here on the program runs, whether that is reported or not
        if run.stage is Stage.STARTED:
            self._report(run, "Running", {"running": {"startedAt": self._stamp(run.started_at)}})
            run.stage = Stage.RUNNING
            return run.fate.run_s
        if run.stage is Stage.RUNNING:
            self._finish(run, run.fate.phase, run.fate.reason)
        return None

    def _end(self, run: Run) -> float | None:
        """It is deleted: its program is stopped, and then the pod is taken away."""
        if run.stage in (Stage.STARTED, Stage.RUNNING):
            run.stopped = run.stopped or not run.phase
            self._finish(run, run.phase or ("Failed" if run.fate.obeys else "Succeeded"), run.reason)
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": run.uid}}
        self._send("DELETE", f"{self._pods}/{run.name}", options, _JSON)
        return None

    def _finish(self, run: Run, phase: str, reason: str) -> None:
        run.ended_at = run.ended_at or time.time()
        run.phase, run.reason = phase, reason
        code = 0 if phase == "Succeeded" else 143 if run.stopped else 3
        times = {"startedAt": self._stamp(run.started_at), "finishedAt": self._stamp(run.ended_at)}
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", **times}
        self._report(run, phase, {"terminated": ended}, reason)
        run.stage = Stage.ENDED

    def _report(self, run: Run, phase: str, state: Any, reason: str = "") -> None:
        container = {"name": "agent", "image": "none", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        status = {"phase": phase, "containerStatuses": [container], **({"reason": reason} if reason else {})}
        # the UID makes the API server refuse it for another pod of that name
        body = {"metadata": {"uid": run.uid}, "status": status}
        self._send("PATCH", f"{self._pods}/{run.name}/status", body, _MERGE)

    def _stamp(self, at: float) -> str:
        return datetime.fromtimestamp(at + self.shift_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _send(self, method: str, url: str, body: Any, headers: dict[str, str]) -> int:
        """The answer's status. Raises OSError when it is to be sent again."""
        answer = self._request(method, url, body=json.dumps(body).encode(), headers=headers)
        if answer.status == 429 or answer.status >= 500:
            raise OSError(f"{method} {url}: {answer.status}")
        return int(answer.status)

    def _request(self, method: str, url: str, **options: Any) -> Any:
        options.setdefault("timeout", urllib3.Timeout(3, 10))
        return self._api.rest_client.pool_manager.request(method, url, retries=False, **options)


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
