"""A job that runs for long while its controller is replaced again and again: one pod, one attempt, one result."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Final

import pytest

from tests.e2e.system import System, uids
from tests.e2e.waiting import LONG_S, stays

#: How long the job runs, seconds: E2E_JOB_S=600 is ten minutes.
JOB_S: Final = int(os.environ.get("E2E_JOB_S", "20"))
RESTARTS: Final = 5

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(JOB_S + 160)]


@pytest.mark.contract("5.exactly-once")
@pytest.mark.contract("2.WORKER_DEADLINE_S")
def test_it_outlives_five_controllers(system: System) -> None:
    """Killed and stopped by turns, with WORKER_DEADLINE_S=0. Between two of them no process makes a second pod."""
    controller = system.start(WORKER_DEADLINE_S="0")
    # an end at SIGTERM would be another exit code
    event_id = system.send(type="scale_up", script=f"trap 'exit 9' TERM; sleep {JOB_S} & wait $!; echo whole")
    pods, began = system.running(event_id), time.monotonic()
    for number in range(RESTARTS):
        due = began + JOB_S * (number + 1) / (RESTARTS + 1)
        assert stays(lambda: uids(system.pods_of(event_id)) <= uids(pods), due - time.monotonic(), poll_s=0.5)
        if number % 2:
            controller.terminate()
            assert controller.exit_code() == 0
        else:
            controller.kill()
        controller = system.start(WORKER_DEADLINE_S="0")
    assert system.finished(event_id, timeout_s=JOB_S + LONG_S)["succeeded"] == "1"
    (result,) = system.results(event_id)
    assert (result["outcome"], result["attempt"], result["pod_uid"]) == ("succeeded", "1", *uids(pods))
    ran = datetime.fromisoformat(result["finished_at"]) - datetime.fromisoformat(result["started_at"])
    assert ran.total_seconds() >= JOB_S - 1
    system.no_pods(event_id)
    assert system.open_ids() == []
