"""What events may override under a policy: hostile events are refused with field, value and rule, good ones pass."""

from __future__ import annotations

import json
import timeit
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core import events
from ottoscaler.core.events import BadEvent, DeadReason, ScaleEvent
from ottoscaler.core.images import parse_image, parse_pattern
from ottoscaler.core.loaders import never_set
from ottoscaler.core.manifest import AttemptKey, build_pod
from ottoscaler.core.overrides import SecretEnv
from ottoscaler.core.policy import decide
from ottoscaler.core.refusal import Violation
from ottoscaler.settings import WorkerSettings
from tests.core.builders import HASH
from tests.core.policies import DIGEST, EXAMPLE, EXAMPLE_POLICY, parsed, policy

contract = pytest.mark.contract

Fields = dict[str, str]

CI: Final = "registry.example.com/ci/x"


def accepted(fields: Fields, **changes: Any) -> ScaleEvent:
    """The event under the example, or under one with these changes."""
    found = parsed(fields, policy(**changes))
    assert isinstance(found, ScaleEvent), found
    return found


def refused(fields: Fields, **changes: Any) -> BadEvent:
    """Why it is refused."""
    found = parsed(fields, policy(**changes))
    assert isinstance(found, BadEvent), found
    return found


def pod(fields: Fields, template: WorkerSettings = WorkerSettings(), **changes: Any) -> Any:  # noqa: B008
    """The spec of the pod that the event makes."""
    event, key = accepted(fields, **changes), AttemptKey(HASH, 1, 1)
    body = build_pod(template, event, key, event_json=event.encode(), instance="otto", namespace="ci")
    return json.loads(body)["spec"]


def container(fields: Fields, **changes: Any) -> Any:
    """The container of that pod."""
    (found,) = pod(fields, **changes)["containers"]
    return found


def env(**values: str) -> Fields:
    """The field env."""
    return {"env": json.dumps(values)}


#: Events that are refused: the fields, and what the refusal names.
HOSTILE: Final[dict[str, tuple[Fields, str]]] = {
    "registry with another end": ({"image": "registry.example.com.evil.io/ci/x"}, "images.allow"),
    "registry as a path": ({"image": "evil.io/registry.example.com/ci/x"}, "images.allow"),
    "registry with a port": ({"image": "registry.example.com:443/ci/x"}, "images.allow"),
    "a dot that is any character": ({"image": "registryxexample.com/ci/x"}, "images.allow"),
    "registry as a user": ({"image": "registry.example.com@evil.io/ci/x"}, "an image like"),
    "registry with a scheme": ({"image": "https://registry.example.com/ci/x"}, "an image like"),
    "registry in upper case": ({"image": "REGISTRY.example.com/ci/x"}, "an image like"),
    "registry of Docker Hub": ({"image": "nginx"}, "images.allow"),
    "another name of Docker Hub": ({"image": "index.docker.io/library/nginx"}, "images.allow"),
    "another tag": ({"image": "node:21"}, "images.allow"),
    "no tag": ({"image": "node"}, "images.allow"),
    "a user's image of that name": ({"image": "evil/node:20"}, "images.allow"),
    "an image with that beginning": ({"image": "node-evil:20"}, "images.allow"),
    "an image below that name": ({"image": "library/node/evil:20"}, "images.allow"),
    "a tag beside a digest": ({"image": f"node:20@{DIGEST}"}, "images.allow"),
    "path above": ({"image": "registry.example.com/ci/../prod/x"}, "an image like"),
    "path of dots": ({"image": "registry.example.com/ci/./x"}, "an image like"),
    "empty component": ({"image": "registry.example.com/ci//x"}, "an image like"),
    "no component": ({"image": "registry.example.com/ci/"}, "an image like"),
    "the folder itself": ({"image": "registry.example.com/ci"}, "images.allow"),
    "a folder with that beginning": ({"image": "registry.example.com/ci-evil/x"}, "images.allow"),
    "path in upper case": ({"image": "registry.example.com/ci/X"}, "an image like"),
    "encoded slash": ({"image": "registry.example.com/ci%2f..%2fprod/x"}, "an image like"),
    "newline after an image": ({"image": f"{CI}\n"}, "an image like"),
    "space before an image": ({"image": f" {CI}"}, "an image like"),
    "pattern as an image": ({"image": "registry.example.com/ci/*"}, "an image like"),
    "letters that look alike": ({"image": "registry.ex\u0430mple.com/ci/x"}, "an image like"),
    "digest of 63 digits": ({"image": f"{CI}@{DIGEST[:-1]}"}, "an image like"),
    "digest in upper case": ({"image": f"{CI}@{DIGEST.upper()}"}, "an image like"),
    "digest of another kind": ({"image": f"{CI}@md5:{'0' * 32}"}, "an image like"),
    "two digests": ({"image": f"{CI}@{DIGEST}@{DIGEST}"}, "an image like"),
    "tag of 129 characters": ({"image": f"{CI}:{'a' * 129}"}, "an image like"),
    "long image": ({"image": f"registry.example.com/ci/{'a' * 250}"}, "an image like"),
    "command as a line": ({"command": "rm -rf /"}, "a JSON list of texts"),
    "command as a JSON text": ({"command": '"rm -rf /"'}, "a JSON list of texts"),
    "command as an object": ({"command": '{"exec": ["rm"]}'}, "a JSON list of texts"),
    "command of numbers": ({"command": "[1]"}, "a JSON list of texts"),
    "command in a command": ({"command": '[["rm"]]'}, "a JSON list of texts"),
    "command with NUL": ({"command": '["a\\u0000b"]'}, "field command[0]"),
    "command with half a character": ({"command": '["\\ud800"]'}, "a JSON list of texts"),
    "command of 65 words": ({"command": json.dumps(["a"] * 65)}, "command.max_items"),
    "command and args of 65 words": (
        {"command": json.dumps(["a"] * 64), "args": '["a"]'},
        "command.max_items",
    ),
    "command of 9 KB": ({"command": json.dumps(["a" * 9000])}, "command.max_bytes"),
    "command 10,000 deep": ({"command": "[" * 10_000 + "]" * 10_000}, "a JSON list of texts"),
    "args beside a secret": ({"profile": "publish", "args": '["--print"]'}, "profiles.publish.overrides"),
    "image beside a secret": ({"profile": "publish", "image": CI}, "profiles.publish.overrides"),
    "command beside a secret": ({"profile": "publish", "command": '["env"]'}, "profiles.publish.overrides"),
    "the secret's variable": ({"profile": "publish"} | env(NPM_TOKEN="x"), "profiles.publish.overrides"),
    "image of a profile with one": ({"profile": "node20", "image": CI}, "profiles.node20.overrides"),
    "a loader": (env(LD_PRELOAD="/workspace/evil.so"), "field env.LD_PRELOAD"),
    "a name that is not allowed": (env(OTHER="1"), "env.allow"),
    "a name with an allowed beginning": (env(CI_TOKEN="1"), "env.allow"),
    "a name with an allowed end": (env(MY_CI="1"), "env.allow"),
    "a name of the controller's": (env(OTTO_TASK_ID="1"), "field env.OTTO_TASK_ID"),
    "home": (env(HOME="/"), "field env.HOME"),
    "name in lower case": (env(ci="1"), "a name of the form"),
    "name with =": ({"env": '{"CI=x": "1"}'}, "a name of the form"),
    "name with a newline": ({"env": '{"CI\\n": "1"}'}, "a name of the form"),
    "empty name": ({"env": '{"": "1"}'}, "a name of the form"),
    "value from a secret": (
        {"env": '{"CI": {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}}'},
        "a JSON object of texts",
    ),
    "value that is a number": ({"env": '{"CI": 1}'}, "a JSON object of texts"),
    "value that is nothing": ({"env": '{"CI": null}'}, "a JSON object of texts"),
    "value with NUL": ({"env": '{"CI": "\\u0000"}'}, "field env.CI"),
    "a list of variables": ({"env": '[{"name": "CI", "value": "1"}]'}, "a JSON object of texts"),
    "one name twice": ({"env": '{"CI": "1", "CI": "2"}'}, '"CI" more than once'),
    "one of two names twice": ({"env": '{"CI": "1", "NODE_ENV": "1", "NODE_ENV": "1"}'}, '"NODE_ENV" more than once'),
    "51 variables": (env(**{f"BUILD_{number}": "" for number in range(51)}), "env.max_items"),
    "thousandths of a byte": ({"memory": "128m"}, "bytes like 512Mi"),
    "one byte too little": ({"memory": str(16 * 2**20 - 1)}, "bytes like 512Mi"),
    "no memory": ({"memory": "0"}, "bytes like 512Mi"),
    "memory below zero": ({"memory": "-1Gi"}, "bytes like 512Mi"),
    "memory with an exponent": ({"memory": "1e3Gi"}, "bytes like 512Mi"),
    "memory of 20 digits": ({"memory": "1" * 20}, "bytes like 512Mi"),
    "memory with a fraction": ({"memory": "1.5Gi"}, "bytes like 512Mi"),
    "memory in other digits": ({"memory": "\u0661Gi"}, "bytes like 512Mi"),
    "a little too much memory": ({"memory": "8193Mi"}, "max.memory"),
    "one byte too much": ({"memory": str(8 * 2**30 + 1)}, "max.memory"),
    "too little cpu": ({"cpu": "0.0001"}, "cores like 2"),
    "cpu below the floor": ({"cpu": "9m"}, "cores like 2"),
    "cpu with both forms": ({"cpu": "0.5m"}, "cores like 2"),
    "a little too much cpu": ({"cpu": "4001m"}, "max.cpu"),
    "cpu NaN": ({"cpu": "NaN"}, "cores like 2"),
    "unknown profile": ({"profile": "other"}, "profiles are full, node20, plain, publish"),
    "profile as a path": ({"profile": "../x"}, "profiles are full, node20, plain, publish"),
    "no deadline": ({"deadline_s": "0"}, "field deadline_s"),
    "deadline NaN": ({"deadline_s": "NaN"}, "field deadline_s"),
    "deadline of 1e9": ({"deadline_s": "1e9"}, "field deadline_s"),
    "a little too long": ({"deadline_s": "86401"}, "max.deadline_s"),
    "too many retries": ({"retries": "4"}, "max.retries"),
    "too many pods": ({"pod_count": "201"}, "max.pod_count"),
    "a patch": ({"profile": "plain", "metadata": "{" * 10_000}, "field metadata"),
}  # fmt: skip


@contract("3.overrides")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_event_is_refused(name: str) -> None:
    """With the field and the rule, on one line that prints."""
    fields, rule = HOSTILE[name]
    bad = refused(fields)
    assert rule in bad.detail
    assert bad.detail.isprintable()
    assert bad.detail.startswith("field ")


def test_there_are_enough_of_them() -> None:
    """And each is refused for itself: without its field the event would pass."""
    assert len(HOSTILE) >= 50
    accepted({})


#: For each rule the whole sentence: field, value, what holds, and where the policy says so.
SENTENCES: Final[dict[str, tuple[Fields, str]]] = {
    "profiles": (
        {"profile": "other"},
        'field profile is "other"; the profiles are full, node20, plain, publish (policy: profiles)',
    ),
    "profiles.publish.overrides": (
        {"profile": "publish", "image": "node:20"},
        'field image is "node:20"; with profile publish events may set deadline_s (policy: profiles.publish.overrides)',
    ),
    "images.allow": (
        {"image": "nginx"},
        'field image is "nginx"; docker.io/library/nginx:latest matches none of the allowed patterns: '
        "registry.example.com/ci/**, docker.io/library/node:20* (policy: images.allow)",
    ),
    "command.max_items": (
        {"command": json.dumps(["a"] * 64), "args": '["b"]'},
        'field args is "[\\"b\\"]"; 65 words, at most 64 (policy: command.max_items)',
    ),
    "command.max_bytes": (
        {"command": json.dumps(["\u00e4" * 4096]), "args": '["b"]'},
        'field args is "[\\"b\\"]"; 8193 bytes, at most 8192 (policy: command.max_bytes)',
    ),
    "env.allow": (
        env(GIT_BRANCH="main"),
        'field env.GIT_BRANCH is "main"; this name is not allowed (policy: env.allow)',
    ),
    "none can allow it": (
        env(HOME="/"),
        'field env.HOME is "/"; no event may set HOME: the controller sets it (policy: none can allow it)',
    ),
    "max.cpu": ({"cpu": "4001m"}, 'field cpu is "4001m"; at most 4 (policy: max.cpu)'),
    "max.memory": ({"memory": "8193Mi"}, 'field memory is "8193Mi"; at most 8Gi (policy: max.memory)'),
}


@contract("3.overrides")
@pytest.mark.parametrize("rule", SENTENCES)
def test_a_refusal_by_the_policy_names_path_value_and_rule(rule: str) -> None:
    """Under a code of its own: another policy would allow it."""
    fields, sentence = SENTENCES[rule]
    bad = refused(fields)
    assert bad.reason is DeadReason.NOT_ALLOWED
    assert bad.detail == sentence


@contract("3.overrides")
@pytest.mark.parametrize(
    ("fields", "changes", "sentence"),
    [
        (
            {"image": CI},
            {"images": EXAMPLE["images"] | {"digest_only": True}},
            f'field image is "{CI}"; only images with a digest (name@sha256:...) are allowed '
            "(policy: images.digest_only)",
        ),
        (
            env(CI="1", A="x"),
            {"env": {"allow": ["CI", "A"], "max_items": 1}},
            'field env is "{\\"CI\\": \\"1\\", \\"A\\": \\"x\\"}"; 2 variables, at most 1 (policy: env.max_items)',
        ),
    ],
)
def test_a_refusal_by_a_stricter_policy_does_so_too(fields: Fields, changes: dict[str, Any], sentence: str) -> None:
    """Rules that the example leaves open."""
    assert refused(fields, **changes).detail == sentence


@contract("3.image")
def test_with_digest_only_a_tag_is_not_enough() -> None:
    """A user with the right to push an image can move a tag."""
    images = EXAMPLE["images"] | {"digest_only": True}
    assert "images.digest_only" in refused({"image": CI}, images=images).detail
    assert accepted({"image": f"{CI}@{DIGEST}"}, images=images).overrides.image == f"{CI}@{DIGEST}"


@contract("3.env")
@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "DYLD_INSERT_LIBRARIES",
        "GCONV_PATH",
        "PATH",
        "IFS",
        "ENV",
        "BASH_ENV",
        "SHELLOPTS",
        "PS4",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PERL5OPT",
        "PERL5LIB",
        "RUBYOPT",
        "RUBYLIB",
        "NODE_OPTIONS",
        "NODE_PATH",
        "NPM_CONFIG_SCRIPT_SHELL",
        "JAVA_TOOL_OPTIONS",
        "_JAVA_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "CLASSPATH",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_EXEC_PATH",
        "GIT_CONFIG_COUNT",
        "GIT_EXTERNAL_DIFF",
        "LUA_INIT",
        "PHPRC",
        "DOTNET_STARTUP_HOOKS",
        "OPENSSL_CONF",
        "LESSOPEN",
        "EDITOR",
        "OTTO_TASK_ID",
        "HOME",
        "TRACEPARENT",
    ],
)
def test_no_policy_allows_a_loader(name: str) -> None:
    """Even if it allows every name."""
    bad = refused(env(**{name: "x"}), env={"allow": ["*"]})
    assert bad.detail.startswith(f'field env.{name} is "x"; no event may set {name}: ')


@pytest.mark.parametrize(
    "name", ["CI", "NODE_ENV", "BUILD_ID", "GIT_COMMIT", "GIT_BRANCH", "LOADER", "PATHS", "MYPATH", "ENVIRONMENT"]
)
def test_ordinary_names_are_left_to_the_policy(name: str) -> None:
    """The list is of whole names and of beginnings."""
    assert never_set(name) == ""


# -- what passes


@contract("3.overrides")
def test_no_override_passes() -> None:
    """The default profile, and the configuration."""
    assert pod({})["containers"][0]["image"] == WorkerSettings().image
    assert accepted({}).overrides.profile == "plain"


@contract("3.image")
@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("node:20", "docker.io/library/node:20"),
        ("library/node:20-slim", "docker.io/library/node:20-slim"),
        ("index.docker.io/node:20", "docker.io/library/node:20"),
        ("registry.example.com/ci/x", "registry.example.com/ci/x:latest"),
        ("registry.example.com/ci/a/b:1", "registry.example.com/ci/a/b:1"),
        (f"{CI}:1@{DIGEST}", f"{CI}:1@{DIGEST}"),
    ],
)
def test_an_allowed_image_is_the_pods(text: str, image: str) -> None:
    """In the form in which it was compared."""
    assert container({"image": text})["image"] == image


@contract("3.command")
@contract("3.args")
def test_command_and_args_reach_the_worker_byte_for_byte() -> None:
    """The kubelet reads `$$` as `$`, and expands nothing."""
    words = ["a", "$$ $(HOME) ${X} '\"", "한글\n", ""]
    found = container({"command": '["run"]', "args": json.dumps(words)})
    assert found["command"] == ["run"]
    assert [word.replace("$$", "$") for word in found["args"]] == words
    assert found["args"][1] == "$$$$ $$(HOME) $${X} '\""


@contract("3.env")
def test_values_of_variables_are_literal_too() -> None:
    """Empty ones, and those with `=`."""
    found = container(env(CI="", BUILD_A="a=b", BUILD_B="$(OTTO_TASK_ID)"))["env"]
    values = {one["name"]: one.get("value") for one in found}
    assert (values["CI"], values["BUILD_A"], values["BUILD_B"]) == ("", "a=b", "$$(OTTO_TASK_ID)")
    assert len(values) == len(found)


@contract("3.memory")
@pytest.mark.parametrize("text", ["1Gi", "1024Mi", "1073741824", "0001Gi"])
def test_equal_amounts_of_memory_are_equal(text: str) -> None:
    """They are compared, and passed on, as integers; request and limit are the same."""
    assert container({"memory": text})["resources"] == {
        "requests": {"cpu": "100m", "memory": "1Gi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    }


@contract("3.cpu")
@pytest.mark.parametrize(
    ("text", "cpu"), [("0.5", "500m"), ("500m", "500m"), ("4", "4"), ("4.000", "4"), ("10m", "10m")]
)
def test_an_amount_of_cpu_is_request_and_limit(text: str, cpu: str) -> None:
    """In cores or thousandths."""
    found = container({"cpu": text})["resources"]
    assert (found["requests"]["cpu"], found["limits"]["cpu"]) == (cpu, cpu)


@contract("3.overrides")
def test_each_maximum_itself_passes() -> None:
    """Limits are inclusive."""
    fields = {"cpu": "4", "memory": "8Gi", "deadline_s": "86400", "retries": "3", "pod_count": "200"}
    found = accepted(fields).overrides
    assert (found.cpu, found.memory, found.deadline_s, found.retries) == ("4", "8Gi", 86400, 3)


@pytest.mark.parametrize(
    ("field", "text", "rule"),
    [
        ("priority", "8", "policy: max.priority"),
        ("keep_failed_s", "1", "policy: profiles.plain.overrides"),
        ("retries", "4", "max.retries"),
        ("not_after", "2030-01-01T00:00:00", "RFC 3339"),
    ],
)
def test_fields_that_say_when_have_limits_too(field: str, text: str, rule: str) -> None:
    """Priority and time need no leave of the profile."""
    with pytest.raises(Violation, match=rule):
        decide(EXAMPLE_POLICY, {field: text})
    assert decide(EXAMPLE_POLICY, {"priority": "7"}).priority == 7


@contract("3.profile")
def test_a_profile_is_the_base_and_the_event_wins() -> None:
    """Field by field; variables by their names. A command replaces the profile's args, too."""
    found = pod({"profile": "node20"})
    (agent,) = found["containers"]
    assert (agent["image"], agent["command"], agent["args"]) == ("registry.example.com/ci/node:20", ["npm"], ["test"])
    assert (found["nodeSelector"], found["tolerations"][0]["key"]) == ({"pool": "ci"}, "ci")
    assert found["activeDeadlineSeconds"] == 600
    other = container({"profile": "node20", "command": '["make"]', "memory": "2Gi"} | env(NODE_ENV="production"))
    assert (other["command"], "args" in other, other["resources"]["limits"]["memory"]) == (["make"], False, "2Gi")
    values = {one["name"]: one.get("value") for one in other["env"]}
    assert (values["CI"], values["NODE_ENV"]) == ("true", "production")
    assert container({"profile": "node20", "args": "[]"})["command"] == ["npm"]
    assert accepted({"profile": "node20"}).overrides.retries == 1


@contract("3.keep_failed_s")
@pytest.mark.parametrize(
    ("asked", "kept_s"),
    [({}, 600), ({"keep_failed_s": "0"}, 0), ({"keep_failed_s": "3600"}, 3600)],
)
def test_an_event_says_for_how_long_failed_pods_stay(asked: dict[str, str], kept_s: int) -> None:
    """Otherwise the profile does, and otherwise the configuration."""
    assert accepted({"profile": "node20"} | asked).overrides.keep_failed_s == kept_s
    assert accepted({}).overrides.keep_failed_s is None


@contract("3.keep_failed_s")
def test_failed_pods_stay_no_longer_than_the_policy_allows() -> None:
    """And only a whole number of seconds."""
    for text in ("3601", "-1", "1.5", "1h"):
        with pytest.raises(Violation, match=r"from 0 to 3600 is expected \(policy: max.keep_failed_s\)"):
            decide(EXAMPLE_POLICY, {"profile": "node20", "keep_failed_s": text})


@contract("3.profile")
def test_a_secret_is_named_and_not_read() -> None:
    """The kubelet puts it into the variable."""
    (found,) = (one for one in container({"profile": "publish"})["env"] if one["name"] == "NPM_TOKEN")
    assert found["valueFrom"] == {"secretKeyRef": {"name": "ottoscaler-worker-npm", "key": "token"}}
    assert accepted({"profile": "publish"}).overrides.secret_env == (
        SecretEnv("NPM_TOKEN", "ottoscaler-worker-npm", "token"),
    )


@contract("3.profile")
def test_without_a_default_profile_an_event_names_one() -> None:
    """Nothing is allowed by silence."""
    assert refused({}, default_profile=None).detail == (
        "field profile is missing; the profiles are full, node20, plain, publish (policy: default_profile)"
    )
    accepted({"profile": "plain"}, default_profile=None)


@contract("3.command")
def test_an_empty_command_is_the_images_own() -> None:
    """The pod then has none."""
    found = container({"command": "[]", "args": '["x"]'})
    assert ("command" in found, found["args"]) == (False, ["x"])


@contract("3.profile")
def test_a_pod_has_what_its_profile_says() -> None:
    """Volumes beside the worker's own directory, those of Secrets and ConfigMaps read-only, and the place to run."""
    spec = pod({"profile": "full"})
    assert spec["volumes"] == [
        {"name": "workspace", "emptyDir": {}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "cache", "persistentVolumeClaim": {"claimName": "ottoscaler-worker-cache"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "ottoscaler-worker-data", "readOnly": True}},
        {"name": "settings", "configMap": {"name": "ottoscaler-worker-settings"}},
        {"name": "keys", "secret": {"secretName": "ottoscaler-worker-keys"}},
    ]
    (only,) = spec["containers"]
    assert only["volumeMounts"] == [
        {"name": "workspace", "mountPath": "/workspace"},
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "cache", "mountPath": "/cache"},
        {"name": "data", "mountPath": "/data", "readOnly": True},
        {"name": "settings", "mountPath": "/etc/ci", "readOnly": True},
        {"name": "keys", "mountPath": "/workspace/keys", "readOnly": True},
    ]
    asked = {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "2Gi"}
    assert only["resources"] == {"requests": asked, "limits": asked}
    assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "mirror"}]
    assert (spec["runtimeClassName"], spec["hostUsers"], spec["priorityClassName"]) == ("gvisor", False, "ci")


@contract("3.profile")
@contract("4.security")
def test_a_service_is_a_native_sidecar_that_is_ready_first() -> None:
    """Under the worker's security, with amounts of its own; nothing in its words and variables is expanded."""
    db, cache = pod({"profile": "full"})["initContainers"]
    secure = container({})["securityContext"]
    assert db == {
        "name": "db",
        "image": "docker.io/library/postgres:16",
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "args": ["-c", "fsync=off"],
        "env": [{"name": "POSTGRES_PASSWORD", "value": "$$(ci)"}],
        "resources": {amount: {"cpu": "250m", "memory": "256Mi"} for amount in ("requests", "limits")},
        "securityContext": secure,
        "startupProbe": {
            "exec": {"command": ["pg_isready", "-U", "$$USER"]},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 90,
        },
    }
    assert (cache["image"], cache["command"]) == ("docker.io/library/redis:7", ["redis-server"])
    assert cache["startupProbe"]["tcpSocket"] == {"port": 6379}
    assert cache["startupProbe"]["failureThreshold"] == 60
    assert cache["resources"] == container({})["resources"]


@contract("3.profile")
def test_a_pod_names_its_services() -> None:
    """By that annotation they are known apart from what a webhook added."""
    event, key = accepted({"profile": "full"}), AttemptKey(HASH, 1, 1)
    body = build_pod(WorkerSettings(), event, key, event_json=event.encode(), instance="otto", namespace="ci")
    assert json.loads(body)["metadata"]["annotations"]["ottoscaler.io/services"] == "db,cache"
    plain = accepted({})
    assert (
        "ottoscaler.io/services"
        not in build_pod(
            WorkerSettings(), plain, key, event_json=plain.encode(), instance="otto", namespace="ci"
        ).decode()
    )


@contract("3.profile")
def test_a_pod_without_a_profile_is_as_before() -> None:
    """What a profile may add is not there, and the configured Secret for the registry is."""
    spec = pod({}, WorkerSettings(image_pull_secret="registry"))
    assert not {"initContainers", "runtimeClassName", "hostUsers", "priorityClassName"} & spec.keys()
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["volumes"] == [{"name": "workspace", "emptyDir": {}}]


@contract("3.overrides")
def test_an_accepted_event_keeps_the_decision() -> None:
    """A replica that takes it up, from Redis or from a pod, builds the same pod, whatever the policy says by then."""
    fields = {"image": "node:20", "command": '["npm", "test"]', "memory": "1Gi"} | env(CI="true")
    event = accepted(fields)
    again = events.decode(event.encode())
    assert again == event
    key = AttemptKey(HASH, 1, 1)
    where = {"instance": "otto", "namespace": "ci"}
    bodies = [build_pod(WorkerSettings(), one, key, event_json=one.encode(), **where) for one in (event, again)]
    assert bodies[0] == bodies[1]
    assert refused(fields, images={"allow": ["other.example.com/**"]})
    full = accepted({"profile": "full"})
    assert events.decode(full.encode()) == full
    assert {name: event.as_sent()[name] for name in fields} == fields


@contract("3.overrides")
def test_a_scale_down_needs_no_profile() -> None:
    """It starts nothing."""
    found = parsed({"type": "scale_down", "task_id": "t", "pod_count": "500"}, policy(default_profile=None))
    assert isinstance(found, ScaleEvent)


# -- patterns


@pytest.mark.parametrize(
    ("pattern", "image", "matches"),
    [
        ("a.io/*/x", "a.io/t/x", True),
        ("a.io/*/x", "a.io/t/u/x", False),
        ("a.io/**/x", "a.io/t/u/x", True),
        ("a.io/**/x", "a.io/x", False),
        ("a.io/t-*", "a.io/t-1:2", True),
        ("a.io/t-*", "a.io/s-1", False),
        ("a.io:5000/**", "a.io:5000/x", True),
        ("a.io/**", "a.io:5000/x", False),
        ("localhost/x", "localhost/x", True),
        ("busybox", "docker.io/library/busybox:1", True),
        ("team/*", "docker.io/team/x", True),
        ("**", "docker.io/team/x", True),
        ("**", "quay.io/team/x", False),
        (f"a.io/x@{DIGEST}", f"a.io/x@{DIGEST}", True),
        (f"a.io/x@{DIGEST}", "a.io/x", False),
        ("a.io/**@sha256:*", f"a.io/x:1@{DIGEST}", True),
        ("a.io/**@sha256:*", "a.io/x:1", False),
        ("a.io/x:1.*", "a.io/x:1.2", True),
        ("a.io/x:1.*", "a.io/x:11", False),
    ],
)
def test_a_pattern_matches_whole_parts(pattern: str, image: str, matches: bool) -> None:
    """Registry, path and tag or digest, each for itself and from end to end."""
    rule, reference = parse_pattern(pattern), parse_image(image)
    assert rule is not None
    assert reference is not None
    assert rule.matches(reference) is matches


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*.example.com/x:1:2",
        "a.io/",
        "a.io/x**",
        "a.io/x:1@sha256:*",
        "a.io/x@md5:1",
        "A/x",
        "*.a.io/x/**",
        "a-*.io/x",
        "*:1/x",
    ],
)
def test_what_is_no_pattern_is_none(text: str) -> None:
    """And so is reported when the policy is read."""
    assert parse_pattern(text) is None


@given(st.text(alphabet="ab/.:@*-_ \n", max_size=20))
def test_an_image_that_is_read_is_read_again_as_itself(text: str) -> None:
    """What is compared is what the kubelet gets."""
    image = parse_image(text)
    if image is not None:
        assert parse_image(str(image)) == image


def test_a_decision_costs_less_than_50_us() -> None:
    """CPU time, the best of many: other programs run too. Four times that is allowed here, for slow machines."""
    asked = {"image": "node:20", "command": '["npm","test"]', "memory": "1Gi", "cpu": "2"} | env(CI="1", BUILD_A="2")
    seconds = min(timeit.repeat(lambda: decide(EXAMPLE_POLICY, asked), number=100, repeat=30)) / 100
    assert seconds < 200e-6
