"""The pods that `doctor` tries: one of each profile, and the largest that each allows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ottoscaler.cli.worker_pods import largest_pods, worker_pods
from ottoscaler.core.policy import Policy, Rules
from ottoscaler.core.policy_reader import read_policy
from ottoscaler.settings import Settings

SETTINGS = Settings.load({"NAMESPACE": "ci"}, "host", None)

pytestmark = pytest.mark.contract("1.doctor")


def rules(**profile: Any) -> Rules:
    """With one profile."""
    policy = read_policy({
        "version": 1,
        "max": {"cpu": 4, "memory": "8Gi", "retries": 3},
        "profiles": {"build": profile},
    })  # fmt: skip
    assert isinstance(policy, Policy)
    return Rules(policy=policy)


def limits(body: bytes) -> tuple[str, str]:
    """CPU and memory of the worker."""
    found = json.loads(body)["spec"]["containers"][0]["resources"]["limits"]
    return found["cpu"], found["memory"]


def test_one_of_each_profile() -> None:
    """And one without."""
    found = list(worker_pods(SETTINGS, rules(memory="1Gi")))
    assert [(pod.what, limits(pod.body)) for pod in found] == [
        ("a worker without a profile", ("1", "512Mi")),
        ("a worker of profile build", ("1", "1Gi")),
    ]


@pytest.mark.parametrize(
    ("profile", "largest"),
    [
        ({"memory": "1Gi"}, []),
        ({"memory": "1Gi", "overrides": ["memory"]}, [("1", "8Gi")]),
        ({"memory": "1Gi", "cpu": 2, "overrides": ["cpu", "memory"]}, [("4", "8Gi")]),
        ({"memory": "16Gi", "cpu": 8, "overrides": ["cpu", "memory"]}, []),
        # what grows is what a retry asks for
        ({"memory": "1Gi", "oom_memory_factor": 2, "retries": 2}, [("1", "4Gi")]),
        ({"memory": "1Gi", "oom_memory_factor": 2, "overrides": ["retries"]}, [("1", "8Gi")]),
        ({"memory": "1Gi", "oom_memory_factor": 10, "retries": 1}, [("1", "8Gi")]),
        ({"memory": "1Gi", "oom_memory_factor": 2}, []),
        ({"memory": "1Gi", "oom_memory_factor": 2, "retries": 0}, []),
        ({"memory": "1Gi", "oom_memory_factor": 2, "retries": 2, "overrides": ["memory"]}, [("1", "8Gi")]),
    ],
)
def test_the_largest_of_each_profile(profile: dict[str, Any], largest: list[tuple[str, str]]) -> None:
    """As its events and its retries can make it; without retries no memory grows."""
    found = list(largest_pods(SETTINGS, rules(**profile)))
    assert [limits(pod.body) for pod in found] == largest
    assert {pod.what for pod in found} <= {"the largest worker of profile build"}


def test_without_a_policy_there_is_none() -> None:
    """No event asks for more."""
    assert list(largest_pods(SETTINGS, Rules())) == []
