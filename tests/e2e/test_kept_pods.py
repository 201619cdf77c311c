"""Pods of failed workers on a real node: they stay to be looked at, and go in time."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import pytest

from tests.e2e.system import System, names, uids
from tests.e2e.waiting import stays, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

#: How long the pod stays, seconds: long enough for a restart in between.
KEEP_S = 20
#: The node writes whole seconds, and the controller looks once a second.
TOLERANCE_S = 5


@pytest.mark.contract("2.KEEP_FAILED_S")
@pytest.mark.contract("3.keep_failed_s")
def test_a_failed_pod_stays_over_a_restart_and_goes_in_time(system: System) -> None:
    """The result does not wait for it, its log can be read, and a controller that never saw it run deletes it."""
    first = system.start(KEEP_FAILED_S=str(KEEP_S), LEASE_S="3", MAX_WORKERS="1")
    event_id = system.send(type="scale_up", script="echo what went wrong; exit 7")
    result = system.verdict(event_id)
    assert (result["outcome"], result["exit_code"]) == ("failed", "7")
    (pod,) = system.pods_of(event_id)
    assert pod["metadata"]["annotations"]["ottoscaler.io/keep-failed-s"] == str(KEEP_S)
    end = pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
    gone_at = datetime.fromisoformat(end).timestamp() + KEEP_S
    until = datetime.fromisoformat(end) + timedelta(seconds=KEEP_S)
    assert f"its pod stays until {until:%Y-%m-%dT%H:%M}" in result["message"]
    assert f"kubectl logs -n {system.kube.namespace} {names([pod])[0]} -c agent" in result["message"]

    assert system.verdict(system.send(type="scale_up", script="true"))["outcome"] == "succeeded"
    first.kill()
    second = system.start(LEASE_S="3", REDIS_CONSUMER="otto-1")
    log = system.kube.api.read_namespaced_pod_log(names([pod])[0], system.kube.namespace)
    assert log == "what went wrong\n"
    assert stays(lambda: uids(system.pods_of(event_id)) == uids([pod]), gone_at - time.time() - 1)
    wait_for(lambda: not system.pods_of(event_id), "the pod to go", TOLERANCE_S + 1)
    assert [line["pod"] for line in second.said("worker.deleted")] == names([pod])
    assert len(system.results(event_id)) == 1
