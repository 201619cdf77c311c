"""The embedded Kubernetes cluster as its users see it: start, a kubeconfig, close. The cluster runs in a process of
its own.

A process of its own keeps the controller's threads and the API server's off each other's interpreter lock, and makes
the controller talk to it the way it talks to any cluster: through a kubeconfig, over HTTP.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from pathlib import Path

from ottoscaler.errors import LocalSystemError
from ottoscaler.local.guard import GuardedProcess

START_TIMEOUT_S = 30.0


class LocalCluster:
    """One emulator with one node. start and close belong to one thread; kubeconfig and url may be read by any."""

    def __init__(self, data_dir: Path, port: int | None = None) -> None:
        """Store where pods' files and the kubeconfig go (created when missing) and the port (None: a free one)."""
        self._data_dir = data_dir
        self._port = port
        self._process: GuardedProcess | None = None

    @property
    def kubeconfig(self) -> Path:
        """The file that kubectl and the controller connect with; there while the cluster runs."""
        return self._data_dir / "kubeconfig"

    @property
    def url(self) -> str:
        """The API server's address, such as http://127.0.0.1:43210. Raises LocalSystemError when the cluster does not
        run.
        """
        found = re.search(r"server: (\S+)", self.kubeconfig.read_text()) if self.kubeconfig.exists() else None
        if found is None:
            raise LocalSystemError("the embedded Kubernetes API is not running")
        return found[1]

    def start(self) -> None:
        """Start the emulator and return when it serves.
        Raises LocalSystemError with its own last lines when it does not come up.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        # The file's appearance is the sign of readiness: one left by a killed run must not be taken for it.
        self.kubeconfig.unlink(missing_ok=True)
        command = [sys.executable, "-m", "ottoscaler.local.cluster", "--data-dir", str(self._data_dir)]
        command += ["--port", str(self._port)] if self._port else []
        self._process = GuardedProcess(command, log=self._data_dir / "cluster.log")
        self._process.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        pause = threading.Event()
        while not self.kubeconfig.exists():
            if self._process.exit_code is not None or time.monotonic() > deadline:
                failure = self._process.failure("the embedded Kubernetes API did not start")
                self.close()
                raise failure
            pause.wait(0.02)

    def close(self) -> None:
        """Stop the emulator and every worker process. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.close()
            self.kubeconfig.unlink(missing_ok=True)
