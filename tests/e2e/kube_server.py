"""A kube-apiserver and its etcd as child processes, which a test may kill, pause and start again.

Only the API: no node, no scheduler, no controller-manager. The programs come from PATH, or from the folder that
TEST_KUBE_BIN names.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config

from tests.conftest import require
from tests.e2e.waiting import wait_for

START_S = 60.0


class KubeServer:
    """One API server on 127.0.0.1. One thread."""

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        """`options` are further arguments of the API server."""
        self.directory = directory
        self._options = options
        self.port = _free_port()
        self._etcd_port, self._peer_port = _free_port(), _free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.kubeconfig = directory / f"kubeconfig-{self.port}"

    def open(self) -> None:
        """Make certificates, start etcd and the API server, and the ServiceAccount that pods need."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _certificates(self.directory)
        self.kubeconfig_at(self.port)
        self._start_etcd()
        self.start()

    def _start_etcd(self) -> None:
        peer, listen = f"http://127.0.0.1:{self._peer_port}", f"http://127.0.0.1:{self._etcd_port}"
        self._etcd = self._spawn(
            "etcd", "--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync", "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--listen-client-urls", listen, "--advertise-client-urls", listen,
        )  # fmt: skip

    def back_up(self) -> None:
        """Keep a copy of etcd's data as they are; the servers are away for a moment."""
        self._replace_data(self.directory / "etcd", self.directory / "backup")

    def restore(self) -> None:
        """Put that copy in place of the data: all versions since then are forgotten, and will be given again."""
        self._replace_data(self.directory / "backup", self.directory / "etcd")

    def _replace_data(self, source: Path, target: Path) -> None:
        self.close()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        self._start_etcd()
        self.start()

    def start(self) -> None:
        """Start the API server on the same port and data as before; returns when it is ready.

        After a kill the port stays bound for a moment, so a server that ends at once is started again.
        """
        wait_for(self._ready_or_started, "the API server to be ready", START_S)

    def new_namespace(self, name: str) -> None:
        """A namespace in which pods may be created. Here no controller of Kubernetes makes its ServiceAccount."""
        with config.new_client_from_config(config_file=str(self.kubeconfig)) as api:
            core: Any = client.CoreV1Api(api)
            core.create_namespace({"metadata": {"name": name}}, _preload_content=False)
            body = {"metadata": {"name": "default"}}
            core.create_namespaced_service_account(name, body, _preload_content=False)

    @property
    def pids(self) -> list[int]:
        """The processes of the API server and of etcd, those that run."""
        return [process.pid for process in (self._server, self._etcd) if process is not None]

    def kill(self) -> None:
        """As the kernel does when memory is short. What it remembered of the past is gone with it."""
        assert self._server is not None
        self._server.kill()
        self._server.wait(20)
        self._server = None

    def pause(self) -> None:
        """Let it answer no request until `resume`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End both; idempotent."""
        self.resume()
        for process in (self._server, self._etcd):
            if process is not None:
                process.kill()
                process.wait(20)
        self._server = self._etcd = None

    def _ready_or_started(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            self._server = self._spawn_server()
            threading.Event().wait(0.3)
        return _ready(self.kubeconfig)

    def _spawn_server(self) -> subprocess.Popen[bytes]:
        here = self.directory
        return self._spawn(
            "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self._etcd_port}", f"--secure-port={self.port}",
            "--bind-address=127.0.0.1", f"--tls-cert-file={here}/server.crt",
            f"--tls-private-key-file={here}/server.key", f"--client-ca-file={here}/ca.crt",
            f"--service-account-key-file={here}/server.key",
            f"--service-account-signing-key-file={here}/server.key", "--service-account-issuer=https://test",
            "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
            *self._options,
        )  # fmt: skip

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{program}.log").open("ab") as log:
            return subprocess.Popen([require(program), *arguments], stdout=log, stderr=log, start_new_session=True)

    def kubeconfig_at(self, port: int) -> Path:
        """A kubeconfig for a client that reaches this server through another port of 127.0.0.1."""
        here = self.directory
        path = here / f"kubeconfig-{port}"
        path.write_text(
            f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:{port}", certificate-authority: {here}/ca.crt}}}}]
users: [{{name: u, user: {{client-certificate: {here}/admin.crt, client-key: {here}/admin.key}}}}]
""",
            encoding="utf-8",
        )
        return path


def _ready(kubeconfig: Path) -> bool:
    with (
        config.new_client_from_config(config_file=str(kubeconfig)) as api,
        suppress(urllib3.exceptions.HTTPError, OSError),
    ):
        pool = api.rest_client.pool_manager
        answer = pool.request("GET", f"{api.configuration.host}/readyz", timeout=2, retries=False)
        return bool(answer.status == 200)
    return False


def _certificates(here: Path) -> None:
    """A CA, a server for 127.0.0.1 and an administrator, with what Python 3.13 wants to see in each (RFC 5280)."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=here, check=True, capture_output=True, env={**os.environ})

    key = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    signs = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *key, *signs, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=test-ca")
    for name, subject, extension in (
        ("server", "/CN=kube-apiserver", "subjectAltName=IP:127.0.0.1"),
        ("admin", "/O=system:masters/CN=admin", "extendedKeyUsage=clientAuth"),
    ):
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE", "-addext", extension)
        openssl("req", "-x509", *key, *signed, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", subject)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
