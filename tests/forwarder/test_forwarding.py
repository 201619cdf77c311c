"""The log forwarder as a process, with pods of the embedded Kubernetes API and the reference handler."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.local.handle import LocalCluster
from ottoscaler.log_forwarder_messages import Start, encode_message
from ottoscaler.settings import KubeSettings
from ottoscaler.settings_log_handler import LogHandlerSettings
from tests.forwarder.following import LONG_S, following, namespace
from tests.forwarder.processes import HandlerProcess, handler
from tests.local.kube import Kube, Space, eventually
from tests.readme import ROOT

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The emulator, in its own process."""
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.start()
    yield local
    local.close()


@pytest.fixture
def space(cluster: LocalCluster) -> Iterator[Space]:
    """A namespace on it."""
    kube = Kube(cluster.kubeconfig)
    with namespace(kube, f"logs-{uuid.uuid4().hex[:8]}") as opened:
        yield opened
    kube.close()


def shell(space: Space, line: str) -> dict[str, Any]:
    """A worker pod that does this, as it is once its container has started."""
    made = space.make("", ["/bin/sh", "-c", line], container={"name": "agent"})
    name = made["metadata"]["name"]
    return space.wait_phase(name, "Running", "Succeeded", "Failed")


def ended(space: Space, pod: dict[str, Any]) -> None:
    """Wait for the end of a pod."""
    space.wait_phase(pod["metadata"]["name"], "Succeeded", "Failed")


def texts(opened: HandlerProcess, pod: dict[str, Any]) -> list[str]:
    """The lines that the handler has of a pod, in order, none twice."""
    entries = sorted(opened.entries(pod["metadata"]["name"]), key=lambda entry: entry["sequence"])
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["message"] for entry in entries if entry["level"] == "INFO" and "end" not in entry]


def account(opened: HandlerProcess, pod: dict[str, Any]) -> dict[str, int]:
    """What the end of the log says."""
    found: dict[str, int] = next(e["end"] for e in opened.entries(pod["metadata"]["name"]) if "end" in e)
    return found


def numbers(count: int) -> list[str]:
    """What `seq` prints."""
    return [str(number) for number in range(1, count + 1)]


def test_the_lines_of_a_pod_come_while_it_runs_and_to_its_end(
    cluster: LocalCluster, space: Space, tmp_path: Path
) -> None:
    """Both outputs, with the time of the log; then the end, with an account."""
    with handler(tmp_path) as opened, following(cluster, space, opened.port) as follows:
        pod = shell(space, "echo begin; echo error >&2; while [ ! -e go ]; do sleep 0.1; done; printf end")
        uid = follows.follow(pod)
        eventually(lambda: sorted(texts(opened, pod)) == ["begin", "error"])
        assert uid not in follows.ended
        space.delete(pod["metadata"]["name"], gracePeriodSeconds=5)
        eventually(lambda: space.read(pod["metadata"]["name"]).status == 404 or None)
        follows.forwarder.pod_ended(uid)
        assert follows.end_of(uid)[0]
        entries = opened.entries(pod["metadata"]["name"])
        assert {entry["source"] for entry in entries if "end" not in entry and entry["level"] == "INFO"} == {"combined"}


def test_each_line_comes_once_also_from_a_flood(cluster: LocalCluster, space: Space, tmp_path: Path) -> None:
    """Faster than anything reads it; the handler acknowledges all of it."""
    with handler(tmp_path) as opened, following(cluster, space, opened.port) as follows:
        pod = shell(space, "seq 20000")
        uid = follows.follow(pod)
        ended(space, pod)
        follows.forwarder.pod_ended(uid)
        assert follows.end_of(uid) == (True, 20000, 0)
        assert texts(opened, pod) == numbers(20000)
        eventually(lambda: follows.figure("lines_forwarded_total") == 20000, 40.0)
        eventually(lambda: follows.figure("bytes_forwarded_total") == sum(map(len, numbers(20000))), 40.0)
        eventually(lambda: follows.figure("entries_unacknowledged") == follows.figure("follows") == 0, 40.0)
        assert account(opened, pod)["dropped"] == account(opened, pod)["gaps"] == 0


def test_a_forwarder_that_dies_goes_on_where_it_was(cluster: LocalCluster, space: Space, tmp_path: Path) -> None:
    """It is killed twice in the middle of a log; another one is started."""
    with handler(tmp_path) as opened, following(cluster, space, opened.port) as follows:
        pod = shell(space, "for i in $(seq 100); do seq $((i*100-99)) $((i*100)); sleep 0.05; done")
        uid = follows.follow(pod)
        for least in (1000, 4000):
            eventually(lambda: len(texts(opened, pod)) >= least, 40.0)  # noqa: B023
            killed = follows.kill()
            eventually(lambda: follows.forwarder.pid != killed, 40.0)  # noqa: B023
        ended(space, pod)
        follows.forwarder.pod_ended(uid)
        assert follows.end_of(uid) == (True, 10000, 0)
        assert texts(opened, pod) == numbers(10000)
        assert account(opened, pod)["lines"] == 10000


@pytest.mark.full
def test_a_new_controller_goes_on_from_what_is_stored(cluster: LocalCluster, space: Space, tmp_path: Path) -> None:
    """Its forwarder gets the progress of the last one, which may be old."""
    with handler(tmp_path) as opened:
        pod = shell(space, "seq 500; while [ ! -e go ]; do sleep 0.1; done")
        with following(cluster, space, opened.port) as follows:
            uid = follows.follow(pod)
            stored = eventually(lambda: follows.progress.get(uid), 40.0)
            eventually(lambda: len(texts(opened, pod)) == 500, 40.0)
        with following(cluster, space, opened.port) as follows:
            assert stored is not None
            follows.follow(pod, stored)
            space.delete(pod["metadata"]["name"], gracePeriodSeconds=0)
            follows.forwarder.pod_ended(uid)
            follows.end_of(uid)
        assert texts(opened, pod) == numbers(500)


@pytest.mark.full
def test_a_handler_that_is_away_gets_all_of_it_later(cluster: LocalCluster, space: Space, tmp_path: Path) -> None:
    """What was not read yet waits in the kubelet's file."""
    opened = HandlerProcess(tmp_path)
    opened.start()
    opened.kill()
    with following(cluster, space, opened.port) as follows:
        pod = shell(space, "seq 5000; while [ ! -e go ]; do sleep 0.1; done")
        uid = follows.follow(pod)
        eventually(lambda: follows.figure("reconnects_total", server="handler") > 0, 40.0)
        eventually(lambda: follows.figure("lag_seconds") > 0, 40.0)
        opened.start()
        try:
            eventually(lambda: len(texts(opened, pod)) == 5000, 40.0)
            assert uid not in follows.ended
            eventually(lambda: follows.figure("follows") == 1 and follows.figure("lag_seconds") == 0, 40.0)
        finally:
            follows.forwarder.give_up(uid)
            opened.kill()


@pytest.mark.full
def test_at_the_end_of_a_pod_the_oldest_lines_are_dropped_where_there_is_no_room(
    cluster: LocalCluster, space: Space, tmp_path: Path
) -> None:
    """The handler takes 200 lines a second; the last ones and the account come all the same, in time."""
    with handler(tmp_path, "--rate-limit", "200", "--buffer-size", "100") as opened:
        with following(cluster, space, opened.port, drain_s=2) as follows:
            pod = shell(space, "seq 20000")
            uid = follows.follow(pod)
            ended(space, pod)
            follows.forwarder.pod_ended(uid)
            acknowledged, lines, dropped = follows.end_of(uid)
            eventually(lambda: follows.figure("lines_dropped_total", reason="no_room") == dropped, 40.0)
        assert (acknowledged, lines) == (True, 20000)
        assert dropped > 0
        assert texts(opened, pod)[-1] == "20000"
        assert len(texts(opened, pod)) + dropped == 20000
        assert account(opened, pod)["dropped"] == dropped


def test_what_the_policy_masks_follows_the_policy(cluster: LocalCluster, space: Space, tmp_path: Path) -> None:
    """Also in a log that is followed already, and with a forwarder that was started again."""
    with handler(tmp_path) as opened, following(cluster, space, opened.port) as follows:
        follows.masks = ["corp-[a-z]{4}"]
        pod = shell(space, "while [ ! -e go ]; do echo 'corp-abcd team-42'; sleep 0.1; done")
        follows.follow(pod)
        eventually(lambda: texts(opened, pod)[-1:] == ["*** team-42"], LONG_S)
        follows.masks = ["team-[0-9]+"]
        eventually(lambda: texts(opened, pod)[-1:] == ["corp-abcd ***"], LONG_S)
        follows.kill()
        seen = len(texts(opened, pod))
        eventually(lambda: len(texts(opened, pod)) > seen + 3, LONG_S)
        assert set(texts(opened, pod)[seen:]) == {"corp-abcd ***"}


def test_a_forwarder_ends_with_its_controller(cluster: LocalCluster, space: Space, tmp_path: Path) -> None:
    """Killed or stopped: the connection closes, and that is all that the forwarder waits for."""
    ours, its = socket.socketpair()
    command = [sys.executable, "-m", "ottoscaler.forwarder.process", str(its.fileno())]
    with ours, its:
        child = subprocess.Popen(command, cwd=ROOT, pass_fds=[its.fileno()])
        start = Start(KubeSettings(kubeconfig=str(cluster.kubeconfig)), LogHandlerSettings(address=("127.0.0.1", 1)))
        ours.sendall(encode_message(start))
    assert child.wait(60) == 0


def test_a_forwarder_has_a_lower_priority_than_its_controller(cluster: LocalCluster, space: Space) -> None:
    """As a process, and as a session where the kernel shares a CPU out between sessions."""
    with following(cluster, space, 1) as follows:
        pid = eventually(lambda: follows.forwarder.pid)
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        eventually(lambda: os.getpriority(os.PRIO_PROCESS, pid) == min(19, ours + 5), 40.0)
        if (session := Path(f"/proc/{pid}/autogroup")).exists():
            eventually(lambda: session.read_text(encoding="ascii").strip().endswith(" nice 5"), 40.0)


def test_a_forwarder_runs_where_it_is_asked_to(cluster: LocalCluster, space: Space, tmp_path: Path) -> None:
    """The controller may have chosen one CPU for itself, which a child inherits."""
    allowed = os.sched_getaffinity(0)
    with handler(tmp_path) as opened:
        os.sched_setaffinity(0, {min(allowed)})
        try:
            with following(cluster, space, opened.port, cpus=sorted(allowed)) as follows:
                pid = eventually(lambda: follows.forwarder.pid)
                eventually(lambda: os.sched_getaffinity(pid) == allowed, 40.0)
        finally:
            os.sched_setaffinity(0, allowed)
