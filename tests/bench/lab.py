"""The servers of a benchmark and the users that they admit: etcd, kube-apiserver, redis-server and the fake node, all
started here.

The system under test and its peers come as one ServiceAccount with the rights of our Role, so the API server's fairness
applies to them; the node and the harness are administrators, exempt from it. Only requests of ServiceAccounts are
audited: the audit log is our clock, and it should cost the node nothing.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config

from ottoscaler.adapters.cluster import VERBS
from ottoscaler.core.events import ScaleEvent, parse
from ottoscaler.core.manifest import AttemptKey, build_pod
from ottoscaler.settings import Settings
from tests.bench.clocks import AuditLog, Counters
from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.waiting import wait_for

NAMESPACE = "bench"
ACCOUNT = "ottoscaler"
PEER = "peer"

_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["ResponseStarted"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


class Lab:
    """One set of servers on loopback. One thread; `open` before all else, `close` ends them."""

    def __init__(self, directory: Path, programs: Path) -> None:
        """`programs` is the binary with node and loops."""
        self.directory = directory
        self.programs = programs
        policy, log = directory / "audit-policy.yaml", directory / "audit.log"
        directory.mkdir(parents=True)
        policy.write_text(yaml.safe_dump(_AUDIT_POLICY), encoding="utf-8")
        self.kube = KubeServer(
            directory / "kube",
            # one file, read from where the last look ended: nothing may be moved away meanwhile
            [f"--audit-policy-file={policy}", f"--audit-log-path={log}", "--audit-log-maxsize=100000"],
        )
        self.redis = RedisServer(directory / "redis")
        self.audit = AuditLog(log)
        self.kubeconfig = directory / "kubeconfig"
        self.node: Node | None = None

    def open(self) -> None:
        """Start everything. Raises pytest's Skipped or Failed where a program is missing."""
        self.redis.start()
        self.kube.open()
        self._admin = config.new_client_from_config(config_file=str(self.kube.kubeconfig))
        self.counters = Counters(self._admin)
        self._core: Any = client.CoreV1Api(self._admin)
        self.kube.new_namespace(NAMESPACE)
        self._open_account()
        self.node = Node(self)

    def close(self) -> None:
        """End everything; idempotent."""
        if self.node is not None:
            self.node.close()
        self.kube.close()
        self.redis.stop()

    @property
    def server_pids(self) -> list[int]:
        """API server and etcd: what they burn is the cost of the requests."""
        return self.kube.pids

    @property
    def pids(self) -> list[int]:
        """All our servers."""
        assert self.node is not None
        return [*self.kube.pids, self.redis.pid, self.node.process.pid]

    def pods(self) -> list[str]:
        """The names of all pods that are there."""
        listed = json.loads(self._core.list_namespaced_pod(NAMESPACE, _preload_content=False).data)
        return [item["metadata"]["name"] for item in listed["items"]]

    def clear(self) -> None:
        """Remove all pods, and everything that Redis knows."""
        self._core.delete_collection_namespaced_pod(NAMESPACE, body={"gracePeriodSeconds": 0}, _preload_content=False)
        wait_for(lambda: not self.pods(), "the pods to be removed", 120)
        with self.redis.client() as plain:
            plain.flushall()

    def loop(self, mode: str, **options: object) -> list[str]:
        """The command of a loop of ours, as the ServiceAccount."""
        fields = {
            "server": f"https://127.0.0.1:{self.kube.port}", "ca": self.kube.directory / "ca.crt",
            "token": self.directory / "token", "namespace": NAMESPACE, "body": self.directory / "pod.json",
            "selector": f"ottoscaler.io/instance={PEER}", **options,
        }  # fmt: skip
        return [str(self.programs), f"-mode={mode}", *(f"-{name}={value}" for name, value in fields.items())]

    def _open_account(self) -> None:
        body = {"metadata": {"name": ACCOUNT}}
        self._core.create_namespaced_service_account(NAMESPACE, body, _preload_content=False)
        rights: Any = client.RbacAuthorizationV1Api(self._admin)
        rules = [
            {"apiGroups": [""], "resources": ["pods"], "verbs": list(VERBS)},
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        ]
        rights.create_namespaced_role(NAMESPACE, {"metadata": {"name": ACCOUNT}, "rules": rules})
        subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
        binding = {"metadata": {"name": ACCOUNT}, "roleRef": reference, "subjects": [subject]}
        rights.create_namespaced_role_binding(NAMESPACE, binding)
        request = {"spec": {"expirationSeconds": 86400}}
        answer = self._core.create_namespaced_service_account_token(ACCOUNT, NAMESPACE, request)
        (self.directory / "token").write_text(answer.status.token, encoding="utf-8")
        (self.directory / "pod.json").write_bytes(peer_pod())
        known = yaml.safe_load(self.kube.kubeconfig.read_text(encoding="utf-8"))
        known["users"] = [{"name": "u", "user": {"token": answer.status.token}}]
        self.kubeconfig.write_text(yaml.safe_dump(known), encoding="utf-8")


def peer_pod() -> bytes:
    """The very pod that the product creates, for its peers: `@NAME@` is its name, and the instance is theirs."""
    event = parse("1-1", {b"type": b"scale_up", b"pod_count": b"1000", b"task_id": b"bench"}, 1000)
    assert isinstance(event, ScaleEvent)
    template = Settings.load({}, "bench", NAMESPACE).worker
    key, text = AttemptKey("peer000000", 1, 1), event.encode()
    body = json.loads(build_pod(template, event, key, event_json=text, instance=PEER, namespace=NAMESPACE))
    body["metadata"]["name"] = "@NAME@"
    return json.dumps(body).encode()


class Node:
    """The fake node: a process with a small interface on loopback. One thread."""

    def __init__(self, lab: Lab) -> None:
        keys = lab.kube.directory
        command = lab.loop("node", token="", cert=keys / "admin.crt", key=keys / "admin.key")
        with (lab.directory / "node.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        output = self.process.stdout.readline().strip()
        assert output, f"the fake node did not start: see {lab.directory}/node.log"
        self._url = f"http://127.0.0.1:{output}"

    def run(self, seconds: float | None) -> None:
        """How long pods run from now on; None: until `release`. Forgets what was before."""
        self._ask("/reset")
        self._ask("/run?for=hold" if seconds is None else f"/run?for={seconds}s")

    def release(self, count: int | None = None, *, rate: float = 0, ran_s: float = 0, newest: bool = False) -> None:
        """End running pods, so many (None: all), so many per second (0: at once), and say that they ran so long.
        `newest`: those that started last.
        """
        of = "1" if newest else ""
        self._ask(f"/release?count={'' if count is None else count}&rate={rate}&ran={ran_s}s&newest={of}")

    def write_logs(self, rate: float, *, total: int = 0, nodes: int = 20) -> None:
        """Until the next `run`, pods that start get a node, one of so many, and write so many lines per second, until
        they have written so many in all (0: until they end).
        """
        self._ask(f"/logs?rate={rate}&total={total}&nodes={nodes}")

    def logs(self) -> dict[str, Any]:
        """How many lines each ended pod has written, and how many follows are open."""
        answer: dict[str, Any] = json.loads(self._ask("/written"))
        return answer

    def state(self, *, ends: bool = False) -> dict[str, Any]:
        """Counts since `run`, the longest that a status waited for its turn, and with `ends` when each pod ended."""
        answer: dict[str, Any] = json.loads(self._ask("/state?ends=1" if ends else "/state"))
        return answer

    def until_running(self, count: int, timeout_s: float = 300) -> None:
        """Wait until so many were said to run."""
        wait_for(lambda: self.state()["started"] >= count, f"{count} running pods", timeout_s)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(20)

    def _ask(self, path: str) -> bytes:
        with urllib.request.urlopen(self._url + path, timeout=60) as answer:
            return bytes(answer.read())
