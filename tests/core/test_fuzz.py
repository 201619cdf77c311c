"""Random events through the pure core: the same as `make fuzz`, but fewer."""

from __future__ import annotations

import json

import pytest

from tests import fuzz

pytestmark = pytest.mark.contract("3.limits")


@pytest.mark.contract("3.dead-letter")
@pytest.mark.contract("4.annotations")
@pytest.mark.parametrize("seed", range(4))
def test_each_random_event_is_refused_or_gives_pods_that_the_api_takes(seed: int) -> None:
    """And some of each kind are among them, or nothing would be tested."""
    total = fuzz.run(5000, seed)
    assert total.keys() == {"accepted", "Invalid", "Unsupported", "TooLarge"}
    assert total["accepted"] > 500


def test_the_same_seed_gives_the_same_events() -> None:
    """So that a failure can be seen again."""
    assert fuzz.run(300, 7) == fuzz.run(300, 7)


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        (("metadata", "name"), "x" * 64, "name"),
        (("metadata", "labels"), {"a": "b c"}, "label"),
        (("metadata", "annotations"), {"a": "x" * 262_144}, "annotations of 262145 bytes"),
        (("spec", "containers"), [{"env": [{"name": "A"}, {"name": "A"}]}], "variable 'A', 2 times"),
        (("spec", "containers"), [{"env": [{"name": "A=B"}]}], "variable 'A=B'"),
        (("spec", "containers"), [{"env": [{"name": "A", "value": "\0"}]}], "value of A"),
        (("spec", "containers"), [{"env": [{"name": "A", "value": "x" * 131_072}]}], "value of A"),
    ],
)
def test_a_pod_that_the_api_refuses_is_noticed(where: tuple[str, str], value: object, fault: str) -> None:
    """The check can fail."""
    pod = {"metadata": {"name": "a", "labels": {}, "annotations": {}}, "spec": {"containers": [{"env": []}]}}
    assert list(fuzz.faults(json.dumps(pod).encode())) == []
    pod[where[0]][where[1]] = value  # type: ignore[index]
    assert [found[: len(fault)] for found in fuzz.faults(json.dumps(pod).encode())] == [fault]
