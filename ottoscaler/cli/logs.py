"""`logs TASK_ID`: the output of a task's workers, read from the cluster.

Redis says which workers there are and how they ended, the pods have the output. A pod goes when its result is stored,
and its log with it: then the command says where the output went, and shows what the result has of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.pod_logs import PodLogs
from ottoscaler.adapters.status_reader import StatusReader
from ottoscaler.adapters.task_codec import TaskState, WorkerState
from ottoscaler.cli.connection import load_checked, open_reader
from ottoscaler.cli.log_follow import LogFollower
from ottoscaler.cli.log_output import LogPrinter
from ottoscaler.cli.log_reader import LogReader, gap_text, is_final, kubelet_text
from ottoscaler.cli.namespace import own_namespace
from ottoscaler.cli.rules import masks_of, rules_of
from ottoscaler.cli.table import printable, worker_text
from ottoscaler.core.manifest import CONTAINER, event_hash
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.core.wording import count_text
from ottoscaler.errors import ClusterRejected, OttoscalerError, RedisUnavailable
from ottoscaler.forwarder.lines import Line
from ottoscaler.forwarder.masking import Form, FormMasker, policy_forms
from ottoscaler.settings import Settings

_VARIABLES: Final = ("KUBECONFIG", "NAMESPACE", "INSTANCE", "REDIS_CONSUMER_GROUP", "POLICY_FILE")
#: How often the state of the tasks is read while their logs are followed, seconds.
_STATE_S: Final = 1.0
_PRINT_S: Final = 0.2

Worker = tuple[str, int]


class NoSuchWork(OttoscalerError):
    """There is no task, event or worker of that id."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked for."""

    tasks: Sequence[TaskState]
    worker: int | None
    container: str

    def workers(self, task: TaskState) -> list[int]:
        """The indices of a task's workers that are asked for."""
        return [self.worker] if self.worker else list(range(1, task.pod_count + 1))

    def is_wanted(self, pod: PodSnapshot) -> bool:
        """Is the pod one of such a worker?"""
        return self.worker in (None, pod.key.index)


def main(arguments: Sequence[str]) -> int:
    """Print the output. Returns 0; raises ConfigError, RedisUnavailable, ClusterUnavailable, ClusterRejected,
    NoSuchWork.
    """
    options = _argument_parser().parse_args(arguments)
    settings = load_checked(*_VARIABLES, namespace=own_namespace())
    masks = policy_forms(masks_of(rules_of(settings)()))
    with ExitStack() as stack:
        reader = stack.enter_context(open_reader(settings))
        request = _Request(_find_tasks(reader, options.id), options.worker, options.container)
        _check_worker(request, options.id)
        hashes = {event_hash(settings.instance, task.event_id): task for task in request.tasks}
        cluster = KubeCluster(settings.kube, instance=settings.instance, events=sorted(hashes))
        stack.enter_context(closing(cluster))
        source = stack.enter_context(closing(PodLogs(settings.kube)))
        printer = LogPrinter(_labels(request, settings.instance), times=options.timestamps)
        command = _Logs(request, settings, cluster, source, printer, masks)
        try:
            if options.follow:
                command.follow(reader)
            else:
                command.show()
        except ClusterRejected as error:
            raise _refusal(error, settings.kube.namespace, options.container) from error
    return 0


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ottoscaler.py logs",
        description="Print the output of a task's workers, read from the cluster with the rights of KUBECONFIG's user.",
    )
    parser.add_argument("id", metavar="TASK_ID", help="the task, or the event's id")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the task has finished")
    parser.add_argument("--worker", type=_index, metavar="N", help="only this worker's; lines have no prefix then")
    parser.add_argument(
        "--container", default=CONTAINER, metavar="NAME", help="another container of the pods, such as a service's"
    )
    parser.add_argument("--timestamps", action="store_true", help="put each line's time in front")
    return parser


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a worker, from 1")
    return int(text)


def _find_tasks(reader: StatusReader, wanted: str) -> Sequence[TaskState]:
    """The tasks of this id. Raises NoSuchWork where none of them has workers."""
    found = [task for event_id in reader.find_event_ids(wanted) if (task := reader.task(event_id)) is not None]
    if not found:
        raise NoSuchWork(
            f"Redis knows no task and no event {wanted!r}: it was not sent, not accepted yet, or finished more than"
            " TASK_TTL_S ago"
        )
    starting = [task for task in found if task.event_type == "scale_up"]
    if not starting:
        letter = None if found[0].event_type else reader.dead_letter(found[0].stream_id)
        why = f" ({letter.reason}: {letter.detail})" if letter is not None else ""
        what = "is a scale_down" if found[0].event_type else f"was refused{why}"
        raise NoSuchWork(printable(f"{wanted!r} {what}: it has no workers of its own"))
    return starting


def _check_worker(request: _Request, wanted: str) -> None:
    most = max(task.pod_count for task in request.tasks)
    if request.worker is not None and request.worker > most:
        raise NoSuchWork(f"{wanted!r} has {count_text(most, 'worker')}, and no worker {request.worker}")


def _labels(request: _Request, instance: str) -> dict[Worker, str]:
    several = len(request.tasks) > 1
    return {
        (event_hash(instance, task.event_id), index): (f"{task.event_id}/" if several else "")
        + ("" if request.worker and not several else str(index))
        for task in request.tasks
        for index in request.workers(task)
    }


def _refusal(error: ClusterRejected, namespace: str, container: str) -> ClusterRejected:
    """The same in words that say what to do."""
    text = str(error)
    if error.reason == "Forbidden":
        text = f"No right to read logs: KUBECONFIG's user needs 'get' on 'pods/log' in namespace {namespace} ({error})"
    elif is_final(error):
        text = f"The pods have no container {container!r} ({error})"
    return ClusterRejected(text, status=error.status, reason=error.reason)


class _Logs:
    """The command on its way. One thread."""

    def __init__(
        self,
        request: _Request,
        settings: Settings,
        cluster: KubeCluster,
        source: PodLogs,
        printer: LogPrinter,
        masks: Sequence[Form],
    ) -> None:
        self._request = request
        self._instance = settings.instance
        self._cluster = cluster
        self._source = source
        self._printer = printer
        self._masks = masks
        self._handler = settings.log_handler.target

    def show(self) -> None:
        """What there is now, one worker after the other."""
        pods = sorted(self._cluster.list().pods, key=lambda pod: pod.key.attempt)
        for task, index, worker in self._workers():
            own = [pod for pod in pods if pod.key.worker == worker]
            read = False
            for pod in own:
                if len(own) > 1:
                    self._printer.note(f"Worker {index}: attempt {pod.key.attempt}, pod {pod.name}")
                read = self._show_pod(pod, worker)
            if not read:
                self._explain(task, index, worker)
        self._printer.flush()

    def _show_pod(self, pod: PodSnapshot, worker: Worker) -> bool:
        """Print what the pod's log has. Returns whether it could be read."""
        reader = LogReader(self._source, pod.name, self._request.container, self._masks)
        try:
            for one in reader.read():
                if isinstance(one, Line):
                    self._printer.line(worker, one)
                else:
                    self._printer.note(gap_text(pod.name))
        except ClusterRejected as error:
            if is_final(error):
                raise
        if reader.error:
            self._printer.note(kubelet_text(reader))
        return reader.opened

    def follow(self, reader: StatusReader) -> None:
        """All of it until the tasks have finished; a single worker until that one has."""
        follower = LogFollower(
            self._cluster,
            self._source,
            container=self._request.container,
            wanted=self._request.is_wanted,
            masks=self._masks,
        )
        with closing(follower):
            follower.start()
            current = _CurrentTasks(reader, self._request, self._printer.note)
            looked = noted = False
            while not (looked and follower.done):
                follower.print_next(self._printer, _PRINT_S)
                if not looked and current.have_finished():
                    follower.look()
                    looked = True
                elif not looked and not noted and follower.waits:
                    self._printer.note("No worker has started yet; waiting.")
                    noted = True
            tasks = {task.event_id: task for task in current.tasks}
            for task, index, worker in self._workers():
                state = tasks[task.event_id].workers.get(index)
                if state is None or not follower.was_read(state.pod):
                    self._explain(tasks[task.event_id], index, worker)
        self._printer.flush()

    def _workers(self) -> Iterator[tuple[TaskState, int, Worker]]:
        for task in self._request.tasks:
            for index in self._request.workers(task):
                if index <= task.pod_count:
                    yield task, index, (event_hash(self._instance, task.event_id), index)

    def _explain(self, task: TaskState, index: int, worker: Worker) -> None:
        """Say where the output of a worker is of which no log can be read, and print what its result has of it."""
        state = task.workers.get(index) or WorkerState(index, "waiting")
        if not state.outcome:
            why = f" ({task.wait_reason})" if task.wait_reason else ""
            self._printer.note(f"Worker {index} has no log yet: it is {state.state}{why}.")
            return
        self._printer.note(f"Worker {worker_text(state)}, at {state.finished_at}. {self._where(state)}")
        if state.output and self._request.container == CONTAINER:
            masker = FormMasker(self._masks)
            lines = [masker.mask(line) for line in state.output.encode("utf-8", "surrogateescape").split(b"\n")]
            for line in lines if lines[-1] else lines[:-1]:
                self._printer.line(worker, Line("", "", line))

    def _where(self, state: WorkerState) -> str:
        if not state.attempt or not state.pod:
            return "It never had a pod."
        gone = f"Its pod {state.pod} was deleted after that, and its log with it."
        handler = f" What was streamed is at the log handler {self._handler}." if self._handler else ""
        output = " Its result has this output:" if state.output else " Its result has no output."
        return gone + handler + output


class _CurrentTasks:
    """The states of the tasks while they are followed. One thread."""

    def __init__(self, reader: StatusReader, request: _Request, note: Callable[[str], None]) -> None:
        self._reader = reader
        self._request = request
        self._note = note
        self._due = 0.0
        self._noted = ""
        self.tasks = request.tasks

    def have_finished(self) -> bool:
        """Has everything that is asked for ended? Redis is asked once a second; while it is away, nothing has."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + _STATE_S
        try:
            known = [self._reader.task(task.event_id) for task in self.tasks]
        except RedisUnavailable as error:
            if str(error) != self._noted:
                self._note(f"{error}; trying again")
            self._noted = str(error)
            return False
        self._noted = ""
        self.tasks = [new or old for new, old in zip(known, self.tasks, strict=True)]
        # one that is not known any more finished long ago
        return all(task is None or self._is_finished(task) for task in known)

    def _is_finished(self, task: TaskState) -> bool:
        if self._request.worker is None:
            return task.finished
        state = task.workers.get(self._request.worker)
        return task.finished or (state is not None and bool(state.outcome))
