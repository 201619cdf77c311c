"""Several controllers on one Redis and one API server, each with a user of its own, so that the API server's audit log
shows which controller asked for what.

There is no node: `PodStatusWriter` says how each pod stands, when the test wants it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.bare import BareNamespace
from tests.e2e.controller import Controller
from tests.e2e.kube_server import KubeServer
from tests.e2e.pod_status import PodStatusWriter
from tests.e2e.redis_server import RedisServer
from tests.e2e.system import System
from tests.e2e.waiting import LONG_S, wait_for

#: Short, so that a take-over does not take long; the least that is allowed.
LEASE_S = 3
#: Promised: what a dead replica held has changed hands so long after its death, seconds.
TAKEN_OVER_S = LEASE_S + 2.0
USERS = tuple(f"otto-{number}" for number in range(10))

_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: RequestResponse
    verbs: [create, delete]
    resources: [{group: "", resources: [pods]}]
  - level: None
"""


class AuditedServer(KubeServer):
    """An API server that knows each user of `USERS` by a token, and writes down which user created or deleted a pod."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "audit.log"
        tokens, policy = directory / "tokens", directory / "policy"
        super().__init__(
            directory,
            [f"--token-auth-file={tokens}", f"--audit-policy-file={policy}", f"--audit-log-path={self._log}"],
        )
        directory.mkdir(parents=True, exist_ok=True)
        tokens.write_text("".join(f"token-{user},{user},{user},system:masters\n" for user in USERS), encoding="utf-8")
        policy.write_text(_POLICY, encoding="utf-8")

    def kubeconfig_of(self, user: str, port: int | None = None) -> Path:
        """A kubeconfig for one of `USERS`, maybe by another port of 127.0.0.1 behind which there is this server."""
        path = self.directory / f"kubeconfig-{user}-{port or self.port}"
        cluster = f'{{server: "https://127.0.0.1:{port or self.port}", certificate-authority: {self.directory}/ca.crt}}'
        path.write_text(
            f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {cluster}}}]
users: [{{name: u, user: {{token: token-{user}}}}}]
""",
            encoding="utf-8",
        )
        return path

    def deletions(self, namespace: str) -> list[Deletion]:
        """The requests by which pods of a namespace were deleted, but for the tests' own."""
        found = [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]
        mine = [line for line in found if line["verb"] == "delete" and line["objectRef"]["namespace"] == namespace]
        done = [line for line in mine if line["user"]["username"] in USERS and line["responseStatus"]["code"] < 300]
        return [_deletion(line) for line in done]


@dataclass(frozen=True)
class Deletion:
    """The user that deleted a pod, the pod, and how it stood then."""

    user: str
    name: str
    uid: str
    instance: str
    event_id: str
    index: str
    attempt: int
    phase: str

    @property
    def live(self) -> bool:
        """Was it not finished?"""
        return self.phase not in ("Succeeded", "Failed")


def _deletion(line: dict[str, Any]) -> Deletion:
    pod = line["responseObject"]
    meta = pod["metadata"]
    labels = {name.removeprefix("ottoscaler.io/"): value for name, value in meta["labels"].items()}
    return Deletion(
        line["user"]["username"], meta["name"], meta["uid"], labels["instance"],
        meta["annotations"]["ottoscaler.io/event-id"], labels["worker"], int(labels["attempt"]), pod["status"]["phase"],
    )  # fmt: skip


class Fleet(System):
    """A Redis database, a namespace without a node, any number of controllers. One thread."""

    def __init__(self, server: RedisServer, db: int, api: AuditedServer, directory: Path) -> None:
        namespace = BareNamespace(api)
        namespace.open()
        super().__init__(server, db, namespace, directory)
        self.api = api
        self.pod_status = PodStatusWriter(api.kubeconfig, namespace.namespace)
        self.pod_status.start()
        self.environ |= {"LEASE_S": str(LEASE_S), "WORKER_DEADLINE_S": "600"}
        self._left = list(USERS)

    def close(self) -> None:
        """End all, the writer of the status first."""
        self.pod_status.close()
        super().close()

    @property
    def next_user(self) -> str:
        """The name of the replica that is started next."""
        return self._left[0]

    def replica(self, **environ: str) -> Controller:
        """Start one more, under the next name, and do not wait for it."""
        user = self._left.pop(0)
        kubeconfig = str(self.api.kubeconfig_of(user))
        return self.launch(**{"REDIS_CONSUMER": user, "KUBECONFIG": kubeconfig, **environ})

    def read_by_a_dead_one(self, **fields: object) -> str:
        """Send an event that is read in the same moment by a consumer that does nothing more."""
        pipe = self.redis.pipeline(transaction=True)
        pipe.xadd("otto:scale:events", {name: str(value) for name, value in fields.items()})
        pipe.xreadgroup("ottoscaler", "dead", {"otto:scale:events": ">"}, count=1000)
        event_id, read = pipe.execute()
        assert event_id in [entry for _, entries in read for entry, _ in entries]
        return str(event_id)

    def stored(self, event_id: str, name: str) -> str:
        """A field of a task hash."""
        return str(self.redis.hget(f"otto:scale:task:{event_id}", name) or "")

    def epochs(self, event_ids: Iterable[str]) -> list[int]:
        """How often each task has changed hands, from 1."""
        return [int(self.stored(event_id, "tenure")) for event_id in event_ids]

    def once(self, event_ids: Iterable[str], timeout_s: float = LONG_S) -> list[dict[str, str]]:
        """Each event has its one end, and each of its workers one result. Returns the workers' results."""
        workers = []
        for event_id in event_ids:
            task = self.finished(event_id, timeout_s=timeout_s)
            mine = self.results(event_id)
            found = Counter(result["index"] for result in mine)
            assert found == Counter(str(index) for index in range(1, int(task["pod_count"]) + 1))
            workers += mine
        return workers

    def nothing_left(self) -> None:
        """No pod, no open task, nothing pending."""
        wait_for(lambda: not self.kube.pods(), "the pods to go")
        wait_for(lambda: not self.open_ids(), "the tasks to be closed")
        assert self.pending_count() == 0

    def wrongly_deleted(self, allowed: Callable[[Deletion], bool] = lambda deletion: False) -> list[Deletion]:
        """Pods that were deleted while they ran, except those that were to be."""
        return [one for one in self.api.deletions(self.kube.namespace) if one.live and not allowed(one)]


def until_taken(controller: Controller, event_ids: Iterable[str], timeout_s: float = LONG_S) -> list[dict[str, Any]]:
    """Wait until it says that it has taken these tasks over; returns those lines of its log."""
    return [controller.until_said("task.taken", timeout_s, event_id=event_id) for event_id in event_ids]
