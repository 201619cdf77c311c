"""From a worker's life to its status: the code that it has, what is known of the case, and which time comes next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from ottoscaler.core.admission_words import QUOTA, RIGHTS, TERMINATING
from ottoscaler.core.effects import AwaitPod, PauseUntil
from ottoscaler.core.pods import INIT_CONTAINER, Phase, PodSnapshot, StartTrouble
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.verdicts import EndReason
from ottoscaler.core.worker_state import Lifecycle

#: Longest detail, characters: a scheduler that names each of a thousand nodes must not fill Redis.
MAX_DETAIL: Final = 500

_TROUBLE_CODES: Final = {
    StartTrouble.NONE: StatusCode.STARTING,
    StartTrouble.SERVICE_STARTING: StatusCode.STARTING,
    StartTrouble.INVALID_IMAGE: StatusCode.IMAGE_BACKOFF,
    StartTrouble.IMAGE_PULL: StatusCode.IMAGE_BACKOFF,
    StartTrouble.IMAGE_PULL_TRANSIENT: StatusCode.IMAGE_BACKOFF,
    StartTrouble.CONFIG: StatusCode.CONFIG_ERROR,
    StartTrouble.START: StatusCode.START_ERROR,
    StartTrouble.COMMAND: StatusCode.START_ERROR,
    StartTrouble.SERVICE: StatusCode.SERVICE,
    StartTrouble.UNSCHEDULABLE: StatusCode.NODE,
    StartTrouble.GATED: StatusCode.GATED,
}
#: What a request is refused for, by the words of the API server; the first that matches.
_REFUSALS: Final = (
    (StatusCode.QUOTA, re.compile("|".join(QUOTA))),
    (StatusCode.NAMESPACE, re.compile("|".join((*TERMINATING, r"does NAMESPACE exist\?")))),
    (StatusCode.RIGHTS, re.compile("|".join((*RIGHTS, r'cannot \w+ resource "pods')))),
    (StatusCode.WEBHOOK, re.compile(r"webhook|not yet ready to handle request|caches? not sync")),
    (StatusCode.RATE_LIMITED, re.compile(r"^(?:the Kubernetes API answered )?(?:429|409) to ")),
)


class Obstacle(msgspec.Struct, frozen=True):
    """What keeps a worker from its next step, the words of the server that said so, and until when it pauses for that
    by our own monotonic clock, where that is worth showing.
    """

    code: StatusCode
    message: str = ""
    until: float | None = None


class WorkerStatus(msgspec.Struct, frozen=True):
    """The status of one worker or of one task.

    `detail` is what is known of this case, empty where the code says all. `since` and `next_at` are seconds since the
    epoch by the clock of the machine that wrote them, None where no machine has; `next_mono` is the time of the next
    step by our own monotonic clock.
    """

    code: StatusCode
    detail: str = ""
    since: float | None = None
    next_at: float | None = None
    next_mono: float | None = None

    @property
    def why(self) -> str:
        """What is so, in one sentence."""
        return self.code.facts.why(self.detail)


def refusal_code(message: str) -> StatusCode:
    """The code of a request that was not carried out, by the words of the error."""
    return next((code for code, words in _REFUSALS if words.search(message)), StatusCode.API_SERVER)


def worker_status(
    life: Lifecycle, obstacle: Obstacle | None = None, *, image: str = "", infra_retries: int = 0
) -> WorkerStatus:
    """The status of a worker. If a server refuses a step and its pod has a worse code, the pod's code is shown.

    Arguments: its life, what keeps it from its next step, if that is known, the image of its container and how many
    times a failure of the platform is tried again (INFRA_RETRIES).
    """
    state, pod = life.state, life.pod
    if state in ("waiting", "creating") or pod is None:
        return _without_pod(life, state, obstacle)
    status = _with_pod(life, pod, image, infra_retries)
    if obstacle is None or obstacle.code.rank > status.code.rank:
        return status
    return WorkerStatus(obstacle.code, f"{obstacle.message}; {status.why}"[:MAX_DETAIL], next_mono=obstacle.until)


def _with_pod(life: Lifecycle, pod: PodSnapshot, image: str, infra_retries: int) -> WorkerStatus:
    if pod.held_by_finalizers and not pod.finished:  # no end of it will be seen before it is gone
        return WorkerStatus(StatusCode.FINALIZER, pod.held_detail[:MAX_DETAIL], pod.deletion_requested_at)
    if life.state == "ending":
        return _ending(life, pod)
    until = life.todo.until if isinstance(life.todo, AwaitPod) else None
    if pod.phase is Phase.UNKNOWN or (pod.deleting and pod.disruption is EndReason.NODE_LOST):
        return WorkerStatus(StatusCode.NODE_SILENT, f"node {pod.node}" if pod.node else "")
    if pod.deleting:
        return WorkerStatus(StatusCode.ENDING, "its deletion was requested", pod.deletion_requested_at, _killed_at(pod))
    if life.state == "running":
        deadline = pod.started_at + pod.deadline_s if pod.started_at is not None and pod.deadline_s else None
        return WorkerStatus(StatusCode.RUNNING, f"on node {pod.node}" if pod.node else "", pod.started_at, deadline)
    code, detail = _not_started(life, pod)
    if code is StatusCode.IMAGE_BACKOFF:
        detail = f"attempt {life.infra_used + 1} of {infra_retries + 1}, image {image}: {detail}"
    return WorkerStatus(code, detail[:MAX_DETAIL], pod.created_at if not pod.trouble else None, next_mono=until)


def _without_pod(life: Lifecycle, state: str, obstacle: Obstacle | None) -> WorkerStatus:
    until = life.todo.until if isinstance(life.todo, PauseUntil) else None
    if obstacle is not None:
        return WorkerStatus(obstacle.code, obstacle.message[:MAX_DETAIL], next_mono=obstacle.until or until)
    if state == "ending":
        return WorkerStatus(StatusCode.ENDING)
    if life.retry_cause is not None:
        cause = life.retry_cause
        end = f"{cause.verdict.reason} ({cause.verdict.message or 'no message'})"
        detail = f"retry {cause.retry_number} of {cause.max_retries} after {end}"
        return WorkerStatus(
            StatusCode.RETRY if state == "waiting" else StatusCode.CREATING, detail[:MAX_DETAIL], next_mono=until
        )
    return WorkerStatus(StatusCode.TURN if state == "waiting" else StatusCode.CREATING, next_mono=until)


def _ending(life: Lifecycle, pod: PodSnapshot) -> WorkerStatus:
    termination = life.termination
    if termination is None and isinstance(life.todo, AwaitPod) and not (pod.deleting or pod.finished):
        return WorkerStatus(StatusCode.OUTLIVED, since=pod.finished_at, next_mono=life.todo.until)
    words = [f"{termination.reason} ({termination.message})" if termination is not None else ""]
    if pod.held_by_finalizers:
        words.append(f"kept by finalizer {', '.join(pod.finalizers)}")
    at = _killed_at(pod) if pod.deleting and not pod.finished else None
    return WorkerStatus(StatusCode.ENDING, "; ".join(filter(None, words))[:MAX_DETAIL], pod.deletion_requested_at, at)


def _killed_at(pod: PodSnapshot) -> float | None:
    """When the kubelet kills what still runs, by the API server's clock."""
    asked = pod.deletion_requested_at
    return None if asked is None else asked + pod.deletion_grace_s


def _not_started(life: Lifecycle, pod: PodSnapshot) -> tuple[StatusCode, str]:
    """Why a pod has not started, and the cluster's words for it."""
    code = _TROUBLE_CODES[pod.trouble]
    if code is not StatusCode.STARTING and pod.trouble_text.startswith(INIT_CONTAINER):
        code = StatusCode.INIT_CONTAINER
    return code, life.start_trouble_text or pod.trouble_text


class TaskStatus(msgspec.Struct, frozen=True):
    """The status of a task: that of its worst worker, and how many of its workers have the same code."""

    worst: WorkerStatus
    count: int
    pod_count: int

    @property
    def why(self) -> str:
        """What is so, in one sentence."""
        code = self.worst.code
        same = code.facts.attention or code.facts.whole or self.count == 1
        why = self.worst.why if same else code.facts.text
        return why if self.count == self.pod_count else f"{why} ({self.count} of {self.pod_count} workers)"


def task_status(
    workers: Sequence[WorkerStatus], fresh: int, wait: Obstacle | None, pod_count: int
) -> TaskStatus | None:
    """The status of a task.

    Arguments: the statuses of its workers that had their turn, how many had none yet, what these wait for, as far as
    that was looked for, and how many workers it has. Returns None for one of which nothing is left to do.
    """
    waiting = WorkerStatus(wait.code, wait.message) if wait is not None else WorkerStatus(StatusCode.TURN)
    every = [*workers, waiting] if fresh > 0 else workers
    if not every:
        return None
    worst = min(every, key=lambda one: one.code.rank)
    count = sum(one.code is worst.code for one in workers) + (fresh if waiting.code is worst.code else 0)
    return TaskStatus(worst, count, pod_count)
