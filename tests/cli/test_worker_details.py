"""What the status page shows of one worker on request, on the embedded Kubernetes API with workers that run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ottoscaler.adapters import worker_details as reading
from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.page_reader import PageReader
from ottoscaler.adapters.web import WebRequest
from ottoscaler.cli import worker_details
from ottoscaler.cli.page_source import PageSource
from ottoscaler.cli.status_page import guarded, pages_of
from ottoscaler.cli.worker_details import LINES, LOGS_OFF, WorkerDetails
from ottoscaler.core.events import EventType, ScaleEvent
from ottoscaler.core.manifest import AttemptKey, build_pod, event_hash
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.local.handle import LocalCluster
from ottoscaler.settings import Settings, WorkerSettings
from tests.fakes.wait import eventually

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 60
KEY = "-----BEGIN RSA PRIVATE KEY-----"


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The embedded API and its node."""
    started = LocalCluster(tmp_path_factory.mktemp("cluster"))
    started.start()
    yield started
    started.close()


@contextmanager
def ended(kubernetes: LocalCluster, event_id: str, script: str) -> Iterator[PodSnapshot]:
    """A worker that has run this script."""
    event = ScaleEvent(event_id, "1-1", EventType.SCALE_UP, 1, task_id=event_id)
    key = AttemptKey(event_hash("i", event_id), 1, 1)
    body = build_pod(
        WorkerSettings(command=("/bin/sh", "-c", script)), event, key, event_json=event.encode(), instance="i",
        namespace="default",
    )  # fmt: skip
    with closing(KubeCluster(configured(kubernetes).kube, instance="i")) as cluster:
        created = cluster.create(body)
        assert isinstance(created, PodSnapshot)

        def finished() -> PodSnapshot | None:
            pod = cluster.get(created.name)
            return pod if pod is not None and pod.finished else None

        eventually(lambda: finished() is not None, PATIENCE_S, "the worker to end")
        yield created


def configured(kubernetes: LocalCluster, **environ: str) -> Settings:
    """Where logs are on, unless it says otherwise."""
    usual = {"KUBECONFIG": str(kubernetes.kubeconfig), "LOG_HANDLER_ADDRESS": "127.0.0.1:1"}
    return Settings.load({**usual, **environ}, "host", None)


def details_of(settings: Settings, *pods: PodSnapshot) -> WorkerDetails:
    """Those of a process that knows these pods."""
    return WorkerDetails(settings, lambda: {pod.name: pod for pod in pods})


def test_the_last_lines_and_the_pull_are_shown(kubernetes: LocalCluster) -> None:
    """The newest line last, long ones cut, bytes that are no text replaced."""
    with ended(
        kubernetes, "lines", r"seq 30; head -c 2000 /dev/zero | tr '\0' x; echo; printf '<b>\377\n'; printf end"
    ) as pod:
        found = details_of(configured(kubernetes), pod).look(pod.name)
        assert found is not None
        assert found["lines"][-4:] == ["30", f"{'x' * 500}...", "<b>\ufffd", "end"]
        assert (len(found["lines"]), found["note"]) == (LINES, "")
        assert "already present" in found["pulled"]
        assert found["pulled_at"].endswith("Z")


def test_a_secret_is_masked_that_begins_above_what_is_shown(kubernetes: LocalCluster) -> None:
    """A private key has more lines than the page shows."""
    with ended(kubernetes, "secret", f"echo {KEY}; for n in $(seq 30); do echo KEYDATA$n; done") as pod:
        found = details_of(configured(kubernetes), pod).look(pod.name)
        assert found is not None
        assert "KEYDATA" not in json.dumps(found)
        assert found["lines"]


def test_no_log_is_read_where_logs_are_off(kubernetes: LocalCluster) -> None:
    """The Role has no right to it then; when the image was pulled is shown all the same."""
    with ended(kubernetes, "off", "echo hidden") as pod:
        found = details_of(configured(kubernetes, LOG_HANDLER_ADDRESS=""), pod).look(pod.name)
        assert found is not None
        assert (found["lines"], found["note"]) == ([], LOGS_OFF)
        assert found["pulled_at"]


def test_only_pods_of_ours_are_looked_at(kubernetes: LocalCluster) -> None:
    """By name, as the process knows them."""
    with ended(kubernetes, "known", "echo known") as pod:
        details = details_of(configured(kubernetes), pod)
        assert details.look("another") is None
        assert details.look(f"../pods/{pod.name}") is None


def test_a_pod_that_is_gone_and_a_log_that_is_too_much_have_a_sentence(
    kubernetes: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no lines."""
    with ended(kubernetes, "much", "seq 300") as pod:
        monkeypatch.setattr(worker_details, "READ_BYTES", 500)
        monkeypatch.setattr(reading, "READ_BYTES", 500)
        found = details_of(configured(kubernetes), pod).look(pod.name)
        assert found is not None
        assert (found["lines"], "too long to show" in found["note"]) == ([], True)
        with closing(KubeCluster(configured(kubernetes).kube, instance="i")) as cluster:
            cluster.delete(pod.name, pod.uid)
            eventually(lambda: cluster.get(pod.name) is None, PATIENCE_S, "the pod to be gone")
        found = details_of(configured(kubernetes), pod).look(pod.name)
        assert found is not None
        assert (found["lines"], "not found" in found["note"]) == ([], True)


def test_one_viewer_is_answered_at_a_time(kubernetes: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits, and not without limit."""
    monkeypatch.setattr(worker_details, "WAIT_S", 0.0)
    inside: list[str] = []
    with ended(kubernetes, "busy", "true") as pod:
        details = details_of(configured(kubernetes), pod)

        def second(name: str) -> None:
            with pytest.raises(ClusterUnavailable, match="other viewers"):
                details.look(pod.name)
            inside.append(name)

        monkeypatch.setattr(worker_details.PodDetails, "pull", lambda self, uid: second(uid))
        assert details.look(pod.name) is not None
        assert inside == [pod.uid]


def test_the_path_obeys_the_token(kubernetes: LocalCluster, settings: Settings, tmp_path: Path) -> None:
    """And answers 404 for a pod that is none of ours."""
    (tmp_path / "token").write_text("s3cret")
    details = details_of(configured(kubernetes))
    with closing(PageReader(settings.redis, settings.keys)) as reader:
        pages, viewers = pages_of(PageSource(reader, dict, dict), details)
        page = guarded(pages, str(tmp_path / "token"))["/worker"]
        assert page(WebRequest("pod=x")).status == 401
        assert page(WebRequest("pod=x", {"authorization": "Bearer s3cret"})).status == 404
        many = "&".join(f"{name}=1" for name in "abcdefghij")
        assert page(WebRequest(many, {"authorization": "Bearer s3cret"})).status == 400
        viewers.close()
