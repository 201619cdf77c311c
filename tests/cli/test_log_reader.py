"""Logs over connections that are cut: each line once and in order; and what is said where that cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.adapters.pod_logs import PodLogs
from ottoscaler.cli.log_reader import FAILURES, LogFollowing, LogReader
from ottoscaler.core.manifest import CONTAINER
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.forwarder.lines import Line
from ottoscaler.local.handle import LocalCluster
from ottoscaler.settings import KubeSettings
from tests.adapters.kube_admin import KubeAdmin
from tests.e2e.tcp_proxy import TcpProxy
from tests.fakes.wait import PATIENCE_S

pytestmark = pytest.mark.contract("1.logs")


class OneLog:
    """A log that is already written, and how its readings end: `cuts` says after how many bytes each breaks off."""

    def __init__(self, log: bytes, cuts: list[int]) -> None:
        self._log = log
        self._cuts = cuts
        self.error: Exception | None = None
        self.asked: list[tuple[str, bool]] = []

    def read(self, pod: str, container: str, *, since: str = "", follow: bool = False) -> Iterator[bytes]:
        """As `PodLogs.read`."""
        self.asked.append((since, follow))
        if self.error is not None:
            raise self.error
        lines = [line for line in self._log.splitlines(keepends=True) if line[:19].decode() >= since[:19]]
        cut = self._cuts.pop(0) if self._cuts else None
        yield b"".join(lines)[:cut]
        if cut is not None:
            raise ClusterUnavailable(f"the log of {pod} broke off")


class Watched:
    """A following with what it gave and said."""

    def __init__(self, source: Any, *, ended: bool = True) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []
        self.ended = ended
        self.stop = threading.Event()
        self.reader = LogReader(source, "p", CONTAINER)
        self._following = LogFollowing(
            self.reader, has_ended=lambda: self.ended, stop=self.stop, emit=self._take, note=self.notes.append
        )

    def _take(self, line: Line) -> None:
        self.lines.append(line.text.decode() + ("..." if line.partial else ""))

    def run(self) -> None:
        """To the end."""
        self._following.run()


def log_of(*texts: str) -> bytes:
    """A log with two lines in each second."""
    return "".join(f"2026-01-02T03:04:{n // 2:02d}.{n:09d}Z {text}\n" for n, text in enumerate(texts)).encode()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ottoscaler.cli.log_reader.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("ottoscaler.cli.log_reader.LONGEST_PAUSE_S", 0.0)


def test_each_line_comes_once_wherever_it_is_cut() -> None:
    """At each of its bytes."""
    texts = ["one", "two", "", "four", "four"]
    for cut in range(len(log_of(*texts))):
        watched = Watched(OneLog(log_of(*texts), [cut, cut // 2]))
        watched.run()
        assert watched.lines == texts, cut


def test_after_the_end_of_its_container_the_rest_is_read_once() -> None:
    """A follow that ended is followed again as long as the container runs; the last reading is none that follows."""
    source = OneLog(log_of("one", "two", "three").rstrip(b"\n"), [])
    watched = Watched(source, ended=False)
    watched.stop.wait = lambda timeout=None: setattr(watched, "ended", True) or False  # type: ignore[method-assign, assignment, func-returns-value]
    watched.run()
    assert source.asked == [("", True), ("2026-01-02T03:04:00Z", False)]
    assert watched.lines == ["one", "two", "three"]


def test_a_pod_that_goes_in_the_middle_is_reported() -> None:
    """Its last lines may be missing: without the cut they were read."""
    source = OneLog(log_of("one"), [5])
    watched = Watched(source)
    gone = ClusterRejected("not found", status=404, reason="NotFound")
    watched.stop.wait = lambda timeout=None: setattr(source, "error", gone) or False  # type: ignore[method-assign, assignment, func-returns-value]
    watched.run()
    assert watched.notes[-1] == "The end of the log of p may be missing: the pod was deleted."


def test_a_node_that_is_gone_is_given_up() -> None:
    """Only after the end of its container: until then it may come back."""
    source = OneLog(b"", [])
    source.error = ClusterUnavailable("no route to the node")
    watched = Watched(source)
    watched.run()
    assert watched.notes == ["no route to the node; trying again", "The rest of the log of p cannot be read."]
    assert len(source.asked) == FAILURES
    assert not watched.reader.opened


def test_a_missing_right_ends_it() -> None:
    """And so does a container that no pod has; one that has not started does not."""
    source = OneLog(b"", [])
    source.error = ClusterRejected("pods is forbidden", status=403, reason="Forbidden")
    with pytest.raises(ClusterRejected):
        Watched(source).run()
    source.error = ClusterRejected("container x is not valid for pod p", status=400, reason="BadRequest")
    with pytest.raises(ClusterRejected):
        Watched(source).run()
    source.error = ClusterRejected("container x is waiting to start", status=400, reason="BadRequest")
    Watched(source).run()


def test_words_of_the_kubelet_are_said_once() -> None:
    """They are no line of the worker's."""
    watched = Watched(OneLog(log_of("one") + b"unable to retrieve container logs\n", []))
    watched.run()
    assert watched.lines == ["one"]
    assert watched.notes == ["The kubelet says of p: unable to retrieve container logs"]


def test_secrets_are_masked_by_their_form() -> None:
    """As they are for a log handler; over the lines of a private key, too."""
    key = ["-----BEGIN PRIVATE KEY-----", "MIIabc", "-----END PRIVATE KEY-----"]
    watched = Watched(OneLog(log_of("id AKIAABCDEFGHIJKLMNOP", *key, "after"), []))
    watched.run()
    assert watched.lines == ["id ***", f"{key[0]}***", "***", f"***{key[2]}", "after"]


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[KubeAdmin]:
    """A namespace of an emulator."""
    local = LocalCluster(tmp_path / "cluster")
    local.start()
    made = KubeAdmin(local.kubeconfig)
    made.open()
    yield made
    made.close()
    local.close()


@pytest.fixture
def proxy(admin: KubeAdmin) -> Iterator[TcpProxy]:
    """The network in front of it."""
    between = TcpProxy(int(admin.api.api_client.configuration.host.rpartition(":")[2]))
    yield between
    between.close()


@pytest.fixture
def source(admin: KubeAdmin, proxy: TcpProxy, tmp_path: Path) -> Iterator[PodLogs]:
    """The adapter behind that network."""
    host = admin.api.api_client.configuration.host
    text = admin.kubeconfig.read_text().replace(host, f"http://127.0.0.1:{proxy.port}")
    (kubeconfig := tmp_path / "kubeconfig").write_text(text)
    opened = PodLogs(KubeSettings(kubeconfig=str(kubeconfig), namespace=admin.namespace))
    yield opened
    opened.close()


@pytest.mark.full
def test_a_network_that_cuts_again_and_again_loses_and_doubles_nothing(
    admin: KubeAdmin, proxy: TcpProxy, source: PodLogs
) -> None:
    """The real way: a pod of the local node that writes all the time, followed through a proxy."""
    script = "for i in $(seq 1 400); do echo line $i; sleep 0.005; done"
    container = {"name": CONTAINER, "image": "busybox", "command": ["sh", "-c", script]}
    body = {"metadata": {"name": "p"}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    admin.api.create_namespaced_pod(admin.namespace, body, _preload_content=False)
    watched = Watched(source, ended=False)
    thread = threading.Thread(target=watched.run, daemon=True)
    thread.start()
    cuts, pause = 0, threading.Event()
    while admin.api.read_namespaced_pod("p", admin.namespace).status.phase in ("Pending", "Running"):
        cuts += proxy.cut()
        pause.wait(0.1)
    watched.ended = True
    thread.join(PATIENCE_S)
    assert watched.lines == [f"line {number}" for number in range(1, 401)]
    assert cuts > 3
