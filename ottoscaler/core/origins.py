"""Where each field of a worker's pod comes from, and the rule that allowed it: for people."""

from __future__ import annotations

from typing import Final, NamedTuple

from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.images import parse_image
from ottoscaler.core.policy import Policy, Profile

#: The settings that hold where neither a profile nor the event sets the field.
_SETTINGS: Final = {
    "image": "OTTO_AGENT_IMAGE",
    "command": "OTTO_AGENT_COMMAND",
    "cpu": "WORKER_CPU_REQUEST, WORKER_CPU_LIMIT",
    "memory": "WORKER_MEMORY_REQUEST, WORKER_MEMORY_LIMIT",
    "node_selector": "WORKER_NODE_SELECTOR",
    "tolerations": "WORKER_TOLERATIONS",
    "pull_secrets": "WORKER_IMAGE_PULL_SECRET",
    "deadline_s": "WORKER_DEADLINE_S",
    "retries": "WORKER_RETRIES",
    "keep_failed_s": "KEEP_FAILED_S",
}
#: Fields that are there only where a profile or the event sets them.
_OPTIONAL: Final = (
    "args", "env", "secret_env", "ephemeral_storage", "volumes", "services", "runtime_class", "host_users",
    "priority_class", "disruption_budget", "worker_logs",
)  # fmt: skip
#: Fields that events alone set: they say when workers run.
_OF_EVENTS: Final = ("priority", "not_after")
_EMPTY: Final = Profile()
_RULES: Final = {
    "command": "command.allow",
    "args": "command.allow",
    "env": "env.allow",
    **{name: f"max.{name}" for name in ("cpu", "memory", "deadline_s", "retries", "keep_failed_s", "priority")},
}


class FieldOrigin(NamedTuple):
    """One field: what sets it (`event`, `profile NAME`, or settings), and the rule of the policy that allowed an event
    to; empty where none was asked.
    """

    field: str
    source: str
    rule: str


def origins(event: ScaleEvent, policy: Policy | None) -> list[FieldOrigin]:
    """Each field that workers of this event get. `policy`: the one that decided on it; None: there was none."""
    asked, profile = event.overrides.asked, event.overrides.profile
    found = []
    if profile:
        chosen = ("event", "profiles") if "profile" in asked else ("policy", "default_profile")
        found.append(FieldOrigin("profile", *chosen))
    base = policy.profiles.get(profile) if policy is not None else None
    for field in (*_SETTINGS, *_OPTIONAL):
        if field in asked:
            found.append(FieldOrigin(field, "event", _policy_rule(field, event, policy)))
        elif base is not None and getattr(base, field) != getattr(_EMPTY, field):
            found.append(FieldOrigin(field, f"profile {profile}", ""))
        elif field in _SETTINGS:
            found.append(FieldOrigin(field, _SETTINGS[field], ""))
    for field in _OF_EVENTS:
        if field in asked:
            found.append(FieldOrigin(field, "event", _RULES.get(field, "") if policy is not None else ""))
    if sizes := event.overrides.oom_memory:
        grows = f"{', then '.join(sizes)}, after each end as OOMKilled that is retried"
        found.append(
            FieldOrigin("memory of later attempts", grows, f"profiles.{profile}.oom_memory_factor, max.memory")
        )
    return found


def _policy_rule(field: str, event: ScaleEvent, policy: Policy | None) -> str:
    if policy is None:
        return "WORKER_DEADLINE_S" if field == "deadline_s" else ""
    if field != "image":
        return _RULES[field]
    image = parse_image(event.overrides.image)
    patterns = [rule.text for rule in policy.images if image is not None and rule.matches(image)]
    return f"images.allow: {patterns[0]}" if patterns else "images.allow"
