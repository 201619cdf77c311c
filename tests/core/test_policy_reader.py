"""From a policy file's data to a policy: every fault is found, with its place; nothing is guessed."""

from __future__ import annotations

import copy
from typing import Any, Final

import pytest

from ottoscaler.core.policy import Policy
from ottoscaler.core.policy_reader import read_policy
from ottoscaler.core.policy_values import Path
from ottoscaler.core.shares import Share
from tests.core.policies import EXAMPLE

contract = pytest.mark.contract

PUBLISH: Final = ("profiles", "publish")
NODE: Final = ("profiles", "node20")
FULL: Final = ("profiles", "full")
SCRATCH: Final = (*FULL, "volumes", 0)
DB: Final = (*FULL, "services", 0)


def changed(path: Path, value: object) -> dict[str, Any]:
    """The example with another value at that path; `...` takes the field out."""
    data = copy.deepcopy(EXAMPLE)
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def faults(data: object) -> list[tuple[Path, str]]:
    """What is wrong with the data."""
    found = read_policy(data)
    assert isinstance(found, list), found
    return found


def test_the_example_is_read() -> None:
    """With its numbers as integers of one unit."""
    found = read_policy(EXAMPLE)
    assert isinstance(found, Policy)
    assert (found.max_cpu_m, found.max_memory, found.max_pod_count) == (4000, 8 * 2**30, 200)
    assert found.profiles["node20"].memory == "1Gi"
    assert found.tenants.of("team-a") == Share(weight=3, max_workers=60)
    assert found.tenants.of("other") == found.tenants.of("default") == found.tenants.of("") == Share(max_workers=20)


@contract("2.POLICY_FILE")
def test_the_smallest_policy_allows_nothing() -> None:
    """Default deny."""
    found = read_policy({"version": 1})
    assert isinstance(found, Policy)
    assert (found.profiles, found.images, found.commands, found.env) == ({}, (), False, ())


#: Where no volume may be mounted, and why.
MOUNTS: Final = [
    *((where, "absolute path") for where in ("", "/", "cache", "/a/", "/a//b", "/a/../b", "/./a")),
    *((where, "absolute path") for where in ("/a:b", "/a b", "/a\n")),
    *((where, "own directory") for where in ("/workspace",)),
    *((where, "the node mounts") for where in ("/dev", "/dev/termination-log", "/proc/1", "/sys", "/run/secrets/x")),
    *((where, "the node mounts") for where in ("/var/run", "/var/run/secrets/kubernetes.io", "/etc/resolv.conf")),
    *((where, "would hide files") for where in ("/etc", "/usr", "/bin", "/usr/lib", "/lib64", "/var", "/etc/ssl")),
]  # fmt: skip

WRONG: Final[list[tuple[Path, object, str]]] = [
    (("version",), 2, "1 is expected"),
    (("version",), "1", "1 is expected"),
    (("images",), [], "a map is expected"),
    (("images", "allow"), "registry/**", "a list is expected"),
    (("images", "allow", 0), 1, "a text is expected"),
    (("images", "allow", 0), "*.example.com/x:1:1", "a pattern like"),
    (("images", "digest_only"), "yes", "true or false"),
    (("images", "deny"), [], "unknown; one of allow, digest_only"),
    (("command", "allow"), 1, "true or false"),
    (("command", "max_items"), 0, "from 1 to 1024"),
    (("command", "max_bytes"), True, "a whole number"),
    (("env", "allow", 0), "ci", "the name of a variable"),
    (("env", "allow", 0), "LD_PRELOAD", "cannot be allowed"),
    (("env", "allow", 0), False, "a text is expected"),
    (("max", "cpu"), "0.0001", "cores like"),
    (("max", "memory"), "128m", "bytes like"),
    (("max", "memory"), None, "bytes like"),
    (("max", "deadline_s"), 2_592_001, "from 1 to 2592000"),
    (("max", "retries"), 11, "from 0 to 10"),
    (("max", "priority"), 10, "from 0 to 9"),
    (("max", "pod_count"), 0, "from 1"),
    (("max", "gpus"), 1, "unknown"),
    (("default_profile",), "other", "is no profile"),
    (("tenant",), {}, "unknown"),
    (("logs",), [], "a map is expected"),
    (("logs", "mask"), "corp-[a-z]{4}", "a list is expected"),
    (("logs", "mask"), ["corp-[a-z]{4}"] * 33, "33 patterns; at most 32"),
    (("logs", "mask", 0), 1, "a text is expected"),
    (("logs", "mask", 0), "corp-(", "not a regular expression: missing )"),
    (("logs", "mask", 0), "corp-(a+)+", "possible only once, at the end"),
    (("tenants",), [], "a map is expected"),
    (("tenants", ""), {}, "is not of the form"),
    (("tenants", "a" * 129), {}, "is not of the form"),
    (("tenants", "a\n"), {}, "is not of the form"),
    (("tenants", "a"), 3, "a map is expected"),
    (("tenants", "team-a", "weight"), 0, "from 1 to 100"),
    (("tenants", "team-a", "max_workers"), 0, "from 1"),
    (("tenants", "team-a", "max_workers"), "many", "a whole number"),
    (("tenants", "team-a", "profile"), "plain", "unknown; one of max_workers, weight"),
    (("profiles",), [], "a map is expected"),
    (("profiles", "Node"), {}, "is not of the form"),
    (("profiles", "plain", "overrides"), {}, "a list is expected"),
    (("profiles", "plain", "overrides", 0), "pod_spec", "one of args"),
    (("profiles", "plain", "overrides", 0), "profile", "one of args"),
    (("profiles", "plain", "pod_spec_patch"), "x", "unknown"),
    ((*NODE, "image"), "a b", "an image like"),
    ((*NODE, "command"), "npm test", "a list is expected"),
    ((*NODE, "command", 0), 1, "a text is expected"),
    ((*NODE, "args", 0), "a\0", "NUL"),
    ((*NODE, "env", "OTTO_X"), "1", "set by the controller"),
    ((*NODE, "env", "CI"), True, "a text is expected"),
    ((*NODE, "env", "ci"), "1", "is not of the form"),
    ((*NODE, "node_selector", "a b"), "1", "no name of a label"),
    ((*NODE, "node_selector", "pool"), "a b", "the form"),
    ((*NODE, "tolerations", 0), {"operator": "Exists"}, "key is missing"),
    ((*NODE, "tolerations", 0, "key"), "node-role.kubernetes.io/control-plane", "control plane"),
    ((*NODE, "tolerations", 0, "operator"), "Any", "the form"),
    ((*NODE, "tolerations", 0, "value"), "x", "there is none with the operator Exists"),
    ((*NODE, "deadline_s"), 0, "from 1"),
    ((*NODE, "retries"), -1, "from 0 to 10"),
    ((*PUBLISH, "secret_env", 0), {"name": "A", "secret": "ottoscaler-worker-a"}, "key is missing"),
    ((*PUBLISH, "secret_env", 0, "secret"), "ottoscaler-redis", "begins with ottoscaler-worker-"),
    ((*PUBLISH, "secret_env", 0, "name"), "OTTO_X", "set by the controller"),
    ((*PUBLISH, "secret_env", 0, "name"), "HOME", "set by the controller"),
    ((*PUBLISH, "secret_env", 0, "name"), "TRACEPARENT", "set by the controller"),
    ((*FULL, "ephemeral_storage"), "1m", "bytes like"),
    ((*FULL, "oom_memory_factor"), 1, "a number from 1.1 to 10"),
    ((*FULL, "oom_memory_factor"), 10.5, "a number from 1.1 to 10"),
    ((*FULL, "oom_memory_factor"), "2", "a number from 1.1 to 10"),
    ((*FULL, "oom_memory_factor"), True, "a number from 1.1 to 10"),
    ((*FULL, "runtime_class"), "g visor", "the form"),
    ((*FULL, "host_users"), "no", "true or false"),
    ((*FULL, "disruption_budget"), "yes", "true or false"),
    ((*FULL, "worker_logs"), "all", "controller|agent|none"),
    ((*FULL, "worker_logs"), False, "a text is expected"),
    ((*FULL, "priority_class"), "system-node-critical", "is for Kubernetes itself"),
    ((*FULL, "pull_secrets"), "registry", "a list is expected"),
    ((*FULL, "pull_secrets", 0), "../registry", "the form"),
    ((*FULL, "pull_secrets", 0), {}, "a text is expected"),
    ((*FULL, "volumes"), {}, "a list is expected"),
    (SCRATCH, {"mount": "/a", "empty_dir": "1Gi"}, "name is missing"),
    (SCRATCH, {"name": "a", "empty_dir": "1Gi"}, "mount is missing"),
    (SCRATCH, {"name": "a", "mount": "/a"}, "one of empty_dir, claim, config_map, secret is expected"),
    (SCRATCH, {"name": "a", "mount": "/a", "empty_dir": "1Gi", "claim": "ottoscaler-worker-a"}, "one of empty_dir"),
    (SCRATCH, {"name": "a", "mount": "/a", "host_path": "/"}, "unknown"),
    ((*SCRATCH, "name"), "workspace", "the worker's own directory"),
    ((*SCRATCH, "name"), "A", "the form"),
    ((*SCRATCH, "empty_dir"), {}, "bytes like"),
    ((*SCRATCH, "read_only"), True, "only a claim"),
    ((*FULL, "volumes", 1, "claim"), "cache", "begins with ottoscaler-worker-"),
    ((*FULL, "volumes", 1, "read_only"), 1, "true or false"),
    ((*FULL, "volumes", 3, "config_map"), "kube-root-ca.crt", "begins with ottoscaler-worker-"),
    ((*FULL, "volumes", 4, "secret"), "ottoscaler-redis", "begins with ottoscaler-worker-"),
    ((*FULL, "services"), {}, "a list is expected"),
    (DB, {"image": "redis:7", "ready": {"tcp": 1}}, "name is missing"),
    (DB, {"name": "a", "ready": {"tcp": 1}}, "image is missing"),
    (DB, {"name": "a", "image": "redis:7"}, "ready is missing: the worker would start before it"),
    (DB, {"name": "a", "image": "redis:7", "ready": {"tcp": 1}, "ports": [1]}, "unknown"),
    ((*DB, "name"), "agent", "the worker's own container"),
    ((*DB, "name"), "Db", "the form"),
    ((*DB, "image"), "a b", "an image like"),
    ((*DB, "args"), "-c", "a list is expected"),
    ((*DB, "env", "OTTO_TASK_ID"), "x", "set by the controller"),
    ((*DB, "memory"), "128m", "bytes like"),
    ((*DB, "cpu"), "0.0001", "cores like"),
    ((*DB, "ready"), [], "a map is expected"),
    ((*DB, "ready"), {}, "one of tcp (a port) and exec (a command) is expected"),
    ((*DB, "ready"), {"tcp": 1, "exec": ["a"]}, "one of tcp (a port) and exec (a command) is expected"),
    ((*DB, "ready", "http"), "/", "unknown"),
    ((*DB, "ready", "exec"), "pg_isready", "a list is expected"),
    ((*DB, "ready", "exec"), [], "a command is expected"),
    ((*DB, "ready", "timeout_s"), 3601, "from 1 to 3600"),
    ((*FULL, "services", 1, "ready", "tcp"), 0, "from 1 to 65535"),
    *(((*SCRATCH, "mount"), where, sentence) for where, sentence in MOUNTS),
]  # fmt: skip


@contract("2.POLICY_FILE")
@pytest.mark.parametrize(("path", "value", "sentence"), WRONG, ids=lambda one: str(one)[:40])
def test_a_fault_has_its_place(path: Path, value: object, sentence: str) -> None:
    """The path of what is wrong, and what is expected."""
    found = faults(changed(path, value))
    assert [(where, text) for where, text in found if where[: len(path)] == path and sentence in text], found


@contract("2.POLICY_FILE")
def test_all_faults_are_found_at_once() -> None:
    """The author of the file mends it in one go."""
    data = changed(("version",), 7)
    data["max"]["retries"] = 99
    data["profiles"]["plain"]["x"] = 1
    assert {path for path, _ in faults(data)} == {("version",), ("max", "retries"), ("profiles", "plain", "x")}


@pytest.mark.parametrize("data", [None, [], "version: 1", 1])
def test_what_is_no_map_is_no_policy(data: object) -> None:
    """An empty file allows nothing, and is a slip all the same."""
    assert faults(data)[0] == ((), "a map is expected")


@contract("3.profile")
@pytest.mark.parametrize("field", ["image", "command"])
def test_a_profile_with_secrets_sets_image_and_command(field: str) -> None:
    """Otherwise the configured image would get the secret."""
    assert ((*PUBLISH, "secret_env"), f"a profile with secrets has to set {field}") in faults(
        changed((*PUBLISH, field), ...)
    )


@contract("3.profile")
@pytest.mark.parametrize("field", ["image", "command", "args", "env"])
def test_a_profile_with_secrets_lets_nothing_print_them(field: str) -> None:
    """An event with one of these could."""
    sentence = f"a profile with secrets does not let events set {field}"
    assert ((*PUBLISH, "overrides"), sentence) in faults(changed((*PUBLISH, "overrides"), ["deadline_s", field]))


@contract("3.profile")
@pytest.mark.parametrize("field", ["image", "command"])
def test_a_profile_with_a_secret_volume_sets_them_too(field: str) -> None:
    """The file could be printed as well as the variable."""
    assert ((*FULL, "volumes"), f"a profile with secrets has to set {field}") in faults(changed((*FULL, field), ...))


@contract("3.profile")
@pytest.mark.parametrize("field", ["image", "command", "args", "env"])
def test_a_secret_volume_is_printed_by_no_event(field: str) -> None:
    """As with secret_env."""
    sentence = f"a profile with secrets does not let events set {field}"
    assert faults(changed((*FULL, "overrides"), [field])) == [((*FULL, "overrides"), sentence)]


@contract("3.profile")
@pytest.mark.parametrize("inner", ["/cache", "/cache/npm", "/cache/a/b"])
@pytest.mark.parametrize("inner_first", [True, False])
def test_no_mount_is_inside_another(inner: str, inner_first: bool) -> None:
    """Whichever of them comes first: what the inner one hides would depend on the order."""
    mounts = [inner, "/cache"] if inner_first else ["/cache", inner]
    volumes = [{"name": f"v-{number}", "mount": mount, "empty_dir": "1Gi"} for number, mount in enumerate(mounts)]
    assert faults(changed((*FULL, "volumes"), volumes)) == [
        ((*FULL, "volumes"), f"{mounts[0]} and {mounts[1]} are inside one another")
    ]


@pytest.mark.parametrize(
    "mount", ["/caches", "/tmp", "/workspace/node_modules", "/home/ci", "/opt", "/etc/ci.d", "/developer"]
)
def test_other_directories_may_be_mounted(mount: str) -> None:
    """Names are compared whole."""
    assert isinstance(read_policy(changed((*SCRATCH, "mount"), mount)), Policy)


def test_volumes_are_few_and_have_names_of_their_own() -> None:
    """Two of one name would be refused by the API server, for each event."""
    assert faults(changed((*SCRATCH, "name"), "cache")) == [((*FULL, "volumes"), "the name cache is there twice")]
    many = [{"name": f"v{number}", "mount": f"/v{number}", "empty_dir": "1Gi"} for number in range(17)]
    assert faults(changed((*FULL, "volumes"), many)) == [((*FULL, "volumes"), "17 volumes; at most 16 are expected")]


@contract("3.profile")
@pytest.mark.parametrize(
    ("field", "one", "missing"),
    [
        ("services", {"image": "redis:7", "ready": {"tcp": 1}}, ["name"]),
        ("services", {"name": "a"}, ["image", "ready: the worker would start before it"]),
        ("volumes", {"mount": "/a", "empty_dir": "1Gi"}, ["name"]),
        ("volumes", {"name": "a", "empty_dir": "1Gi"}, ["mount"]),
        ("secret_env", {"secret": "ottoscaler-worker-a", "key": "k"}, ["name"]),
        ("secret_env", {"name": "A"}, ["secret", "key"]),
    ],
)
def test_what_is_incomplete_is_named_once(field: str, one: dict[str, object], missing: list[str]) -> None:
    """Two without a name have no name in common, and what is missing is not looked at any further."""
    others = [{"name": "b", "image": "redis:7", "ready": {"tcp": 2}}] if field == "services" else []
    profile = {"overrides": [], "image": "redis:7", "command": ["a"], field: [one, *others]}
    named = [sentence.partition(" is missing") for _, sentence in faults(changed(("profiles", "full"), profile))]
    assert [before + after for before, _, after in named] == missing
    if "name" in missing:
        twice = faults(changed(("profiles", "full"), {**profile, field: [one, one]}))
        assert {sentence for _, sentence in twice} == {"name is missing"}


@contract("3.profile")
def test_services_share_one_localhost() -> None:
    """Of two with one port, one would never get ready; and each has a name of its own."""
    port = {"name": "db", "image": "redis:7", "ready": {"tcp": 6379}}
    sentence = "two services cannot have the port 6379: they share the worker's localhost"
    assert faults(changed(DB, port)) == [((*FULL, "services"), sentence)]
    assert faults(changed((*DB, "name"), "cache")) == [((*FULL, "services"), "the name cache is there twice")]
    many = [{"name": f"s{number}", "image": "redis:7", "ready": {"tcp": number}} for number in range(1, 10)]
    assert faults(changed((*FULL, "services"), many)) == [((*FULL, "services"), "9 services; at most 8 are expected")]


def test_a_variable_has_one_source() -> None:
    """A value and a secret, or two secrets, would hide one another."""
    twice = [((*PUBLISH, "secret_env"), "NPM_TOKEN is set more than once")]
    token = {"name": "NPM_TOKEN", "secret": "ottoscaler-worker-npm", "key": "token"}
    assert faults(changed((*PUBLISH, "env"), {"NPM_TOKEN": "x"})) == twice
    assert faults(changed((*PUBLISH, "secret_env"), [token, token | {"key": "other"}])) == twice
    assert isinstance(read_policy(changed((*PUBLISH, "secret_env"), [token, token | {"name": "OTHER"}])), Policy)


@pytest.mark.parametrize(
    ("path", "field", "rule"),
    [
        (("images",), "image", "images.allow"),
        (("command",), "command", "command.allow: true"),
        (("command",), "args", "command.allow: true"),
        (("env",), "env", "env.allow"),
        (("max", "cpu"), "cpu", "max.cpu"),
        (("max", "memory"), "memory", "max.memory"),
        (("max", "deadline_s"), "deadline_s", "max.deadline_s"),
    ],
)
def test_what_events_may_set_needs_a_limit(path: Path, field: str, rule: str) -> None:
    """No maximum is not any amount."""
    assert (("profiles", "plain", "overrides"), f"{field} needs {rule}, which is not set") in faults(changed(path, ...))
