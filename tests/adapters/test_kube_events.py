"""The contract of `ports.KubeEvents`: the fake, the embedded API server and a real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.adapters.kube_events import KubeEventsApi
from ottoscaler.core.outgoing_kube_events import (
    MAX_NOTE_BYTES,
    EventReason,
    KubeEvent,
    PodReference,
    event_name,
    new_event,
    repeated_event,
)
from ottoscaler.flow.event_recorder import EventRecorder
from ottoscaler.flow.stop import StopSignal
from ottoscaler.local.handle import LocalCluster
from ottoscaler.metrics import Metrics
from ottoscaler.ports import KubeEvents
from ottoscaler.settings import KubeSettings
from tests.adapters.clusters import NOWHERE
from tests.adapters.kube_admin import KubeAdmin
from tests.conftest import require
from tests.fakes.clock import SystemClock
from tests.fakes.kube_events import FakeKubeEvents
from tests.fakes.wait import PATIENCE_S, eventually

pytestmark = [pytest.mark.contract("2.KUBERNETES_EVENTS"), pytest.mark.timeout(120)]
HOSTILE = "\x1b[31m" + "ü\n\x00" * 2000 + '"}]\ud800'


@dataclass
class Server:
    """One implementation, a namespace with a pod in it, and a look at the Events there."""

    api: KubeEvents
    namespace: str
    pod: PodReference
    events: Callable[[], list[Mapping[str, Any]]]
    forget: Callable[[str], object]


def _served(kubeconfig: Path) -> Iterator[Server]:
    admin = KubeAdmin(kubeconfig)
    admin.open()
    api = KubeEventsApi(KubeSettings(kubeconfig=str(kubeconfig), namespace=admin.namespace))
    try:
        spec = {"nodeSelector": NOWHERE, "containers": [{"name": "main", "image": "busybox"}]}
        made = admin.api.create_namespaced_pod(admin.namespace, {"metadata": {"name": "otto-0"}, "spec": spec})

        def events() -> list[Mapping[str, Any]]:
            selector = f"involvedObject.uid={made.metadata.uid}"
            raw = admin.api.list_namespaced_event(admin.namespace, field_selector=selector, _preload_content=False)
            found = json.loads(raw.data)["items"]
            return [one for one in found if one.get("source", {}).get("component") == "ottoscaler"]

        def forget(name: str) -> None:
            admin.api.delete_namespaced_event(name, admin.namespace, _preload_content=False)

        yield Server(api, admin.namespace, PodReference("otto-0", made.metadata.uid), events, forget)
    finally:
        api.close()
        admin.close()


def _fake() -> Server:
    fake = FakeKubeEvents()
    fake.pods["otto-0"] = "uid-0"
    return Server(fake, "ns", PodReference("otto-0", "uid-0"), lambda: list(fake.events.values()), fake.events.pop)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The implementations besides the embedded one, which deletes no Events: see below."""
    served = _served(Path(require("kubernetes"))) if request.param == "real" else iter([_fake()])
    yield from served


def write(server: Server, name: str, message: str = "once") -> None:
    """An Event about the pod."""
    event = KubeEvent(EventReason.DEAD_LETTER, message)
    server.api.create(
        name,
        new_event(event, server.pod, name=name, namespace=server.namespace, at=1.7e9, count=1, instance=HOSTILE),
    )


def test_an_event_is_created_once_and_changed(server: Server) -> None:
    """A create that is sent again, since its answer was lost, changes nothing."""
    name = event_name(server.pod, "0123456789abcdef")
    write(server, name)
    write(server, name, "twice")
    (found,) = server.events()
    assert (found["count"], found["message"], found["reason"], found["type"]) == (1, "once", "DeadLetter", "Warning")
    again = KubeEvent(EventReason.DEAD_LETTER, "again")
    assert server.api.patch(name, repeated_event(again, count=5, at=1.7e9 + 60))
    (found,) = server.events()
    assert (found["count"], found["message"]) == (5, "again")
    assert (found["firstTimestamp"], found["lastTimestamp"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:14:20Z")


def test_an_event_that_is_not_there_is_not_changed(server: Server) -> None:
    """Etcd has forgotten it, or it never was."""
    name = event_name(server.pod, "fedcba9876543210")
    again = repeated_event(KubeEvent(EventReason.DEAD_LETTER, "again"), count=2, at=1.7e9)
    assert not server.api.patch(name, again)
    write(server, name)
    server.forget(name)
    assert not server.api.patch(name, again)


def test_hostile_text_is_taken(server: Server) -> None:
    """Cut to what the API allows."""
    write(server, event_name(server.pod, "00"), HOSTILE)
    (found,) = server.events()
    assert 0 < len(found["message"].encode()) <= MAX_NOTE_BYTES


def test_a_pod_is_found_by_its_name(server: Server) -> None:
    """Our own, that is."""
    assert server.api.pod_uid("otto-0") == server.pod.uid
    assert server.api.pod_uid("nobody") == ""
    assert server.api.missing_rights() == []


def test_the_recorder_writes_to_it(server: Server) -> None:
    """As the controller does: three that are alike are one."""
    stop, metrics = StopSignal(), Metrics()
    recorder = EventRecorder(
        api=server.api, stop=stop, metrics=metrics, clock=SystemClock(), namespace=server.namespace, instance="c1",
        own_pod="otto-0",
    )  # fmt: skip
    stop.spawn("events", recorder.run)
    try:
        for number in (1, 2, 3):
            recorder.record(KubeEvent(EventReason.QUOTA_USED_UP, f"quota {number}"))
            eventually(lambda done=number: [one["count"] for one in server.events()] == [done], PATIENCE_S, "the count")
    finally:
        stop.set()
    assert stop.join(SystemClock(), SystemClock().now() + PATIENCE_S) == []
    assert stop.cause is None
    (found,) = server.events()
    assert (found["message"], found["reason"]) == ("quota 3", "QuotaUsedUp")


def test_the_embedded_server_takes_them(tmp_path: Path) -> None:
    """So `local` shows them, too."""
    local = LocalCluster(tmp_path)
    local.start()
    try:
        api = KubeEventsApi(KubeSettings(kubeconfig=str(local.kubeconfig), namespace="default"))
        event, pod = KubeEvent(EventReason.WORKER_FAILED, "failed"), PodReference("otto-agent-1", "uid-1")
        body = new_event(event, pod, name="one", namespace="default", at=1.7e9, count=1, instance="c1")
        api.create("one", body)
        api.create("one", body)
        assert api.patch("one", repeated_event(event, count=2, at=1.7e9))
        assert not api.patch("two", repeated_event(event, count=2, at=1.7e9))
        assert (api.pod_uid("nobody"), api.missing_rights()) == ("", [])
        api.close()
    finally:
        local.close()
