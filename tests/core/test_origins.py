"""Where each field of a worker comes from, without and under a policy; and the exact size of a command."""

from __future__ import annotations

import json

import pytest

from ottoscaler.core.events import BadEvent, ScaleEvent
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
