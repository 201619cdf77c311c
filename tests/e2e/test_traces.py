"""The trace of an event with pods of a real kubelet, while the controller is killed."""

from __future__ import annotations

import pytest

from tests.adapters.otlp_receiver import PHASES, attributes, receiver, trace_of
from tests.e2e.system import System
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.contract("2.OTEL_EXPORTER_OTLP_ENDPOINT")]
#: For how long the worker runs, seconds: whole seconds are all that the kubelet gives.
RUNS_S = 4


def test_a_killed_controller_leaves_one_trace(system: System) -> None:
    """One root, no gap, and no other span for what is sent twice. The phases take as long as the pod's did."""
    with receiver() as opened:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": opened.endpoint, "LEASE_S": "3"}
        controller = system.start(**traced)
        event_id = system.send(type="scale_up", script=f'sleep {RUNS_S}; printf %s "$TRACEPARENT" > "$OTTO_OUTPUT"')
        wait_for(lambda: [pod["status"]["phase"] for pod in system.pods_of(event_id)] == ["Running"], "it to run", 60)
        controller.kill()
        system.start(**traced)
        verdict = system.verdict(event_id)
        spans = trace_of(opened, ["scale_up", "worker", *PHASES])
    (run,) = [span for span in spans if span.name == "run"]
    assert (attributes(run)["k8s.pod.uid"], attributes(run)["k8s.node.name"]) == (verdict["pod_uid"], verdict["node"])
    assert verdict["output"] == f"00-{run.trace_id.hex()}-{run.span_id.hex()}-01"
    assert RUNS_S - 1 <= (run.end_time_unix_nano - run.start_time_unix_nano) / 1e9 <= RUNS_S + 20
