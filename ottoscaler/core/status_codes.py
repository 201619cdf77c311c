"""The one table of codes: where an event or a worker is, what happens next, and which side has to act.

Each state that a worker, a scale_down or an event can be in has exactly one code. The task hash, the log, the metrics,
`status`, `explain` and the documents all read this table. A code never changes its meaning; new ones may be added.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from ottoscaler.core.verdicts import FaultOrigin, Outcome


class StatusCode(StrEnum):
    """Where an event or a worker is. In the order of what an operator wants to see first: the worst is the first."""

    # -- no replica works on it
    DEAD_LETTER = "dead_letter"
    LEASE_EXPIRED = "lease_expired"
    DEFECT = "defect"
    # -- it does not start before a person has acted
    CONFIG_ERROR = "config_error"
    IMAGE_BACKOFF = "image_backoff"
    INIT_CONTAINER = "init_container"
    SERVICE = "service"
    START_ERROR = "start_error"
    NAMESPACE = "namespace"
    RIGHTS = "rights"
    QUOTA = "quota"
    WEBHOOK = "webhook"
    FINALIZER = "finalizer"
    NODE = "node"
    # -- a server is away or asks to wait
    REDIS = "redis"
    API_SERVER = "api_server"
    CLUSTER_UNKNOWN = "cluster_unknown"
    NODE_SILENT = "node_silent"
    RATE_LIMITED = "rate_limited"
    # -- it waits, as it was asked to
    GATED = "gated"
    RETRY = "retry"
    TENANT_SHARE = "tenant_share"
    CONCURRENCY_KEY = "concurrency_key"
    OLDER_EVENT = "older_event"
    MAX_PENDING = "max_pending"
    CAPACITY = "capacity"
    UNREAD = "unread"
    UNACCEPTED = "unaccepted"
    TURN = "turn"
    # -- it moves
    CREATING = "creating"
    STARTING = "starting"
    OUTLIVED = "outlived"
    ENDING = "ending"
    VICTIMS = "victims"
    RUNNING = "running"
    # -- it is over
    EXPIRED = "expired"
    FINISHED = "finished"

    @property
    def facts(self) -> CodeFacts:
        """Its line of the table."""
        return CODES[self]

    @property
    def rank(self) -> int:
        """How far down an operator wants to see it: 0 is the worst."""
        return _RANKS[self]


class CodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table.

    `state` is the state that a worker with this code has in the task hash; empty for codes of events. `text` says what
    is so, `actor` where the cause lies and so which side has to act, `advice` what that side can do, empty where there
    is nothing to do. `then` is what happens next, and `then_at` the same where the time of it is known, which replaces
    `{at}`. `attention`: it does not pass by itself as a rule, and the log has a warning when a worker gets this code.
    `whole`: the detail is a sentence of its own, and replaces the text.
    """

    state: str
    text: str
    then: str
    then_at: str = ""
    actor: FaultOrigin = FaultOrigin.NONE
    advice: str = ""
    attention: bool = False
    whole: bool = False

    def why(self, detail: str) -> str:
        """What is so, in one sentence, with what is known of this case; `detail` may be empty."""
        if not detail:
            return self.text
        return detail if self.whole else f"{self.text}: {detail}"

    def next_step(self, at: str) -> str:
        """What happens next; `at` is the time of it as the reader is to see it, empty where that is not known."""
        return self.then_at.replace("{at}", at) if at and self.then_at else self.then


_USER, _CONFIG, _INFRA = FaultOrigin.USER, FaultOrigin.CONFIG, FaultOrigin.INFRA
_TRIED_AGAIN: Final = "it is tried again"
_TRIED_AGAIN_AT: Final = "it is tried again at {at}"
_CREATE_AGAIN_AT: Final = "the create is tried again at {at}"
_GIVEN_UP: Final = "if it lasts, the controller ends the pod"
_GIVEN_UP_AT: Final = "if it lasts, the controller ends the pod at {at}"

CODES: Final[dict[StatusCode, CodeFacts]] = {
    StatusCode.DEAD_LETTER: CodeFacts(
        state="", text="the event was refused", then="nothing, until it is sent again", actor=_USER, attention=True,
        advice="correct the field that the detail names: `dead redrive ID FIELD=VALUE`, or send a new event",
    ),
    StatusCode.LEASE_EXPIRED: CodeFacts(
        state="", text="no replica renews the lease of this task", attention=True, actor=_CONFIG,
        then="any replica that runs takes it over within 2 s",
        advice="look whether a controller runs and reaches Redis: its pods, its log, /readyz",
    ),
    StatusCode.DEFECT: CodeFacts(
        state="waiting", text="the controller itself failed on this worker", attention=True, actor=_CONFIG,
        then="it is tried again; after five failures the worker ends as Poison",
        then_at="it is tried again at {at}; after five failures the worker ends as Poison",
        advice="report the traceback of `worker.failed` in the log as a defect of Ottoscaler",
    ),
    StatusCode.CONFIG_ERROR: CodeFacts(
        state="pending", text="the container cannot be set up", attention=True, actor=_CONFIG,
        then=_GIVEN_UP, then_at=_GIVEN_UP_AT,
        advice="add the ConfigMap, Secret or key that the message names, or correct the name",
    ),
    StatusCode.IMAGE_BACKOFF: CodeFacts(
        state="pending", text="the image cannot be pulled", attention=True, actor=_CONFIG,
        then="the kubelet tries again, with longer and longer pauses",
        then_at="the kubelet tries again; if it still fails, the controller ends the pod at {at}",
        advice="check the image's name and tag, the pull secret (WORKER_IMAGE_PULL_SECRET) and the registry",
    ),
    StatusCode.INIT_CONTAINER: CodeFacts(
        state="pending", text="a container that comes before the worker fails", attention=True, actor=_CONFIG,
        then=_GIVEN_UP, then_at=_GIVEN_UP_AT,
        advice="read the log of that container; it comes from a profile or from an admission webhook",
    ),
    StatusCode.SERVICE: CodeFacts(
        state="pending", text="a service of the profile does not get ready", attention=True, actor=_CONFIG,
        then=_GIVEN_UP, then_at=_GIVEN_UP_AT,
        advice="read the log of that container, and check its image and its `ready` command in the policy file",
    ),
    StatusCode.START_ERROR: CodeFacts(
        state="pending", text="the container cannot be started", attention=True, actor=_CONFIG,
        then=_GIVEN_UP, then_at=_GIVEN_UP_AT,
        advice="check that the command is in the image and can be executed; otherwise look at the node",
    ),
    StatusCode.NAMESPACE: CodeFacts(
        state="waiting", text="the namespace takes no pods", attention=True, actor=_CONFIG,
        then=_TRIED_AGAIN, then_at=_TRIED_AGAIN_AT,
        advice="create the namespace, or set NAMESPACE to the right one",
    ),
    StatusCode.RIGHTS: CodeFacts(
        state="waiting", text="the controller lacks a right on pods", attention=True, actor=_CONFIG,
        then=_TRIED_AGAIN, then_at=_TRIED_AGAIN_AT,
        advice="apply the Role and the RoleBinding of the controller again (deploy/base)",
    ),
    StatusCode.QUOTA: CodeFacts(
        state="waiting", text="the quota is used up", attention=True, actor=_INFRA,
        then="the create is tried again within 5 s of room", then_at=_CREATE_AGAIN_AT,
        advice="raise the ResourceQuota of the namespace, remove pods that count against it, or lower MAX_WORKERS",
    ),
    StatusCode.WEBHOOK: CodeFacts(
        state="waiting", text="an admission webhook cannot decide", attention=True, actor=_INFRA,
        then=_TRIED_AGAIN, then_at=_TRIED_AGAIN_AT,
        advice="look at the pods and the Service behind the webhook that the message names",
    ),
    StatusCode.FINALIZER: CodeFacts(
        state="ending", text="a finalizer keeps a pod that is to be deleted", attention=True, actor=_INFRA, whole=True,
        then="it goes on when the client that set the finalizer removes it",
        advice="find out why that client does not remove its finalizer",
    ),
    StatusCode.NODE: CodeFacts(
        state="pending", text="no node takes the pod", attention=True, actor=_INFRA,
        then="the scheduler tries again with each change of the cluster",
        then_at="the scheduler tries again with each change; without a node, the controller ends the pod at {at}",
        advice="add nodes, lower the requests of the worker, or correct its node selector and tolerations",
    ),
    StatusCode.REDIS: CodeFacts(
        state="waiting", text="Redis does not carry out the request now", attention=True, actor=_INFRA,
        then="it is tried again within seconds",
        advice="run `doctor`: it checks that Redis is reachable and not full, our rights, and the types of the keys",
    ),
    StatusCode.API_SERVER: CodeFacts(
        state="waiting", text="the API server does not carry out the request now", attention=True, actor=_INFRA,
        then=_TRIED_AGAIN, then_at=_TRIED_AGAIN_AT,
        advice="look at the API server, and at the way from the controller to it",
    ),
    StatusCode.CLUSTER_UNKNOWN: CodeFacts(
        state="waiting", text="the pods of the cluster are not known, so none is created", attention=True, actor=_INFRA,
        then="it goes on with the first list of pods that the API server answers",
        advice="look at the API server, and at the way from the controller to it",
    ),
    StatusCode.NODE_SILENT: CodeFacts(
        state="running", text="the node of the pod does not answer", attention=True, actor=_INFRA,
        then="it goes on when the node is back, or when the cluster gives the pod up",
        advice="look at the node that the message names",
    ),
    StatusCode.RATE_LIMITED: CodeFacts(
        state="waiting", text="the API server asks to wait", actor=_INFRA,
        then=_TRIED_AGAIN, then_at=_TRIED_AGAIN_AT,
        advice="nothing for seconds; if it stays, look at the load of the API server and at KUBE_INFLIGHT",
    ),
    StatusCode.GATED: CodeFacts(
        state="pending", text="the pod is held back", actor=_INFRA,
        then="it starts when the gate is removed; no time-out runs",
        advice="ask the operator of the component that sets the gate (a queue such as Kueue)",
    ),
    StatusCode.RETRY: CodeFacts(
        state="waiting", text="waits for a further attempt",
        then="the next attempt follows", then_at="the next attempt follows at {at}",
    ),
    StatusCode.TENANT_SHARE: CodeFacts(
        state="waiting", text="its tenant uses its share", whole=True,
        then="it starts when a worker of its tenant ends, or when there is room that no other tenant asks for",
        advice="nothing, or raise MAX_WORKERS",
    ),
    StatusCode.CONCURRENCY_KEY: CodeFacts(
        state="waiting", text="waits for a place of its concurrency key", whole=True,
        then="it starts when the tasks before it have ended",
        advice="nothing; or end the task that holds the key (scale_down), or send a higher concurrency_limit",
    ),
    StatusCode.OLDER_EVENT: CodeFacts(
        state="", text="waits for an event that was sent before it", whole=True,
        then="it chooses its victims when that event is accepted, and has chosen its own",
    ),
    StatusCode.MAX_PENDING: CodeFacts(
        state="waiting", text="as many pods wait for a node as may (MAX_PENDING)", whole=True, actor=_INFRA,
        then="it starts when one of them has a node", advice="add nodes, or raise MAX_PENDING",
    ),
    StatusCode.CAPACITY: CodeFacts(
        state="waiting", text="as many workers run as may (MAX_WORKERS)", whole=True,
        then="it starts when a worker ends", advice="nothing, or raise MAX_WORKERS",
    ),
    StatusCode.UNREAD: CodeFacts(
        state="", text="no controller has read the event yet", actor=_CONFIG,
        then="a controller reads it when there is room in its READ_AHEAD",
        advice="if nothing moves, look whether a controller runs and reaches Redis",
    ),
    StatusCode.UNACCEPTED: CodeFacts(
        state="", text="a controller has read the event and not accepted it yet",
        then="it is accepted within moments; after LEASE_S another replica takes it",
        advice="if it stays, look at the log of that controller",
    ),
    StatusCode.TURN: CodeFacts(
        state="waiting", text="waits for its turn", then="it begins when a thread is free, as a rule within moments",
        advice="nothing; if it stays, the threads wait for the API server or for Redis: run `doctor`",
    ),
    StatusCode.CREATING: CodeFacts(
        state="creating", text="its pod is being created", then="the API server answers, as a rule within moments",
        advice="nothing; if it stays, look at the admission webhooks and at the load of the API server",
    ),
    StatusCode.STARTING: CodeFacts(
        state="pending", text="the pod starts: it gets a node, and the node pulls its images",
        then="the worker runs", then_at="if it does not start, the controller ends the pod at {at}",
    ),
    StatusCode.OUTLIVED: CodeFacts(
        state="ending", text="the worker has ended, and another container of its pod has not",
        then="its result is recorded when the pod ends", then_at="the controller ends the pod at {at}",
    ),
    StatusCode.ENDING: CodeFacts(
        state="ending", text="the pod is being ended", then="its result is recorded when the pod has ended",
        then_at="its containers are killed at {at}, and its result is recorded",
    ),
    StatusCode.VICTIMS: CodeFacts(
        state="", text="waits until its victims have ended", then="its result is recorded with the last of them",
    ),
    StatusCode.RUNNING: CodeFacts(
        state="running", text="the worker runs", then="its result is recorded when it ends",
        then_at="its deadline is at {at}",
        advice="nothing; if it runs for too long, read its log (`logs TASK_ID`), or end it with a scale_down",
    ),
    StatusCode.EXPIRED: CodeFacts(
        state="finished", text="it had not started by its not_after", actor=_USER, then="nothing",
        advice="send it again with a later not_after; if that happens often, there is too little room",
    ),
    StatusCode.FINISHED: CodeFacts(state="finished", text="it is over", then="nothing"),
}  # fmt: skip

#: The code of a worker of which no code is noted: its owner is of an earlier release, or has just begun with it.
_BY_STATE: Final = {
    "creating": StatusCode.CREATING,
    "pending": StatusCode.STARTING,
    "running": StatusCode.RUNNING,
    "ending": StatusCode.ENDING,
}


def code_of(code: str, state: str, outcome: str) -> StatusCode:
    """The code of a worker of which the task hash shows this code, state and outcome; each may be empty."""
    if outcome:
        return StatusCode.EXPIRED if outcome == Outcome.EXPIRED else StatusCode.FINISHED
    if code in CODES:
        return StatusCode(code)
    return _BY_STATE.get(state, StatusCode.TURN)


_RANKS: Final = {code: rank for rank, code in enumerate(StatusCode)}
#: The codes that a worker of an open task can have, with the state that goes with each: for figures by state and code.
WORKER_CODES: Final = tuple(code for code in StatusCode if CODES[code].state not in ("", "finished"))
