"""A worker that was OOMKilled gets more memory for its next attempt, whichever process starts that one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.policies import policy
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import FakeServers, SimulatedController
from tests.flow.test_wiped import restored

pytestmark = pytest.mark.contract("3.profile")

#: A worker may use 1Gi at first, 2Gi after the first end as OOMKilled, and then 3Gi.
GROWING = policy(
    max={"memory": "3Gi"},
    default_profile="big",
    profiles={"big": {"memory": "1Gi", "oom_memory_factor": 2, "retries": 5, "overrides": ["memory"]}},
)
SETTINGS: dict[str, Any] = {"threads": ("watch", "lease"), "policy": GROWING, "LEASE_S": 3}


def memory(controller: SimulatedController, name: str) -> str:
    """Request and limit of a pod's worker."""
    (container,) = controller.servers.kubernetes.pods[name]["spec"]["containers"]
    request, limit = (container["resources"][kind]["memory"] for kind in ("requests", "limits"))
    assert request == limit
    return str(limit)


def oom_kill(controller: SimulatedController, name: str) -> None:
    """The kernel ends the worker: it used more than it had."""
    controller.cluster.fail(name, 137, "OOMKilled")


def test_each_attempt_has_more_up_to_the_maximum() -> None:
    """Other failures change nothing; the result names the size of the last attempt."""
    with SimulatedController(**SETTINGS) as controller:
        event_id, sizes = controller.accept(), []
        for attempt in range(1, 6):
            name = controller.pod(event_id, attempt=attempt)
            sizes.append(memory(controller, name))
            if attempt == 2:
                controller.cluster.fail(name, 1)
            else:
                oom_kill(controller, name)
        assert sizes == ["1Gi", "2Gi", "2Gi", "3Gi", "3Gi"]
        controller.cluster.succeed(controller.pod(event_id, attempt=6))
        assert controller.result()["message"] == "the worker exited with code 0 (memory: 3Gi)"


def test_an_accepted_event_keeps_its_sizes() -> None:
    """Under a policy that comes later, and that has neither profile nor factor."""
    with SimulatedController(**SETTINGS) as controller:
        event_id = controller.accept(memory="1500Mi")
        name = controller.pod(event_id)
        controller.policy = policy()
        oom_kill(controller, name)
        assert memory(controller, controller.pod(event_id, attempt=2)) == "3000Mi"


@pytest.mark.parametrize("before_store", [True, False])
def test_a_successor_knows_the_size(*, before_store: bool) -> None:
    """Whether its predecessor ended before it stored the next attempt, or after its pod was made."""
    servers = FakeServers()
    with SimulatedController(servers, **SETTINGS) as first:
        event_id = first.accept()
        oom_kill(first, first.pod(event_id))
        second = first.pod(event_id, attempt=2)
        if before_store:
            first.close(release=False)
            oom_kill(first, second)
        else:
            oom_kill(first, second)
            first.pod(event_id, attempt=3)
            first.close(release=False)
        with SimulatedController(servers, incarnation="b2", **SETTINGS) as heir:
            third = heir.pod(event_id, attempt=3)
            assert memory(heir, third) == "3Gi"
            heir.cluster.succeed(third)
            assert heir.result()["message"].endswith("(memory: 3Gi)")


def test_a_wiped_redis_changes_nothing() -> None:
    """The living owner stores the count again."""
    with SimulatedController(**SETTINGS) as controller:
        event_id = controller.accept()
        oom_kill(controller, controller.pod(event_id))
        second = controller.pod(event_id, attempt=2)
        controller.redis.flush()
        restored(controller)
        eventually(lambda: controller.taken(event_id).workers[1].oom_kills == 1, what="the count to be stored")
        oom_kill(controller, second)
        assert memory(controller, controller.pod(event_id, attempt=3)) == "3Gi"
