"""The command `logs` on a real kubelet: over attempts, from a kept pod, and after the pod is gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.e2e.controller import SCRIPT
from tests.e2e.system import LONG_RUN, System
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def logs(system: System, *arguments: str) -> tuple[list[str], list[str]]:
    """The lines on standard output and on standard error of a command that succeeds."""
    command = [sys.executable, str(SCRIPT), "logs", *arguments]
    environ = {**os.environ, **system.environ}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def follow(system: System, task: str) -> subprocess.Popen[str]:
    """The command as a process that goes on."""
    environ = {**os.environ, **system.environ}
    command = [sys.executable, str(SCRIPT), "logs", task, "--follow"]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.contract("1.logs")
def test_the_output_of_all_attempts_is_followed_to_the_end(system: System) -> None:
    """Each line once, of two workers, the second of which needs another attempt and fails again."""
    system.start(KEEP_FAILED_S="60", WORKER_RETRIES="1", TERMINATION_GRACE_S="30")
    # they start when their log is watched, however long the command takes to begin
    system.send(type="scale_up", task_id="before", script=LONG_RUN, concurrency_key="k")
    script = "for i in $(seq 1 300); do echo line $i; done; sleep 4; echo end >&2; [ $OTTO_WORKER_INDEX = 1 ]"
    event_id = system.send(type="scale_up", pod_count="2", script=script, concurrency_key="k")
    wait_for(lambda: system.redis.exists(f"otto:scale:task:{event_id}"), "the event to be taken", 20)
    with follow(system, event_id) as following:
        assert following.stderr is not None
        assert following.stderr.readline() == "No worker has started yet; waiting.\n"
        system.send(type="scale_down", task_id="before")
        out, said = following.communicate(timeout=90)
    assert following.returncode == 0, said
    lines = [*(f"line {number}" for number in range(1, 301)), "end"]
    assert [line for line in out.splitlines() if line.startswith("1 | ")] == [f"1 | {line}" for line in lines], said
    assert [line for line in out.splitlines() if line.startswith("2 | ")] == [f"2 | {line}" for line in lines * 2], said
    assert said.startswith("Worker 2: attempt 2, pod otto-agent-")

    assert logs(system, event_id, "--worker", "2") == (lines, [])
    shown, (gone,) = logs(system, event_id, "--worker", "1")
    assert shown == []
    assert gone.startswith("Worker 1: Completed, at ")
    assert gone.endswith("Its result has no output.")
