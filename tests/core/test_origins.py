"""Where each field of a worker comes from, without and under a policy; and the exact size of a command."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.events import BadEvent, EventType, ScaleEvent, parse
from ottoscaler.core.origins import origins
from ottoscaler.core.policy import Policy
from tests.core.policies import EXAMPLE_POLICY, parsed, policy


def named(fields: dict[str, str], rules: Policy) -> dict[str, tuple[str, str]]:
    """By field: what sets it, and the rule that allowed it."""
    event = parsed(fields, rules)
    assert isinstance(event, ScaleEvent), event
    return {one.field: (one.source, one.rule) for one in origins(event, rules)}


def test_an_event_may_choose_its_profile() -> None:
    """Otherwise the policy's default is named."""
    assert named({}, EXAMPLE_POLICY)["profile"] == ("policy", "default_profile")
    chosen = named({"profile": "node20", "memory": "2Gi"}, EXAMPLE_POLICY)
    assert chosen["profile"] == ("event", "profiles")
    assert chosen["memory"] == ("event", "max.memory")
    assert chosen["image"] == ("profile node20", "")


def test_when_workers_run_is_the_events_own() -> None:
    """Its priority has a maximum in the policy; without a policy there is none to name."""
    fields = {"priority": "7", "not_after": "2030-01-31T12:00:00Z"}
    found = named(fields, EXAMPLE_POLICY)
    assert (found["priority"], found["not_after"]) == (("event", "max.priority"), ("event", ""))
    event = parsed(fields, EXAMPLE_POLICY)
    assert isinstance(event, ScaleEvent)
    assert {one.rule for one in origins(event, None) if one.field in fields} == {""}
    assert not {"priority", "not_after"} & named({}, EXAMPLE_POLICY).keys()


def test_the_memory_of_later_attempts_is_named() -> None:
    """Where it grows, with the rules that say how far."""
    found = named({"profile": "full", "memory": "4Gi"}, EXAMPLE_POLICY)["memory of later attempts"]
    assert found == (
        "6Gi, then 8Gi, after each end as OOMKilled that is retried",
        "profiles.full.oom_memory_factor, max.memory",
    )
    assert "memory of later attempts" not in named({}, EXAMPLE_POLICY)


def test_without_a_policy_no_profile_is_named() -> None:
    """There is none; the rest is as configured."""
    event = parsed({}, EXAMPLE_POLICY)
    assert isinstance(event, ScaleEvent)
    found = {one.field: one for one in origins(event, None)}
    assert found["image"].rule == ""
    bare = ScaleEvent(event_id="e", stream_id="1-0", type=event.type, pod_count=1, task_id="t")
    assert "profile" not in {one.field for one in origins(bare, None)}


ASKED = {
    "image": "node:20.1",
    "command": '["a"]',
    "args": '["b"]',
    "env": '{"CI": "1"}',
    "cpu": "1",
    "memory": "1Gi",
    "deadline_s": "60",
    "retries": "1",
}


def test_each_field_of_an_event_has_the_rule_that_allowed_it() -> None:
    """Of images the pattern; the first, where several match."""
    found = named({"profile": "plain", **ASKED}, EXAMPLE_POLICY)
    assert {field: found[field] for field in ASKED} == {
        "image": ("event", "images.allow: docker.io/library/node:20*"),
        "command": ("event", "command.allow"),
        "args": ("event", "command.allow"),
        "env": ("event", "env.allow"),
        **{field: ("event", f"max.{field}") for field in ("cpu", "memory", "deadline_s", "retries")},
    }
    first = named({"image": "registry.example.com/ci/x:1"}, EXAMPLE_POLICY)["image"]
    assert first == ("event", "images.allow: registry.example.com/ci/**")
    kept = named({"profile": "node20", "keep_failed_s": "60"}, EXAMPLE_POLICY)["keep_failed_s"]
    assert kept == ("event", "max.keep_failed_s")


def test_each_field_of_a_profile_is_named() -> None:
    """And the settings of all others that every worker has."""
    profile = ("image", "command", "cpu", "memory", "pull_secrets", "ephemeral_storage", "volumes", "services")
    profile += ("runtime_class", "host_users", "priority_class", "disruption_budget", "worker_logs")
    found = named({"profile": "full"}, EXAMPLE_POLICY)
    assert {field for field, (source, _) in found.items() if source == "profile full"} == set(profile)
    assert {source: field for field, (source, _) in found.items() if source.isupper()} == {
        "WORKER_NODE_SELECTOR": "node_selector",
        "WORKER_TOLERATIONS": "tolerations",
        "WORKER_DEADLINE_S": "deadline_s",
        "WORKER_RETRIES": "retries",
        "KEEP_FAILED_S": "keep_failed_s",
    }
    other = named({"profile": "node20"}, EXAMPLE_POLICY)
    assert {field for field, (source, _) in other.items() if source == "profile node20"} == {
        "image", "command", "args", "env", "memory", "node_selector", "tolerations", "deadline_s", "retries",
        "keep_failed_s",
    }  # fmt: skip
    assert named({"profile": "publish"}, EXAMPLE_POLICY)["secret_env"] == ("profile publish", "")


def test_without_a_policy_the_settings_are_named() -> None:
    """An event may choose a few things all the same."""
    bare = ScaleEvent(event_id="e", stream_id="1-0", type=EventType.SCALE_UP, pod_count=1, task_id="t")
    assert [(one.field, one.source, one.rule) for one in origins(bare, None)] == [
        ("image", "OTTO_AGENT_IMAGE", ""),
        ("command", "OTTO_AGENT_COMMAND", ""),
        ("cpu", "WORKER_CPU_REQUEST, WORKER_CPU_LIMIT", ""),
        ("memory", "WORKER_MEMORY_REQUEST, WORKER_MEMORY_LIMIT", ""),
        ("node_selector", "WORKER_NODE_SELECTOR", ""),
        ("tolerations", "WORKER_TOLERATIONS", ""),
        ("pull_secrets", "WORKER_IMAGE_PULL_SECRET", ""),
        ("deadline_s", "WORKER_DEADLINE_S", ""),
        ("retries", "WORKER_RETRIES", ""),
        ("keep_failed_s", "KEEP_FAILED_S", ""),
    ]
    asked = parse("1-0", {b"type": b"scale_up", b"deadline_s": b"5", b"retries": b"1"}, 1000)
    assert isinstance(asked, ScaleEvent)
    found = {one.field: (one.source, one.rule) for one in origins(asked, None)}
    assert (found["deadline_s"], found["retries"]) == (("event", "WORKER_DEADLINE_S"), ("event", ""))


@pytest.mark.contract("3.command")
def test_a_command_may_have_as_many_bytes_as_the_policy_says() -> None:
    """Of all words together, args too; one more is refused, with both numbers."""
    rules = policy(command={"allow": True, "max_items": 64, "max_bytes": 10})
    fields = {"command": json.dumps(["a" * 4, "\u20ac"]), "args": '["abc"]'}
    assert isinstance(parsed(fields, rules), ScaleEvent)
    found = parsed(fields | {"args": '["abcd"]'}, rules)
    assert isinstance(found, BadEvent)
    assert "field args" in found.detail
    assert "11 bytes, at most 10" in found.detail
    assert "command.max_bytes" in found.detail
