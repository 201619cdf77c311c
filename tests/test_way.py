"""README's picture of one event's way: it has at most ten hops, and an event goes through them in that order.

A real controller runs as a process of its own, on an embedded Redis and a small Kubernetes API, and notes when each
function was called first.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import redis

from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from tests.fakes.wait import eventually
from tests.readme import README, ROOT, fences

LONG_S: Final = 45
#: Runs the controller with a note of the first call of each function: {"flow/intake.py run": its place in the order}.
OBSERVED: Final = """
import json, sys, threading
first = {}
def note(frame, what, _):
    if what == "call":
        path = frame.f_code.co_filename.rpartition("/ottoscaler/")[2]  # the checkout's folder may have this name, too
        first.setdefault(f"{path} {frame.f_code.co_name}", len(first))
threading.setprofile(note)
sys.path.insert(0, sys.argv[1])
from ottoscaler.cli.main import main
try:
    main(["run"])
finally:
    threading.setprofile(None)
    open(sys.argv[2], "w").write(json.dumps(first))
"""


def hops() -> list[tuple[int, str]]:
    """The hops of the picture: number, and file and function, which the first hop, the producer's, has not."""
    (picture,) = (text for kind, text in fences(README) if kind == "text" and "XADD" in text)
    found = re.findall(r"^\D*([0-9]+) [a-zA-Z ,]+?(?: {2,}(\S+\.py \w+).*|-.*)$", picture, re.MULTILINE)
    assert len(found) == len(picture.splitlines())
    return [(int(number), where) for number, where in found]


def test_there_are_at_most_ten() -> None:
    """Numbered from 1; each is in a file that is there."""
    numbers, places = zip(*hops(), strict=True)
    assert list(numbers) == list(range(1, len(numbers) + 1))
    assert len(numbers) <= 10
    assert places[0] == ""
    for place in places[1:]:
        path, _, function = place.partition(" ")
        assert f"def {function}(" in (ROOT / "ottoscaler" / path).read_text(encoding="utf-8")


def test_an_event_goes_this_way(tmp_path: Path) -> None:
    """From the read of its entry to the deletion of its pod, no hop before the one above it."""
    server, cluster = EmbeddedRedis(tmp_path / "redis"), LocalCluster(tmp_path / "cluster")
    try:
        server.start()
        cluster.start()
        order = observed(server, cluster, tmp_path)
    finally:
        cluster.close()
        server.close()
    places = [place for _, place in hops() if place]
    assert [place for place in places if place not in order] == []
    assert sorted(places, key=order.__getitem__) == places


def observed(server: EmbeddedRedis, cluster: LocalCluster, folder: Path) -> dict[str, int]:
    """In which order the functions of a controller were first called that carried out one event."""
    variables = {"REDIS_PORT": str(server.port), "KUBECONFIG": str(cluster.kubeconfig), "NAMESPACE": "default"}
    environ = (
        {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | variables | {"HTTP_PORT": "0"}
    )
    command = [sys.executable, "-c", OBSERVED, str(ROOT), str(folder / "calls")]
    with (
        redis.Redis(port=server.port, decode_responses=True) as client,
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environ, stdout=log, stderr=log) as process,
    ):
        try:
            eventually(lambda: "controller.started" in (folder / "log").read_text(), LONG_S, "the controller")
            client.xadd("otto:scale:events", {"type": "scale_up", "event_id": "mine"})
            eventually(lambda: "worker.deleted" in (folder / "log").read_text(), LONG_S, "the pod to be deleted")
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG_S) == 0
        finally:
            process.kill()
    calls: dict[str, Any] = json.loads((folder / "calls").read_text())
    return calls
