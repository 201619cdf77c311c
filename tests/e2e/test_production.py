"""The guide for production, carried out line by line on a real node: the image, an external Redis with TLS, the
namespace that enforces the restricted profile, an upgrade in the middle of the work, and the end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.deploy.secured_redis import SecuredRedis
from tests.deploy.test_redis import LINES, carried_out, outcome
from tests.e2e.waiting import wait_for
from tests.readme import PRODUCTION, ROOT, fences

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

IMAGE = "123456789012.dkr.ecr.ap-northeast-2.amazonaws.com/ottoscaler"
BUILD = f"docker build --tag {IMAGE}:0.1.0 ."
NAMESPACE = "kubectl apply -f deploy/overlays/production/namespace.yaml"
SECRET = (
    "kubectl create secret generic ottoscaler-redis -n ottoscaler --from-file=password=redis-password "
    "--from-file=ca.crt=redis-ca.crt --dry-run=client -o yaml | kubectl apply -f -"
)
DIFF = "kubectl diff -k deploy/overlays/production"
APPLY = "kubectl apply -k deploy/overlays/production"
ROLLOUT = "kubectl rollout status deployment/ottoscaler -n ottoscaler --timeout=180s"
LOGS = "kubectl logs deployment/ottoscaler -n ottoscaler"
USER = "--as=system:serviceaccount:ottoscaler:ottoscaler"
MAY_CREATE = f"kubectl auth can-i create pods -n ottoscaler {USER}"
MAY_EXEC = f"kubectl auth can-i create pods --subresource=exec -n ottoscaler {USER}"
STATUS = "kubectl exec -n ottoscaler deployment/ottoscaler -- python ottoscaler.py status"
DEAD = "kubectl exec -n ottoscaler deployment/ottoscaler -- python ottoscaler.py dead list"
EVENTS = "kubectl get events -n ottoscaler --field-selector source=ottoscaler"
UNDO = "kubectl rollout undo deployment/ottoscaler -n ottoscaler"
WORKERS = "kubectl get pods -n ottoscaler -l managed-by=ottoscaler"
DELETE = "kubectl delete -k deploy/overlays/production"
#: Every line of the guide; those for Redis are in tests/deploy/test_redis.py too.
COMMANDS = (
    *LINES, NAMESPACE, SECRET, BUILD, APPLY, ROLLOUT, LOGS, MAY_CREATE, MAY_EXEC, STATUS, DEAD, EVENTS,
    DIFF, UNDO, WORKERS, DELETE,
)  # fmt: skip
#: What the image is made of, and what is applied.
FILES = ("Dockerfile", ".dockerignore", "requirements.txt", "ottoscaler.py", "ottoscaler", "deploy")


class Operator:
    """A person with a checkout, a shell and the guide. One thread."""

    def __init__(self, checkout: Path, kubeconfig: Path, server: SecuredRedis) -> None:
        self.server = server
        self._checkout = checkout
        self._environ = {**os.environ, "KUBECONFIG": str(kubeconfig), "DOCKER_BUILDKIT": "0"}
        for name in FILES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, checkout / name)
        (checkout / "redis-password").write_text("secret", encoding="utf-8")
        (checkout / "redis-ca.crt").write_bytes(server.ca.read_bytes())

    def run(self, command: str, expected: int = 0) -> str:
        """Carry out a line; returns what it printed."""
        done = subprocess.run(
            command, shell=True, cwd=self._checkout, env=self._environ, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def edit(self, old: str, new: str) -> None:
        """Change the overlay as the guide says."""
        path = self._checkout / "deploy" / "overlays" / "production" / "kustomization.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def configure(self) -> None:
        """The settings for an authority of one's own, with where Redis is; and an image that is on the node."""
        (example,) = (text for kind, text in fences(PRODUCTION) if kind == "ini" and "REDIS_CA_FILE" in text)
        (authority,) = (line for line in example.splitlines() if line.startswith("REDIS_CA_FILE"))
        self.edit("REDIS_HOST=redis.example.com", f"REDIS_HOST={self.server.address}\n      - {authority}")
        self.edit("REDIS_PORT=6379", f"REDIS_PORT={self.server.port}")
        self.edit(f"OTTO_AGENT_IMAGE={IMAGE.replace('ottoscaler', 'otto-agent')}:1.0.0", "OTTO_AGENT_IMAGE=busybox")
        self.edit("OTTO_AGENT_IMAGE=busybox", "OTTO_AGENT_IMAGE=busybox:latest\n      - IMAGE_PULL_POLICY=Never")
        script = 'eval "$OTTO_SCRIPT"'
        self.edit("IMAGE_PULL_POLICY=Never", f"IMAGE_PULL_POLICY=Never\n      - 'OTTO_AGENT_COMMAND={script}'")

    def bring(self, tag: str) -> None:
        """Bring an image onto the node: there is no registry to push it to."""
        self.run(f"docker save --output image.tar {IMAGE}:{tag}")
        self.run(f"{require('image-load')} image.tar")

    def show(self) -> None:
        """What is there: pytest prints it for a test that failed."""
        workers = "get pods -l managed-by=ottoscaler -o yaml"  # when each ended, and whether it was deleted
        for what in ("get pods -o wide", workers, "get events", "logs deployment/ottoscaler --tail=50"):
            print(self.run(f"kubectl {what} -n ottoscaler 2>&1; true"))

    def get(self, what: str) -> Any:
        """Objects, as kubectl finds them."""
        return json.loads(self.run(f"kubectl get -n ottoscaler -o json {what}"))

    def controllers(self) -> list[dict[str, Any]]:
        """The controller's pods that are not going."""
        pods = self.get("pods -l app.kubernetes.io/component=controller")["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


@pytest.fixture
def operator(kubeconfig: Path, tmp_path: Path) -> Iterator[Operator]:
    """With a Redis on this machine, outside the cluster, and no Ottoscaler yet."""
    for name in ("docker", "kubectl", "image-load"):
        require(name)
    server = SecuredRedis(tmp_path / "redis", _address(kubeconfig))
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    made = Operator(checkout, kubeconfig, server)
    kinds = "validatingadmissionpolicy,validatingadmissionpolicybinding"
    gone = "kubectl delete --ignore-not-found"
    gone = f"{gone} namespace ottoscaler && {gone} {kinds} ottoscaler ottoscaler-events"
    try:
        made.run(gone)
        server.start()
        yield made
    finally:
        made.show()
        made.run(gone)
        made.run(f"docker image rm --force {IMAGE}:0.1.0 {IMAGE}:0.1.1")
        server.close()


def _address(kubeconfig: Path) -> str:
    """Where pods reach this machine: the address from which the node is reached."""
    path = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    command = [require("kubectl"), "--kubeconfig", str(kubeconfig), "get", "nodes", "-o", f"jsonpath={path}"]
    node = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node, 9))
        return str(probe.getsockname()[0])


def test_the_guide_from_its_first_line_to_its_last(operator: Operator) -> None:
    """Each line as it is printed, and after each part a look at whether it is so."""
    for line in LINES:
        operator.server.run(line)
    for line in (NAMESPACE, SECRET, BUILD):
        operator.run(line)
    operator.bring("0.1.0")
    operator.configure()
    for line in (APPLY, ROLLOUT):
        operator.run(line)
    assert "controller.started" in operator.run(LOGS)
    assert operator.run(MAY_CREATE).strip() == "yes"
    assert operator.run(MAY_EXEC, expected=1).strip() == "no"
    assert "backlog" in operator.run(STATUS).lower()
    operator.run(DEAD)
    with operator.server.client() as client:
        _is_restricted(operator)
        client.xadd("otto:scale:events", {"type": "nonsense"})
        wait_for(lambda: "DeadLetter" in operator.run(EVENTS), "an Event on the controller's pod", 60)
        assert carried_out(client, type="scale_up", pod_count="3", script="exit 0") == "succeeded"
        _upgraded_in_mid_task(operator, client)
        _with_two_replicas(operator)
        assert client.acl_log() == []
    # what was deleted is shown as Completed for as long as the kubelet takes to clear it away
    wait_for(lambda: operator.run(WORKERS) == "", "no worker to be left", 60)
    operator.run(DELETE)
    assert operator.run("kubectl get namespace ottoscaler --ignore-not-found") == ""
    policies = "kubectl get validatingadmissionpolicy ottoscaler ottoscaler-events --ignore-not-found"
    assert operator.run(policies) == ""


def _is_restricted(operator: Operator) -> None:
    """The process runs as an unprivileged user, and has nothing to write to."""
    inside = "kubectl exec -n ottoscaler deployment/ottoscaler -- sh -c"
    assert operator.run(f"{inside} 'id -u; grep CapEff /proc/1/status'").split() == [
        "10001",
        "CapEff:",
        "0000000000000000",
    ]
    assert operator.run(f"{inside} 'touch /app/x /tmp/x /opt/venv/x 2>&1; true'").count("Read-only file system") == 3
    assert operator.run(f'{inside} \'tr "\\0" " " </proc/1/cmdline\'').strip() == "python ottoscaler.py"
    (pod,) = operator.controllers()
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def _upgraded_in_mid_task(operator: Operator, client: Any) -> None:
    """A worker goes on under the new controller, and under the old one after it was brought back."""
    event_id = str(client.xadd("otto:scale:events", {"type": "scale_up", "script": "sleep 20"}))

    def worker() -> str:
        pods = operator.get("pods -l managed-by=ottoscaler")["items"]
        return "".join(pod["metadata"]["uid"] for pod in pods if pod["status"]["phase"] == "Running")

    first = wait_for(worker, "the worker to run")
    operator.run(f"docker tag {IMAGE}:0.1.0 {IMAGE}:0.1.1")
    operator.bring("0.1.1")
    operator.edit("newTag: 0.1.0", "newTag: 0.1.1")
    assert f"+        image: {IMAGE}:0.1.1" in operator.run(DIFF, expected=1)
    for line in (APPLY, ROLLOUT):
        operator.run(line)
    assert worker() in (first, "")
    for line in (UNDO, ROLLOUT):
        operator.run(line)
    assert wait_for(lambda: outcome(client, event_id), "the result of the long task", 90) == "succeeded"
    workers = [fields for _, fields in client.xrange("otto:scale:results") if fields["event_id"] == event_id]
    (result,) = (fields for fields in workers if fields["kind"] == "worker")
    assert (result["pod_uid"], result["attempt"]) == (first, "1")


def _with_two_replicas(operator: Operator) -> None:
    """As the guide's example says; each with a name of its own."""
    (example,) = (text for kind, text in fences(PRODUCTION) if kind == "yaml" and text.startswith("replicas:"))
    operator.edit("configMapGenerator:", f"{example}configMapGenerator:")
    for line in (APPLY, ROLLOUT):
        operator.run(line)
    assert len(wait_for(lambda: len(operator.controllers()) == 2 and operator.controllers(), "two controllers")) == 2
