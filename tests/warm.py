"""Commands as processes that need not import anything: what `subprocess.Popen` starts in half a second starts at once.

One Python per test run has imported what the commands import, and has a single thread. For each command it forks a
child, which becomes a child of the test's own process: it has a process id, exit code, signals, standard streams,
environment and working folder of its own, and runs the script as `python ottoscaler.py ...` does. What differs: modules
of other commands are loaded, too, and `ps` shows the command line of the Python that was forked. A test of the imports,
the time to start, the memory or the command line therefore uses `subprocess`. So do the commands of the documents, and
`local` and `demo` for their controller and handler.

`Popen` and `run` are used as those of `subprocess`. What they cannot fork, they start as `subprocess` does: another
program, variables that the interpreter reads at its own start, a measurement of the coverage.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from subprocess import DEVNULL as DEVNULL  # what a module takes from subprocess
from subprocess import TimeoutExpired as TimeoutExpired
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "ottoscaler.py"
#: Descriptors that came with a request are kept above all that it may ask for.
_FIRST_FREE = 200
_SET_CHILD_SUBREAPER = 36
_RUN_AS_MODULE = "ottoscaler.forwarder.process"
#: Where bytecode is kept changes nothing for a process that imports nothing.
_HARMLESS = {"PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"}


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, which forks a Python that has imported everything where the command allows it."""

    def _execute_child(  # type: ignore[override]
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: bool, pass_fds: Sequence[int], cwd: Any, env: Any,
        startupinfo: Any, creationflags: int, shell: bool, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, restore_signals: bool, gid: Any, gids: Any, uid: Any, umask: int,
        start_new_session: bool, process_group: int,
    ) -> None:  # fmt: skip
        environ = {
            os.fsdecode(name): os.fsdecode(value) for name, value in (os.environ if env is None else env).items()
        }
        folder = os.fspath(cwd or os.getcwd())
        plain = (
            executable is None and preexec_fn is None and not shell and close_fds and umask < 0 and process_group < 0
        )
        if not (plain and gid is gids is uid is None and _suits(args, environ, folder)):
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, p2cread,
                p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                start_new_session, process_group,
            )  # fmt: skip
            return
        standard = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        request = {
            "arguments": [os.fspath(one) for one in args[1:]], "environ": environ, "folder": folder,
            "session": start_new_session, "targets": [0, 1, 2, *pass_fds],
        }  # fmt: skip
        self.pid = _server().fork(request, [*standard, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def run(
    command: Sequence[Any], *, input: Any = None, capture_output: bool = False, timeout: float, check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """As `subprocess.run`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(command, **options) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _suits(arguments: Any, environ: Mapping[str, str], folder: str) -> bool:
    """Whether a command is ours, and an interpreter of its own would begin as the one that is forked."""
    if isinstance(arguments, str | bytes) or len(arguments) < 2 or os.fspath(arguments[0]) != sys.executable:
        return False
    words = [os.fspath(one) for one in arguments]
    ours = Path(folder, words[1]) == SCRIPT or words[1:3] == ["-m", _RUN_AS_MODULE]
    measured = any(name.startswith("COVERAGE_PROCESS") for name in environ)
    return ours and not measured and _interpreter(environ) == _interpreter(os.environ)


def _interpreter(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith("PYTHON") and name not in _HARMLESS}


# -- the process of the tests


class _Server:
    """The Python that is forked, as seen from the tests. Safe for several threads."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._socket, its = socket.socketpair()
        with its:
            command = [sys.executable, "-m", "tests.warm", str(its.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(self._close)

    def fork(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """The id of a new process, a child of this one. Raises OSError, as a program that cannot be started."""
        body = json.dumps(request).encode()
        with self._lock:
            # The child's parent ends at once, so the child goes to the next process above that asks for such orphans.
            self._prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._socket, [len(body).to_bytes(4, "big")], descriptors)
                self._socket.sendall(body)
                pid = int.from_bytes(_received(self._socket, 4), "big")
            finally:
                self._prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        if not pid:
            raise OSError(f"cannot fork for {request['arguments']}")
        return pid

    def _close(self) -> None:
        if self.owner == os.getpid():
            self._socket.close()
            self._process.wait(10)


_servers: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    """The one of this process: a process that was forked from it gets another."""
    with _starting:
        if not _servers or _servers[-1].owner != os.getpid():
            _servers.append(_Server())
        return _servers[-1]


def _received(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise OSError("the Python that is forked for commands has ended")
        data += part
    return data


# -- the Python that is forked


def _import_all() -> None:
    """What the commands import. An extra that is not installed is left to the commands that want it."""
    import ottoscaler.cli
    import ottoscaler.forwarder

    # gRPC reads these when it is imported; the agent and the handler set them before that.
    os.environ |= {"GRPC_ENABLE_FORK_SUPPORT": "0", "GRPC_VERBOSITY": "NONE"}
    for package in (ottoscaler.cli, ottoscaler.forwarder):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            try:
                importlib.import_module(module.name)
            except ImportError:
                continue
    sys.modules.pop(_RUN_AS_MODULE, None)  # runpy warns of a module that is there already


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in each child, with its request; ends the process with the connection."""
    parent = os.getppid()
    while True:
        head, descriptors, _, _ = socket.recv_fds(connection, 4, 64)
        if not head:
            sys.exit()
        head += _received(connection, 4 - len(head))
        request = json.loads(_received(connection, int.from_bytes(head, "big")))
        (pid_reader, pid_writer), (start_reader, start_writer) = os.pipe(), os.pipe()
        if (middle := os.fork()) == 0:
            if pid := os.fork():
                os.write(pid_writer, pid.to_bytes(4, "big"))
                os._exit(0)
            connection.close()
            os.close(start_writer)
            os.read(start_reader, 1)  # until the parent has closed its end
            for number in (pid_reader, pid_writer, start_reader):
                os.close(number)
            if os.getppid() != parent:
                os._exit(127)
            return {**request, "descriptors": descriptors}
        os.waitpid(middle, 0)  # from here on its child is the test's
        pid = os.read(pid_reader, 4)
        for number in (pid_reader, pid_writer, start_reader, start_writer, *descriptors):
            os.close(number)
        connection.sendall(pid)


def _become(request: Mapping[str, Any]) -> None:
    """Take over what belongs to one process: descriptors, session, folder, environment, streams, signals."""
    kept = [fcntl(number, F_DUPFD_CLOEXEC, _FIRST_FREE) for number in request["descriptors"]]
    for number in request["descriptors"]:
        os.close(number)
    for number, target in zip(kept, request["targets"], strict=True):
        os.dup2(number, target)
        os.close(number)
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        binary = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115
        lines = number == 2 or binary.isatty()
        text = io.TextIOWrapper(binary, before.encoding, before.errors, "\n" if number else None, line_buffering=lines)
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _main() -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and their commands
    _import_all()
    gc.freeze()
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(request)
    first, *others = request["arguments"]
    if first == "-m":
        sys.argv = [others[0], *others[1:]]
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *others]
        runpy.run_path(first, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    _main()
