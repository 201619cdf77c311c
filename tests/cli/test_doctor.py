"""`doctor` in broken environments: each has exactly one finding, on the embedded Redis and the embedded Kubernetes API.

Those that take a real server are in test_doctor_real.py.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from ottoscaler.cli import doctor_checks
from ottoscaler.cli.main import main
from ottoscaler.core.findings import Severity
from ottoscaler.local.handle import LocalCluster
from ottoscaler.settings import Settings
from tests.cli.conftest import Controller, child
from tests.conftest import require

pytestmark = [pytest.mark.contract("1.doctor"), pytest.mark.timeout(120)]

Finding = tuple[str, str]
#: A variable that would be promised and have no effect yet.
LATER = "A_LATER_ONE"
#: What the embedded API server does not have.
NOT_EMBEDDED = {"kube.quota", "kube.limitrange", "kube.network", "kube.admission"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The embedded Kubernetes API."""
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    local.start()
    yield local
    local.close()


@pytest.fixture
def environment(names: Mapping[str, str], cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """All is well: Redis, keys and a cluster."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return names


class Doctor:
    """Runs the command, and reads what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def all(self) -> tuple[int, Mapping[str, Any]]:
        """Exit code and object."""
        code = main(["doctor", "--json"])
        return code, json.loads(self._capsys.readouterr().out)

    def troubles(self) -> list[tuple[str, str, str]]:
        """Code, severity and text of what is not well, the worst first; the exit code fits."""
        code, answer = self.all()
        assert code == (1 if answer["broken"] else 0)
        found = [(each["code"], each["severity"], each["text"]) for each in answer["findings"]]
        return [each for each in found if each[1] in ("broken", "warning")]


@pytest.fixture
def doctor(environment: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The command in this environment."""
    return Doctor(capsys)


def test_a_healthy_environment_has_no_trouble(doctor: Doctor, client: redis.Redis) -> None:
    """Each check says what it found; what the server does not have is unknown. Nothing is changed."""
    before = client.dbsize()
    code, answer = doctor.all()
    found = {(each["code"], each["severity"]) for each in answer["findings"]}
    assert code == 0
    assert {name for name, severity in found if severity == "unknown"} == NOT_EMBEDDED
    assert {name for name, severity in found if severity == "ok"} == {
        *("redis.reach", "redis.version", "redis.role", "redis.persistence", "redis.eviction", "redis.memory"),
        *("redis.acl", "queue.owner", "queue.progress", "results.trim"),
        *("kube.reach", "kube.rbac", "kube.pod_security", "kube.nodes", "clock.skew"),
    }
    assert (answer["broken"], answer["warning"], answer["unknown"]) == (0, 0, len(NOT_EMBEDDED))
    assert client.dbsize() == before


def test_the_lines_are_for_people(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One for each finding, the worst first; the last is the count."""
    monkeypatch.setenv("REDIS_PORT", "1")
    assert main(["doctor"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("broken   redis.reach        Redis at ")
    order = [line.split()[0] for line in lines]
    assert order == sorted(order, key=[*Severity].index)
    assert last.startswith("1 broken, 0 warning, ")


def change(client: redis.Redis, *command: str) -> None:
    """One command that the test undoes."""
    client.execute_command(*command)


@contextmanager
def configured(client: redis.Redis, name: str, value: str, usual: str) -> Iterator[None]:
    """A server with another setting."""
    change(client, "CONFIG", "SET", name, value)
    try:
        yield
    finally:
        change(client, "CONFIG", "SET", name, usual)


@pytest.mark.parametrize(
    ("name", "value", "usual", "code", "words"),
    [
        ("maxmemory-policy", "allkeys-lru", "noeviction", "redis.eviction", "maxmemory-policy noeviction"),
        ("appendonly", "no", "yes", "redis.persistence", "set appendonly yes"),
    ],
)
def test_a_server_that_forgets_is_a_warning(
    doctor: Doctor, client: redis.Redis, name: str, value: str, usual: str, code: str, words: str
) -> None:
    """Two environments."""
    with configured(client, name, value, usual):
        [(found, severity, text)] = doctor.troubles()
    assert (found, severity) == (code, "warning")
    assert words in text


def test_a_server_that_is_nearly_full_is_a_warning(doctor: Doctor, client: redis.Redis) -> None:
    """Before it refuses writes."""
    used = int(client.info("memory")["used_memory"])  # type: ignore[index]
    with configured(client, "maxmemory", str(int(used * 1.04)), "0"):
        found = doctor.troubles()
    assert [(code, severity) for code, severity, _ in found] == [("redis.memory", "warning")]


def _wrong_port(environment: dict[str, str], _folder: Path) -> None:
    environment["REDIS_PORT"] = "1"


def _empty_password_file(environment: dict[str, str], folder: Path) -> None:
    (folder / "password").write_text("\n")
    environment["REDIS_PASSWORD_FILE"] = str(folder / "password")
    environment["REDIS_USERNAME"] = "secured"


def _no_scripts(environment: dict[str, str], _folder: Path) -> None:
    environment["REDIS_USERNAME"], environment["REDIS_PASSWORD"] = "scriptless", "x"


def _no_info(environment: dict[str, str], _folder: Path) -> None:
    environment["REDIS_USERNAME"], environment["REDIS_PASSWORD"] = "blind", "x"


def _broken_policy(environment: dict[str, str], folder: Path) -> None:
    (folder / "policy.yaml").write_text("version: 1\nimages: 3\n")
    environment["POLICY_FILE"] = str(folder / "policy.yaml")


def _no_such_namespace(environment: dict[str, str], _folder: Path) -> None:
    environment["NAMESPACE"] = "nowhere"


def _no_api(environment: dict[str, str], folder: Path) -> None:
    text = Path(environment["KUBECONFIG"]).read_text()
    url = text[text.index("http") :].split()[0].strip('"')
    (folder / "kubeconfig").write_text(text.replace(url, "http://127.0.0.1:1"))
    environment["KUBECONFIG"] = str(folder / "kubeconfig")


def _no_kubeconfig(environment: dict[str, str], folder: Path) -> None:
    (folder / "kubeconfig").write_text("{}")
    environment["KUBECONFIG"] = str(folder / "kubeconfig")


def _slip(environment: dict[str, str], _folder: Path) -> None:
    environment["MAX_WORKER"] = "3"


def _early(environment: dict[str, str], _folder: Path) -> None:
    environment[LATER] = "x"


def _bad_value(environment: dict[str, str], _folder: Path) -> None:
    environment["MAX_WORKERS"] = "many"

    environment["LOG_HANDLER_ADDRESS"] = "127.0.0.1:1"


@pytest.fixture
def users(client: redis.Redis) -> Iterator[None]:
    """Users with fewer rights than the controller needs, and one with a password."""
    everything = ("~*", "&*", "+@all")
    change(client, "ACL", "SETUSER", "secured", "on", ">secret", *everything)
    change(client, "ACL", "SETUSER", "scriptless", "on", ">x", *everything, "-@scripting")
    change(client, "ACL", "SETUSER", "blind", "on", ">x", *everything, "-info")
    yield
    change(client, "ACL", "DELUSER", "secured", "scriptless", "blind")


@pytest.mark.parametrize(
    ("break_it", "expected", "words"),
    [
        (_wrong_port, [("redis.reach", "broken")], "are REDIS_HOST, REDIS_PORT"),
        (_empty_password_file, [("redis.auth", "broken")], "REDIS_PASSWORD_FILE is empty"),
        (_no_scripts, [("redis.acl", "broken")], "give the user the rights in deploy/REFERENCE.md"),
        (_no_info, [], ""),
        (_broken_policy, [("policy.file", "broken")], "images"),
        (_no_such_namespace, [("kube.namespace", "broken")], "There is no namespace nowhere: make it"),
        (_no_api, [("kube.reach", "broken")], "check KUBECONFIG and the network"),
        (_no_kubeconfig, [("kube.access", "broken")], "set KUBECONFIG to a kubeconfig file that kubectl accepts"),
        (_slip, [("config.unknown", "warning")], "MAX_WORKERS"),
        (_early, [("config.not_yet", "warning")], f"{LATER} is set and has no effect yet"),
        (_bad_value, [("config.invalid", "broken")], "MAX_WORKERS='many'"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_environment_has_one_finding(
    doctor: Doctor, users: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: LocalCluster,
    break_it: Callable[[dict[str, str], Path], None], expected: list[Finding], words: str,
) -> None:  # fmt: skip
    """Which names the thing and what to do; the other checks go on."""
    monkeypatch.setattr("ottoscaler.settings.UNSUPPORTED_VARIABLES", (LATER,))
    environment = {"KUBECONFIG": str(cluster.kubeconfig)}
    break_it(environment, tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = doctor.troubles()
    assert [(code, severity) for code, severity, _ in found] == expected
    assert words in "".join(text for _, _, text in found)


def test_no_right_to_look_is_unknown_and_no_error(doctor: Doctor, users: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """INFO is not needed by the controller."""
    for name, value in (("REDIS_USERNAME", "blind"), ("REDIS_PASSWORD", "x")):
        monkeypatch.setenv(name, value)
    code, answer = doctor.all()
    assert code == 0
    assert ("redis.version", "unknown") in {(each["code"], each["severity"]) for each in answer["findings"]}


def test_a_key_of_another_type_is_named(doctor: Doctor, client: redis.Redis, settings: Settings) -> None:
    """In the words of the controller, which waits for it."""
    client.lpush(settings.keys.stream, "x")
    [(code, severity, text)] = doctor.troubles()
    assert (code, severity) == ("redis.type", "broken")
    assert f"the key {settings.keys.stream} holds something else than a stream" in text


def test_a_prefix_of_another_group_is_named(doctor: Doctor, client: redis.Redis, settings: Settings) -> None:
    """The controller would not start."""
    client.hset(f"{settings.keys.prefix}group", "group", "another")
    [(code, severity, text)] = doctor.troubles()
    assert (code, severity) == ("queue.owner", "broken")
    assert "this is that of the group 'another'" in text


def test_a_queue_of_another_cluster_is_named(doctor: Doctor, client: redis.Redis, settings: Settings) -> None:
    """The controller would not start."""
    held = {"group": settings.keys.group, "cluster": "ci/some-uid"}
    client.hset(f"{settings.keys.prefix}group", mapping=held)
    [(code, severity, text)] = doctor.troubles()
    assert (code, severity) == ("queue.owner", "broken")
    assert "this queue belongs to another cluster or namespace (ci/some-uid)" in text


def test_a_queue_that_nobody_reads_is_named(doctor: Doctor, client: redis.Redis, settings: Settings) -> None:
    """With how many wait, and since when."""
    past = int(time.time() - 42 * 60) * 1000
    client.xadd(settings.keys.stream, {"type": "scale_up"}, id=f"{past}-0")
    [(code, severity, text)] = doctor.troubles()
    assert (code, severity) == ("queue.progress", "broken")
    assert "1 event (the oldest for 42 min)" in text


def test_a_queue_that_is_read_is_well(
    doctor: Doctor, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """A consumer that has announced itself is alive; an entry that it holds for long is worth a look."""
    controller.stream.announce()
    client.xadd(settings.keys.stream, {"type": "scale_up"})
    assert controller.stream.read(1)
    assert doctor.troubles() == []
    past = int(time.time() - 7200) * 1000
    client.delete(settings.keys.stream)
    client.xadd(settings.keys.stream, {"type": "scale_up"}, id=f"{past}-0")
    controller.stream.ensure_group()
    assert controller.stream.read(1)
    assert [(code, severity) for code, severity, _ in doctor.troubles()] == [("queue.progress", "warning")]


def test_a_consumer_that_is_gone_reads_nothing(
    doctor: Doctor, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """It was seen long ago."""
    controller.stream.announce()
    client.xadd(settings.keys.stream, {"type": "scale_up"})
    assert controller.stream.read(1)
    client.hset(f"{settings.keys.prefix}consumer:otto-0", "seen", "1")
    assert [(code, severity) for code, severity, _ in doctor.troubles()] == [("queue.progress", "broken")]


def test_results_that_go_soon_are_named(
    doctor: Doctor, client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 98 of 100, the oldest three hours old."""
    monkeypatch.setenv("RESULT_MAXLEN", "100")
    past = int(time.time() - 3 * 3600) * 1000
    for number in range(98):
        client.xadd(settings.keys.result_stream, {"kind": "worker"}, id=f"{past}-{number + 1}")
    [(code, severity, text)] = doctor.troubles()
    assert (code, severity) == ("results.trim", "warning")
    assert "the oldest is 3 h old" in text


def test_a_cluster_that_is_too_small_is_named(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """No node has that label."""
    monkeypatch.setenv("WORKER_NODE_SELECTOR", '{"pool": "ci"}')
    [(code, severity, text)] = doctor.troubles()
    assert (code, severity) == ("kube.nodes", "warning")
    assert "1 without the label pool=ci" in text


def test_clocks_that_differ_are_named(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is 47 s behind both servers'."""
    real = time.time
    monkeypatch.setattr(doctor_checks.time, "time", lambda: real() - 47)
    [(code, severity, text)] = doctor.troubles()
    assert (code, severity) == ("clock.skew", "warning")
    assert "47 s ahead of this machine's" in text


# -- log handler


@contextmanager
def listening(folder: Path, *, tls_for: str = "", http2: bool = True) -> Iterator[int]:
    """A server that takes connections, by TLS with a certificate for that host. Yields its port."""
    context = None
    if tls_for:
        command = [require("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", f"/CN={tls_for}", "-addext", f"subjectAltName=DNS:{tls_for}"]
        command += ["-keyout", "key.pem", "-out", "cert.pem"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        context.set_alpn_protocols(["h2"] if http2 else ["http/1.1"])
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    if context is not None:
                        connection = context.wrap_socket(connection, server_side=True)
                    connection.close()
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(20)


@pytest.mark.parametrize(
    ("tls_for", "http2", "code", "words"),
    [
        ("", True, "handler.register", "refuses to register a worker"),
        ("other.example", True, "handler.tls", "see LOG_HANDLER_CA_FILE"),
        ("localhost", False, "handler.tls", "not HTTP/2"),
        ("localhost", True, "handler.register", "refuses to register a worker"),
    ],
)
def test_a_log_handler_that_is_none_is_named(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tls_for: str, http2: bool, code: str, words: str
) -> None:
    """It takes connections; its certificate or its words do not fit."""
    with listening(tmp_path, tls_for=tls_for, http2=http2) as port:
        monkeypatch.setenv("LOG_HANDLER_ADDRESS", f"localhost:{port}")
        if tls_for:
            monkeypatch.setenv("LOG_HANDLER_CA_FILE", str(tmp_path / "cert.pem"))
        found = [each for each in doctor.troubles() if each[0] != "config.not_yet"]
    assert [(name, severity) for name, severity, _ in found] == [(code, "broken")]
    assert words in found[0][2]


def test_a_log_handler_that_is_not_there_is_named(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its address."""
    monkeypatch.setenv("LOG_HANDLER_ADDRESS", "127.0.0.1:1")
    found = [each for each in doctor.troubles() if each[0] != "config.not_yet"]
    assert [(code, severity) for code, severity, _ in found] == [("handler.reach", "broken")]


def test_the_trace_collector_is_looked_at(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which it does not take traces is in test_doctor_traces.py."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert [(code, severity) for code, severity, _ in doctor.troubles()] == [("traces.reach", "broken")]


def test_a_log_handler_registers_workers(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference handler; without grpcio that is not checked."""
    with child("handler", "--address", "127.0.0.1:0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = line.rpartition(":")[2].split()[0]
        monkeypatch.setenv("LOG_HANDLER_ADDRESS", f"127.0.0.1:{port}")
        _, answer = doctor.all()
        found = {each["code"]: each["severity"] for each in answer["findings"]}
        assert (found["handler.reach"], found["handler.register"]) == ("ok", "ok")
        monkeypatch.setattr(doctor_checks.importlib.util, "find_spec", lambda name: None)
        _, answer = doctor.all()
        assert ("handler.register", "unknown") in {(each["code"], each["severity"]) for each in answer["findings"]}
        process.terminate()
