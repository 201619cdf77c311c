"""An image with the agent: it has what the agent needs and little besides, and a command runs in it as by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.conftest import require
from tests.deploy.manifests import ROOT
from tests.forwarder.processes import LONG_S, agent_environ, handler

DOCKERFILE = ROOT / "deploy" / "agent" / "Dockerfile"


def copied() -> list[tuple[list[str], str]]:
    """The sources and the target of each COPY."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    words = [line.split()[1:] for line in text.splitlines() if line.startswith("COPY ")]
    return [(line[:-1], line[-1]) for line in words]


def test_the_files_that_it_copies_are_all_that_the_agent_needs(tmp_path: Path) -> None:
    """In a folder that has nothing besides, the agent delivers a log."""
    for sources, target in copied():
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    (tmp_path / "store").mkdir()
    with handler(tmp_path / "store") as opened:
        command = [sys.executable, str(tmp_path / "ottoscaler.py"), "agent", "--", "echo", "hello"]
        environ = agent_environ(opened.port)
        subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=LONG_S, stdout=subprocess.DEVNULL)
        assert opened.lines() == ["hello"]


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_command_runs_in_the_image(tmp_path: Path) -> None:
    """Unprivileged, without a network and with nothing to write to; the handler is away, and the exit code is kept."""
    docker, name = require("docker"), f"ottoscaler-agent-test:{uuid.uuid4().hex[:10]}"
    environ = {**os.environ, "DOCKER_BUILDKIT": "0"}  # the classic builder must do
    build = [docker, "build", "--quiet", "--file", str(DOCKERFILE), "--tag", name, str(ROOT)]
    subprocess.run(build, env=environ, check=True, capture_output=True, timeout=240)
    try:
        locked = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
        settings = ("--env=LOG_HANDLER_ADDRESS=127.0.0.1:1", "--env=LOG_DRAIN_S=2")
        command = [docker, "run", "--rm", *locked, *settings, name, "sh", "-c", "id -u; exit 3"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout) == (3, "1000\n")
        assert "127.0.0.1:1: UNAVAILABLE" in done.stderr
        assert "1 of 1 lines did not get to the log handler" in done.stderr
    finally:
        subprocess.run([docker, "image", "rm", "--force", name], capture_output=True, timeout=60, check=False)
