"""Logs of workers through a whole controller, with the embedded Redis and Kubernetes API and the reference handler."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from ottoscaler.cli.log_forwarding import LogForwarding
from ottoscaler.cli.system import LocalSystem
from ottoscaler.errors import ConfigError
from ottoscaler.settings import Settings
from tests.cli.conftest import LONG_S, printed_by
from tests.cli.processes import below
from tests.fakes.wait import eventually
from tests.forwarder.processes import HandlerProcess, handler

pytestmark = [pytest.mark.contract("2.LOG_HANDLER_ADDRESS"), pytest.mark.timeout(180)]
FORWARDER = "ottoscaler.forwarder.process"


@contextmanager
def running(folder: Path, command: Sequence[str], **environ: str) -> Iterator[tuple[LocalSystem, redis.Redis]]:
    """A controller with workers that do this, and a client of its Redis."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "LOG_"))}
    given = {**plain, "OTTO_AGENT_COMMAND": json.dumps(list(command)), "LOG_FORMAT": "json", **environ}
    with LocalSystem(folder / "system", given) as system:
        system.start_controller(folder / "controller.log")
        with redis.Redis(port=system.settings.redis.port, decode_responses=True) as client:
            eventually(lambda: client.exists("otto:scale:events"), LONG_S, "the controller")
            yield system, client


def send(client: redis.Redis, **fields: Any) -> str:
    """Send an event; returns its id."""
    return str(client.xadd("otto:scale:events", {"type": "scale_up", **fields}))


def results(client: redis.Redis, event_id: str) -> list[Mapping[str, str]]:
    """The results of an event."""
    entries: Any = client.xrange("otto:scale:results")
    return [fields for _, fields in entries if fields["event_id"] == event_id]


def await_task(client: redis.Redis, event_id: str) -> list[Mapping[str, str]]:
    """The results of an event when its task has ended: those of its workers."""
    eventually(lambda: any(each["kind"] == "task" for each in results(client, event_id)), LONG_S, "the task's result")
    return [each for each in results(client, event_id) if each["kind"] == "worker"]


def logged(folder: Path, event: str) -> list[dict[str, Any]]:
    """The controller's lines of an event."""
    text = (folder / "controller.log").read_bytes().rpartition(b"\n")[0]
    lines = [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]
    return [line for line in lines if line["event"] == event]


def texts(opened: HandlerProcess, pod: str) -> list[str]:
    """The lines of a pod, by sequence, none twice."""
    entries = sorted(opened.entries(pod), key=lambda entry: entry["sequence"])
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["message"] for entry in entries if entry["level"] == "INFO" and "end" not in entry]


def ended(opened: HandlerProcess, pod: str) -> bool:
    """Has the handler the end of a log?"""
    return any("end" in entry for entry in opened.entries(pod))


def figures(system: LocalSystem) -> list[str]:
    """The lines that a scrape of the controller gets."""
    url = f"http://127.0.0.1:{system.overrides['HTTP_PORT']}/metrics"
    with urllib.request.urlopen(url, timeout=LONG_S) as answer:
        return list(answer.read().decode().splitlines())


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def forwarders(pid: int) -> list[int]:
    """The log forwarders below a process."""
    return [own for own, words in below(pid).items() if FORWARDER in words]


@pytest.mark.full
def test_the_logs_of_all_workers_arrive_and_then_their_pods_go(tmp_path: Path) -> None:
    """The results are there before."""
    (tmp_path / "store").mkdir()
    with handler(tmp_path / "store") as opened:
        address = f"127.0.0.1:{opened.port}"
        with running(tmp_path, ["seq", "300"], LOG_HANDLER_ADDRESS=address) as (system, client):
            workers = await_task(client, send(client, pod_count="4", task_id="t-1"))
            pods = [worker["pod"] for worker in workers]
            for pod in pods:
                eventually(lambda: ended(opened, pod), LONG_S, f"the log of {pod}")  # noqa: B023
                assert texts(opened, pod) == [str(number) for number in range(1, 301)]
            eventually(lambda: len(logged(tmp_path, "worker.deleted")) == 4, LONG_S, "the pods to be deleted")
            eventually(lambda: "ottoscaler_log_lines_forwarded_total 1200.0" in figures(system), LONG_S, "the figures")
            ended_well = 'ottoscaler_logs_ended_total{outcome="complete"} 4.0'
            eventually(lambda: ended_well in figures(system), LONG_S, "the ends of the logs")
    assert logged(tmp_path, "logs.given_up") == []
    assert {worker["outcome"] for worker in workers} == {"succeeded"}


def test_a_forwarder_that_is_killed_costs_no_line_and_no_result(tmp_path: Path) -> None:
    """Another one goes on; and none is left at the end."""
    (tmp_path / "store").mkdir()
    loop = "for i in $(seq 60); do seq $((i*50-49)) $((i*50)); sleep 0.05; done"
    with handler(tmp_path / "store") as opened:
        address = f"127.0.0.1:{opened.port}"
        with running(tmp_path, ["/bin/sh", "-c", loop], LOG_HANDLER_ADDRESS=address) as (_, client):
            event_id = send(client)
            (forwarder,) = eventually(lambda: forwarders(os.getpid()), LONG_S, "the forwarder")
            eventually(lambda: opened.folder.is_dir() and list(opened.folder.glob("otto-*.jsonl")), LONG_S, "a line")
            os.kill(forwarder, signal.SIGKILL)
            (worker,) = await_task(client, event_id)
            assert worker["outcome"] == "succeeded"
            eventually(lambda: ended(opened, worker["pod"]), LONG_S, "the end of the log")
            assert texts(opened, worker["pod"]) == [str(number) for number in range(1, 3001)]
            assert len(logged(tmp_path, "logs.forwarder_ended")) == 1
        eventually(lambda: forwarders(os.getpid()) == [], LONG_S, "the end of the forwarder")


@pytest.mark.full
def test_a_handler_that_is_away_delays_no_result(tmp_path: Path) -> None:
    """Twice as many workers as there are threads end long before the first pod is given up."""
    address = f"127.0.0.1:{free_port()}"
    with running(tmp_path, ["echo", "x"], LOG_HANDLER_ADDRESS=address, LOG_DRAIN_S="600", MAX_WORKERS="5") as (
        _,
        client,
    ):
        workers = await_task(client, send(client, pod_count="10"))
        assert [worker["outcome"] for worker in workers] == ["succeeded"] * 10
        assert logged(tmp_path, "worker.deleted") == []
        eventually(lambda: logged(tmp_path, "logs.trouble"), LONG_S, "a line about the handler")


def test_without_logs_there_is_no_forwarder(tmp_path: Path) -> None:
    """No process."""
    with running(tmp_path, ["echo", "x"]) as (_, client):
        await_task(client, send(client))
        assert forwarders(os.getpid()) == []


def test_the_controller_imports_nothing_of_the_forwarder() -> None:
    """Neither where logs are off nor where they are on: they have an interpreter of their own."""
    program = (
        "import sys, ottoscaler.cli.run; "
        "print(sorted(name for name in sys.modules if name.startswith(('grpc', 'google.protobuf', 'aiohttp', "
        "'ottoscaler.forwarder', 'ottoscaler.proto'))))"
    )
    assert printed_by(program) == "[]\n"


def test_a_missing_package_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do; where logs are off it is not needed."""
    monkeypatch.setattr("ottoscaler.cli.log_forwarding._NEEDED", ("no_such_package", "no.such.module"))
    parts: Any = dict.fromkeys(("cluster", "attempts", "stop", "heartbeat", "metrics", "clock"))
    off = Settings.load({"LOG_HANDLER_ADDRESS": "handler:1", "WORKER_LOGS": "none"}, "host-1", None)
    assert LogForwarding(off, **parts).drain is None
    with pytest.raises(ConfigError) as caught:
        LogForwarding(Settings.load({"LOG_HANDLER_ADDRESS": "handler:1"}, "host-1", None), **parts)
    (sentence,) = caught.value.faults
    assert sentence.startswith("LOG_HANDLER_ADDRESS='handler:1': ")
    assert "no_such_package, no.such.module is not installed" in sentence


@pytest.mark.full
@pytest.mark.parametrize(("profile", "runs"), [("controller", True), ("none", False)])
def test_a_profile_that_asks_for_logs_starts_the_forwarder(tmp_path: Path, profile: str, runs: bool) -> None:
    """Only when a worker of it runs: where WORKER_LOGS turns logs off, a policy alone starts no process."""
    rules = tmp_path / "policy.yaml"
    rules.write_text(f"version: 1\ndefault_profile: plain\nprofiles: {{plain: {{worker_logs: {profile}}}}}\n")
    environ = {"LOG_HANDLER_ADDRESS": f"127.0.0.1:{free_port()}", "LOG_DRAIN_S": "1", "WORKER_LOGS": "none"}
    with running(tmp_path, ["echo", "x"], POLICY_FILE=str(rules), **environ) as (_, client):
        assert forwarders(os.getpid()) == []
        await_task(client, send(client))
        if runs:
            eventually(lambda: forwarders(os.getpid()), LONG_S, "the forwarder")
        assert bool(forwarders(os.getpid())) is runs
