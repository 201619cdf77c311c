"""A policy with rules of every kind, and events under it."""

from __future__ import annotations

import copy
from typing import Any, Final

from ottoscaler.core.events import BadEvent, ScaleEvent, parse
from ottoscaler.core.policy import Policy, Rules
from ottoscaler.core.policy_reader import read_policy
from tests.core.builders import STREAM_ID

DIGEST: Final = "sha256:" + "0123456789abcdef" * 4

EXAMPLE: Final[dict[str, Any]] = {
    "version": 1,
    "images": {"allow": ["registry.example.com/ci/**", "docker.io/library/node:20*"], "digest_only": False},
    "command": {"allow": True, "max_items": 64, "max_bytes": 8192},
    "logs": {"mask": ["corp-[a-z0-9]{20}"]},
    "env": {"allow": ["CI", "NODE_ENV", "BUILD_*"], "max_items": 50},
    "max": {
        "cpu": 4,
        "memory": "8Gi",
        "deadline_s": 86400,
        "retries": 3,
        "priority": 7,
        "pod_count": 200,
        "keep_failed_s": 3600,
    },
    "tenants": {"default": {"max_workers": 20}, "team-a": {"weight": 3, "max_workers": 60}},
    "default_profile": "plain",
    "profiles": {
        "plain": {"overrides": ["image", "command", "args", "env", "cpu", "memory", "deadline_s", "retries"]},
        "node20": {
            "image": "registry.example.com/ci/node:20",
            "command": ["npm"],
            "args": ["test"],
            "env": {"CI": "true", "NODE_ENV": "test"},
            "memory": "1Gi",
            "node_selector": {"pool": "ci"},
            "tolerations": [{"key": "ci", "operator": "Exists", "effect": "NoSchedule"}],
            "deadline_s": 600,
            "retries": 1,
            "keep_failed_s": 600,
            "overrides": ["command", "args", "env", "memory", "deadline_s", "keep_failed_s"],
        },
        "publish": {
            "image": f"registry.example.com/ci/publish@{DIGEST}",
            "command": ["/publish"],
            "secret_env": [{"name": "NPM_TOKEN", "secret": "ottoscaler-worker-npm", "key": "token"}],
            "overrides": ["deadline_s"],
        },
        "full": {
            "image": "registry.example.com/ci/full:1",
            "command": ["/full"],
            "cpu": "500m",
            "memory": "512Mi",
            "oom_memory_factor": 1.5,
            "ephemeral_storage": "2Gi",
            "volumes": [
                {"name": "scratch", "mount": "/scratch", "empty_dir": "1Gi"},
                {"name": "cache", "mount": "/cache", "claim": "ottoscaler-worker-cache"},
                {"name": "data", "mount": "/data", "claim": "ottoscaler-worker-data", "read_only": True},
                {"name": "settings", "mount": "/etc/ci", "config_map": "ottoscaler-worker-settings"},
                {"name": "keys", "mount": "/workspace/keys", "secret": "ottoscaler-worker-keys"},
            ],
            "services": [
                {
                    "name": "db",
                    "image": "docker.io/library/postgres:16",
                    "args": ["-c", "fsync=off"],
                    "env": {"POSTGRES_PASSWORD": "$(ci)"},
                    "cpu": "250m",
                    "memory": "256Mi",
                    "ready": {"exec": ["pg_isready", "-U", "$USER"], "timeout_s": 90},
                },
                {
                    "name": "cache",
                    "image": "redis:7",
                    "command": ["redis-server"],
                    "ready": {"tcp": 6379},
                },
            ],
            "pull_secrets": ["registry", "mirror"],
            "runtime_class": "gvisor",
            "host_users": False,
            "priority_class": "ci",
            "disruption_budget": True,
            "worker_logs": "agent",
            "overrides": ["cpu", "memory", "deadline_s"],
        },
    },
}


def policy(**changes: Any) -> Policy:
    """The example, with other values for its top-level fields (None: without the field)."""
    data = copy.deepcopy(EXAMPLE) | changes
    found = read_policy({name: value for name, value in data.items() if value is not None})
    assert isinstance(found, Policy), found
    return found


EXAMPLE_POLICY: Final = policy()


def parsed(fields: dict[str, str], under: Policy = EXAMPLE_POLICY) -> ScaleEvent | BadEvent:
    """A scale_up with these fields under that policy."""
    raw = {name.encode(): value.encode("utf-8", "surrogatepass") for name, value in fields.items()}
    return parse(STREAM_ID, {b"type": b"scale_up"} | raw, 1000, Rules(policy=under))
