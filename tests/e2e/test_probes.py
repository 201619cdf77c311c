"""Self-watch of the whole process: what its probes say while servers are away, a loop hangs, or it sleeps; that it
ends when a thread of it dies, and ends in time whatever hangs.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import require
from tests.e2e.bare import BareNamespace
from tests.e2e.controller import Controller
from tests.e2e.defects import LOOPS
from tests.e2e.fakekubelet import FakeKubelet
from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.system import System
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

DEFECTS = str(Path(__file__).with_name("defects.py"))
#: The promise: SIGTERM to the end, whatever hangs.
_STOP_S = 25.0
_IN_FLIGHT = 200
_RECONNECTS = 1000


@dataclass
class Lab:
    """Servers to do anything to, and controllers with an HTTP port."""

    kube: KubeServer
    redis: RedisServer
    directory: Path
    namespace: BareNamespace
    system: System
    _controllers: list[Controller] = field(default_factory=list)

    def controller(self, *defects: str, **environ: str) -> Probed:
        """A controller, not waited for; `defects` as in tests/e2e/defects.py."""
        port = _free_port()
        entry = {"entry": (DEFECTS, *defects)} if defects else {}
        fields = {**self.system.environ, "HTTP_PORT": str(port), **environ}
        controller = Controller(self.directory, fields, **entry)
        self._controllers.append(controller)
        return Probed(controller, port)

    def close(self) -> None:
        """End what a test has left."""
        self.redis.resume()
        self.kube.resume()
        for controller in self._controllers:
            controller.process.send_signal(signal.SIGCONT)
            controller.close()
        self.system.redis.close()
        self.namespace.api.api_client.close()
        self.redis.stop()


@dataclass(frozen=True)
class Probed:
    """A controller and its HTTP port."""

    controller: Controller
    port: int

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body; 0 where no process answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def becomes(self, path: str, status: int, timeout_s: float = 60) -> str:
        """Wait for that answer; its body."""
        return wait_for(lambda: self._body(path, status), f"{status} at {path}", timeout_s)

    def _body(self, path: str, status: int) -> str:
        found, body = self.ask(path)
        return body if found == status else ""

    def figure(self, name: str) -> float:
        """One of the figures of `/metrics`."""
        lines = self.ask("/metrics")[1].splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def kill(self, number: int) -> None:
        """Send a signal."""
        self.controller.process.send_signal(number)

    @property
    def descriptors(self) -> int:
        """Open files and sockets."""
        return len(os.listdir(f"/proc/{self.controller.pid}/fd"))


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServer]:
    """An API server of this file's own."""
    server = KubeServer(tmp_path_factory.mktemp("kube"))
    server.open()
    yield server
    server.close()


@pytest.fixture
def lab(kube: KubeServer, tmp_path: Path) -> Iterator[Lab]:
    """A Redis and a namespace of a test's own."""
    made = _lab(kube, tmp_path)
    yield made
    made.close()


def _lab(kube: KubeServer, directory: Path) -> Lab:
    require("redis-server")
    redis = RedisServer(directory / "redis")
    redis.start()
    namespace = BareNamespace(kube)
    namespace.open()
    return Lab(kube, redis, directory, namespace, System(redis, 0, namespace, directory))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class TestStart:
    """Before it takes work."""

    @pytest.mark.contract("2.probes")
    def test_alive_and_not_ready_while_it_waits_for_servers(self, lab: Lab) -> None:
        """The reason is in the answer; with the server there, it gets ready."""
        lab.redis.stop()
        probed = lab.controller()
        body = wait_for(lambda: "cannot be reached" in (text := probed.ask("/readyz")[1]) and text, "the reason")
        assert f"Redis: Redis at 127.0.0.1:{lab.redis.port} cannot be reached" in str(body)
        assert "controller: starting, since " in str(body)
        assert "Kubernetes: not reached yet, since " in str(body)
        assert probed.ask("/livez") == (200, "ok\n")
        assert probed.figure("ottoscaler_redis_errors_total") > 0
        lab.redis.start()
        assert probed.becomes("/readyz", 200) == "ok\n"
        assert "<title>Ottoscaler</title>" in probed.ask("/")[1]
        assert probed.ask("/nothing")[0] == 404

    @pytest.mark.contract("2.HTTP_PORT")
    @pytest.mark.contract("1.exit-codes")
    def test_a_port_in_use(self, lab: Lab) -> None:
        """One sentence and exit code 2; no traceback."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            controller = lab.controller(HTTP_PORT=port).controller
            assert controller.exit_code(30) == 2
        assert f"HTTP_PORT={port}: expected a port that is free" in controller.text
        assert "Traceback" not in controller.text

    @pytest.mark.contract("2.HTTP_PORT")
    def test_no_port(self, lab: Lab) -> None:
        """0: nothing listens."""
        probed = lab.controller(HTTP_PORT="0")
        probed.controller.ready()
        assert probed.ask("/livez")[0] == 0


@dataclass
class Minute:
    """What was seen in a good minute in which neither server answered."""

    hung: str
    away: tuple[int, str]
    away_ready: str
    slept: tuple[int, str]
    back: str
    hung_exit: bool


@pytest.fixture(scope="class")
def minute(kube: KubeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minute]:
    """Three controllers: of one the reader hangs, one does nothing wrong, one is stopped and wakes at the end."""
    lab = _lab(kube, tmp_path_factory.mktemp("minute"))
    hangs, well, sleeps = (
        lab.controller(*defects, REDIS_CONSUMER=f"otto-{number}")
        for number, defects in enumerate([("hang:reader",), (), ()])
    )
    for each in (hangs, well, sleeps):
        each.becomes("/readyz", 200)
    hangs.kill(signal.SIGUSR1)
    time.sleep(3)  # until it hangs, for nothing reports that
    sleeps.kill(signal.SIGSTOP)
    lab.redis.pause()
    lab.kube.pause()
    hung = hangs.becomes("/livez", 503, 90)
    # not later: a watch that is silent for long enough to look frozen would show here
    wait_for(lambda: "Kubernetes" in well.ask("/readyz")[1], "the silent watch to be noticed")
    away, away_ready = well.ask("/livez"), well.ask("/readyz")[1]
    sleeps.kill(signal.SIGCONT)
    slept = sleeps.ask("/livez")
    lab.redis.resume()
    lab.kube.resume()
    back = well.becomes("/readyz", 200)
    yield Minute(hung, away, away_ready, slept, back, hangs.controller.process.poll() is None)
    lab.close()


@pytest.mark.contract("2.probes")
class TestMinute:
    """A minute without an answer of either server."""

    def test_a_loop_that_hangs_is_named(self, minute: Minute) -> None:
        """It alone, with the time since when."""
        assert minute.hung.startswith("loop reader: no sign of life, since 20")
        assert len(minute.hung.splitlines()) == 1

    def test_an_outage_does_not_make_it_dead(self, minute: Minute) -> None:
        """A restart would not bring the servers back."""
        assert minute.away == (200, "ok\n")

    def test_an_outage_makes_it_unready(self, minute: Minute) -> None:
        """Both servers are named, with what is wrong and since when."""
        lines = minute.away_ready.splitlines()
        assert any(line.startswith("Redis: Redis at ") and ", since 20" in line for line in lines)
        assert any(line.startswith("Kubernetes: the ") and ", since 20" in line for line in lines)

    def test_a_process_that_slept_is_not_dead(self, minute: Minute) -> None:
        """Its signs of life are older than a minute, and it is about to go on."""
        assert minute.slept == (200, "ok\n")

    def test_it_gets_ready_again(self, minute: Minute) -> None:
        """By itself."""
        assert minute.back == "ok\n"


@pytest.mark.contract("1.exit-codes")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_thread_that_dies_ends_the_process(lab: Lab, loop: str) -> None:
    """With exit code 1, and with its cause in the log."""
    controller = lab.controller(f"die:{loop}", LEASE_S="3").controller.ready()
    controller.process.send_signal(signal.SIGUSR1)
    if loop == "watch":
        lab.system.send(type="scale_up")
    assert controller.exit_code() == 1
    assert f"Thread {loop} died" in controller.said("thread.died")[0]["message"]
    assert "a defect, to order" in controller.said("controller.failed")[0]["error"]


class TestStop:
    """SIGTERM with hundreds of pods in flight, and a server that does not answer."""

    @pytest.mark.contract("2.SHUTDOWN_GRACE_S")
    @pytest.mark.contract("1.exit-codes")
    @pytest.mark.parametrize("hung", ["kube", "redis", "kube redis"])
    def test_in_time(self, lab: Lab, hung: str) -> None:
        """Pods that run, and pods that are being created: none of them is waited for."""
        probed = lab.controller(MAX_WORKERS=str(2 * _IN_FLIGHT))
        probed.becomes("/readyz", 200)
        kubelet = FakeKubelet(lab.kube.kubeconfig, lab.namespace.namespace, 10 * _IN_FLIGHT)
        kubelet.start()
        lab.system.send(type="scale_up", pod_count=_IN_FLIGHT)
        wait_for(lambda: kubelet.running >= _IN_FLIGHT, "all to run", 120)
        wait_for(lambda: probed.figure("ottoscaler_live_pods") == _IN_FLIGHT, "all to be seen")
        another = lab.system.send(type="scale_up", pod_count=_IN_FLIGHT)
        probed.controller.until_said("worker.created", event_id=another)
        _pause(lab, hung)
        time.sleep(2)  # for calls to be under way that are not answered
        began = time.monotonic()
        probed.controller.terminate()
        code = probed.controller.exit_code(60)
        took_s = time.monotonic() - began
        lab.kube.resume()
        kubelet.close()
        print(f"{hung}: {took_s:.1f} s")
        assert (code, took_s < _STOP_S) == (0, True), took_s
        assert probed.controller.said("worker.failed") == []  # no connection is closed under a worker that uses it


def _pause(lab: Lab, hung: str) -> None:
    if "kube" in hung:
        lab.kube.pause()
    if "redis" in hung:
        lab.redis.pause()


def test_reconnects_leave_nothing_behind(lab: Lab) -> None:
    """A thousand on each link, in quick succession, with workers running: no thread, no socket, no worker lost."""
    ways = {"redis": TcpProxy(lab.redis.port), "kube": TcpProxy(lab.kube.port)}
    kubeconfig = lab.directory / "kubeconfig"
    text = lab.kube.kubeconfig.read_text(encoding="utf-8")
    kubeconfig.write_text(text.replace(f":{lab.kube.port}", f":{ways['kube'].port}"), encoding="utf-8")
    probed = lab.controller(
        "hasty", REDIS_PORT=str(ways["redis"].port), KUBECONFIG=str(kubeconfig), LEASE_S="60", LOG_LEVEL="ERROR"
    )
    probed.becomes("/readyz", 200)
    kubelet = FakeKubelet(lab.kube.kubeconfig, lab.namespace.namespace, 4)
    kubelet.start()
    event_id = lab.system.send(type="scale_up", pod_count=3)
    wait_for(lambda: probed.figure("ottoscaler_live_pods") == 3, "the workers")
    seen = [_quiet(ways, probed, number * _RECONNECTS // 4) for number in range(1, 5)]
    print(f"threads and descriptors after each quarter: {seen}")
    last = lab.system.send(type="scale_up")
    assert lab.system.finished(event_id)["succeeded"] == "3"
    assert lab.system.finished(last)["succeeded"] == "1"
    kubelet.close()
    for way in ways.values():
        way.close()
    assert len({threads for threads, _ in seen}) == 1, seen
    assert max(count for _, count in seen) - seen[0][1] <= 3, seen  # an idle connection more or less


def _quiet(ways: dict[str, TcpProxy], probed: Probed, reconnects: int) -> tuple[int, int]:
    """Cut both links until there have been so many connections on each; then threads and descriptors at rest."""
    for way in ways.values():
        while way.accepted < reconnects:
            for each in ways.values():
                each.cut()
            time.sleep(0.02)
    probed.becomes("/readyz", 200)
    time.sleep(2)  # the last connections to be made
    return probed.controller.status("Threads"), probed.descriptors
