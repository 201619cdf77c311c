"""What a policy and tenants cost: the same events with and without them, and events that ask for overrides."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ottoscaler.core.policy import Policy, decide
from ottoscaler.core.policy_reader import read_policy
from tests.bench.ratios import estimate
from tests.bench.runs import Bench, Run

#: Patterns of images and of variables, and profiles: so many of each.
RULES: Final = 20
TENANTS: Final = 10
#: What an event asks for, decided by the last of each kind of rule.
ASKED: Final = {
    "profile": f"p{RULES - 1}",
    "command": '["/bin/sh", "-c", "true"]',
    "image": f"registry-{RULES - 1}.example.com/ci/build:1",
    "env": json.dumps({f"BUILD_{RULES - 1}_CI": "true"}),
    "memory": "128Mi",
}
_DECISIONS, _BATCHES = 500, 20


def policy_file() -> dict[str, Any]:
    """A policy of many rules."""
    granted = ["image", "command", "args", "env", "cpu", "memory"]
    return {
        "version": 1,
        "images": {"allow": [f"registry-{number}.example.com/ci/**" for number in range(RULES)]},
        "command": {"allow": True},
        "env": {"allow": [f"BUILD_{number}_*" for number in range(RULES)]},
        "max": {"cpu": 4, "memory": "8Gi"},
        "tenants": {f"team-{number}": {"weight": 1 + number % 3} for number in range(TENANTS)},
        "default_profile": "p0",
        "profiles": {f"p{number}": {"overrides": granted} for number in range(RULES)},
    }


def decision_us() -> float:
    """CPU time of one decision on `ASKED`, microseconds: the best of some batches, for others use the machine too."""
    policy = read_policy(policy_file())
    assert isinstance(policy, Policy), policy
    best = float("inf")
    for _ in range(_BATCHES):
        began = time.thread_time()
        for _ in range(_DECISIONS):
            decide(policy, ASKED)
        best = min(best, (time.thread_time() - began) / _DECISIONS)
    return best * 1e6


def policy(bench: Bench) -> dict[str, Any]:
    """Events of one pod: without a policy, with one of many rules and tenants, and with overrides on top."""
    pods = bench.pick(1000, 100)
    path = Path(bench.lab.directory) / "policy.yaml"
    path.write_text(json.dumps(policy_file()), encoding="utf-8")  # which is YAML, too
    on = {"POLICY_FILE": str(path), "TENANT_FIELD": "team"}
    teams = [{"team": f"team-{number}"} for number in range(TENANTS)]
    asking = [each | ASKED for each in teams]
    systems: dict[str, Callable[[], Run]] = {
        "without": lambda: bench.product(pods, 1, fields=teams),
        "policy": lambda: bench.product(pods, 1, fields=teams, **on),
        "overrides": lambda: bench.product(pods, 1, fields=asking, **on),
    }
    rounds, unclean = bench.paired(systems)

    def ratio(name: str, what: str) -> Any:
        return estimate([getattr(each[name], what) / max(1e-9, getattr(each["without"], what)) for each in rounds])

    found = {
        f"{name}_{what}": ratio(name, what) for name in ("policy", "overrides") for what in ("seconds", "own_cpu_s")
    }
    decided_us = decision_us()
    bench.say(
        f"time {found['policy_seconds']}, CPU {found['policy_own_cpu_s']} of without; with overrides"
        f" {found['overrides_seconds']}, {found['overrides_own_cpu_s']}; one decision {decided_us:.0f} us"
    )
    return {"pods": pods, "rounds": len(rounds), "unclean": unclean, "decision_us": decided_us, **found}
