"""Profiles on a real kubelet: a service that is ready before the worker, one that never is, and volumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.deploy.manifests import only, rendered
from tests.e2e.system import System, names
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

POLICY = """
version: 1
default_profile: web
profiles:
  web:
    image: busybox:latest
    volumes:
      - {name: scratch, mount: /scratch, empty_dir: 64Mi}
      - {name: settings, mount: /etc/ci, config_map: ottoscaler-worker-settings}
    services:
      - name: web
        image: busybox:latest
        memory: 32Mi
        cpu: 50m
        command: [sh, -c, 'sleep 2; echo hello >/tmp/index.html; exec httpd -f -p 8080 -h /tmp']
        ready: {tcp: 8080, timeout_s: 30}
      - name: second
        image: busybox:latest
        memory: 32Mi
        cpu: 50m
        command: [sh, -c, 'wget -qO /tmp/page http://localhost:8080/; sleep 600']
        ready: {exec: [test, -s, /tmp/page], timeout_s: 30}
  guarded:
    image: busybox:latest
    disruption_budget: true
  open:
    image: busybox:latest
  slow:
    image: busybox:latest
    services:
      - name: db
        image: busybox:latest
        memory: 32Mi
        cpu: 50m
        command: [sh, -c, 'trap "exit 0" TERM; sleep 600 & wait']
        ready: {tcp: 5432, timeout_s: 2}
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """The path of the policy file."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return str(path)


@pytest.mark.contract("3.profile")
@pytest.mark.contract("4.container")
def test_services_are_ready_before_the_worker_and_decide_nothing(system: System, policy: str) -> None:
    """The worker reaches one at localhost at its first try; both are killed after it, and that is no failure."""
    settings = {"metadata": {"name": "ottoscaler-worker-settings"}, "data": {"greeting": "and good bye"}}
    system.kube.api.create_namespaced_config_map(system.kube.namespace, settings, _preload_content=False)
    system.start(POLICY_FILE=policy)
    script = "wget -qO /scratch/page http://localhost:8080/ && cat /scratch/page /etc/ci/greeting >$OTTO_OUTPUT"
    event_id = system.send(type="scale_up", script=script)
    result = system.verdict(event_id)
    assert (result["outcome"], result["reason"], result["attempt"]) == ("succeeded", "Completed", "1"), result
    assert result["output"] == "hello\nand good bye"
    system.no_pods(event_id)


@pytest.mark.contract("5.ServiceNotReady")
def test_a_service_that_never_gets_ready_ends_the_worker(system: System, policy: str) -> None:
    """With its name, after its time and a short grace; the worker never ran, and is not tried again."""
    system.start(POLICY_FILE=policy, IMAGE_PULL_GRACE_S="2", WORKER_RETRIES="2", TERMINATION_GRACE_S="1")
    event_id = system.send(type="scale_up", profile="slow", script="exit 0")
    result = system.verdict(event_id)
    assert (result["outcome"], result["reason"], result["fault"]) == ("failed", "ServiceNotReady", "config"), result
    assert result["message"].startswith("service db (image docker.io/library/busybox:latest): exited with code ")
    assert (result["attempt"], result["started_at"]) == ("1", "")
    system.no_pods(event_id)


@pytest.mark.contract("3.profile")
def test_a_drain_evicts_no_worker_of_a_profile_with_a_disruption_budget(system: System, policy: str) -> None:
    """With the component of deploy/: an eviction request is answered 429, also while a second worker of it runs. One of
    another profile is evicted.
    """
    budgets: Any = client.PolicyV1Api(system.kube.api.api_client)
    body = only(rendered("components/disruption-budget"), "PodDisruptionBudget")
    budgets.create_namespaced_pod_disruption_budget(system.kube.namespace, body, _preload_content=False)
    system.start(POLICY_FILE=policy, INFRA_RETRIES="0")
    guarded = system.send(
        type="scale_up", pod_count=2, profile="guarded", script="until [ -e /tmp/go ]; do sleep 1; done"
    )
    other = system.send(type="scale_up", profile="open", script="exec sleep 600")
    (first, second), (third,) = names(system.running(guarded, 2)), names(system.running(other))

    def counted() -> bool:
        answer = budgets.read_namespaced_pod_disruption_budget_status(
            body["metadata"]["name"], system.kube.namespace, _preload_content=False
        )
        status = json.loads(answer.data)["status"]
        return bool(status.get("currentHealthy") == 2 and status["disruptionsAllowed"] == 0)

    wait_for(counted, "the disruption controller to count both")
    for name in (first, second):
        with pytest.raises(client.exceptions.ApiException) as refused:
            system.kube.evict(name)
        assert refused.value.status == 429
        assert "disruption budget" in refused.value.body
    system.kube.evict(third)
    assert system.verdict(other)["reason"] == "Evicted"
    assert names(system.running(guarded, 2)) == [first, second]
