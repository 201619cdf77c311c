"""How many processes and threads the kernel allows to our cgroup, versions 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

#: Threads beside those of the pool: the main thread, the loops, and one for each connection to the HTTP port.
OTHER_THREADS: Final = 32


class PidsLimit(NamedTuple):
    """A limit of processes and threads together, and the file that it comes from."""

    value: int
    file: Path


def pids_limit(own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> PidsLimit | None:
    """The narrowest `pids.max` of our cgroup and those above it; None where there is none, or no cgroups.

    Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html#pid and .../cgroup-v1/pids.html. In a container the path
    may be that of the host, which is not mounted: then the root of the mount is the container's own cgroup.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    found = [
        limit
        for line in lines
        for folder in _cgroup_folders(line, mount)
        if (limit := _read_pids_limit(folder / "pids.max"))
    ]
    return min(found, default=None)


def pids_limit_warning(max_workers: int, limit: PidsLimit | None) -> str:
    """A warning if the limit is too low for this number of workers; otherwise empty."""
    needed = max_workers + OTHER_THREADS
    if limit is None or needed <= limit.value:
        return ""
    return (
        f"MAX_WORKERS={max_workers} needs up to {needed} threads, and {limit.file} allows {limit.value}: the pool will"
        " have fewer threads, and other workers wait; raise the limit (Kubernetes: podPidsLimit of the kubelet), or"
        " lower MAX_WORKERS"
    )


def _cgroup_folders(line: str, mount: Path) -> list[Path]:
    """The folders of one line of /proc/self/cgroup (number:controllers:path), from ours up to the root."""
    parts = line.split(":", 2)
    if len(parts) != 3 or not parts[2].startswith("/"):
        return []
    if parts[1] == "":
        root = mount
    elif "pids" in parts[1].split(","):
        root = mount / "pids"
    else:
        return []
    inside = Path(*[part for part in parts[2].split("/") if part not in ("", "..")])
    return [root / inside, *[root / above for above in inside.parents], root]


def _read_pids_limit(file: Path) -> PidsLimit | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return PidsLimit(int(text), file) if text.isdigit() else None  # "max": none
