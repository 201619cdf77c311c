"""The one table of codes, and which of them a worker has: by its life, and by what keeps it from its next step."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from ottoscaler.core.effects import AwaitPod, CreatePod, GetPod, PauseUntil, RecordResult, StoreAttempt
from ottoscaler.core.lifecycle import Lifecycle, begin_lifecycle
from ottoscaler.core.pods import PodSnapshot, StartTrouble
from ottoscaler.core.status_codes import CODES, WORKER_CODES, StatusCode, code_of
from ottoscaler.core.termination import RetryCause, Termination
from ottoscaler.core.verdicts import EndReason, FaultOrigin, Verdict
from ottoscaler.core.worker_status import (
    MAX_DETAIL,
    Obstacle,
    WorkerStatus,
    refusal_code,
    task_status,
    worker_status,
)
from tests.core.builders import NOW, Json, raw_pod, running, seen, terminated, with_others

pytestmark = pytest.mark.contract("5.why")

STATES = ("waiting", "creating", "pending", "running", "ending")
QUOTA = (
    'the Kubernetes API answered 403 to create: pods "otto-agent-1-1" is forbidden: exceeded quota: count, requested: '
    "pods=1, used: pods=4, limited: pods=4"
)
WEBHOOK = 'the Kubernetes API answered 500 to create: Internal error occurred: failed calling webhook "w.example": EOF'


#: What is promised of each code, in the order of `status` and `explain`. A worker that is in no state has none: `-`.
MEANING = """
code             state     actor   marks
dead_letter      -         user    attention
lease_expired    -         config  attention
defect           waiting   config  attention
config_error     pending   config  attention
image_backoff    pending   config  attention
init_container   pending   config  attention
service          pending   config  attention
start_error      pending   config  attention
namespace        waiting   config  attention
rights           waiting   config  attention
quota            waiting   infra   attention
webhook          waiting   infra   attention
finalizer        ending    infra   attention whole
node             pending   infra   attention
redis            waiting   infra   attention
api_server       waiting   infra   attention
cluster_unknown  waiting   infra   attention
node_silent      running   infra   attention
rate_limited     waiting   infra
gated            pending   infra
retry            waiting   none
tenant_share     waiting   none    whole
concurrency_key  waiting   none    whole
older_event      -         none    whole
max_pending      waiting   infra   whole
capacity         waiting   none    whole
unread           -         config
unaccepted       -         none
turn             waiting   none
creating         creating  none
starting         pending   none
outlived         ending    none
ending           ending    none
victims          -         none
running          running   none
expired          finished  user
finished         finished  none
"""


def pending(state: Json | None = None, **fields: object) -> PodSnapshot:
    """A pod that has not started."""
    return replace(seen(raw_pod(state=state)), **fields)


def waiting(reason: str, message: str) -> PodSnapshot:
    """A pod with a container that waits for this."""
    return pending({"waiting": {"reason": reason, "message": message}})


def awaiting(pod: PodSnapshot, until: float | None = None, **changes: object) -> Lifecycle:
    """The life of a worker that waits for its pod's next stage."""
    return replace(begin_lifecycle(1), todo=AwaitPod(until), pod=pod, **changes)


# -- the table


def test_each_code_has_one_line() -> None:
    """And each line has all that a reader needs."""
    assert list(CODES) == list(StatusCode)
    for code, facts in CODES.items():
        assert re.fullmatch(r"[a-z]+(?:_[a-z]+)*", code)
        assert facts.text
        assert facts.then
        assert "{at}" not in facts.then
        assert "{at}" in facts.then_at or not facts.then_at
        assert facts.state in (*STATES, "finished", "")


def test_what_each_code_means_never_changes() -> None:
    """The words of each line are compared with the documents, in test_documents.py."""
    lines = []
    for code in StatusCode:
        marks = [name for name in ("attention", "whole") if getattr(code.facts, name)]
        lines.append([code.value, code.facts.state or "-", code.facts.actor.value, *marks])
    assert lines == [line.split() for line in MEANING.strip().splitlines()[1:]]


def test_what_needs_attention_has_advice_and_an_actor() -> None:
    """Or an operator would be woken for nothing."""
    assert [code for code, facts in CODES.items() if facts.attention and not facts.advice] == []
    assert [code for code, facts in CODES.items() if facts.attention and facts.actor is FaultOrigin.NONE] == []


def test_what_needs_attention_comes_first() -> None:
    """The order of the table is that of `status` and `explain`."""
    ranks = [code.rank for code in StatusCode]
    assert ranks == sorted(ranks)
    assert max(code.rank for code in StatusCode if code.facts.attention) < StatusCode.RATE_LIMITED.rank
    assert set(WORKER_CODES) == {code for code in StatusCode if code.facts.state in STATES}


def test_the_time_of_the_next_step_is_shown_where_it_is_known() -> None:
    """In the words of the table."""
    facts = StatusCode.QUOTA.facts
    assert facts.next_step("09:12") == "the create is tried again at 09:12"
    assert facts.next_step("") == "the create is tried again within 5 s of room"
    assert StatusCode.GATED.facts.next_step("09:12") == "it starts when the gate is removed; no time-out runs"


# -- which code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (QUOTA, StatusCode.QUOTA),
        ("the Kubernetes API answered 403 to create: insufficient quota to match these scopes", StatusCode.QUOTA),
        ("the Kubernetes API answered 403 to create: status unknown for quota: a", StatusCode.QUOTA),
        ("the Kubernetes API answered 403 to create: namespace ci is being terminated", StatusCode.NAMESPACE),
        ("the Kubernetes API answered 404 to create: no: does NAMESPACE exist?", StatusCode.NAMESPACE),
        ('the Kubernetes API answered 403 to create: User "x" cannot create resource "pods"', StatusCode.RIGHTS),
        ('the Kubernetes API answered 403 to delete: User "x" cannot delete resource "pods"', StatusCode.RIGHTS),
        (WEBHOOK, StatusCode.WEBHOOK),
        ("the Kubernetes API answered 403 to create: not yet ready to handle request", StatusCode.WEBHOOK),
        ("the Kubernetes API answered 429 to create: too many requests", StatusCode.RATE_LIMITED),
        ("429 to create (Too many requests, please try again later.)", StatusCode.RATE_LIMITED),
        ("the Kubernetes API answered 409 to create: the object has been modified", StatusCode.RATE_LIMITED),
        ("the Kubernetes API answered 500 to create: etcdserver: request timed out", StatusCode.API_SERVER),
        ("the Kubernetes API at https://x:6443 is unreachable: [Errno 111]", StatusCode.API_SERVER),
    ],
)
def test_a_refused_create_has_the_code_of_its_cause(message: str, code: StatusCode) -> None:
    """By the API server's words; the worker has that code until its pod is seen."""
    assert refusal_code(message) is code
    for todo in (PauseUntil(NOW + 4), StoreAttempt(1, 0), CreatePod(1), GetPod(1)):
        status = worker_status(replace(begin_lifecycle(1), todo=todo), Obstacle(code, message))
        assert (status.code, status.detail) == (code, message)
        assert status.next_mono == (NOW + 4 if isinstance(todo, PauseUntil) else None)


@pytest.mark.parametrize(
    ("pod", "code", "detail"),
    [
        (waiting("ImagePullBackOff", 'Back-off pulling image "a:1"'), StatusCode.IMAGE_BACKOFF, "ImagePullBackOff"),
        (waiting("ErrImagePull", "not found"), StatusCode.IMAGE_BACKOFF, "ErrImagePull: not found"),
        (waiting("InvalidImageName", "no"), StatusCode.IMAGE_BACKOFF, "InvalidImageName"),
        (waiting("CreateContainerConfigError", 'secret "x" not found'), StatusCode.CONFIG_ERROR, 'secret "x"'),
        (waiting("RunContainerError", "no cgroup"), StatusCode.START_ERROR, "no cgroup"),
        (waiting("ContainerCreating", ""), StatusCode.STARTING, ""),
        (pending(trouble=StartTrouble.GATED, trouble_text="scheduling gate a"), StatusCode.GATED, "scheduling gate a"),
        (pending(trouble=StartTrouble.UNSCHEDULABLE, trouble_text="0/3 nodes"), StatusCode.NODE, "0/3 nodes"),
        (pending(trouble=StartTrouble.SERVICE, trouble_text="service db: no"), StatusCode.SERVICE, "service db: no"),
        (pending(trouble=StartTrouble.SERVICE_STARTING, trouble_text="service db"), StatusCode.STARTING, "service db"),
    ],
)
def test_a_pod_that_has_not_started_has_the_code_of_its_trouble(
    pod: PodSnapshot, code: StatusCode, detail: str
) -> None:
    """With the cluster's own words, and the time at which the controller gives it up."""
    status = worker_status(awaiting(pod, NOW + 30), image="a:1", infra_retries=3)
    assert (status.code, status.next_mono) == (code, NOW + 30)
    assert detail in status.detail
    assert status.detail.startswith("attempt 1 of 4, image a:1: ") is (code is StatusCode.IMAGE_BACKOFF)


def test_an_init_container_is_named() -> None:
    """It is not the worker's own image."""
    failing = {"name": "setup", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
    spec = {"initContainers": [{"name": "setup", "image": "img:1"}]}
    pod = seen(with_others(raw_pod(state={"waiting": {"reason": "PodInitializing"}}), init=[failing], **spec))
    status = worker_status(awaiting(pod))
    assert status.code is StatusCode.INIT_CONTAINER
    assert status.detail == "init container setup (image img:1): ErrImagePull: not found"


def test_a_running_worker_has_its_start_and_its_deadline() -> None:
    """By the clock of its node."""
    pod = replace(running(), node="n-1", deadline_s=60)
    status = worker_status(awaiting(pod))
    assert pod.started_at is not None
    assert status == WorkerStatus(StatusCode.RUNNING, "on node n-1", pod.started_at, pod.started_at + 60)


def test_a_retry_says_what_it_follows() -> None:
    """Which one of how many, and when."""
    cause = RetryCause(Verdict(EndReason.EVICTED, "low on memory"), 2, 3)
    life = replace(begin_lifecycle(1, 3, 2), todo=PauseUntil(NOW + 2), retry_cause=cause)
    status = worker_status(life)
    assert status == WorkerStatus(StatusCode.RETRY, "retry 2 of 3 after Evicted (low on memory)", next_mono=NOW + 2)


def test_an_ending_worker_says_why_and_until_when() -> None:
    """What the controller ends, what was deleted from outside, and what only another container keeps alive."""
    asked = replace(running(), deletion_requested_at=NOW, deletion_grace_s=30)
    cancelled = awaiting(asked, termination=Termination(EndReason.SCALED_DOWN, "enough"))
    status = worker_status(cancelled)
    assert status == WorkerStatus(StatusCode.ENDING, "ScaledDown (enough)", NOW, NOW + 30)
    assert worker_status(awaiting(asked)).code is StatusCode.ENDING
    assert worker_status(replace(cancelled, todo=RecordResult(1, Verdict(EndReason.ERROR), asked))).code == "ending"
    ended = replace(seen(raw_pod("Running", state=terminated(0))), agent_outlived=True)
    assert worker_status(awaiting(ended, NOW + 9)) == WorkerStatus(
        StatusCode.OUTLIVED, since=ended.finished_at, next_mono=NOW + 9
    )


@pytest.mark.parametrize("code", [StatusCode.REDIS, StatusCode.API_SERVER, StatusCode.DEFECT])
def test_what_holds_up_a_worker_with_a_pod_comes_before_what_its_pod_says(code: StatusCode) -> None:
    """Otherwise a worker that has ended, and whose result cannot be stored, would seem to make progress."""
    ended = seen(raw_pod("Succeeded", state=terminated(0)))
    for life in (
        replace(awaiting(ended), todo=RecordResult(1, Verdict(EndReason.COMPLETED), ended)),
        replace(awaiting(running()), todo=GetPod(1)),
    ):
        alone = worker_status(life)
        status = worker_status(life, Obstacle(code, "the server's words", NOW + 4))
        assert status == WorkerStatus(code, f"the server's words; {alone.why}", next_mono=NOW + 4)


def test_what_is_worse_than_a_server_that_refuses_stays() -> None:
    """An image that cannot be pulled is not mended when the server is back."""
    life = awaiting(pending(trouble=StartTrouble.IMAGE_PULL, trouble_text="not found"))
    assert worker_status(life, Obstacle(StatusCode.API_SERVER, "away")) == worker_status(life)


def test_a_defect_says_when_it_is_tried_again() -> None:
    """With or without a pod, also behind a pause that is over."""
    paused = replace(begin_lifecycle(1), todo=PauseUntil(NOW - 1))
    for life in (begin_lifecycle(1), paused, awaiting(running())):
        assert worker_status(life, Obstacle(StatusCode.DEFECT, "KeyError", NOW + 8)).next_mono == NOW + 8


def test_a_silent_node_is_named() -> None:
    """Nobody can say how its worker is."""
    pod = replace(running(), node="n-1", deletion_requested_at=NOW, disruption=EndReason.NODE_LOST)
    assert worker_status(awaiting(pod)) == WorkerStatus(StatusCode.NODE_SILENT, "node n-1")


def test_a_worker_without_trouble_moves() -> None:
    """It waits for its turn, then its pod is created."""
    assert worker_status(begin_lifecycle(1)).code is StatusCode.TURN
    assert worker_status(replace(begin_lifecycle(1), todo=CreatePod(1))).code is StatusCode.CREATING


def test_a_long_detail_is_cut() -> None:
    """A scheduler may name each of a thousand nodes."""
    pod = pending(trouble=StartTrouble.UNSCHEDULABLE, trouble_text="x" * 10_000)
    assert len(worker_status(awaiting(pod)).detail) == MAX_DETAIL


# -- a task


@pytest.mark.parametrize(
    ("workers", "fresh", "wait", "code", "why"),
    [
        ([StatusCode.RUNNING] * 3, 0, None, StatusCode.RUNNING, "the worker runs"),
        ([StatusCode.RUNNING, StatusCode.QUOTA], 1, None, StatusCode.QUOTA, "the quota is used up (1 of 3 workers)"),
        ([StatusCode.RUNNING], 2, None, StatusCode.TURN, "waits for its turn (2 of 3 workers)"),
        ([], 3, StatusCode.CAPACITY, StatusCode.CAPACITY, "as many workers run as may (MAX_WORKERS)"),
    ],
)
def test_a_task_has_the_code_of_its_worst_worker(
    workers: list[StatusCode], fresh: int, wait: StatusCode | None, code: StatusCode, why: str
) -> None:
    """And says how many of its workers have that."""
    found = task_status([WorkerStatus(one) for one in workers], fresh, Obstacle(wait) if wait else None, 3)
    assert found is not None
    assert (found.worst.code, found.why) == (code, why)


def test_a_task_of_one_worker_says_what_that_one_says() -> None:
    """And one of which nothing is left says nothing."""
    found = task_status([WorkerStatus(StatusCode.RUNNING, "on node n")], 0, None, 1)
    assert found is not None
    assert found.why == "the worker runs: on node n"
    assert task_status([], 0, None, 1) is None


@pytest.mark.parametrize(
    ("code", "state", "outcome", "expected"),
    [
        ("", "waiting", "", StatusCode.TURN), ("", "creating", "", StatusCode.CREATING),
        ("", "pending", "", StatusCode.STARTING), ("", "running", "", StatusCode.RUNNING),
        ("", "ending", "", StatusCode.ENDING), ("", "", "", StatusCode.TURN), ("", "novel", "", StatusCode.TURN),
        ("novel", "running", "", StatusCode.RUNNING), ("quota", "running", "", StatusCode.QUOTA),
        ("quota", "running", "failed", StatusCode.FINISHED), ("", "", "expired", StatusCode.EXPIRED),
    ],
)  # fmt: skip
def test_a_worker_without_a_code_has_that_of_its_state(
    code: str, state: str, outcome: str, expected: StatusCode
) -> None:
    """Its owner may be of an earlier release; and what is over is over, whatever was noted before."""
    assert code_of(code, state, outcome) is expected


@pytest.mark.parametrize(
    ("trouble", "since"), [(StartTrouble.NONE, NOW), (StartTrouble.IMAGE_PULL, None), (StartTrouble.GATED, None)]
)
def test_a_pod_without_trouble_starts_since_it_is_there(trouble: StartTrouble, since: float | None) -> None:
    """Trouble began later: when, the code's own time says."""
    pod = pending(trouble=trouble, trouble_text="why" if trouble else "", created_at=NOW)
    status = worker_status(awaiting(pod, NOW + 60))
    assert (status.since, status.next_mono) == (since, NOW + 60)


def test_a_finalizer_on_a_pod_that_never_had_a_node_keeps_its_worker() -> None:
    """It gets no result before that client has acted; nothing runs that could be killed. With a node it ends first."""
    deleted = replace(pending(), deletion_requested_at=NOW, finalizers=("a/b", "c"))
    for life in (awaiting(deleted), awaiting(deleted, termination=Termination(EndReason.SCALED_DOWN, "enough"))):
        status = worker_status(life)
        assert (status.code, status.since, status.next_at) == (StatusCode.FINALIZER, NOW, None)
        assert status.detail.endswith("has never had a node and is kept by finalizer a/b, c")
        scheduled = replace(deleted, scheduled_at=NOW)
        assert worker_status(replace(life, pod=scheduled)).code is StatusCode.ENDING
        assert worker_status(replace(life, pod=deleted.as_gone())).code is not StatusCode.FINALIZER


@pytest.mark.parametrize(("finalizers", "words"), [(("a/b",), "kept by finalizer a/b"), (("a", "b"), "a, b"), ((), "")])
def test_a_pod_that_a_finalizer_keeps_says_so(finalizers: tuple[str, ...], words: str) -> None:
    """Behind why it ends."""
    ended = replace(seen(raw_pod("Failed", state=terminated(1))), deletion_requested_at=NOW, finalizers=finalizers)
    life = awaiting(ended, termination=Termination(EndReason.SCALED_DOWN, "enough"))
    detail = worker_status(life).detail
    assert detail.startswith("ScaledDown (enough)")
    assert detail.endswith(words)
