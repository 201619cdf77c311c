"""However a process that uses the local system ends, nothing of it stays: Redis, the emulator, the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottoscaler.errors import LocalSystemError
from ottoscaler.local.guard import GuardedProcess
from ottoscaler.local.handle import LocalCluster
from tests.local.kube import Kube, eventually, pod
from tests.local.test_node import alive

_PARENT = """
    import sys
    from pathlib import Path
    from ottoscaler.local.handle import LocalCluster
    from ottoscaler.local.redis import EmbeddedRedis
    here = Path(sys.argv[1])
    redis, cluster = EmbeddedRedis(here / "redis"), LocalCluster(here / "cluster")
    redis.start()
    cluster.start()
    print("ready", flush=True)
    sys.stdin.read()
    cluster.close()
    redis.close()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has started Redis and the emulator."""
    command = [sys.executable, "-c", textwrap.dedent(_PARENT), str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def descendants(pid: int) -> list[int]:
    """All processes below one, the nearest first."""
    listing = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listing.splitlines()]
    found = [pid]
    for each in found:
        found += [child for child, its_parent in parents if its_parent == each]
    return found[1:]


def start_worker(kubeconfig: Path) -> None:
    """Run a pod with a process in the background, both deaf to SIGTERM."""
    kube = Kube(kubeconfig)
    script = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done"
    pods = "/api/v1/namespaces/default/pods"
    assert kube.call("POST", pods, pod("worker", ["sh", "-c", script])).status == 201
    eventually(lambda: kube.call("GET", f"{pods}/worker").body["status"]["phase"] == "Running")
    kube.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_parent(parent: subprocess.Popen[str], tmp_path: Path, how: signal.Signals) -> None:
    """Guards, servers and a running worker end with the process that started them."""
    start_worker(tmp_path / "cluster" / "kubeconfig")
    eventually(lambda: len(descendants(parent.pid)) >= 6)
    below = descendants(parent.pid)
    parent.send_signal(how)
    eventually(lambda: not any(alive(pid) for pid in below))


def test_workers_end_with_a_killed_emulator(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    """The guard finds them by their session, though their parent is gone."""
    start_worker(tmp_path / "cluster" / "kubeconfig")
    (emulator,) = [
        pid for pid in descendants(parent.pid) if "local.cluster" in _words(pid) and "guard" not in _words(pid)
    ]
    eventually(lambda: len(descendants(emulator)) >= 2)
    below = descendants(emulator)
    os.kill(emulator, signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in below))


def _words(pid: int) -> str:
    return subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout


def test_close_ends_everything_in_order(parent: subprocess.Popen[str], tmp_path: Path) -> None:
    """Exit code 0, no process left, no kubeconfig that leads nowhere."""
    start_worker(tmp_path / "cluster" / "kubeconfig")
    below = descendants(parent.pid)
    assert parent.stdin is not None
    parent.stdin.close()
    assert parent.wait(30) == 0
    assert not any(alive(pid) for pid in below)
    assert not (tmp_path / "cluster" / "kubeconfig").exists()


def test_the_guarded_command_is_out_of_reach_of_the_terminal(parent: subprocess.Popen[str]) -> None:
    """Ctrl-C reaches the sessions of the terminal; these have their own."""
    ours = os.getsid(parent.pid)
    assert all(os.getsid(pid) != ours for pid in descendants(parent.pid))


def test_a_guarded_command_gives_its_exit_code(tmp_path: Path) -> None:
    """128 + n after signal n, and its output is in the log."""
    guarded = GuardedProcess(["sh", "-c", "echo words; kill -9 $$"], log=tmp_path / "log")
    guarded.start()
    assert eventually(lambda: guarded.exit_code) == 137
    assert "words" in str(guarded.failure("it ended"))
    guarded.close()


def test_a_cluster_reports_that_its_port_is_taken(cluster: LocalCluster, tmp_path: Path) -> None:
    """LocalSystemError with the emulator's own words."""
    port = int(cluster.url.rpartition(":")[2])
    with pytest.raises(LocalSystemError, match=f"port {port} cannot be used"):
        LocalCluster(tmp_path, port).start()


def test_a_cluster_that_is_not_started_has_no_address(tmp_path: Path) -> None:
    """Asking for it is an error, not a wrong answer."""
    with pytest.raises(LocalSystemError, match="not running"):
        _ = LocalCluster(tmp_path).url
