"""A developer at work: a checkout of their own, and the commands of README as they are printed there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.e2e.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
COMMAND_S = 420.0


class Developer:
    """One checkout and its environment. One thread."""

    def __init__(self, folder: Path, name: str, user: str, port: int) -> None:
        self.name, self.user, self.port = name, user, port
        self.namespace = f"{user}-dev"
        self.cluster = f"ottoscaler-{user}"
        self.container = f"redis-{user}"
        self.env_file = f".env.{user}.local"
        self.first = ""
        """The entry that the first event got."""
        self.checkout = folder / user
        _copy_checkout(self.checkout)
        self.redis: Any = redis.Redis(host="127.0.0.1", port=port, decode_responses=True)
        # two on one machine have a kubeconfig each, as two accounts would; what `make e2e` was given is not for theirs
        not_theirs = ("ARGS", "MAKE", "MFLAGS", "OTTO_")
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(not_theirs)},
            "KUBECONFIG": str(self.checkout / "kubeconfig"),
        }

    def run(self, command: str, *, check: bool = True, timeout_s: float = COMMAND_S) -> str:
        """Carry out a line of shell, without a terminal; returns all that it printed."""
        done = subprocess.run(
            command, shell=True, executable="/bin/bash", cwd=self.checkout, env=self._environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def follow(self, command: str, seconds: float) -> str:
        """Let a command run that does not end by itself, then press Ctrl-C; returns what it printed."""
        with subprocess.Popen(
            command, shell=True, executable="/bin/bash", cwd=self.checkout, env=self._environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                answer, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                return process.communicate(timeout=COMMAND_S)[0]
            raise AssertionError(f"{command} ended by itself\n{answer}")

    def kubectl(self, arguments: str) -> str:
        """Ask the developer's own cluster."""
        return self.run(f"kubectl {arguments}")

    def running(self, task_id: str) -> dict[str, str]:
        """UID -> name of the worker pods of a task that run."""
        found = json.loads(self.kubectl(f"get pods -l managed-by=ottoscaler -n {self.namespace} -o json"))["items"]
        return {
            pod["metadata"]["uid"]: pod["metadata"]["name"]
            for pod in found
            if pod["metadata"]["annotations"]["ottoscaler.io/task-id"] == task_id
            and pod["status"]["phase"] == "Running"
        }

    def results(self, task_id: str, kind: str) -> list[dict[str, str]]:
        """The results of a task."""
        entries: list[dict[str, str]] = [fields for _, fields in self.redis.xrange("otto:scale:results")]
        return [fields for fields in entries if (fields["task_id"], fields["kind"]) == (task_id, kind)]

    def finished(self, task_id: str) -> dict[str, str]:
        """Wait for the end of a task."""
        found = wait_for(lambda: self.results(task_id, "task"), f"the end of {task_id}", 120)
        assert len(found) == 1
        return found[0]

    def until_idle(self) -> None:
        """Wait until whatever was sent before has come to its end."""

        def idle() -> bool:
            (group,) = self.redis.xinfo_groups("otto:scale:events")
            return group["lag"] == 0 and not self.redis.zcard("otto:scale:open")

        wait_for(idle, "all tasks to end", 120)

    @contextmanager
    def more_settings(self, *lines: str) -> Iterator[None]:
        """Lines added to the env file, for a while."""
        path = self.checkout / self.env_file
        before = path.read_text(encoding="utf-8")
        path.write_text(before + "".join(f"{line}\n" for line in lines), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")

    def close(self) -> None:
        """Leave nothing, whatever state it is in."""
        self.redis.close()
        for command in (
            f"kind delete cluster --name {self.cluster}",
            f"docker rm --force --volumes {self.container}",
            f"docker volume rm --force {self.container}",
            f"docker image rm --force ottoscaler:{self.user}",
        ):
            self.run(command, check=False)


def _copy_checkout(target: Path) -> None:
    """The files of this one, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
