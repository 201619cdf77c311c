"""One pod on the local node: its processes, from the first to the last report of its status.

Each container is a process in a group of its own, with one thread that starts it, copies its output into the log and
waits for its end. The processes stay in the emulator's session: so ``guard`` finds them when the emulator itself is
killed.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ottoscaler.local import kubelet, logfile
from ottoscaler.local.events import EventRecorder
from ottoscaler.local.objects import ApiError, Object, timestamp
from ottoscaler.local.store import DeleteOptions, Store

_INHERITED = ("LANG", "LC_ALL", "TZ", "TMPDIR")
_LOOK_EVERY_S = 0.5


class PodRun:
    """The node's loop starts, stops and expires it; threads of its own report. Any thread may read logs."""

    def __init__(self, store: Store, events: EventRecorder, pod: Object, directory: Path) -> None:
        metadata = pod["metadata"]
        self.uid: str = metadata["uid"]
        self._store, self._events = store, events
        self._key = (metadata["namespace"], metadata["name"])
        self._pod = pod  # as last reported: environments read its address
        self._directory = directory
        self._containers: list[Object] = pod["spec"]["containers"]
        self._lock = threading.Lock()
        # Guarded by the lock:
        self._states = {each["name"]: kubelet.waiting("ContainerCreating") for each in self._containers}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._live = 0  # containers with a running thread
        self._signal: signal.Signals | None = (
            None  # the last one asked for: also for a process that is just being started
        )
        self._expired = self._discarded = False
        self._ended = {each["name"]: threading.Event() for each in self._containers}

    def start(self) -> None:
        """Report the pod as being created and start its containers; or report why they cannot start."""
        obstacles = {each["name"]: kubelet.permanent_waiting_state(each) for each in self._containers}
        found = {name: state for name, state in obstacles.items() if state is not None}
        with self._lock:
            self._states.update(found)
            self._live = 0 if found else len(self._containers)
        self._report_status()
        for state in found.values():
            self._events.add(
                self._pod, "Warning", "Failed", f"Error: {state['waiting']['reason']}: {state['waiting']['message']}"
            )
        if found:
            return
        for each in ("logs", "messages"):
            (self._directory / each).mkdir(parents=True)
        for container in self._containers:
            present = f'Container image "{container["image"]}" already present on machine'
            self._events.add(self._pod, "Normal", "Pulled", present)
            name = f"pod-{self._key[1]}-{container['name']}"
            threading.Thread(target=self._run_container, args=(container,), name=name, daemon=True).start()

    def back_off(self) -> None:
        """Turn ErrImagePull into ImagePullBackOff, as the kubelet does between attempts."""
        failing = [
            each
            for each in self._containers
            if self._states[each["name"]].get("waiting", {}).get("reason") == "ErrImagePull"
        ]
        if failing:
            with self._lock:
                self._states.update({each["name"]: kubelet.back_off(each) for each in failing})
            self._report_status()

    def stop(self, how: signal.Signals) -> None:
        """Signal the containers: SIGTERM goes to each one's first process, SIGKILL to all of it."""
        with self._lock:
            self._signal = how
            processes = list(self._processes.values())
            idle = self._live == 0
        if idle:
            self._finish_deletion()
        for process in processes:
            _send_signal(process, how)

    def expire(self) -> None:
        """The deadline has passed: ask the containers to end; the pod will be Failed with DeadlineExceeded."""
        with self._lock:
            idle = self._live == 0
            if idle and all("terminated" in state for state in self._states.values()):
                return  # finished in time
            self._expired = True
        if idle:
            self._report_status()
        else:
            self._events.add(self._pod, "Normal", "DeadlineExceeded", kubelet.DEADLINE_MESSAGE)
        self.stop(signal.SIGTERM)

    def discard(self) -> None:
        """The object is gone: kill what is left of the pod and remove its files."""
        with self._lock:
            self._discarded = True
        self.stop(signal.SIGKILL)

    def logs(self, container: str, options: logfile.LogOptions) -> Iterator[bytes]:
        """A container's log in chunks. Raises ApiError 400 while it has not started."""
        path = self._log_path(container)
        if not path.exists():
            reason = self._states[container].get("waiting", {}).get("reason", "ContainerCreating")
            what = f'container "{container}" in pod "{self._key[1]}" is waiting to start: {reason}'
            raise ApiError(400, what)
        return logfile.read(path, options, self._ended[container])

    def _run_container(self, container: Object) -> None:
        """One container's thread."""
        name = container["name"]
        log = logfile.LogWriter(self._log_path(name))
        try:
            process = self._launch(container)
        except (OSError, ValueError) as error:
            log.close()
            end = kubelet.start_error(container, error)
            self._events.add(self._pod, "Warning", "Failed", f"Error: {end['terminated']['message']}")
        else:
            started_at = timestamp()
            self._set_running(name, process, started_at)
            code = _copy_until_end(process, log)
            log.close()  # writes the last line, which the message may need
            end = kubelet.terminated(started_at, code, self._termination_message(container, code))
        self._ended[name].set()
        with self._lock:
            self._states[name] = end
            self._processes.pop(name, None)
            self._live -= 1
            last = self._live == 0
        self._report_status()
        if last:
            self._finish_deletion()

    def _set_running(self, name: str, process: subprocess.Popen[bytes], started_at: str) -> None:
        with self._lock:
            self._states[name] = {"running": {"startedAt": started_at}}
            self._processes[name] = process
            asked = self._signal
        self._report_status()
        for reason, message in (("Created", f"Created container: {name}"), ("Started", f"Started container {name}")):
            self._events.add(self._pod, "Normal", reason, message)
        if asked is not None:
            _send_signal(process, asked)

    def _launch(self, container: Object) -> subprocess.Popen[bytes]:
        """Start the container's process, in the directories that stand for its volumes."""
        volumes = {
            each["mountPath"]: self._directory / "volumes" / each["name"]
            for each in container.get("volumeMounts") or []
        }
        home = self._directory / "root"
        # The interpreter's own directory comes first: an image for Python workers has a `python` too.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        base = {"PATH": path} | {name: os.environ[name] for name in _INHERITED if name in os.environ}
        env = kubelet.environment(self._pod, container, base)
        directory = kubelet.local_path(container.get("workingDir") or "/", volumes) or home
        message = self._message_path(container["name"])
        message.touch()
        # nothing can be mounted here: a variable that holds the path of the file leads to it, the path itself does not
        inside = container["terminationMessagePath"]
        env = {name: str(message) if value == inside else value for name, value in env.items()}
        env["HOME"] = str(kubelet.local_path(env.get("HOME", "/"), volumes) or home)
        for needed in (home, directory, Path(env["HOME"]), *volumes.values()):
            needed.mkdir(parents=True, exist_ok=True)
        words = [*(container.get("command") or []), *(container.get("args") or [])]
        return subprocess.Popen(
            [kubelet.expand_variables(word, env) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=directory,
            process_group=0,
        )

    def _report_status(self) -> None:
        """Write the status. Made under the store's lock from the states as they are then:
        reports cannot overtake each other.
        """

        def change(pod: Object) -> Object:
            if pod["metadata"]["uid"] != self.uid:
                raise ApiError(404, "another pod has this name now")
            with self._lock:
                return {**pod, "status": kubelet.status(pod, self._states, expired=self._expired)}

        try:
            self._pod = self._store.update("pods", self._key, change).object
        except ApiError as error:
            _unless_gone(error)

    def _finish_deletion(self) -> None:
        """Nothing of the pod runs any more: let its deletion finish, and remove its files once the object is gone."""
        record = self._store.find("pods", *self._key)
        if record is not None and "deletionTimestamp" in record.object["metadata"]:
            try:
                self._store.delete("pods", self._key, DeleteOptions(grace=0, uid=self.uid))
            except ApiError as error:
                _unless_gone(error)
        with self._lock:
            discarded = self._discarded
        if discarded:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _termination_message(self, container: Object, code: int) -> str:
        """The container's termination message, as the kubelet reads it: of a failed one that wrote none the end of its
        log, if its policy says so.
        """
        message = kubelet.message_of(self._message_path(container["name"]))
        if not message and code and container["terminationMessagePolicy"] == "FallbackToLogsOnError":
            log = self._log_path(container["name"])
            message = logfile.last_lines(log, lines=kubelet.LOG_LINES, size=kubelet.LOG_BYTES)
        return message.decode("utf-8", "replace")

    def _message_path(self, container: str) -> Path:
        return self._directory / "messages" / container

    def _log_path(self, container: str) -> Path:
        return self._directory / "logs" / f"{container}.log"


def _copy_until_end(process: subprocess.Popen[bytes], log: logfile.LogWriter) -> int:
    """Copy a process's output to its log until it ends; then kill what it left behind. Returns its exit code."""
    assert process.stdout is not None
    with process.stdout as output, selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        open_ = True
        # What it left in the background may hold the pipe open: so its end is looked for as well.
        while open_ and process.poll() is None:
            open_ = not selector.select(_LOOK_EVERY_S) or _copy_chunk(output.fileno(), log)
        code = process.wait()
        _send_signal(process, signal.SIGKILL)
        while open_ and selector.select(0):
            open_ = _copy_chunk(output.fileno(), log)
    return code


def _copy_chunk(descriptor: int, log: logfile.LogWriter) -> bool:
    data = os.read(descriptor, 1 << 16)
    log.write(data)
    return bool(data)


def _send_signal(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """SIGKILL ends the whole group, as the end of a container does; others go to its first process only."""
    try:
        if how == signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            os.kill(process.pid, how)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        return


def _unless_gone(error: ApiError) -> None:
    """The pod may be deleted, or replaced by another of its name, at any time; any other error is a defect."""
    if error.code not in (404, 409):
        raise error
