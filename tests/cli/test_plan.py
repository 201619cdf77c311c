"""`plan`: the pods of an event as YAML, with the source of each field; nothing is created."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ottoscaler.cli.main import main
from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.manifest import AttemptKey, build_pod, event_hash
from ottoscaler.settings import WorkerSettings
from tests.core.policies import EXAMPLE, parsed

pytestmark = pytest.mark.contract("1.plan")


@pytest.fixture(autouse=True)
def _policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(EXAMPLE))
    monkeypatch.setenv("POLICY_FILE", str(path))
    monkeypatch.setenv("KUBECONFIG", "/nowhere/at/all")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[Any], str]:
    """The pods that are printed, and all of the text."""
    assert main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    return [pod for pod in yaml.safe_load_all(text) if pod is not None], text


def test_the_pod_is_the_one_that_the_controller_would_create(capsys: pytest.CaptureFixture[str]) -> None:
    """Field by field; the others of the event differ in their index only."""
    fields = {"pod_count": "2", "image": "node:20", "command": '["sh", "-c", "echo $HOME"]', "event_id": "e"}
    (pod,), text = planned(capsys, *(f"{name}={value}" for name, value in fields.items()))
    event = parsed(fields)
    assert isinstance(event, ScaleEvent)
    key = AttemptKey(event_hash("ottoscaler", "e"), 1, 1)
    where = {"instance": "ottoscaler", "namespace": "default"}
    assert pod == json.loads(build_pod(WorkerSettings(), event, key, event_json=event.encode(), **where))
    assert "1 more differ from it" in text
    pods, _ = planned(capsys, "pod_count=2", "--all")
    assert [pod["metadata"]["labels"]["ottoscaler.io/worker"] for pod in pods] == ["1", "2"]


def test_each_field_has_its_source_and_its_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the event, of the profile, of the settings."""
    _, text = planned(capsys, "profile=node20", "memory=2Gi", "deadline_s=60")
    lines = [line for line in text.splitlines() if line.startswith("# ")]
    assert {
        "# profile: event (profiles)",
        "# image: profile node20",
        "# memory: event (max.memory)",
        "# deadline_s: event (max.deadline_s)",
        "# cpu: WORKER_CPU_REQUEST, WORKER_CPU_LIMIT",
        "# retries: profile node20",
        "# node_selector: profile node20",
        "# keep_failed_s: profile node20",
    } <= set(lines)
    (pod,), text = planned(capsys, "profile=node20", "keep_failed_s=60")
    assert "# keep_failed_s: event (max.keep_failed_s)" in text
    assert pod["metadata"]["annotations"]["ottoscaler.io/keep-failed-s"] == "60"
    _, text = planned(capsys, "image=node:20")
    assert "# image: event (images.allow: docker.io/library/node:20*)" in text
    assert "# profile: policy (default_profile)" in text


def test_what_the_controller_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of the dead letter, with exit code 1 and no pod."""
    assert main(["plan", "memory=9Gi"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == 'Refused: NotAllowed: field memory is "9Gi"; at most 8Gi (policy: max.memory)\n'


def test_without_a_policy_the_settings_decide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the limits that hold then."""
    monkeypatch.delenv("POLICY_FILE")
    (pod,), text = planned(capsys, "deadline_s=60")
    assert pod["spec"]["activeDeadlineSeconds"] == 60
    assert "# deadline_s: event (WORKER_DEADLINE_S)" in text
    assert "# profile" not in text
    assert main(["plan", "image=busybox"]) == 1


def test_a_scale_down_makes_no_pods(capsys: pytest.CaptureFixture[str]) -> None:
    """It says so."""
    _, text = planned(capsys, "type=scale_down", "task_id=t")
    assert text == "A scale_down makes no pods.\n"


def test_the_servers_verdict_needs_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    """Without one nothing is guessed: exit code 2 for the kubeconfig that is not there."""
    assert main(["plan", "pod_count=1", "--server"]) == 2
    assert "KUBECONFIG=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["typ=scale_up"], "warning: field typ is only passed on; did you mean type?"),
        (["podcount=3"], "warning: field podcount is only passed on; did you mean pod_count?"),
        (["traceparent=x"], 'warning: field traceparent is "x"; a W3C trace context is expected'),
    ],
)
def test_what_send_warns_of_plan_warns_of(
    capsys: pytest.CaptureFixture[str], arguments: list[str], warning: str
) -> None:
    """On standard error: the pods can be piped on."""
    assert main(["plan", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(warning)
    assert "warning" not in printed.out


def test_a_field_that_is_only_passed_on_is_no_misspelling_of_the_type(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is one beside a type that was sent."""
    assert main(["plan", "team=blue"]) == main(["plan", "type=scale_up", "typ=x"]) == 0
    assert capsys.readouterr().err == ""


def test_the_developers_policy_allows_what_the_documents_send(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A profile and what an event sets on top of it, as in deploy/REFERENCE.md; and a pod that is kept."""
    monkeypatch.setenv("POLICY_FILE", str(Path(__file__).parents[2] / "deploy" / "policy.yaml"))
    fields = ["profile=node20", 'command=["npm","test"]', 'env={"CI":"true"}', "memory=1Gi", "keep_failed_s=600"]
    (pod,), _ = planned(capsys, *fields)
    (container,) = pod["spec"]["containers"]
    assert (container["image"], container["command"]) == ("docker.io/library/node:20", ["npm", "test"])
    assert {"name": "CI", "value": "true"} in container["env"]
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert pod["metadata"]["annotations"]["ottoscaler.io/keep-failed-s"] == "600"
