"""A policy's values: what each field becomes, its default, and the bounds of every number."""

from __future__ import annotations

import copy
from typing import Any, Final

import msgspec
import pytest

from ottoscaler.core.overrides import SecretEnv
from ottoscaler.core.policy import Policy
from ottoscaler.core.policy_reader import Path, read_policy
from tests.core.policies import DIGEST, EXAMPLE

pytestmark = pytest.mark.contract("2.POLICY_FILE")

NODE: Final = ("profiles", "node20")


def value_at(policy: Policy, attribute: str) -> Any:
    """An attribute of the policy, as `most.retries` or `profiles.node20.retries`."""
    place: Any = policy
    for name in attribute.split("."):
        place = place[name] if isinstance(place, dict) else getattr(place, name)
    return place


def example(path: Path, value: object) -> dict[str, Any]:
    """The example with a value at that path; `...` takes the field out."""
    data = copy.deepcopy(EXAMPLE)
    place: Any = data
    for step in path[:-1]:
        place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def read(data: object) -> Policy:
    """The policy of data without a fault."""
    found = read_policy(data)
    assert isinstance(found, Policy), found
    return found


def test_without_fields_each_value_is_its_default() -> None:
    """Nothing is allowed, and what is not said has the largest value that the program knows."""
    found = read({"version": 1})
    assert msgspec.structs.replace(found, most=Policy().most) == Policy()
    most = found.most
    assert (most.deadline_s, most.retries, most.priority, most.keep_failed_s) == (2_592_000, 10, 9, 0)
    assert most.source == {
        name: f"policy: max.{name}"
        for name in ("cpu", "memory", "deadline_s", "retries", "priority", "pod_count", "keep_failed_s")
    }


#: Where each number stands, where it is read to, its least and its largest value, and its default.
NUMBERS: Final[list[tuple[Path, str, int, int, int | None]]] = [
    (("command", "max_items"), "command_items", 1, 1024, 64),
    (("command", "max_bytes"), "command_bytes", 1, 65536, 8192),
    (("env", "max_items"), "env_items", 1, 1024, 50),
    (("max", "deadline_s"), "most.deadline_s", 1, 2_592_000, None),
    (("max", "retries"), "most.retries", 0, 10, 10),
    (("max", "priority"), "most.priority", 0, 9, 9),
    (("max", "keep_failed_s"), "most.keep_failed_s", 0, 604_800, None),
    (("max", "pod_count"), "max_pod_count", 1, 1_000_000, 0),
    ((*NODE, "deadline_s"), "profiles.node20.deadline_s", 1, 2_592_000, 0),
    ((*NODE, "retries"), "profiles.node20.retries", 0, 10, None),
    ((*NODE, "keep_failed_s"), "profiles.node20.keep_failed_s", 0, 604_800, None),
]


@pytest.mark.parametrize(("path", "attribute", "least", "most", "default"), NUMBERS, ids=lambda one: str(one)[:40])
def test_a_number_is_taken_from_its_least_to_its_largest(
    path: Path, attribute: str, least: int, most: int, default: int | None
) -> None:
    """And one below or above is one fault, at its place, that says both; so are a text, a fraction and a flag."""
    for value in (least, most):
        assert value_at(read(example(path, value)), attribute) == value
    for wrong in (least - 1, most + 1, str(least), float(most), True, None):
        assert read_policy(example(path, wrong)) == [
            (path, f'"{wrong}"; a whole number from {least} to {most} is expected')
        ]
    if path not in (("max", "deadline_s"), ("max", "keep_failed_s")):  # the example's events may set them
        data = example(path, 1)
        assert value_at(read(_without(data, path)), attribute) == default


def _without(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """The data without the value at that path."""
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return data


def test_each_field_of_a_profile_is_read() -> None:
    """To the value that the pod gets."""
    node, publish = (read(EXAMPLE).profiles[name] for name in ("node20", "publish"))
    assert (node.image, node.command, node.args) == ("registry.example.com/ci/node:20", ("npm",), ("test",))
    assert (node.env, node.memory, node.cpu) == ({"CI": "true", "NODE_ENV": "test"}, "1Gi", "")
    assert list(node.tolerations) == [{"key": "ci", "operator": "Exists", "effect": "NoSchedule"}]
    assert (node.node_selector, node.deadline_s, node.retries) == ({"pool": "ci"}, 600, 1)
    assert node.keep_failed_s == 600
    assert node.overrides == {"command", "args", "env", "memory", "deadline_s", "keep_failed_s"}
    assert publish.image == f"registry.example.com/ci/publish@{DIGEST}"
    assert list(publish.secret_env) == [SecretEnv("NPM_TOKEN", "ottoscaler-worker-npm", "token")]


@pytest.mark.parametrize(
    ("given", "read_as"),
    [
        ({"key": "ci", "value": "a"}, {"key": "ci", "operator": "Equal", "value": "a"}),
        ({"key": "ci", "operator": "Exists"}, {"key": "ci", "operator": "Exists"}),
        *(
            ({"key": "a.io/ci", "effect": effect}, {"key": "a.io/ci", "operator": "Equal", "effect": effect})
            for effect in ("NoSchedule", "PreferNoSchedule", "NoExecute")
        ),
    ],
)
def test_a_toleration_is_read_as_kubernetes_has_it(given: dict[str, str], read_as: dict[str, str]) -> None:
    """Without what is empty."""
    assert list(read(example((*NODE, "tolerations"), [given])).profiles["node20"].tolerations) == [read_as]


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("env",), 1, [(("env",), "a map is expected")]),
        (("max",), 1, [(("max",), "a map is expected")]),
        (("command",), 1, [(("command",), "a map is expected")]),
        ((*NODE, "env"), 1, [((*NODE, "env"), "a map is expected")]),
        ((*NODE, "node_selector"), 1, [((*NODE, "node_selector"), "a map is expected")]),
        ((*NODE, "tolerations", 0), 1, [
            ((*NODE, "tolerations", 0), "a map is expected"),
            ((*NODE, "tolerations", 0), "key is missing: workers do not tolerate every taint")]),
        ((*NODE, "tolerations", 0, "effect"), "x", [
            ((*NODE, "tolerations", 0, "effect"),
             '"x"; the form NoSchedule|PreferNoSchedule|NoExecute is expected')]),
        ((*NODE, "tolerations", 0, "key"), "node-role.kubernetes.io/master", [
            ((*NODE, "tolerations", 0, "key"), "workers do not run on the control plane")]),
        (("default_profile",), "other", [
            (("default_profile",), f'"other" is no profile; there are: {", ".join(sorted(EXAMPLE["profiles"]))}')]),
    ],
    ids=lambda one: str(one)[:50],
)  # fmt: skip
def test_a_fault_is_this_sentence_at_this_place(path: Path, value: object, found: list[tuple[Path, str]]) -> None:
    """And it is the only one, except where it makes another."""
    faults = read_policy(example(path, value))
    assert isinstance(faults, list)
    assert [fault for fault in faults if fault[0][: len(path)] == path] == found


@pytest.mark.parametrize(
    "path", [("tenants",), ("profiles",), ("env",), (*NODE, "env"), (*NODE, "node_selector")], ids="-".join
)
def test_a_name_that_yaml_reads_as_a_number_is_a_fault(path: Path) -> None:
    """Also in a map with free names."""
    faults = read_policy(example(path, {8080: "x"}))
    assert isinstance(faults, list)
    assert (path, 'the name "8080" is no text: quote it') in faults


def test_without_profiles_none_is_named() -> None:
    """Where the default is one of them."""
    assert read_policy({"version": 1, "default_profile": "a"}) == [
        (("default_profile",), '"a" is no profile; there are: none')
    ]


@pytest.mark.parametrize("field", ["name", "secret", "key"])
def test_a_variable_from_a_secret_needs_all_three(field: str) -> None:
    """What is missing is named."""
    given = {"name": "A", "secret": "ottoscaler-worker-a", "key": "k"}
    del given[field]
    assert read_policy(example(("profiles", "publish", "secret_env"), [given])) == [
        (("profiles", "publish", "secret_env", 0), f"{field} is missing")
    ]


@pytest.mark.parametrize("field", ["cpu", "memory", "deadline_s", "keep_failed_s"])
def test_what_events_may_set_needs_its_limit(field: str) -> None:
    """With one there is no fault."""
    limits = {"cpu": 1, "memory": "1Gi", "deadline_s": 60, "keep_failed_s": 60}
    profiles = {"a": {"overrides": [field]}}
    read({"version": 1, "max": {field: limits[field]}, "profiles": profiles})
    del limits[field]
    assert read_policy({"version": 1, "max": limits, "profiles": profiles}) == [
        (("profiles", "a", "overrides"), f"{field} needs max.{field}, which is not set")
    ]
