"""`victim.py NOTE POINT:VISITS…`: the controller as a process that dies at the first of these points; see points.py."""

from __future__ import annotations

import sys
from pathlib import Path

from ottoscaler.cli import run
from tests.torture.points import Crash, lay_points


def main(arguments: list[str]) -> int:
    """Run the controller; returns its exit code if it gets that far."""
    note, *armed = arguments
    visits = {point: int(count) for point, _, count in (word.rpartition(":") for word in armed)}
    stream, cluster = lay_points(Crash(visits, Path(note)))
    run.RedisStream, run.KubeCluster = stream, cluster  # type: ignore[attr-defined]
    return run.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
