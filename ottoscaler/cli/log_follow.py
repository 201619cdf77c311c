"""Following the logs of a task's workers, those of later attempts too, until the task has finished.

One thread watches the pods, one follows each container, and the thread of the command prints: the lines of all workers
come in the order in which they arrive.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.pod_logs import PodLogs
from ottoscaler.cli.log_output import LogPrinter
from ottoscaler.cli.log_reader import LogFollowing, LogReader
from ottoscaler.core.manifest import CONTAINER
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, OttoscalerError, WatchExpired
from ottoscaler.forwarder.lines import Line
from ottoscaler.forwarder.masking import Form

#: How many logs are followed at once; further ones have their turn when one has ended.
MOST: Final = 100
_PAUSE_S: Final = 1.0
#: Lines that may wait for a terminal or a pipe that is slow.
_QUEUED: Final = 10_000
#: How soon a thread that waits for room sees that the command ends, seconds.
_LOOK_S: Final = 0.5


class _Item(NamedTuple):
    """From a thread to the printer: a line of a worker, a sentence, or an error that ends the command."""

    worker: tuple[str, int] = ("", 0)
    line: Line | None = None
    note: str = ""
    error: OttoscalerError | None = None


class LogFollower:
    """Follows the pods of some events. The public methods belong to one thread."""

    def __init__(
        self,
        cluster: KubeCluster,
        source: PodLogs,
        *,
        container: str,
        wanted: Callable[[PodSnapshot], bool],
        masks: Sequence[Form] = (),
    ) -> None:
        """`wanted` says of a pod whether its log is to be shown; `masks`: see LogReader. Both clients are closed by
        `close`.
        """
        self._cluster = cluster
        self._source = source
        self._container = container
        self._wanted = wanted
        self._masks = masks
        self._stop = threading.Event()
        self._listed = threading.Event()
        self._items: queue.Queue[_Item] = queue.Queue(_QUEUED)
        self._turns = threading.BoundedSemaphore(MOST)
        self._lock = threading.Lock()
        # Guarded by the lock:
        self._pods: dict[str, PodSnapshot] = {}  # as last seen, by UID
        self._threads: dict[str, threading.Thread] = {}  # by UID
        self._readers: dict[str, LogReader] = {}  # by the pod's name

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="log-watch", daemon=True).start()

    def close(self) -> None:
        """End all threads; what they have read and was not printed is gone. Idempotent."""
        # The event first: a thread that a cut connection wakes must not take it for an outage.
        self._stop.set()
        self._cluster.close()
        self._source.close()

    def print_next(self, printer: LogPrinter, timeout_s: float) -> None:
        """Print what has come, or wait for something, at most that long. Raises what has ended a thread for good."""
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            printer.flush()
            return
        while True:
            if item.error is not None:
                raise item.error
            if item.note:
                printer.note(item.note)
            if item.line is not None:
                printer.line(item.worker, item.line)
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                printer.flush()
                return

    def look(self) -> None:
        """See which pods there are now: what a watch shows may come a moment after a task has finished. Raises
        ClusterUnavailable.
        """
        self._see(self._cluster.list().pods)

    @property
    def waits(self) -> bool:
        """Is it watching, and has no container begun?"""
        with self._lock:
            return self._listed.is_set() and not self._threads

    @property
    def done(self) -> bool:
        """Have all that were seen been followed to their end, and all their lines printed?"""
        with self._lock:
            busy = any(thread.is_alive() for thread in self._threads.values())
        return not busy and self._items.empty()

    def was_read(self, pod: str) -> bool:
        """Was the log of this pod read, even if it was empty?"""
        with self._lock:
            return pod in self._readers and self._readers[pod].opened

    # -- threads -------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """List, then watch, again and again, as Kubernetes wants it."""
        noted = ""
        while not self._stop.is_set():
            try:
                listed = self._cluster.list()
                self._see(listed.pods, whole=True)
                self._listed.set()
                noted = ""
                for event in self._cluster.watch(listed.resource_version):
                    self._see([event.pod] if event.pod is not None else [])
            except WatchExpired:
                continue
            except ClusterUnavailable as error:
                # each watch may end with an error of its own; only what keeps us from the list is worth a line
                if str(error) != noted and not self._stop.is_set() and "watch" not in str(error):
                    self._put(_Item(note=f"{error}; trying again"))
                    noted = str(error)
                self._stop.wait(_PAUSE_S)

    def _see(self, pods: Iterable[PodSnapshot], *, whole: bool = False) -> None:
        """Take notice of pods; `whole`: there are no others."""
        pods = [pod for pod in pods if self._wanted(pod)]
        with self._lock:
            if whole:
                there = {pod.uid for pod in pods}
                self._pods |= {uid: pod.as_gone() for uid, pod in self._pods.items() if uid not in there}
            for pod in pods:
                self._pods[pod.uid] = pod
                if pod.uid not in self._threads and self._has_begun(pod):
                    self._threads[pod.uid] = self._start_thread(pod)

    def _start_thread(self, pod: PodSnapshot) -> threading.Thread:
        name = f"log-{pod.name}"
        thread = threading.Thread(target=self._follow, args=(pod,), name=name, daemon=True)
        thread.start()
        return thread

    def _has_begun(self, pod: PodSnapshot) -> bool:
        if self._container != CONTAINER:  # of others a snapshot says nothing: the API has to be asked
            return pod.scheduled_at is not None
        return pod.started_at is not None and not pod.gone

    def _has_ended(self, uid: str) -> bool:
        with self._lock:
            pod = self._pods[uid]
        return pod.gone or pod.finished or (self._container == CONTAINER and pod.agent_ended)

    def _follow(self, pod: PodSnapshot) -> None:
        """The thread of one container."""
        if not self._turns.acquire(blocking=False):
            self._put(_Item(note=f"{MOST} logs are followed at once; that of {pod.name} is shown after one of these."))
            while not self._turns.acquire(timeout=_LOOK_S):
                if self._stop.is_set():
                    return
        if pod.key.attempt > 1:
            self._put(_Item(note=f"Worker {pod.key.index}: attempt {pod.key.attempt}, pod {pod.name}"))
        reader = LogReader(self._source, pod.name, self._container, self._masks)
        with self._lock:
            self._readers[pod.name] = reader
        following = LogFollowing(
            reader,
            has_ended=partial(self._has_ended, pod.uid),
            stop=self._stop,
            emit=lambda line: self._put(_Item(pod.key.worker, line)),
            note=lambda text: self._put(_Item(note=text)),
        )
        try:
            following.run()
        except ClusterRejected as error:
            self._put(_Item(error=error))
        finally:
            self._turns.release()

    def _put(self, item: _Item) -> None:
        """Hand over to the printer; wait while it is behind, so that a fast worker does not fill the memory."""
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return
