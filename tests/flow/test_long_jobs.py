"""A job of two days in simulated time: controllers come and go, watches end, and its one pod runs to its end."""

from __future__ import annotations

from itertools import cycle
from typing import Any, Final

import pytest

from ottoscaler.errors import ClusterUnavailable, WatchExpired
from tests.fakes.clock import START
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController

pytestmark = [pytest.mark.contract("2.WORKER_DEADLINE_S"), pytest.mark.timeout(240)]

LEASE_S: Final = 3600
STEP_S: Final = LEASE_S / 3
#: Each of so many processes owns the task for six hours.
OWNERS: Final = 8
STEPS: Final = int(6 * 3600 / STEP_S)
WATCH_S: Final = 4 * 3600
SETTINGS: dict[str, Any] = {
    "threads": ("watch", "lease", "reconciler"), "LEASE_S": LEASE_S, "WORKER_DEADLINE_S": 0, "PENDING_TIMEOUT_S": 60,
}  # fmt: skip


def pass_step(controller: SimulatedController) -> None:
    """A third of a lease passes; the lease thread renews."""
    renewals = controller.redis.calls["renew"]
    controller.pass_time(STEP_S)
    eventually(lambda: controller.redis.calls["renew"] > renewals, what="a renewal")


def test_a_job_of_48_hours_runs_once() -> None:
    """Every other owner dies, and a replica of another name takes its task when the lease has run out; the others stop
    in order, for an upgrade. Every four hours the watch ends: by itself, as expired, or with the API server.
    """
    servers = FakeServers()
    ends = cycle((None, WatchExpired("too old"), ClusterUnavailable("the API server restarts")))
    next_end, event_id, pod = servers.clock.now() + WATCH_S, "", ""
    for number in range(OWNERS):
        with SimulatedController(servers, consumer=f"c{number}", incarnation=f"b{number}", **SETTINGS) as owner:
            if not number:
                event_id = owner.accept()
                pod = owner.pod(event_id)
                owner.cluster.run(pod)
                assert "activeDeadlineSeconds" not in servers.kubernetes.pods[pod]["spec"]
            for _ in range(STEPS):
                pass_step(owner)
                if servers.clock.now() >= next_end:
                    next_end += WATCH_S
                    watches = servers.kubernetes.count("watch")
                    servers.kubernetes.end_watches(next(ends))
                    eventually(lambda before=watches: servers.kubernetes.count("watch") > before, what="the next watch")
            assert owner.pod(event_id) == pod
            if number == OWNERS - 1:
                assert servers.clock.now() - START >= 48 * 3600
                owner.cluster.succeed(pod)
                assert (owner.result()["reason"], owner.result("task")["outcome"]) == ("Completed", "succeeded")
                eventually(lambda: not owner.cluster.names(), what="the pod to be deleted")
            owner.close(release=number % 2 == 0)
    assert [servers.kubernetes.count(verb) for verb in ("create", "delete")] == [1, 1]
