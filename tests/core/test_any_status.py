"""Any pod status whatever: what has finished has a verdict, from the fields of the API alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.pod_timeline import agent_verdict, finished_pod_verdict
from ottoscaler.core.verdicts import EndReason, FaultOrigin, Outcome
from tests.core.builders import (
    Json,
    container,
    deleted_at,
    raw_pod,
    seen,
    stamp,
)

words = st.sampled_from(
    [
        "", "Error", "Completed", "OOMKilled", "StartError", "ContainerStatusUnknown", "Evicted", "DeadlineExceeded",
        "TopologyAffinityError", "Preempting", "Unknown",
    ]
) | st.text(max_size=6)  # fmt: skip
codes = st.none() | st.sampled_from([0, 1, 126, 127, 128, 137, 143])
stamps = st.none() | st.integers(-5000, 5000).map(stamp)
states = st.one_of(
    st.fixed_dictionaries({"waiting": st.fixed_dictionaries({"reason": words, "message": words})}),
    st.fixed_dictionaries({"running": st.fixed_dictionaries({"startedAt": stamps})}),
    st.fixed_dictionaries(
        {
            "terminated": st.fixed_dictionaries(
                {"exitCode": codes, "reason": words, "message": words, "startedAt": stamps, "finishedAt": stamps}
            )
        }
    ),
    st.just({}),
)
statuses = st.lists(
    st.builds(container, st.sampled_from(["agent", "aaa", "zzz"]), states),
    max_size=3,
    unique_by=lambda one: one["name"],
)
conditions = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["DisruptionTarget", "PodScheduled", "Ready"]),
            "status": st.sampled_from(["True", "False", "Unknown"]),
            "reason": words,
            "lastTransitionTime": stamps,
        }
    ),
    max_size=2,
)


@given(
    phase=st.sampled_from(["Failed", "Succeeded"]),
    containers=statuses,
    init=statuses,
    found=conditions,
    status=st.fixed_dictionaries({}, optional={"reason": words, "message": words, "startTime": stamps}),
    metadata=st.sampled_from([{}, deleted_at(3), deleted_at(99)]),
)
def test_every_pod_that_has_finished_has_a_verdict(
    phase: str, containers: list[Json], init: list[Json], found: list[Json], status: Json, metadata: Json
) -> None:
    """From the fields of the API alone, and never as another container's exit code."""
    raw = raw_pod(phase, conditions=found, metadata=metadata)
    raw["status"] |= {"containerStatuses": containers, "initContainerStatuses": init, **status}
    pod = seen(raw)
    result = finished_pod_verdict(pod)
    assert result is not None
    if phase == "Succeeded":
        assert result.reason is EndReason.COMPLETED
    if pod.exit_code is None and phase == "Failed":
        assert result.reason.fault is not FaultOrigin.NONE
        assert result.reason not in (EndReason.ERROR, EndReason.OOM_KILLED)
    if result.reason.outcome is Outcome.SUCCEEDED:
        assert phase == "Succeeded" or pod.exit_code == 0
    own = [one for one in containers if one["name"] == "agent"]
    assert pod.exit_code == (own[0]["state"].get("terminated", {}).get("exitCode") if own else None)


@given(containers=statuses, message=st.text(max_size=30))
def test_a_termination_message_changes_no_verdict(containers: list[Json], message: str) -> None:
    """A worker may write what it likes there, unless it never ran."""
    plain, forged = (
        raw_pod("Failed", status={"containerStatuses": _with_message(containers, text)}) for text in ("", message)
    )
    one, two = agent_verdict(seen(plain)), agent_verdict(seen(forged))
    if seen(plain).agent_end_reason not in ("StartError", "ContainerCannotRun", "RunContainerError"):
        assert one == two


def _with_message(containers: list[Json], message: str) -> list[Json]:
    """The same statuses with another termination message."""

    def changed(state: Json) -> Json:
        return {"terminated": state["terminated"] | {"message": message}} if "terminated" in state else state

    return [one | {"state": changed(one["state"])} for one in containers]
