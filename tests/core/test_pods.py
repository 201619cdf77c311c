"""Snapshots: what is read from a pod as the API server sends it, and what is left alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ottoscaler.core.manifest import AttemptKey
from ottoscaler.core.pods import (
    Phase,
    PodSnapshot,
    RawPod,
    StartTrouble,
    epoch_seconds,
    foreign_pod_snapshot,
    pod_snapshot,
)
from ottoscaler.core.raw_pod import event_annotation
from tests.core.builders import (
    HASH,
    LABELS,
    NOW,
    Json,
    decode,
    deleted_at,
    deleting,
    disrupted,
    pod,
    raw_pod,
    running,
    seen,
    stamp,
    succeeded,
    terminated,
    unscheduled,
)

contract = pytest.mark.contract


@contract("4.labels")
@contract("4.annotations")
def test_a_snapshot_identifies_its_worker() -> None:
    """Worker and attempt from the labels, the event from its annotation."""
    found = seen(raw_pod())
    assert (found.key, found.instance, found.event_id) == (AttemptKey(HASH, 2, 1), "otto", "e-1")
    assert (found.name, found.uid, found.resource_version) == ("otto-agent-0123456789-2", "u-1", "7")


@pytest.mark.parametrize(("reason", "kept"), [("StartError", "no such file"), ("Error", ""), ("Completed", "")])
def test_only_of_a_container_that_did_not_start_the_message_is_kept(reason: str, kept: str) -> None:
    """What a worker wrote of its end itself is as long as it likes, and decides nothing."""
    assert seen(raw_pod("Failed", state=terminated(1, reason, message="no such file"))).start_error == kept


@contract("5.created_at")
@contract("5.scheduled_at")
@contract("5.started_at")
@contract("5.finished_at")
@contract("5.exit_code")
@contract("5.node")
def test_a_finished_pod_has_all_its_times() -> None:
    """Times in seconds since the epoch, exit code and node."""
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(2)}
    found = seen(raw_pod("Failed", state=terminated(3), conditions=[scheduled]))
    assert (found.created_at, found.scheduled_at) == (NOW, NOW + 2)
    assert (found.started_at, found.finished_at) == (NOW + 5, NOW + 15)
    assert (found.exit_code, found.node, found.phase) == (3, "n-1", Phase.FAILED)


def test_a_running_pod_has_started_and_not_finished() -> None:
    """Nothing is said that is not known yet."""
    found = seen(raw_pod("Running", state={"running": {"startedAt": stamp(5)}}))
    assert (found.started_at, found.finished_at, found.exit_code) == (NOW + 5, None, None)


@contract("5.scheduled_at")
def test_a_pod_that_is_not_scheduled_has_no_such_time() -> None:
    """The condition is there from the beginning, but False."""
    assert (
        seen(raw_pod(conditions=[unscheduled("Unschedulable") | {"lastTransitionTime": stamp(1)}])).scheduled_at is None
    )


def test_the_time_of_a_deletion_is_that_of_the_request() -> None:
    """The API server writes the end of the grace."""
    found = seen(raw_pod("Running", metadata=deleted_at(7)))
    assert (found.deleting, found.deletion_requested_at, found.deletion_grace_s) == (True, NOW + 7, 30)


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_is_known(phase: Phase) -> None:
    """As Kubernetes spells it."""
    assert seen(raw_pod(phase.value)).phase is phase


@pytest.mark.parametrize("phase", ["", "Hibernating"])
def test_a_phase_of_a_later_kubernetes_is_unknown(phase: str) -> None:
    """And no error, in the one thread that watches."""
    assert seen(raw_pod(phase)).phase is Phase.UNKNOWN


@contract("4.labels")
@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"managed-by": "ottoscaler"},
        {"ottoscaler.io/event": ""},
        {name: value for name, value in LABELS.items() if name != "ottoscaler.io/event"},
        {name: value for name, value in LABELS.items() if name != "ottoscaler.io/worker"},
        {name: value for name, value in LABELS.items() if name != "ottoscaler.io/attempt"},
        LABELS | {"ottoscaler.io/worker": "two"},
        LABELS | {"ottoscaler.io/worker": "-2"},
        LABELS | {"ottoscaler.io/attempt": ""},
        LABELS | {"ottoscaler.io/attempt": "²"},
        LABELS | {"ottoscaler.io/attempt": "1" * 10},
    ],
)
def test_a_pod_without_our_labels_is_none_of_ours(labels: Json) -> None:
    """Any other pod in the namespace, or a pod that was relabelled by hand."""
    assert pod_snapshot(decode(raw_pod(metadata={"labels": labels}))) is None


@contract("5.NameConflict")
def test_a_strangers_pod_has_neither_a_key_nor_an_event() -> None:
    """Enough to see that it is not ours."""
    found = foreign_pod_snapshot(decode(raw_pod("Succeeded", metadata={"labels": {}})))
    assert (found.name, found.uid, found.resource_version) == ("otto-agent-0123456789-2", "u-1", "7")
    assert (found.key, found.event_id, found.instance) == (AttemptKey("", 0, 0), "", "")


def test_a_pod_needs_no_more_than_name_and_labels() -> None:
    """All other fields may be missing in the first moment of its life."""
    found = pod_snapshot(decode({"metadata": {"name": "otto-agent-0123456789-2", "labels": LABELS}}))
    assert found is not None
    assert (found.phase, found.trouble, found.created_at, found.event_id) == (
        Phase.PENDING,
        StartTrouble.NONE,
        None,
        "",
    )


def test_times_that_are_null_are_none() -> None:
    """The API server writes null for a container that never ran and for a condition that never changed."""
    ended = terminated(1, startedAt=None, finishedAt=None)
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": None}
    found = seen(raw_pod("Failed", state=ended, conditions=[scheduled]))
    assert (found.scheduled_at, found.started_at, found.finished_at) == (None, None, None)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"metadata": {}}',
        b'{"metadata": {"name": 7}}',
        b'{"metadata": {"name": "a", "labels": {"b": 1}}}',
        b'{"metadata": {"name": "a"}, "status": {"conditions": [{}]}}',
    ],
)
def test_a_malformed_pod_is_a_msgspec_error(raw: bytes) -> None:
    """And of decoding, where the adapter expects it: nowhere later."""
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(raw, type=RawPod)


reasons = st.sampled_from(
    ["", "Error", "Completed", "Evicted", "ErrImagePull", "OOMKilled", "Unschedulable"]
) | st.text(max_size=9)
times = st.none() | st.integers(-100, 10**6).map(stamp)
states = st.fixed_dictionaries(
    {},
    optional={
        "waiting": st.fixed_dictionaries({"reason": reasons, "message": st.text(max_size=9)}),
        "running": st.fixed_dictionaries({"startedAt": times}),
        "terminated": st.fixed_dictionaries(
            {"exitCode": st.integers(0, 255), "reason": reasons, "startedAt": times, "finishedAt": times}
        ),
    },
)
conditions = st.fixed_dictionaries(
    {"type": st.sampled_from(["PodScheduled", "DisruptionTarget", "Ready"]), "status": reasons, "reason": reasons}
)


@given(
    st.sampled_from([*Phase, "Odd"]),
    st.none() | states,
    st.lists(conditions, max_size=3),
    st.dictionaries(st.sampled_from(["reason", "message", "new"]), st.text(max_size=9)),
)
def test_whatever_decodes_has_a_snapshot(phase: str, state: Any, found: list[Json], status: Json) -> None:
    """No mixture of fields, however odd, breaks the thread that watches."""
    result = seen(raw_pod(phase, state=state, conditions=found, status=status))
    assert result.live is not result.finished


@pytest.mark.parametrize(
    ("snap", "finished", "live"),
    [
        (pod(), False, True),
        (running(), False, True),
        (pod(Phase.UNKNOWN), False, True),
        (deleting(running()), False, True),
        (succeeded(), True, False),
        (pod(Phase.FAILED), True, False),
        (running().as_gone(), False, False),
    ],
)
def test_a_pod_uses_capacity_until_it_is_finished_or_gone(snap: PodSnapshot, finished: bool, live: bool) -> None:
    """Also while it is being deleted: its program may still run."""
    assert (snap.finished, snap.live) == (finished, live)


def test_a_pod_that_is_gone_keeps_its_last_status() -> None:
    """As a DELETED event shows it."""
    assert replace(succeeded().as_gone(), gone=False) == succeeded()


@pytest.mark.parametrize(
    "change",
    [
        {"phase": Phase.RUNNING},
        {"trouble": StartTrouble.IMAGE_PULL},
        {"started_at": NOW},
        {"deletion_requested_at": NOW},
        {"gone": True},
        {"uid": "u-2"},
    ],
)
def test_a_waiter_is_woken_by_what_it_waits_for(change: Json) -> None:
    """Each of these may end its waiting."""
    assert replace(pod(), **change).stage != pod().stage


@pytest.mark.parametrize(
    "change", [{"resource_version": "2"}, {"node": "n"}, {"scheduled_at": NOW}, {"trouble_text": "x"}]
)
def test_a_waiter_sleeps_through_the_rest(change: Json) -> None:
    """Most updates of a pod change nothing that matters."""
    assert replace(pod(), **change).stage == pod().stage


def test_a_disruption_counts_only_while_its_condition_is_true() -> None:
    """An eviction that was called off leaves the condition behind, False."""
    assert seen(raw_pod(conditions=[disrupted("EvictionByEvictionAPI") | {"status": "False"}])).disruption is None


@pytest.mark.parametrize(("text", "seconds"), [(None, None), ("", None), ("2024-05-01T10:00:00Z", NOW)])
def test_times_are_seconds_since_the_epoch(text: str | None, seconds: float | None) -> None:
    """None where there is none."""
    assert epoch_seconds(text) == seconds


@contract("4.annotations")
@pytest.mark.parametrize(
    ("annotations", "text"), [({"ottoscaler.io/event": "{}", "other": "x"}, "{}"), ({"other": "x"}, ""), ({}, "")]
)
def test_a_pod_gives_its_event_back(annotations: Json, text: str) -> None:
    """Enough to take it up when Redis has forgotten it."""
    assert event_annotation(msgspec.json.encode(raw_pod(metadata={"annotations": annotations}))) == text


@pytest.mark.contract("5.StartError")
@pytest.mark.parametrize("stamp", ["1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "", None])
def test_a_container_that_never_started_has_no_start(stamp: str | None) -> None:
    """The kubelet writes the epoch for it, and no deadline may be counted from there."""
    assert epoch_seconds(stamp) is None
