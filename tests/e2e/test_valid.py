"""The pods of accepted random events against a real API server: it takes every one of them (dry run: none is kept)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import config

from ottoscaler.core.events import ScaleEvent, parse
from tests import fuzz
from tests.conftest import require
from tests.e2e.kube_server import KubeServer

pytestmark = [pytest.mark.e2e, pytest.mark.contract("3.limits"), pytest.mark.contract("4.annotations")]
SAMPLE = 400


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of this module's own."""
    require("etcd")
    require("kube-apiserver")
    server = KubeServer(tmp_path_factory.mktemp("kube"))
    try:
        server.open()
        server.new_namespace("fuzz")
        with config.new_client_from_config(config_file=str(server.kubeconfig)) as opened:
            yield opened
    finally:
        server.close()


def _post(api: Any, body: bytes) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"}
    url = f"{api.configuration.host}/api/v1/namespaces/fuzz/pods?dryRun=All"
    answer = api.rest_client.pool_manager.request("POST", url, body=body, headers=headers, timeout=30, retries=False)
    return int(answer.status), answer.data.decode()


def test_the_server_takes_each_pod_of_each_accepted_event(api: Any) -> None:
    """None of them is 422, nor anything else but created; half of the events are at the limits of size."""
    rng, events = random.Random(3), list[ScaleEvent]()
    while len(events) < SAMPLE:
        fields = fuzz.random_event(rng) if len(events) % 2 else {b"type": b"scale_up"} | fuzz.huge(rng)
        event = parse(f"1714557600000-{len(events)}", fields, 1000)
        if isinstance(event, ScaleEvent):
            events.append(event)
    answers = []
    for event in events:
        for body in fuzz.bodies(event):
            pod = json.loads(body)
            pod["metadata"]["namespace"] = "fuzz"
            answers.append(_post(api, json.dumps(pod).encode()))
    assert [answer for status, answer in answers if status != 201] == []
    assert len(answers) > SAMPLE
    assert max(len(event.encode()) for event in events) > 200_000


def test_the_server_refuses_what_we_would_have_sent_without_our_limit(api: Any) -> None:
    """So that the limit is that of the server, and the test above can fail."""
    event = parse("1-1", {b"type": b"scale_up"}, 1000)
    assert isinstance(event, ScaleEvent)
    pod = json.loads(next(iter(fuzz.bodies(event))))
    pod["metadata"] |= {"namespace": "fuzz", "annotations": {"a": "\x01" * 262_144}}
    status, answer = _post(api, json.dumps(pod).encode())
    assert (status, "Too long" in answer) == (422, True)
