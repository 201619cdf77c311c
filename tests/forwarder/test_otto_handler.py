"""The example in NestJS does what a handler has to do: with the agent, and with the controller of a local system."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ottoscaler.cli.system import LocalSystem
from tests import warm
from tests.fakes.wait import eventually
from tests.forwarder.otto_handler import LONG_S, OttoHandler, built, free_port
from tests.forwarder.processes import SCRIPT, agent_command, agent_environ, run_agent

pytestmark = [pytest.mark.real, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def program() -> Path:
    """The example, built."""
    return built()


@pytest.fixture
def handler(program: Path, tmp_path: Path) -> Iterator[OttoHandler]:
    """The example, without Redis."""
    made = OttoHandler(program, tmp_path)
    made.start()
    yield made
    made.kill()


def lines(handler: OttoHandler, worker: str = "w-1") -> list[str]:
    """The lines of a worker, when its log has ended; none twice, and none out of order."""
    stored = handler.entries(worker)
    assert [entry["sequence"] for entry in stored] == list(range(1, len(stored) + 1))
    assert stored[-1]["end"]["dropped"] == 0
    return [entry["message"] for entry in stored[:-1]]


def test_lines_arrive_complete_and_in_order(handler: OttoHandler) -> None:
    """Both outputs, an empty line, bytes that are not UTF-8, and the account at the end."""
    script = "seq 3000; echo; echo err >&2; printf '\\377\\n'"
    assert run_agent(handler.port, "sh", "-c", script).returncode == 0
    stored = handler.entries("w-1")
    out = [entry for entry in stored if entry["source"] == "stdout" and "end" not in entry]
    assert [entry["message"] for entry in out] == [*map(str, range(1, 3001)), "", "\ufffd"]
    assert out[-1]["raw"] == "/w=="
    assert [entry["message"] for entry in stored if entry["source"] == "stderr"] == ["err"]
    assert len(lines(handler)) == 3003


def has_lines(handler: OttoHandler, count: int) -> bool:
    """Has it stored more than so many lines?"""
    return len(handler.entries("w-1")) > count


def test_a_crash_of_the_handler_loses_and_doubles_nothing(handler: OttoHandler) -> None:
    """In the middle of a log, three times."""
    script = "for i in $(seq 1 2000); do echo $i; sleep 0.002; done"
    with warm.Popen(
        agent_command("sh", "-c", script), env=agent_environ(handler.port, LOG_DRAIN_S="60"), stdout=subprocess.DEVNULL
    ) as agent:
        for count in (100, 200, 300):
            eventually(partial(has_lines, handler, count), LONG_S, "some lines")
            handler.restart()
        assert agent.wait(LONG_S * 2) == 0
    assert lines(handler) == [str(number) for number in range(1, 2001)]


def worker_command(port: int) -> str:
    """What a worker runs: 1,000 lines in a few seconds, under the agent."""
    script = "for i in $(seq 1 1000); do echo $i; sleep 0.003; done"
    agent = shlex.join([sys.executable, str(SCRIPT), "agent", "--", "sh", "-c", script])
    return json.dumps(["/bin/sh", "-c", f"LOG_HANDLER_ADDRESS=127.0.0.1:{port} LOG_DRAIN_S=60 {agent}"])


def test_an_event_runs_its_result_is_consumed_once_and_its_lines_arrive(program: Path, tmp_path: Path) -> None:
    """Over a crash of the handler in the middle of the task, and another one after its end."""
    port = free_port()
    environ = {"REDIS_BLOCK_MS": "200", "OTTO_AGENT_COMMAND": worker_command(port)}
    with LocalSystem(tmp_path / "system", environ) as system:
        redis = system.settings.redis
        handler = OttoHandler(program, tmp_path, f"redis://{redis.host}:{redis.port}", port=port)
        handler.start()
        try:
            system.start_controller(tmp_path / "log")
            handler.send(type="scale_up", pod_count="2", task_id="t", event_id="from-nest")
            workers = eventually(lambda: begun(tmp_path / "logs"), LONG_S * 2, "lines of both workers")
            handler.restart()
            eventually(lambda: "task" in kinds(handler), LONG_S * 2, "the result of the task")
            handler.restart()
            handler.send(type="scale_down", task_id="t", event_id="next")
            eventually(lambda: "scale_down" in kinds(handler), LONG_S, "the result of the scale_down")
            assert sorted(kinds(handler)) == ["scale_down", "task", "worker", "worker"]
            for worker in workers:
                assert lines(handler, worker) == [str(number) for number in range(1, 1001)]
        finally:
            handler.kill()


def begun(folder: Path) -> list[str]:
    """The two workers, when the handler has the first lines of both."""
    found = [path for path in folder.glob("*.jsonl") if len(path.read_text()) > 1000]
    return [path.stem for path in found] if len(found) == 2 else []


def kinds(handler: OttoHandler) -> list[str]:
    """The kinds of the results that were consumed."""
    return [result["kind"] for result in handler.results()]
