"""Traces through whole controllers with the embedded servers, to a receiver and to a real collector."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from ottoscaler.cli import tracing
from ottoscaler.cli.tracing import Tracing
from ottoscaler.errors import ConfigError
from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.settings import Settings
from tests import bytecode, warm
from tests.adapters.otlp_receiver import PHASES, attributes, receiver, trace_of
from tests.cli.conftest import LONG_S, SCRIPT
from tests.fakes.wait import eventually

pytestmark = [pytest.mark.contract("2.OTEL_EXPORTER_OTLP_ENDPOINT"), pytest.mark.timeout(180)]
ROOT = Path(__file__).resolve().parents[2]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
#: The binary of a collector with the receiver `otlp` and the exporter `debug`; otherwise that of `make otelcol`.
COLLECTOR = "TEST_OTLP_COLLECTOR"
BUILT = ROOT / ".cache" / "otelcol"
Start = Callable[..., "Process"]


class Process:
    """One controller, as a pod of a Deployment runs it."""

    def __init__(self, name: str, environ: dict[str, str], folder: Path, **more: str) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = warm.Popen(
                [sys.executable, str(SCRIPT)], env={**environ, "REDIS_CONSUMER": name, **more}, stdout=log, stderr=log
            )

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Its lines of an event."""
        text = self.log.read_bytes().rpartition(b"\n")[0]
        lines = [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]
        return [line for line in lines if line["event"] == event]

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait(LONG_S)

    def stop(self) -> None:
        """SIGTERM, if it runs."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(LONG_S)


@pytest.fixture(name="start")
def _start(environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts controllers; each is killed at the end of the test at the latest."""
    started: list[Process] = []

    def start(name: str, **more: str) -> Process:
        started.append(Process(name, environ, tmp_path, **more))
        eventually(lambda: started[-1].lines("controller.started"), LONG_S, "its start")
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture(name="environ")
def _environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Redis and a cluster, and how a controller finds them."""
    server, cluster = EmbeddedRedis(tmp_path / "redis"), LocalCluster(tmp_path / "cluster")
    server.start()
    cluster.start()
    yield {
        **bytecode.environ(), "REDIS_HOST": server.host, "REDIS_PORT": str(server.port), "HTTP_PORT": "0",
        "KUBECONFIG": str(cluster.kubeconfig), "NAMESPACE": "default", "LOG_FORMAT": "json", "LEASE_S": "3",
    }  # fmt: skip
    cluster.close()
    server.close()


@pytest.fixture(name="client")
def _client(environ: dict[str, str]) -> Iterator[Any]:
    with redis.Redis(environ["REDIS_HOST"], int(environ["REDIS_PORT"]), decode_responses=True) as made:
        yield made


def command(line: str) -> str:
    """Workers that do this."""
    return json.dumps(["/bin/sh", "-c", line])


def test_an_event_is_one_trace(start: Start, client: Any) -> None:
    """Below its producer's span; a worker finds the context of its own `run`."""
    line = 'printf "%s" "$TRACEPARENT" > "$OTTO_OUTPUT"'
    with receiver() as opened:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": opened.endpoint, "OTTO_AGENT_COMMAND": command(line)}
        process = start("c1", **traced)
        event_id = client.xadd("otto:scale:events", {"type": "scale_up", "pod_count": "2", "traceparent": PARENT})
        spans = trace_of(opened, ["scale_up", *["worker", *PHASES] * 2])
        process.stop()
    (root,) = [span for span in spans if span.name == "scale_up"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    results = [fields for _, fields in client.xrange("otto:scale:results")]
    assert {fields["traceparent"] for fields in results} == {PARENT}
    runs = {attributes(span)["ottoscaler.worker.index"]: span for span in spans if span.name == "run"}
    for fields in results:
        if fields["kind"] == "worker":
            run = runs[int(fields["index"])]
            assert fields["output"] == f"00-{PARENT[3:35]}-{run.span_id.hex()}-01"
            assert attributes(run)["k8s.pod.uid"] == fields["pod_uid"]
    (queue, _) = [span for span in spans if span.name == "queue"]
    assert attributes(queue)["messaging.message.id"] == event_id


@pytest.mark.contract("2.OTEL_EXPORTER_OTLP_HEADERS")
def test_a_collector_that_asks_for_a_token(start: Start, client: Any) -> None:
    """It gets it; a wrong one is refused, and in no line of the log, although the collector repeats it."""
    right, wrong = "r1ght-token", "wr0ng-token"
    with receiver() as opened:
        opened.token = f"Bearer {right}"
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": opened.endpoint, "LOG_LEVEL": "DEBUG"}
        for name, token in (("c1", wrong), ("c2", right)):
            headers = f"authorization=Bearer%20{token}"
            process = start(name, OTEL_EXPORTER_OTLP_HEADERS=headers, OTTO_AGENT_COMMAND=command("true"), **traced)
            client.xadd("otto:scale:events", {"type": "scale_up"})
            if token == right:
                trace_of(opened, ["scale_up", "worker", *PHASES])
            else:
                eventually(lambda one=process: one.lines("traces.dropped"), LONG_S, "the refusal")
                assert "answers 401 not " in process.lines("traces.dropped")[0]["error"]
            process.stop()
            assert token not in process.log.read_text(encoding="utf-8")


@pytest.mark.full
def test_a_retry_is_part_of_the_trace(start: Start, client: Any) -> None:
    """With how the first attempt ended."""
    line = '[ "$OTTO_ATTEMPT" = 2 ]'
    with receiver() as opened:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": opened.endpoint, "OTTO_AGENT_COMMAND": command(line)}
        process = start("c1", WORKER_RETRIES="1", **traced)
        client.xadd("otto:scale:events", {"type": "scale_up"})
        phases = [name for name in PHASES if name not in ("record", "delete")]
        spans = trace_of(opened, ["scale_up", "worker", *PHASES, *phases])
        process.stop()
    runs = {attributes(span)["ottoscaler.attempt"]: span for span in spans if span.name == "run"}
    assert attributes(runs[1])["error.type"] == "Error"
    assert attributes(runs[1])["process.exit.code"] == 1
    assert (runs[1].status.code, runs[2].status.code) == (2, 0)


@pytest.mark.full
@pytest.mark.parametrize("moment", ["while it runs", "when it has ended"])
def test_a_controller_that_is_killed_changes_nothing(start: Start, client: Any, tmp_path: Path, moment: str) -> None:
    """One root, no gap, no duplicate: the next owner builds the same spans."""
    go = tmp_path / "go"
    line = f'until [ -e "{go}" ]; do sleep 0.05; done'
    with receiver() as opened:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": opened.endpoint, "OTTO_AGENT_COMMAND": command(line)}
        first = start("c1", **traced)
        event_id = client.xadd("otto:scale:events", {"type": "scale_up", "pod_count": "2"})
        for index in ("1", "2"):
            eventually(
                lambda: '"running"' in (client.hget(f"otto:scale:task:{event_id}", f"worker:{index}") or ""),  # noqa: B023
                LONG_S, "both to run",
            )  # fmt: skip
        if moment == "when it has ended":
            # what it reads of the results stays unsent: the collector is busy until it is killed
            opened.answers += [(503, {}, b"")] * 1000
            go.touch()
            eventually(lambda: first.lines("traces.waiting"), LONG_S, "the exporter to wait")
        first.kill()
        opened.answers.clear()
        go.touch()
        second = start("c2", **traced)
        trace_of(opened, ["scale_up", *["worker", *PHASES] * 2])
        second.stop()


def test_a_collector_that_is_away_delays_no_result(start: Start, client: Any) -> None:
    """Nothing listens there until all is over; then all of it arrives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTTO_AGENT_COMMAND": command("true")}
    process = start("c1", **traced)
    client.xadd("otto:scale:events", {"type": "scale_up", "pod_count": "3"})
    eventually(lambda: process.lines("task.finished"), LONG_S, "the task's result")
    eventually(lambda: len(process.lines("worker.deleted")) == 3, LONG_S, "the pods to be deleted")
    eventually(lambda: process.lines("traces.waiting"), LONG_S, "a line about the collector")
    with receiver(port) as opened:
        trace_of(opened, ["scale_up", *["worker", *PHASES] * 3])
        eventually(lambda: len(process.lines("traces.sending")) == 1, LONG_S, "a line that it is back")
    process.stop()


def test_a_collector_that_hangs_delays_nothing(start: Start, client: Any) -> None:
    """It takes connections and answers nothing. Neither the results nor the stop wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        process = start("c1", OTTO_AGENT_COMMAND=command("true"), SHUTDOWN_GRACE_S="5", **traced)
        client.xadd("otto:scale:events", {"type": "scale_up", "pod_count": "2"})
        eventually(lambda: process.lines("task.finished"), LONG_S, "the task's result")
        asked, _ = silent.accept()  # there is something to send, and it is being sent
        process.stop()
        asked.close()
    assert (len(process.lines("controller.stopped")), process.lines("controller.hung")) == (1, [])


def test_without_the_variable_nothing_is_imported() -> None:
    """Neither the messages nor what sends them."""
    program = (
        "import sys, ottoscaler.cli.run; "
        "print(sorted(name for name in sys.modules if name.startswith(('google.protobuf', 'opentelemetry.proto', "
        "'ottoscaler.adapters.trace_collector', 'ottoscaler.flow.trace_exporter'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file that has them, which is there."""
    monkeypatch.setattr(tracing, "_NEEDED", ("google.protobuf", "nothing.of_that_name"))
    settings = Settings.load({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "host", None)
    nothing: Any = None
    with pytest.raises(
        ConfigError, match=r"traces-requirements.txt, and nothing.of_that_name is not installed"
    ) as error:
        Tracing(settings, results=nothing, registry=nothing, metrics=nothing, stop=nothing, clock=nothing)
    assert str(error.value).startswith("OTEL_EXPORTER_OTLP_ENDPOINT='http://c:4318': traces need")
    assert (ROOT / "ottoscaler" / "adapters" / "traces-requirements.txt").is_file()


@pytest.mark.real
def test_a_real_collector_takes_them(start: Start, client: Any, tmp_path: Path) -> None:
    """The OpenTelemetry collector prints each span that it got."""
    binary = os.environ.get(COLLECTOR) or str(BUILT)
    if not os.access(binary, os.X_OK):
        pytest.skip(f"there is no OpenTelemetry collector: run `make otelcol`, or put the path of one into {COLLECTOR}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "collector.yaml").write_text(
        f"""
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{debug: {{verbosity: detailed}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}
""",
        encoding="utf-8",
    )
    output = tmp_path / "collector.log"
    with output.open("wb") as log:
        collector = subprocess.Popen(
            [binary, "--config", str(tmp_path / "collector.yaml")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTTO_AGENT_COMMAND": command("true")}
        process = start("c1", **traced)
        client.xadd("otto:scale:events", {"type": "scale_up", "traceparent": PARENT})
        eventually(lambda: "Name           : delete" in output.read_text("utf-8"), LONG_S, "the last span")
        process.stop()
    finally:
        collector.terminate()
        collector.wait(LONG_S)
    text = output.read_text("utf-8")
    for name in ("scale_up", "worker", *PHASES):
        assert text.count(f"Name           : {name}\n") == 1, name
    assert {part.split()[0] for part in text.split("Trace ID       : ")[1:]} == {PARENT[3:35]}
