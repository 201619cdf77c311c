"""What `doctor` says of a trace collector: one line for each way in which it does not take traces, with what to do."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ottoscaler.adapters import collector_probe
from ottoscaler.cli.doctor_traces import trace_findings
from ottoscaler.settings import Settings, TraceSettings
from tests.adapters.otlp_receiver import receiver
from tests.cli.test_doctor import listening

pytestmark = [pytest.mark.contract("1.doctor"), pytest.mark.contract("2.OTEL_EXPORTER_OTLP_HEADERS")]
TOKEN = "tok3n-that-nobody-sees"


def found(endpoint: str, headers: str = "") -> list[tuple[str, str, str]]:
    """Code, severity and text of each finding about this collector."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_HEADERS": headers}
    findings = trace_findings(Settings.load(environ, "host", None).traces)
    assert not [each for each in findings if TOKEN in each.text]
    return [(each.code, each.severity.value, each.text) for each in findings]


def test_without_an_endpoint_nothing_is_asked() -> None:
    """Traces are off."""
    assert trace_findings(TraceSettings(headers=(("a", "b"),))) == []


@pytest.mark.parametrize(
    ("status", "code", "severity", "words"),
    [
        (200, "traces.reach", "ok", "takes traces at http://127.0.0.1:"),
        (401, "traces.auth", "broken", "set OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN"),
        (403, "traces.auth", "broken", "set OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20TOKEN"),
        (404, "traces.path", "broken", "another path belongs in front of /v1/traces"),
        (405, "traces.path", "broken", "another path belongs in front of /v1/traces"),
        (301, "traces.path", "broken", "another path belongs in front of /v1/traces"),
        (400, "traces.reach", "unknown", "does it speak TLS?"),
        (429, "traces.busy", "warning", "spans wait for it"),
        (503, "traces.busy", "warning", "spans wait for it"),
        (500, "traces.reach", "broken", "see its log"),
    ],
)
def test_each_answer_has_its_finding(status: int, code: str, severity: str, words: str) -> None:
    """By the status alone; a redirection is not followed, as the exporter does not."""
    with receiver() as opened:
        opened.answers.append((status, {"Location": "/v1/other"}, b""))
        [(shown, how, text)] = found(opened.endpoint)
        assert opened.paths == ["/v1/traces"]
    assert (shown, how) == (code, severity)
    assert words in text
    assert status == 200 or f"answers {status} at {opened.endpoint}/v1/traces" in text


def test_the_headers_go_with_the_question() -> None:
    """A collector with a token takes it; one that refuses it is said to do so, without the token."""
    with receiver() as opened:
        opened.token = f"Bearer {TOKEN}"
        headers = f"authorization=Bearer%20{TOKEN}"
        assert [code for code, *_ in found(opened.endpoint)] == ["traces.auth"]
        assert [how for _, how, _ in found(opened.endpoint, headers)] == ["ok"]
        [(code, how, text)] = found(opened.endpoint, f"{headers}x")
    assert (code, how) == ("traces.auth", "broken")
    assert "is the token in OTEL_EXPORTER_OTLP_HEADERS right?" in text


def test_nothing_listens() -> None:
    """With the address, and what to look at."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        [(code, how, text)] = found(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert (code, how) == ("traces.reach", "broken")
    assert "refused" in text
    assert "is OTEL_EXPORTER_OTLP_ENDPOINT right" in text


def test_a_port_that_speaks_grpc() -> None:
    """The usual mistake: the other port of the same collector."""
    grpc = pytest.importorskip("grpc")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        [(code, how, text)] = found(f"http://127.0.0.1:{port}")
    finally:
        server.stop(None)
    assert (code, how) == ("traces.http", "broken")
    assert "OTLP over gRPC, usually port 4317, is not spoken" in text


def test_a_port_that_closes_without_a_word(tmp_path: Path) -> None:
    """As gRPC servers of Go do."""
    with listening(tmp_path) as port:
        [(code, how, _)] = found(f"http://127.0.0.1:{port}")
    assert (code, how) == ("traces.http", "broken")


def test_a_port_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor does not wait without end."""
    monkeypatch.setattr(collector_probe, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        [(code, how, text)] = found(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (code, how) == ("traces.reach", "broken")
    assert "timed out" in text


@pytest.mark.parametrize("tls_for", ["localhost", ""])
def test_tls_that_fails(tmp_path: Path, tls_for: str) -> None:
    """A certificate that nobody here trusts, and a port without TLS."""
    with listening(tmp_path, tls_for=tls_for, http2=False) as port:
        [(code, how, _)] = found(f"https://localhost:{port}")
    assert (code, how) == ("traces.tls", "broken")


def test_a_token_without_tls_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it leaves this machine."""
    monkeypatch.setattr("ottoscaler.cli.doctor_traces.ask_once", lambda url, headers: 200)
    headers = f"a={TOKEN}"
    assert [code for code, *_ in found("http://collector:4318", headers)] == ["traces.reach", "traces.plaintext"]
    assert [code for code, *_ in found("https://collector:4318", headers)] == ["traces.reach"]
    assert [code for code, *_ in found("http://[::1]:4318", headers)] == ["traces.reach"]
    assert [code for code, *_ in found("http://collector:4318")] == ["traces.reach"]
