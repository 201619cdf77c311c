"""More memory after each end as OOMKilled: the sizes, where they are decided, and which attempt has which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace as with_settings
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.amounts import memory_bytes
from ottoscaler.core.events import ScaleEvent, decode
from ottoscaler.core.lifecycle import begin_lifecycle, resume_lifecycle
from ottoscaler.core.manifest import AttemptKey, build_pod
from ottoscaler.core.memory_sizes import LEAST_FACTOR, MAX_FACTOR, MAX_SIZES, larger_sizes, memory_of
from ottoscaler.core.observations import AttemptStored, EffectDone, NoResultYet, PodSeen
from ottoscaler.core.policy import Policy
from ottoscaler.core.policy_reader import read_policy
from ottoscaler.core.results import MAX_MESSAGE, worker_result
from ottoscaler.core.verdicts import EndReason, Verdict
from ottoscaler.settings import WorkerSettings
from tests.core.builders import HASH, NOW, evicted, failed
from tests.core.drive import LIMITS, Drive
from tests.core.policies import parsed, policy
from tests.core.test_policy_reader import changed

pytestmark = pytest.mark.contract("3.profile")

MI: Final = 2**20
FACTOR: Final = ("profiles", "node20", "oom_memory_factor")


@pytest.mark.parametrize(
    ("memory", "factor", "most", "sizes"),
    [
        ("512Mi", 2.0, 8192 * MI, ["1Gi", "2Gi", "4Gi", "8Gi"]),
        ("1Gi", 1.5, 3000 * MI, ["1536Mi", "2304Mi", "3000Mi"]),
        ("100M", 1.1, 128 * MI, ["105Mi", "116Mi", "128Mi"]),
        ("16Mi", 1.1, 1024 * MI, ["18Mi", "20Mi", "22Mi", "25Mi", "28Mi", "31Mi", "35Mi", "39Mi", "43Mi", "48Mi"]),
        ("1Gi", 10.0, 1500 * MI + 1, ["1572864001"]),
        ("8Gi", 2.0, 8192 * MI, []),
        ("16Gi", 2.0, 8192 * MI, []),
        ("512Mi", 0.0, 8192 * MI, []),
        ("", 2.0, 8192 * MI, []),
    ],
)
def test_each_size_is_larger_by_the_factor(memory: str, factor: float, most: int, sizes: Sequence[str]) -> None:
    """In whole MiB, up to the maximum, and never smaller than what the worker had."""
    assert list(larger_sizes(memory, factor, most)) == sizes


@given(st.integers(16 * MI, 2**41), st.floats(LEAST_FACTOR, MAX_FACTOR), st.integers(0, 2**42), st.integers(0, 20))
def test_sizes_rise_up_to_the_maximum(first: int, factor: float, most: int, oom_kills: int) -> None:
    """Whatever the policy says; each attempt has a size, also after more ends than there are sizes."""
    sizes = larger_sizes(str(first), factor, most)
    values = [first, *(memory_bytes(size) or 0 for size in sizes)]
    assert values == sorted(set(values))
    assert len(sizes) <= MAX_SIZES
    assert all(value <= max(first, most) for value in values)
    assert memory_of(str(first), sizes, oom_kills) == [str(first), *sizes][min(oom_kills, len(sizes))]


def accepted(fields: Mapping[str, str], under: Policy) -> ScaleEvent:
    """The event as it is stored and read again."""
    found = parsed({"profile": "node20", **fields}, under)
    assert isinstance(found, ScaleEvent), found
    return decode(found.encode())


def with_factor(factor: object) -> Policy:
    """The example policy; its profile node20 has 1Gi, and this factor."""
    found = read_policy(changed(FACTOR, factor))
    assert isinstance(found, Policy), found
    return found


def test_the_policy_decides_when_the_event_is_accepted() -> None:
    """From the memory of the event, or of the profile, up to max.memory; what is stored says it."""
    rules = with_factor(2)
    assert accepted({}, rules).overrides.oom_memory == ("2Gi", "4Gi", "8Gi")
    assert accepted({"memory": "3Gi"}, rules).overrides.oom_memory == ("6Gi", "8Gi")
    assert accepted({"memory": "8Gi"}, rules).overrides.oom_memory == ()
    assert accepted({}, policy()).overrides.oom_memory == ()


@pytest.mark.parametrize("factor", [1, 1.0, 10.1, True, "2", None, float("nan"), float("inf"), -2])
def test_a_factor_is_a_number_above_one(factor: object) -> None:
    """Everything that is none has its place in the file."""
    found = read_policy(changed(FACTOR, factor))
    assert isinstance(found, list)
    assert [path for path, _ in found] == [FACTOR]
    assert "a number from 1.1 to 10 is expected" in found[0][1]


def test_a_factor_needs_a_size_to_begin_with_and_a_maximum() -> None:
    """The memory of the configuration may be another one tomorrow; and no maximum is not any amount."""
    where = ("profiles", "plain", "oom_memory_factor")
    sentence = "a profile with it has to set memory, from which it grows"
    assert read_policy(changed(where, 2)) == [(where, sentence)]
    data: Any = changed(FACTOR, 2)
    del data["max"]["memory"]
    assert (FACTOR, "memory grows up to max.memory, which is not set") in read_policy(data)  # type: ignore[operator]


def memory(event: ScaleEvent, attempt: int, oom_kills: int, template: WorkerSettings = LIMITS) -> tuple[str, str]:
    """Request and limit of the container of that attempt."""
    body = build_pod(
        template, event, AttemptKey(HASH, 1, attempt), event_json=event.encode(), instance="otto", namespace="ci",
        oom_kills=oom_kills,
    )  # fmt: skip
    (container,) = json.loads(body)["spec"]["containers"]
    return container["resources"]["requests"]["memory"], container["resources"]["limits"]["memory"]


def test_the_pod_of_an_attempt_has_its_size() -> None:
    """By what is stored alone: the policy in force then has no part in it."""
    event = accepted({}, with_factor(2))
    assert [memory(event, 4, number)[0] for number in range(6)] == ["1Gi", "2Gi", "4Gi", "8Gi", "8Gi", "8Gi"]
    assert [memory(event, 4, number)[1] for number in range(6)] == ["1Gi", "2Gi", "4Gi", "8Gi", "8Gi", "8Gi"]
    without = accepted({}, policy())
    assert memory(without, 4, 3) == ("1Gi", "1Gi")
    bare = ScaleEvent(event_id="e", stream_id="1-0", type=event.type, pod_count=1, task_id="t")
    assert memory(bare, 4, 3) == (LIMITS.memory_request, LIMITS.memory_limit)


def test_only_ends_as_oomkilled_count() -> None:
    """A failure of the platform in between takes nothing away, and other failures of the worker add nothing."""
    drive = Drive(limits=with_settings(LIMITS, worker_retries=3, infra_retries=3))
    counts = []
    for end in ("OOMKilled", "evicted", "Error", "OOMKilled"):
        last = evicted() if end == "evicted" else failed(1, agent_end_reason=end)
        drive.feed(AttemptStored())
        if drive.life.old_pod is not None:
            drive.feed(EffectDone())
        drive.feed(PodSeen(last), NoResultYet(None))
        if end == "evicted":
            drive.wait(60)
        counts.append(drive.life.oom_kills)
    assert counts == [1, 1, 1, 2]
    assert drive.life.store_attempt.oom_kills == 2


def test_another_process_goes_on_with_the_count() -> None:
    """With a pod of the stored attempt, and without one."""
    limits = with_settings(LIMITS, worker_retries=5)
    last = failed(1, agent_end_reason="OOMKilled")
    resumed = Drive(resume_lifecycle(1, 3, 0, oom_kills=2), limits=limits)
    resumed.feed(PodSeen(last), NoResultYet(None))
    assert resumed.life.store_attempt == begin_lifecycle(1, 4, 0, 3).store_attempt


def test_the_result_names_the_size() -> None:
    """Of the last attempt; where the memory never grows, the message is as it always was."""
    event, end = accepted({}, with_factor(2)), Verdict(EndReason.OOM_KILLED, "the worker exited with code 137")
    last = failed(137, agent_end_reason="OOMKilled")
    messages = [worker_result(event, 1, 3, end, last, NOW, number)["message"] for number in (0, 2)]
    assert messages == [f"{end.message} (memory: {size})" for size in ("1Gi", "4Gi")]
    assert worker_result(accepted({}, policy()), 1, 3, end, last, NOW, 2)["message"] == end.message
    assert worker_result(event, 1, 3, end, None, NOW, 2)["message"] == end.message
    long = worker_result(event, 1, 3, Verdict(EndReason.ERROR, "x" * 2000), last, NOW, 1)["message"]
    assert (len(long), long.endswith("x (memory: 2Gi)")) == (MAX_MESSAGE, True)
