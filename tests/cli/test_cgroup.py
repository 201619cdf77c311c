"""What the kernel allows: the limit of pids, wherever a version of cgroups keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ottoscaler.cli.cgroup import OTHER_THREADS, PidsLimit, pids_limit, pids_limit_warning


@pytest.mark.parametrize(
    ("own", "files", "value"),
    [
        ("0::/\n", {"pids.max": "100\n"}, 100),
        ("0::/\n", {"pids.max": "max\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/pids.max": "max", "a/pids.max": "70", "pids.max": "90"}, 70),
        ("0::/a/b\n", {"a/b/pids.max": "50", "a/pids.max": "70"}, 50),
        ("0::/../../kubepods/x\n", {"pids.max": "80"}, 80),
        ("12:pids:/docker/x\n3:cpu,cpuacct:/docker/x\n", {"pids/docker/x/pids.max": "60"}, 60),
        ("12:pids:/docker/x\n", {"pids/pids.max": "40", "docker/x/pids.max": "1"}, 40),
        ("9:pids,misc:/\n0::/\n", {"pids/pids.max": "40", "pids.max": "max"}, 40),
        ("12:cpu:/x\n", {"pids/x/pids.max": "60"}, None),
        ("", {"pids.max": "60"}, None),
        ("nonsense\n1:2\n0::relative\n", {"pids.max": "60"}, None),
        ("0::/\n", {"pids.max": "soon"}, None),
    ],
)
def test_the_narrowest_limit_counts(tmp_path: Path, own: str, files: Mapping[str, str], value: int | None) -> None:
    """Versions 1 and 2, in a container and outside."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    limit = pids_limit(tmp_path / "own", tmp_path)
    assert (limit.value if limit else None) == value


def test_a_machine_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    """Another system than Linux, or no /proc."""
    assert pids_limit(tmp_path / "none", tmp_path) is None


@pytest.mark.contract("2.MAX_WORKERS")
@pytest.mark.parametrize(("value", "fits"), [(100 + OTHER_THREADS, True), (99 + OTHER_THREADS, False), (1, False)])
def test_a_limit_that_is_too_narrow_is_one_sentence(value: int, fits: bool) -> None:
    """Both numbers, and what can be done."""
    sentence = pids_limit_warning(100, PidsLimit(value, Path("/sys/fs/cgroup/pids.max")))
    assert (sentence == "") is fits
    assert fits or all(text in sentence for text in ("MAX_WORKERS=100", f"allows {value}", "/sys/fs/cgroup/pids.max"))


def test_no_limit_needs_no_advice() -> None:
    """The usual case."""
    assert pids_limit_warning(10_000, None) == ""
