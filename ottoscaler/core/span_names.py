"""The names in traces, in one table: OpenTelemetry's where it has one, of the semantic conventions 1.37 as published
(https://opentelemetry.io/docs/specs/semconv/, cicd, k8s, messaging and vcs are in development), otherwise our own.

Nothing that runs depends on a name, and a backend's queries do: so they change here, all at once, or not at all.
"""

from __future__ import annotations

from typing import Final

# -- the spans of one event, in their order; the first is the root, and all but the first two are one worker's
WORKER: Final = "worker"
QUEUE: Final = "queue"
CREATE: Final = "create"
SCHEDULE: Final = "schedule"
PULL: Final = "pull"
RUN: Final = "run"
RECORD: Final = "record"
DELETE: Final = "delete"

# -- attributes
PIPELINE_NAME: Final = "cicd.pipeline.name"
PIPELINE_ACTION: Final = "cicd.pipeline.action.name"
PIPELINE_RUN: Final = "cicd.pipeline.run.id"
PIPELINE_RESULT: Final = "cicd.pipeline.result"
TASK_NAME: Final = "cicd.pipeline.task.name"
TASK_RUN: Final = "cicd.pipeline.task.run.id"
TASK_RESULT: Final = "cicd.pipeline.task.run.result"
MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_STREAM: Final = "messaging.destination.name"
MESSAGING_GROUP: Final = "messaging.consumer.group.name"
MESSAGING_MESSAGE: Final = "messaging.message.id"
MESSAGING_OPERATION: Final = "messaging.operation.type"
NAMESPACE: Final = "k8s.namespace.name"
POD: Final = "k8s.pod.name"
POD_UID: Final = "k8s.pod.uid"
NODE: Final = "k8s.node.name"
CONTAINER: Final = "k8s.container.name"
REPOSITORY: Final = "vcs.repository.name"
REVISION: Final = "vcs.ref.head.revision"
ERROR: Final = "error.type"
EXIT_CODE: Final = "process.exit.code"
TASK_ID: Final = "ottoscaler.task.id"
INSTANCE: Final = "ottoscaler.instance"
INDEX: Final = "ottoscaler.worker.index"
ATTEMPT: Final = "ottoscaler.attempt"
REASON: Final = "ottoscaler.reason"
FAULT: Final = "ottoscaler.fault"

#: What each attribute holds; deploy/TRACES.md has the same table.
MEANINGS: Final = {
    PIPELINE_NAME: "`scale_up` or `scale_down`",
    PIPELINE_ACTION: "`RUN`",
    PIPELINE_RUN: "the event id",
    PIPELINE_RESULT: "`success`, `failure`, `error`, `timeout`, `cancellation` or `skip`",
    TASK_NAME: "`worker`",
    TASK_RUN: "event id and index, as in `OTTO_TASK_KEY`",
    TASK_RESULT: "as `cicd.pipeline.result`, of one worker",
    MESSAGING_SYSTEM: "`redis`",
    MESSAGING_STREAM: "`REDIS_STREAM`",
    MESSAGING_GROUP: "`REDIS_CONSUMER_GROUP`",
    MESSAGING_MESSAGE: "the id of the event's entry",
    MESSAGING_OPERATION: "`process` for the root, `receive` for `queue`",
    NAMESPACE: "`NAMESPACE`",
    POD: "the pod of the attempt",
    POD_UID: "its UID",
    NODE: "its node",
    CONTAINER: "`agent`",
    REPOSITORY: "the event's field `repository`",
    REVISION: "the event's field `commit_sha`",
    ERROR: "the reason, where the outcome is not `succeeded`",
    EXIT_CODE: "the program's exit code",
    TASK_ID: "the task id",
    INSTANCE: "`INSTANCE`",
    INDEX: "the worker's index",
    ATTEMPT: "the attempt, from 1",
    REASON: "the reason of the result",
    FAULT: "the fault of the result",
}
