"""A system without a node: no program is run, and the test itself says how each pod stands.

So its servers may be killed and paused, its pods end exactly when the test wants it, and many systems fit on a small
machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.controller import Controller
from tests.e2e.fakekubelet import pod_status
from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.system import Namespace, Pod, System, logged_at, names, sent_at
from tests.e2e.waiting import LONG_S, wait_for


class BareNamespace(Namespace):
    """A namespace on an API server that stands alone. One thread."""

    def __init__(self, server: KubeServer) -> None:
        super().__init__(server.kubeconfig)
        self._server = server

    def open(self) -> None:
        """Make it, and what no controller of Kubernetes makes in it."""
        self._server.new_namespace(self.namespace)


class BareSystem(System):
    """`System` on an API server without a node. One thread."""

    def __init__(self, redis: RedisServer, kube: KubeServer, directory: Path) -> None:
        namespace = BareNamespace(kube)
        namespace.open()
        super().__init__(redis, 0, namespace, directory)

    def created(self, event_id: str, count: int = 1) -> list[Pod]:
        """Wait until so many pods of an event are there."""

        def look() -> list[Pod]:
            pods = self.pods_of(event_id)
            return pods if len(pods) == count else []

        return wait_for(look, f"{count} pods of {event_id}")

    def run(self, event_id: str, count: int = 1) -> list[Pod]:
        """Wait for the pods of an event, and say that they run."""
        pods = self.created(event_id, count)
        for name in names(pods):
            self.kube.set_status(name, pod_status("Running"))
        return pods

    def succeed(self, pods: Iterable[Pod]) -> None:
        """Say that they have ended well."""
        for pod in pods:
            self.kube.set_status(pod["metadata"]["name"], pod_status("Succeeded"))

    def once(self, event_id: str, pods: list[Pod], timeout_s: float = LONG_S) -> None:
        """Each of these pods' ends is reported once, the task's too, and nothing is left to do."""
        assert self.finished(event_id, timeout_s=timeout_s)["succeeded"] == str(len(pods))
        results = Counter((result["pod_uid"], result["attempt"]) for result in self.results(event_id))
        assert results == Counter((pod["metadata"]["uid"], "1") for pod in pods)
        self.no_pods(event_id)
        wait_for(lambda: event_id not in self.open_ids(), "the task to be closed")
        assert self.pending_count() == 0


def reading_s(controller: Controller, event_id: str, since: float = 0.0) -> float:
    """Seconds from when an event was sent, or from a later moment, until the log says that it was received."""
    line = controller.until_said("event.received", event_id=event_id)
    return logged_at(line) - max(since, sent_at(event_id))


def warnings_since(controller: Controller, count: int) -> list[str]:
    """The warnings and errors among the log's lines from that one on."""
    return [
        f"{line['event']}: {line['message']}: {line.get('error', '')}"
        for line in controller.lines[count:]
        if line["level"] in ("WARNING", "ERROR", "CRITICAL")
    ]
