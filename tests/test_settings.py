"""The configuration: the promised variables and defaults, what is accepted, and what is said about the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import certifi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler import settings, settings_worker
from ottoscaler.adapters.task_codec import RedisKeys
from ottoscaler.core.quantities import quantity
from ottoscaler.errors import ConfigError
from ottoscaler.settings import DEFAULT_COMMAND, Settings
from ottoscaler.settings_files import read_env_file

#: Variable, where its value ends up, its promised default, another value and what becomes of it.
VARIABLES: list[tuple[str, str, Any, str, Any]] = [
    ("REDIS_HOST", "redis.host", "localhost", "redis.ci.svc", "redis.ci.svc"),
    ("REDIS_PORT", "redis.port", 6379, "16379", 16379),
    ("REDIS_DB", "redis.db", 0, "3", 3),
    ("REDIS_USERNAME", "redis.username", None, "otto", "otto"),
    ("REDIS_PASSWORD", "redis.password", None, " p w ", " p w "),
    ("REDIS_PASSWORD_FILE", "redis.password_file", None, __file__, __file__),
    ("REDIS_SENTINELS", "redis.sentinels", (), "a:1, [::1]:2", (("a", 1), ("::1", 2))),
    ("REDIS_SENTINEL_MASTER", "redis.sentinel_master", None, "main", "main"),
    ("REDIS_TLS", "redis.tls", False, "yes", True),
    ("REDIS_CA_FILE", "redis.ca_file", None, certifi.where(), certifi.where()),
    ("REDIS_BLOCK_MS", "redis.block_ms", 2000, "10000", 10000),
    ("REDIS_STREAM", "keys.stream", "otto:scale:events", "{otto}:e", "{otto}:e"),
    ("REDIS_CONSUMER_GROUP", "keys.group", "ottoscaler", "ci", "ci"),
    ("REDIS_CONSUMER", "keys.consumer", "host-1", "me", "me"),
    ("RESULT_STREAM", "keys.result_stream", "otto:scale:results", "r", "r"),
    ("DEAD_LETTER_STREAM", "keys.dead_letter_stream", "otto:scale:dead", "d", "d"),
    ("KEY_PREFIX", "keys.prefix", "otto:scale:", "{otto}:", "{otto}:"),
    ("RESULT_MAXLEN", "keys.result_maxlen", 100000, "1", 1),
    ("EVENTS_KEEP", "keys.events_keep", 0, "1000", 1000),
    ("TASK_TTL_S", "keys.task_ttl_s", 604800, "60", 60),
    ("INSTANCE", "instance", "ottoscaler", "team-a.Ci_1", "team-a.Ci_1"),
    ("NAMESPACE", "kube.namespace", "default", "ci", "ci"),
    ("KUBECONFIG", "kube.kubeconfig", None, __file__, __file__),
    ("KUBE_INFLIGHT", "kube.inflight", 32, "64", 64),
    ("KUBE_QPS", "kube.qps", 0, "50", 50),
    ("KUBE_BURST", "kube.burst", 0, "100", 100),
    ("KUBERNETES_EVENTS", "kube.events", True, "false", False),
    ("OTTO_AGENT_IMAGE", "worker.image", "busybox:latest", "r.io/a/b@sha256:0", "r.io/a/b@sha256:0"),
    ("IMAGE_PULL_POLICY", "worker.image_pull_policy", "IfNotPresent", "never", "Never"),
    ("WORKER_IMAGE_PULL_SECRET", "worker.image_pull_secret", "", "pull.secret", "pull.secret"),
    ("OTTO_AGENT_COMMAND", "worker.command", DEFAULT_COMMAND, '["a", "b c"]', ("a", "b c")),
    ("WORKER_SERVICE_ACCOUNT", "worker.service_account", "", "agent", "agent"),
    ("WORKER_RUN_AS_USER", "worker.run_as_user", 1000, "2147483647", 2147483647),
    ("WORKER_CPU_REQUEST", "worker.cpu_request", "100m", ".5", ".5"),
    ("WORKER_CPU_LIMIT", "worker.cpu_limit", "1", "2", "2"),
    ("WORKER_MEMORY_REQUEST", "worker.memory_request", "128Mi", "5e8", "5e8"),
    ("WORKER_MEMORY_LIMIT", "worker.memory_limit", "512Mi", "1G", "1G"),
    ("WORKER_NODE_SELECTOR", "worker.node_selector", {}, '{"a.b/c": "", "d": "e"}', {"a.b/c": "", "d": "e"}),
    ("WORKER_TOLERATIONS", "worker.tolerations", (), '[{"operator": "Exists"}]', ({"operator": "Exists"},)),
    ("WORKER_DEADLINE_S", "worker.deadline_s", 21600, "0", 0),
    ("PENDING_TIMEOUT_S", "worker.pending_timeout_s", 900, "1", 1),
    ("IMAGE_PULL_GRACE_S", "worker.image_pull_grace_s", 30, "0", 0),
    ("TERMINATION_GRACE_S", "worker.termination_grace_s", 30, "5", 5),
    ("INFRA_RETRIES", "worker.infra_retries", 3, "0", 0),
    ("WORKER_RETRIES", "worker.worker_retries", 0, "10", 10),
    ("KEEP_FAILED_S", "worker.keep_failed_s", 0, "302400", 302_400),
    ("KEEP_FAILED_MAX", "flow.keep_failed_max", 20, "0", 0),
    ("MAX_WORKERS", "flow.max_workers", 100, "8000", 8000),
    ("MAX_PENDING", "flow.max_pending", 0, "5", 5),
    ("READ_AHEAD", "flow.read_ahead", 32, "1", 1),
    ("ADMIT_MAX", "flow.admit_max", 10_000, "1", 1),
    ("MAX_PODS_PER_EVENT", "flow.max_pods_per_event", 1000, "1", 1),
    ("POLICY_FILE", "flow.policy_file", None, __file__, __file__),
    ("TENANT_FIELD", "flow.tenant_field", "", "repository", "repository"),
    ("LEASE_S", "flow.lease_s", 15, "3", 3),
    ("SHUTDOWN_GRACE_S", "flow.shutdown_grace_s", 20, "1", 1),
    ("HTTP_PORT", "web.port", 8080, "0", 0),
    ("HTTP_ADDRESS", "web.address", "127.0.0.1", "::", "::"),
    ("HTTP_TOKEN_FILE", "web.token_file", None, __file__, __file__),
    ("LOG_HANDLER_ADDRESS", "log_handler.address", None, "[::1]:50051", ("::1", 50051)),
    ("LOG_HANDLER_CA_FILE", "log_handler.ca_file", None, certifi.where(), certifi.where()),
    ("LOG_HANDLER_CERT_FILE", "log_handler.cert_file", None, __file__, __file__),
    ("LOG_HANDLER_KEY_FILE", "log_handler.key_file", None, __file__, __file__),
    ("LOG_HANDLER_TOKEN_FILE", "log_handler.token_file", None, __file__, __file__),
    ("LOG_HANDLER_PLAINTEXT", "log_handler.plaintext", False, "true", True),
    ("WORKER_LOGS", "worker_logs", "controller", "None", "none"),
    ("LOG_DRAIN_S", "log_handler.drain_s", 10, "0", 0),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "traces.endpoint", None, "http://[::1]:4318/a/", "http://[::1]:4318/a"),
    (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "traces.headers",
        (),
        " Authorization = Bearer%20a%3D== ,x-team=a b",
        (("authorization", "Bearer a==="), ("x-team", "a b")),
    ),
    ("LOG_LEVEL", "log.level", "INFO", "debug", "DEBUG"),
    ("LOG_FORMAT", "log.format", None, "TEXT", "text"),
]
#: Variables with a value that is never shown.
SECRETS = {"REDIS_PASSWORD", "OTEL_EXPORTER_OTLP_HEADERS"}
#: What must be set beside a variable, for it to make sense.
BESIDE = {
    "REDIS_SENTINELS": {"REDIS_SENTINEL_MASTER": "main"},
    "REDIS_SENTINEL_MASTER": {"REDIS_SENTINELS": "a:1"},
    "REDIS_CA_FILE": {"REDIS_TLS": "true"},
    "LOG_HANDLER_CERT_FILE": {"LOG_HANDLER_KEY_FILE": __file__},
    "LOG_HANDLER_KEY_FILE": {"LOG_HANDLER_CERT_FILE": __file__},
}
WRONG: list[tuple[str, str]] = [
    *[("REDIS_HOST", value) for value in ("redis://h", "h:1", "a b", "-", "a..b", ".a", "a..", "a" * 64)],
    *[("HTTP_ADDRESS", value) for value in ("a..b", f"{'a.' * 127}a")],
    *[("REDIS_PORT", value) for value in ("0", "65536", "1_0", "0x1", "1.0", "x", "9" * 5000)],
    *[("REDIS_BLOCK_MS", value) for value in ("0", "10001")],
    *[("REDIS_TLS", value) for value in ("on", "2")],
    *[("REDIS_SENTINELS", value) for value in ("a", "a:0", "a:65536", ":1", "a:1;b:2")],
    ("WORKER_LOGS", "all"),
    ("LOG_DRAIN_S", "-1"),
    *[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", value)
        for value in (
            "collector:4318",
            "grpc://c:4318",
            "http://",
            "http://c:4317",
            "http://c:0",
            "http://c:x",
            "http://c:99999",
            "http://c:4318?a=b",
            "http://c:4318/#a",
            "http://a b",
            "http://a..b",
            "http://[::1",
            "http://c/<",
            "http://c/\u202e",
        )
    ],
    *[
        ("OTEL_EXPORTER_OTLP_HEADERS", value)
        for value in (
            "token",
            "=x",
            "a b=x",
            "a=",
            "a=%20",
            "a=x,",
            "a=x,,b=y",
            "a=x,A=y",
            "a=x;y",
            'a="x"',
            "a=%zz",
            "a=100%",
            "a=x%0d%0ab: y",
            "a=x%00",
            "a=%c3%a9",
            "a=é",
            "a=x\ny",
            "Content-Length=5",
            "host=x",
        )
    ],
    ("LOG_HANDLER_ADDRESS", "otto-handler"),
    ("REDIS_DB", "-1"),
    *[("TENANT_FIELD", value) for value in ("Team", "a b", "pod_count", "priority", "metadata", "worker_index")],
    ("REDIS_STREAM", "a b"),
    ("REDIS_CONSUMER_GROUP", "a\tb"),
    *[("INSTANCE", value) for value in ("a:b", "-a", "a.", "x" * 64)],
    *[("NAMESPACE", value) for value in ("Ci", "a.b", "a-", "x" * 64)],
    *[("WORKER_IMAGE_PULL_SECRET", value) for value in ("A", "a..b", "a/b", "x" * 254)],
    ("WORKER_SERVICE_ACCOUNT", "a_b"),
    ("OTTO_AGENT_IMAGE", "busy box"),
    ("IMAGE_PULL_POLICY", "Sometimes"),
    *[("OTTO_AGENT_COMMAND", value) for value in ("[]", '["a", 1]', '["a"', '["", "a"]')],
    *[("WORKER_RUN_AS_USER", value) for value in ("0", "-1", "2147483648", "root")],
    *[("WORKER_CPU_LIMIT", value) for value in ("0", "-1", "1.0005", "1 m", "1mi")],
    *[("WORKER_MEMORY_LIMIT", value) for value in ("512m", "1Zi", "x", "1.3")],
    *[("WORKER_NODE_SELECTOR", value) for value in ("[]", "{", '{"a": 1}', '{"-": "a"}', '{"a": "b c"}')],
    *[("WORKER_TOLERATIONS", value) for value in ("{}", "[1]", '[{"keys": "a"}]', '[{"key": "a", "effect": "No"}]')],
    *[("WORKER_TOLERATIONS", value) for value in ("[{}]", '[{"operator": "Exists", "value": "a"}]', '[{"key": 1}]')],
    ("WORKER_TOLERATIONS", '[{"key": "a", "tolerationSeconds": 5}]'),
    ("WORKER_DEADLINE_S", "-1"),
    ("LEASE_S", "2"),
    ("MAX_WORKERS", "0"),
    ("WORKER_RETRIES", "11"),
    *[("KEEP_FAILED_S", value) for value in ("-1", "604801", "302401", "1h")],
    *[("KEEP_FAILED_MAX", value) for value in ("-1", "10001")],
    *[("HTTP_PORT", value) for value in ("-1", "65536", "http")],
    ("HTTP_ADDRESS", "http://localhost"),
    ("LOG_LEVEL", "loud"),
    ("LOG_FORMAT", "xml"),
    *[(name, "/nowhere/at/all") for name in ("REDIS_PASSWORD_FILE", "REDIS_CA_FILE", "KUBECONFIG", "HTTP_TOKEN_FILE")],
    ("REDIS_CA_FILE", __file__),
]


class Recording(dict[str, str]):
    """An environment that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def load(**environ: str) -> Settings:
    """The settings from these variables, on a machine called host-1, outside a cluster."""
    return Settings.load(environ, "host-1", None)


def faults(**environ: str) -> tuple[str, ...]:
    """What is said about these variables."""
    with pytest.raises(ConfigError) as caught:
        load(**environ)
    return caught.value.faults


def at(found: object, path: str) -> object:
    """The value at a dotted path."""
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.contract("2 environment")
@pytest.mark.parametrize(("path", "default"), [row[1:3] for row in VARIABLES], ids=[row[0] for row in VARIABLES])
def test_defaults_are_as_promised(path: str, default: object) -> None:
    """Without any variable each value is the documented default."""
    assert at(load(), path) == default


@pytest.mark.contract("2 environment")
@pytest.mark.parametrize(("name", "path", "default", "value", "expected"), VARIABLES, ids=[row[0] for row in VARIABLES])
def test_a_variable_is_read(name: str, path: str, default: object, value: str, expected: object) -> None:
    """Each variable arrives at its place, in its type."""
    assert at(load(**BESIDE.get(name, {}), **{name: value}), path) == expected
    assert expected != default


def test_no_variable_is_read_that_is_not_promised() -> None:
    """The tables here and the program ask for the same names."""
    environ = Recording()
    Settings.load(environ, "host-1", None)
    assert environ.asked == {row[0] for row in VARIABLES} | set(settings.UNSUPPORTED_VARIABLES) | {"ENV_FILE"}


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value[:30]}" for name, value in WRONG])
def test_a_wrong_value_is_a_fault(name: str, value: str) -> None:
    """One line that begins with the variable and its value, and says what is expected."""
    (line,) = (line for line in faults(**BESIDE.get(name, {}), **{name: value}) if line.startswith(f"{name}="))
    assert ("***" if name in SECRETS else repr(value)[1:20].rstrip("'")) in line
    assert ": expected " in line
    assert "\n" not in line
    assert len(line) < 300


def test_all_faults_come_at_once() -> None:
    """A configuration is mended in one go."""
    lines = faults(REDIS_PORT="x", MAX_WORKERS="x", LOG_LEVEL="x", WORKER_TOLERATIONS="x")
    assert [line.split("=")[0] for line in lines] == ["REDIS_PORT", "WORKER_TOLERATIONS", "MAX_WORKERS", "LOG_LEVEL"]


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"REDIS_PASSWORD": "x", "REDIS_PASSWORD_FILE": __file__}, "REDIS_PASSWORD_FILE"),
        ({"REDIS_SENTINELS": "a:1"}, "REDIS_SENTINEL_MASTER"),
        ({"REDIS_SENTINEL_MASTER": "a"}, "REDIS_SENTINELS"),
        ({"REDIS_CA_FILE": certifi.where()}, "REDIS_TLS"),
        ({"WORKER_CPU_REQUEST": "1001m"}, "WORKER_CPU_REQUEST"),
        ({"WORKER_MEMORY_LIMIT": "100Mi"}, "WORKER_MEMORY_REQUEST"),
        ({"RESULT_STREAM": "otto:scale:events"}, "RESULT_STREAM"),
        ({"DEAD_LETTER_STREAM": "otto:scale:results"}, "DEAD_LETTER_STREAM"),
        ({"REDIS_CONSUMER_GROUP": "otto:ci"}, "INSTANCE"),
        ({"REDIS_STREAM": "otto:scale:open"}, "REDIS_STREAM"),
        ({"RESULT_STREAM": "otto:scale:task:1-1"}, "RESULT_STREAM"),
        ({"DEAD_LETTER_STREAM": "q:choices", "KEY_PREFIX": "q:"}, "DEAD_LETTER_STREAM"),
        ({"RESULT_STREAM": "q:key:deploy", "KEY_PREFIX": "q:"}, "RESULT_STREAM"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_do_not_go_together_are_a_fault(environ: dict[str, str], named: str) -> None:
    """What each value alone does not show is found as well."""
    (line,) = faults(**environ)
    assert line.startswith(f"{named}=")


def test_every_key_of_ours_is_no_name_of_a_stream() -> None:
    """Also one that is added later; below another prefix the same name is free."""
    key = RedisKeys("q:")
    made = [name for name in vars(key).values() if name != "q:"] + [key.task("a"), key.consumer("a")]
    assert len(made) > 5
    for name in made:
        (line,) = faults(KEY_PREFIX="q:", REDIS_STREAM=name)
        assert line.startswith(f"REDIS_STREAM='{name}'")
        assert load(KEY_PREFIX="r:", REDIS_STREAM=name).keys.stream == name


def test_no_secret_is_shown() -> None:
    """Neither in a fault, nor in what is printed of the settings, nor from a line of the file."""
    shown = "\n".join(
        faults(REDIS_PASSWORD="hunter22", REDIS_PASSWORD_FILE="/nowhere", REDIS_HOST="redis://:hunter22@h")
    )
    assert "hunter22" not in shown + repr(load(REDIS_PASSWORD="hunter22"))
    (line,) = faults(OTEL_EXPORTER_OTLP_HEADERS="authorization=hunter22;x")
    assert line.startswith("OTEL_EXPORTER_OTLP_HEADERS=***: expected name=value,")
    assert "hunter22" not in line + repr(load(OTEL_EXPORTER_OTLP_HEADERS="authorization=hunter22"))


@pytest.mark.parametrize(
    "name", ["REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_SENTINELS", "HTTP_ADDRESS", "HTTP_PORT"]
)
@pytest.mark.parametrize(
    "value",
    [
        "redis://:hunter22@h:1",
        "rediss://u:hunter22@h/0",
        "redis://u:hun/ter22@h",
        "redis://u:hun#ter22?@h",
        "redis://u:hun@ter22@h",
        "u:hunter22@h",
        ":hunter22@h:1",
        "u:hunter22@h:1,u:hunter22@i:1",
        "1?password=hunter22",
        "redis://h?db=1&Password=hunter22&x=1",
    ],
)
def test_the_secret_of_an_address_is_not_shown(name: str, value: str) -> None:
    """A user gives a whole URL where only a host or a port is expected; the rest of it is shown."""
    shown = "\n".join(faults(**BESIDE.get(name, {}), **{name: value}))
    assert f"{name}=" in shown
    assert "ter22" not in shown
    assert "***" in shown


@pytest.mark.parametrize("name", sorted({row[0] for row in VARIABLES} | SECRETS))
def test_a_value_that_is_not_utf_8_is_a_fault(name: str) -> None:
    """Neither Redis nor Kubernetes could take it later. One line names it, and never shows a secret."""
    lines = faults(**BESIDE.get(name, {}), **{name: "hunter22\udcff"})
    (line,) = (line for line in lines if line.endswith(": expected UTF-8"))
    assert line.startswith(f"{name}=")
    assert ("hunter22" in line) == (name not in SECRETS)
    assert line.isascii()


def test_a_password_file_that_is_no_text_is_a_fault(tmp_path: Path) -> None:
    """Said at the start, and not at the first connection; a file without end is not read to its end."""
    file = tmp_path / "password"
    file.write_bytes(b"hunter22\xff")
    assert faults(REDIS_PASSWORD_FILE=str(file)) == (
        f"REDIS_PASSWORD_FILE='{file}': expected a readable text file (not UTF-8)",
    )
    endless = "expected a readable text file (larger than 1 MiB)"
    assert faults(REDIS_PASSWORD_FILE="/dev/zero") == (f"REDIS_PASSWORD_FILE='/dev/zero': {endless}",)
    assert faults(ENV_FILE="/dev/zero") == (f"ENV_FILE='/dev/zero': {endless}",)


def test_an_empty_variable_counts_as_not_set() -> None:
    """A template with an empty value means the default."""
    assert load(**{row[0]: "" for row in VARIABLES}) == load()


def test_space_around_a_value_does_not_count() -> None:
    """A line end at the end of a value, as a file makes it, is no part of it."""
    assert load(REDIS_HOST=" redis\n", REDIS_PORT="1\n").redis == load(REDIS_HOST="redis", REDIS_PORT="1").redis


def test_the_pod_has_its_own_namespace_as_default() -> None:
    """Workers live beside their controller unless set otherwise."""
    assert Settings.load({}, "h", "ci").kube.namespace == "ci"


@pytest.mark.contract("2.HTTP_ADDRESS")
def test_in_a_cluster_probes_are_answered_on_all_addresses() -> None:
    """The kubelet asks from outside; on one's own machine no other host is to ask."""
    assert Settings.load({}, "h", "ci").web.address == "::"
    assert Settings.load({"HTTP_ADDRESS": "10.0.0.1"}, "h", "ci").web.address == "10.0.0.1"


@pytest.mark.parametrize("name", ["HTTP_ADDRESS", "REDIS_HOST"])
@pytest.mark.parametrize(
    ("given", "host"),
    [("[::]", "::"), ("[::1]", "::1"), ("::1", "::1"), ("[fd00::2]", "fd00::2"), ("1.2.3.4", "1.2.3.4")],
)
def test_an_ipv6_address_may_stand_in_brackets(name: str, given: str, host: str) -> None:
    """As it has to in a URL, and in REDIS_SENTINELS."""
    loaded = load(**{name: given})
    assert (loaded.web.address if name == "HTTP_ADDRESS" else loaded.redis.host) == host


@pytest.mark.parametrize("value", ["[::1", "::1]", "[localhost]", "[1.2.3.4]", "[]", "[[::1]]", "[::1]:80"])
def test_other_brackets_are_a_fault(value: str) -> None:
    """Only an IPv6 address has them."""
    (line,) = faults(HTTP_ADDRESS=value)
    assert line.startswith("HTTP_ADDRESS=")


def test_the_group_is_the_default_instance() -> None:
    """Two groups in one namespace do not touch each other's pods."""
    assert load(REDIS_CONSUMER_GROUP="ci").instance == "ci"


@pytest.mark.parametrize("line", ["run --now", "[ -f x ] && y", "[[ a ]]"])
def test_a_line_is_for_the_shell(line: str) -> None:
    """Also one that begins with a bracket."""
    assert load(OTTO_AGENT_COMMAND=line).worker.command == ("/bin/sh", "-c", line)


def test_several_kubeconfigs_are_left_to_the_client() -> None:
    """As with kubectl, some of them may be missing."""
    assert load(KUBECONFIG="/nowhere:/neither").kube.kubeconfig == "/nowhere:/neither"


def test_what_has_no_effect_yet_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the start can say so."""
    monkeypatch.setattr(settings, "UNSUPPORTED_VARIABLES", ("A_LATER_ONE", "ANOTHER"))
    assert load(A_LATER_ONE="true", WORKER_LOGS="agent").unsupported_variables == ("A_LATER_ONE",)


def test_the_file_supplies_and_the_environment_wins(tmp_path: Path) -> None:
    """Comments, quotes, `export` and spaces are understood."""
    file = tmp_path / "env"
    file.write_text(
        '# comment\n\nexport REDIS_HOST=file # why\nREDIS_PORT = \'1\'\nREDIS_PASSWORD="a \\"#b\\\\ "  # why\n'
        'WORKER_NODE_SELECTOR={"a": "b"}\nREDIS_STREAM=a#b\nREDIS_USERNAME=\nMAX_WORKERS=7\nREDIS_DB=0\n'
    )
    loaded = load(ENV_FILE=str(file), MAX_WORKERS="8")
    assert (loaded.redis.host, loaded.redis.port, loaded.redis.password) == ("file", 1, 'a "#b\\ ')
    assert (loaded.keys.stream, loaded.redis.username) == ("a#b", None)
    assert loaded.worker.node_selector == {"a": "b"}
    assert loaded.flow.max_workers == 8


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("a b", "a b"),
        ("a#b", "a#b"),
        ("a # b", "a"),
        ("a\t# b", "a"),
        ("a #", "a"),
        ("# b", None),
        (" # b", None),
        ('"a # b"', "a # b"),
        ("'a # b'", "a # b"),
        ("'a # b' # c", "a # b"),
        ('"a \\" # b" # c', 'a " # b'),
        ('sh -c "echo # hi"', 'sh -c "echo # hi"'),
        ("sh -c 'echo # hi' # c", "sh -c 'echo # hi'"),
        ('sh -c "a # b" && echo "c # d" # e', 'sh -c "a # b" && echo "c # d"'),
        ('{"a": "b # c"}', '{"a": "b # c"}'),
        ('{"a": "b \\" # c"} # d', '{"a": "b \\" # c"}'),
        ('["sh", "-c", "echo # hi"]', '["sh", "-c", "echo # hi"]'),
        ("it's", "it's"),
        ("it's fine", "it's fine"),
        ('say "it\'s # 1" # c', 'say "it\'s # 1"'),
        ('5" disk', '5" disk'),
        ("a'b'c", "a'b'c"),
        ("a # it's", "a"),
        ('a # say "b', "a"),
    ],
)
def test_a_hash_inside_quotes_is_a_hash(tmp_path: Path, line: str, value: str | None) -> None:
    """Wherever in the value the quotes begin: nothing is cut off without a word."""
    file = tmp_path / "env"
    file.write_text(f"REDIS_USERNAME= {line}\n")
    read, found = read_env_file(str(file))
    assert (read, found) == ({"REDIS_USERNAME": value or ""}, [])


@pytest.mark.parametrize("line", ["it's # b", 'a "b # c', 'sh -c "echo # hi', "a 'b\" # c"])
def test_a_hash_behind_an_open_quote_is_a_fault(tmp_path: Path, line: str) -> None:
    """It cannot be known whether it begins a comment."""
    file = tmp_path / "env"
    file.write_text(f"REDIS_USERNAME={line}\n")
    (fault,) = faults(ENV_FILE=str(file))
    assert "before a # every quote closed" in fault


@pytest.mark.parametrize("line", ["REDIS_HOST", "1A=b", "A='b", 'A="b', "A='b'c", "=hunter22", "A B=c"])
def test_a_bad_line_of_the_file_is_a_fault(tmp_path: Path, line: str) -> None:
    """File and line are named; the line is not shown, for it may hold a secret."""
    file = tmp_path / "env"
    file.write_text(f"REDIS_DB=1\n{line}\n")
    (fault,) = faults(ENV_FILE=str(file))
    assert f"{file}': line 2: expected KEY=VALUE" in fault
    assert line not in fault.replace("KEY=VALUE", "")


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """Missing, a directory, or no text: the start says which file."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        (fault,) = faults(ENV_FILE=str(path))
        assert fault.startswith(f"ENV_FILE='{path}': expected a readable text file")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100m", Fraction(1, 10)),
        ("1", 1),
        ("1.5", Fraction(3, 2)),
        ("2k", 2000),
        ("1Ki", 1024),
        ("1Mi", 2**20),
        ("1Gi", 2**30),
        ("1E", 10**18),
        ("1e3", 1000),
        ("1E-3", Fraction(1, 1000)),
        ("", None),
        ("1KI", None),
        ("m", None),
        ("1e", None),
        ("٣", None),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, value: object) -> None:
    """Decimal and binary suffixes, and exponents."""
    assert quantity(text) == value


@given(st.dictionaries(st.sampled_from([row[0] for row in VARIABLES]), st.text()))
def test_any_environment_gives_settings_or_faults(environ: Mapping[str, str]) -> None:
    """Nothing else comes out, whatever goes in; and each fault is one line."""
    lines: tuple[str, ...] = ()
    try:
        Settings.load(environ, "host-1", None)
    except ConfigError as error:
        lines = error.faults
    assert all(len(line.splitlines()) == 1 for line in lines)


def _undocumented() -> Iterator[str]:
    trees = [ast.parse(Path(one.__file__).read_text(encoding="utf-8")) for one in (settings, settings_worker)]
    for group in [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]:
        for field, after in zip(group.body, [*group.body[1:], None], strict=True):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and not documented:
                yield f"{group.name}.{ast.unparse(field.target)}"


def test_each_field_is_documented() -> None:
    """Every value has its docstring; only the groups of `Settings` speak for themselves."""
    groups = {f"Settings.{field.name}" for field in fields(Settings) if is_dataclass(getattr(load(), field.name))}
    assert set(_undocumented()) == groups
