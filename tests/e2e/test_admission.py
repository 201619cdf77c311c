"""Admission on a real cluster: a quota that another writer uses too, webhooks that are slow, fail, or change labels."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from tests.e2e.system import LONG_RUN, System
from tests.e2e.waiting import wait_for
from tests.e2e.webhook import Webhook

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

Pod = dict[str, Any]
#: Longer than most clients wait for an answer, and well within the 30 s that a webhook may take.
_SLOW_S = 12.0
#: Between two writes to the quota, so that some of ours win however slow the machine is.
_PAUSE_S = 0.01


@pytest.fixture
def webhook(system: System, tmp_path: Path) -> Iterator[Webhook]:
    """For the pods of this test's namespace."""
    made = Webhook(system.kube, tmp_path)
    made.open()
    yield made
    made.close()


class Writer:
    """Changes the quota time and again, until the end of the `with` block: the API server counts a pod in the quota
    before it creates it, and gives up when another write came first for the fourth time.
    """

    def __init__(self, system: System) -> None:
        self._kube = system.kube
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(4)]

    def __enter__(self) -> Writer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(20)

    def _write(self, number: int) -> None:
        with config.new_client_from_config(config_file=str(self._kube.kubeconfig)) as connection:
            api: Any = client.CoreV1Api(connection)
            for turn in itertools.count():
                if self._done.is_set():
                    return
                body = {"metadata": {"annotations": {f"writer-{number}": str(turn)}}}
                self._done.wait(_PAUSE_S)
                with suppress(client.ApiException):
                    api.patch_namespaced_resource_quota("few", self._kube.namespace, body, _preload_content=False)


@pytest.mark.contract("5.waiting")
@pytest.mark.contract("8.admission")
def test_a_quota_with_two_writers_uses_up_no_attempt(system: System) -> None:
    """Their writes collide in the quota (409 Conflict), which is back-pressure: each of 30 workers ends in its first
    attempt.
    """
    system.kube.limit_pods(8)
    system.start()
    with Writer(system):
        event_id = system.send(type="scale_up", pod_count=30, script="true")
        assert system.finished(event_id, timeout_s=200)["succeeded"] == "30"
    assert {result["attempt"] for result in system.results(event_id)} == {"1"}


@pytest.mark.contract("8.admission")
def test_a_slow_webhook_is_waited_for(system: System, webhook: Webhook) -> None:
    """It takes 12 of the 30 seconds that it may take: one request, one pod."""
    system.start()
    webhook.change = lambda _pod: threading.Event().wait(_SLOW_S)
    result = system.verdict(system.send(type="scale_up", script="true"), timeout_s=90)
    assert (result["reason"], result["attempt"], webhook.asked) == ("Completed", "1", 1)


@pytest.mark.contract("5.waiting")
@pytest.mark.contract("8.admission")
def test_a_failing_webhook_is_waited_for_and_says_why(system: System, webhook: Webhook) -> None:
    """`why` has the API server's words; when it works again, the worker runs in its first attempt."""

    def fail(_pod: Pod) -> None:
        raise RuntimeError("its database is away")

    system.start()
    webhook.change = fail
    event_id = system.send(type="scale_up", script="true")
    why = wait_for(lambda: system.redis.hget(f"otto:scale:task:{event_id}", "why"), "the reason why it waits")
    assert f'failed calling webhook "{webhook.name}"' in str(why)
    wait_for(lambda: webhook.asked >= 3, "it to be asked again")
    assert system.results(event_id) == []
    webhook.change = lambda _pod: None
    result = system.verdict(event_id)
    assert (result["reason"], result["attempt"]) == ("Completed", "1")


@pytest.mark.contract("5.Rejected")
@pytest.mark.contract("8.labels")
@pytest.mark.parametrize("value", ["other", None])
def test_a_label_that_we_need_is_changed(system: System, webhook: Webhook, value: str | None) -> None:
    """The pod is ended by its UID, and the result names the label; nothing is left, and the next event has a pod."""

    def change(pod: Pod) -> None:
        labels = pod["metadata"]["labels"]
        labels.pop("ottoscaler.io/instance")
        if value is not None:
            labels["ottoscaler.io/instance"] = value

    system.start()
    webhook.change = change
    event_id = system.send(type="scale_up", script=LONG_RUN)
    result = system.verdict(event_id, timeout_s=90)
    assert (result["outcome"], result["reason"], result["fault"]) == ("failed", "Rejected", "config")
    assert "label ottoscaler.io/instance was " in result["message"]
    system.no_pods(event_id)
    webhook.change = lambda pod: pod["metadata"]["labels"].update(team="blue")
    assert system.verdict(system.send(type="scale_up", script="true"))["reason"] == "Completed"
