"""Ties a helper process to ours: whatever ends us, SIGKILL included, the helper and all that it started end too.

We start ``python -m ottoscaler.local.guard -- COMMAND`` with a pipe as its standard input and never write to it. The
kernel closes our end when we end, however that happens; the guard then terminates the command. This needs nothing but
a pipe, so it works on Linux and macOS alike (PR_SET_PDEATHSIG is Linux only). The command leads a session of its own:
Ctrl-C on the terminal does not reach it, and whatever it started (the worker processes of the local node are process
groups *inside* that session) is found again by its session id, without a record of processes that could be out of
date. Only a process that opens a session itself (a daemon) escapes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ottoscaler.errors import LocalSystemError

GRACE_S = 5.0  # from SIGTERM to SIGKILL
_PROC = Path("/proc")
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


class GuardedProcess:
    """A command under guard, seen from the process that needs it. For one thread; ``exit_code`` may be read by any."""

    def __init__(self, command: Sequence[str], *, log: Path) -> None:
        """Store the command and the file to which its output is appended; nothing is started yet."""
        self._command = list(command)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start guard and command. Raises LocalSystemError when the guard cannot be started."""
        path = os.pathsep.join(filter(None, [str(_SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
        try:
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ottoscaler.local.guard", "--", *self._command],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, "PYTHONPATH": path},
                    start_new_session=True,
                )
        except OSError as error:
            raise LocalSystemError(f"could not start {self._command[0]}: {error}") from error

    @property
    def exit_code(self) -> int | None:
        """The command's exit code (128 + n after signal n), None while it runs or before the start."""
        return None if self._process is None else self._process.poll()

    def failure(self, what: str) -> LocalSystemError:
        """The error to raise because ``what`` did not come up: with the last lines that the command wrote."""
        lines = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.exists() else []
        return LocalSystemError(f"{what} (exit code {self.exit_code}); last output: {' | '.join(lines) or 'none'}")

    def close(self) -> None:
        """Stop the command, by force after GRACE_S. Idempotent."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            process.wait(GRACE_S * 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def kill_session(session: int) -> None:
    """SIGKILL every process of a session; again for what was being forked meanwhile."""
    pause = threading.Event()
    for _ in range(5):
        members = [pid for pid in _all_pids() if _session_of(pid) == session]
        if not members:
            return
        for pid in members:
            _kill(pid)
        pause.wait(0.02)


def _all_pids() -> list[int]:
    """Every process id of this machine: from /proc, or from ps where there is no /proc (macOS)."""
    if (_PROC / "self").exists():
        return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    listing = subprocess.run(["ps", "-axo", "pid="], capture_output=True, text=True, check=False)
    return [int(word) for word in listing.stdout.split()]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _terminate(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        kill_session(child.pid)


def _stop_at_end_of_input(child: subprocess.Popen[bytes]) -> None:
    """Block until the process that started us has closed its end of the pipe, or is gone."""
    while os.read(0, 1):
        continue
    _terminate(child)


def main(arguments: Sequence[str]) -> int:
    """Run the command after ``--`` until it ends or our standard input does.
    Returns its exit code, 128 + n after signal n.
    """
    child = subprocess.Popen(list(arguments[1:]), stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=_stop_at_end_of_input, args=(child,), name="guard-pipe", daemon=True).start()
    code = child.wait()
    # The command may have been killed itself: what it had started is still there.
    kill_session(child.pid)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
