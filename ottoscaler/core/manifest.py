"""The worker pod: this module alone decides what is created, and by what it is known again.

It meets the restricted Pod Security profile
(https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted), mounts no token, and carries in
labels and annotations all that is needed to take it up again when Redis has forgotten it.

Its name is a function of the event, so that the API server itself is the lock: a second create of the same worker is
a 409.

A pod's name says which worker it is, its labels repeat it for the watch, and its annotation proves it. An admission
webhook, or a person, may change labels. A pod without the labels that we need is still ours (the name, and the event id
in its annotation, which has the hash in the name), but no watch shows it any more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from ottoscaler.core import output
from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.memory_sizes import memory_of
from ottoscaler.core.services import CHECK_EVERY_S, CHECK_S, ReadyCheck, Service
from ottoscaler.core.volumes import WORKSPACE, WORKSPACE_NAME

#: The container that decides how a worker ends.
CONTAINER: Final = "agent"

MANAGED_BY = "managed-by"
MANAGER = "ottoscaler"
LABEL_INSTANCE = "ottoscaler.io/instance"
LABEL_EVENT = "ottoscaler.io/event"
LABEL_WORKER = "ottoscaler.io/worker"
LABEL_ATTEMPT = "ottoscaler.io/attempt"
#: For people and their tools alone; Ottoscaler never reads them.
#: https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_TASK = "ottoscaler.io/task"
#: By it the PodDisruptionBudget of deploy/components selects the workers of profiles that ask for it.
LABEL_BUDGET = "ottoscaler.io/disruption-budget"
ANNOTATION_EVENT_ID = "ottoscaler.io/event-id"
ANNOTATION_TASK_ID = "ottoscaler.io/task-id"
ANNOTATION_DIGEST = "ottoscaler.io/spec-digest"
ANNOTATION_EVENT = "ottoscaler.io/event"
#: The names of the containers that are services of the profile, with commas: only they are ours besides `agent`.
ANNOTATION_SERVICES = "ottoscaler.io/services"
#: For how long the pod stays if its worker fails, seconds; a pod without it does not stay.
ANNOTATION_KEEP = "ottoscaler.io/keep-failed-s"
ANNOTATION_TENANT = "ottoscaler.io/tenant"

#: What keeps the cluster autoscaler and Karpenter from emptying the node of a worker that runs, for their own reasons:
#: https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md and
#: https://karpenter.sh/docs/concepts/disruption/#pod-level-controls. Neither lets a finished pod keep a node.
_NOT_TO_EVICT: Final = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}

HASH_DIGITS = 10

#: What the restricted Pod Security profile asks of each container.
_RESTRICTED: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}

#: What a label may have as its value, and a profile as that of a node selector or toleration.
#: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
LABEL_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")
_NAME: Final = re.compile(rf"otto-agent-([0-9a-f]{{{HASH_DIGITS}}})-([0-9]{{1,9}})(?:-r([0-9]{{1,9}}))?")


# -- its name and its labels


class AttemptKey(msgspec.Struct, frozen=True):
    """One attempt of one worker, as in its pod's labels: the key of the registry."""

    event_hash: str
    index: int
    attempt: int

    @property
    def worker(self) -> tuple[str, int]:
        """Which worker, whatever the attempt."""
        return self.event_hash, self.index


def event_hash(instance: str, event_id: str) -> str:
    """The 10 hexadecimal digits that stand for an event in names and labels."""
    return hashlib.sha256(f"{instance}\0{event_id}".encode()).hexdigest()[:HASH_DIGITS]


def pod_name(key: AttemptKey) -> str:
    """The name of an attempt's pod: the same event gives the same names, always;
    from the second attempt on with a suffix.
    """
    suffix = f"-r{key.attempt}" if key.attempt > 1 else ""
    return f"otto-agent-{key.event_hash}-{key.index}{suffix}"


def selector(instance: str, events: Collection[str] = ()) -> str:
    """The label selector of all pods of one Ottoscaler, or of those of some events, given by their hashes."""
    ours = f"{MANAGED_BY}={MANAGER},{LABEL_INSTANCE}={instance}"
    return f"{ours},{LABEL_EVENT} in ({','.join(events)})" if events else ours


def labels_of(key: AttemptKey, instance: str) -> dict[str, str]:
    """The labels that a worker's pod must have: by the first two the watch selects it."""
    return {
        MANAGED_BY: MANAGER,
        LABEL_INSTANCE: instance,
        LABEL_EVENT: key.event_hash,
        LABEL_WORKER: str(key.index),
        LABEL_ATTEMPT: str(key.attempt),
    }


def key_from_labels(name: str, labels: Mapping[str, str]) -> AttemptKey | None:
    """The attempt that the labels speak of; None if they are not a worker's, or are those of a pod of another name."""
    event, index, attempt = labels.get(LABEL_EVENT), labels.get(LABEL_WORKER, ""), labels.get(LABEL_ATTEMPT, "")
    if event is None or not (_DIGITS.fullmatch(index) and _DIGITS.fullmatch(attempt)):
        return None
    key = AttemptKey(event, int(index), int(attempt))
    return key if pod_name(key) == name else None


def key_from_annotation(name: str, event_id: str, instance: str) -> AttemptKey | None:
    """The attempt in the name, if the annotated event has that hash in this instance; otherwise None."""
    parts = _NAME.fullmatch(name) if event_id else None
    if parts is None or parts[1] != event_hash(instance, event_id):
        return None
    key = AttemptKey(parts[1], int(parts[2]), int(parts[3] or 1))
    return key if pod_name(key) == name else None


# -- its body


class PodTemplate(Protocol):
    """What the configuration says about worker pods; `settings.WorkerSettings` is one."""

    @property
    def image(self) -> str: ...
    @property
    def image_pull_policy(self) -> str: ...
    @property
    def image_pull_secret(self) -> str: ...
    @property
    def command(self) -> tuple[str, ...]: ...
    @property
    def service_account(self) -> str: ...
    @property
    def run_as_user(self) -> int: ...
    @property
    def cpu_request(self) -> str: ...
    @property
    def cpu_limit(self) -> str: ...
    @property
    def memory_request(self) -> str: ...
    @property
    def memory_limit(self) -> str: ...
    @property
    def node_selector(self) -> Mapping[str, str]: ...
    @property
    def tolerations(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def deadline_s(self) -> int: ...
    @property
    def termination_grace_s(self) -> int: ...
    @property
    def keep_failed_s(self) -> int: ...


def build_pod(
    template: PodTemplate,
    event: ScaleEvent,
    key: AttemptKey,
    *,
    event_json: str,
    instance: str,
    namespace: str,
    avoided_nodes: Sequence[str] = (),
    tenant: str = "",
    oom_kills: int = 0,
) -> bytes:
    """The body of the create request for one attempt at one worker, as JSON.

    Arguments: the configuration, the event, event hash with index (from 1) and attempt (from 1), the event as JSON
    (`ScaleEvent.encode`, the same for all workers of a task), where it will live, the names of the nodes on which it
    would rather not, its tenant, if it has one, and how many earlier attempts ended as OOMKilled. The same arguments
    give the same bytes. A pod of the attempt that is there is recognised by its event, instance and key, whatever its
    spec: a process that does not know of these nodes adopts it all the same.
    """
    spec = _spec(template, event, key, oom_kills)
    if avoided_nodes:
        spec["affinity"] = _away_from(avoided_nodes)
    digest = hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest()
    annotations = _annotations(template, event, event_json=event_json, digest=digest)
    if tenant:
        annotations[ANNOTATION_TENANT] = tenant
    metadata = {
        "name": pod_name(key),
        "namespace": namespace,
        "labels": labels_of(key, instance) | _labels_to_find(event),
        "annotations": annotations,
    }
    return msgspec.json.encode({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def _labels_to_find(event: ScaleEvent) -> dict[str, str]:
    """By these people and a PodDisruptionBudget select workers. The annotation has each task id, whatever its form."""
    labels = {LABEL_MANAGED_BY: MANAGER}
    if LABEL_VALUE.fullmatch(event.task_id):
        labels[LABEL_TASK] = event.task_id
    if event.overrides.disruption_budget:
        labels[LABEL_BUDGET] = "true"
    return labels


def _annotations(template: PodTemplate, event: ScaleEvent, *, event_json: str, digest: str) -> dict[str, str]:
    annotations = {
        ANNOTATION_EVENT_ID: event.event_id,
        ANNOTATION_TASK_ID: event.task_id,
        ANNOTATION_DIGEST: digest,
        ANNOTATION_EVENT: event_json,
        **_NOT_TO_EVICT,
    }
    if services := event.overrides.services:
        annotations[ANNOTATION_SERVICES] = ",".join(service.name for service in services)
    asked = event.overrides.keep_failed_s
    if keep_s := template.keep_failed_s if asked is None else asked:
        # On the pod itself: every replica, and each later one, keeps it for the same time, whatever its configuration.
        annotations[ANNOTATION_KEEP] = str(keep_s)
    return annotations


def worker_environment(event: ScaleEvent, key: AttemptKey) -> list[dict[str, Any]]:
    """The variables of a worker, in the form of a container's `env`."""
    own = {
        "OTTO_TASK_ID": event.task_id,
        "OTTO_EVENT_ID": event.event_id,
        "OTTO_WORKER_INDEX": str(key.index),
        "OTTO_WORKER_COUNT": str(event.pod_count),
        "OTTO_ATTEMPT": str(key.attempt),
        "OTTO_TASK_KEY": f"{event.event_id}/{key.index}",
        "OTTO_POD_NAME": pod_name(key),
        "OTTO_OUTPUT": output.PATH,
        "HOME": WORKSPACE,
    }
    if event.traceparent:
        own["TRACEPARENT"] = event.traceparent
    passed = {f"OTTO_{name.upper()}": value for name, value in event.passed_on.items()}
    variables = _plain_variables({**event.overrides.env, **passed, **own})
    for one in event.overrides.secret_env:
        source = {"secretKeyRef": {"name": one.secret, "key": one.key}}
        variables.append({"name": one.name, "valueFrom": source})
    variables.append({"name": "OTTO_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}})
    return variables


def _plain_variables(env: Mapping[str, str]) -> list[dict[str, Any]]:
    # the values as they are: an event must not read other variables
    return [{"name": name, "value": value} for name, value in zip(env, escape_expansion(env.values()), strict=True)]


def escape_expansion(texts: Iterable[str]) -> list[str]:
    """Texts that the kubelet hands on as they were, where it would expand `$(NAME)` and read `$$` as `$`: in `command`,
    `args` and the values of `env`
    (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/).
    """
    return [text.replace("$", "$$") for text in texts]


def _spec(template: PodTemplate, event: ScaleEvent, key: AttemptKey, oom_kills: int) -> dict[str, Any]:
    asked = event.overrides
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": template.termination_grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": template.run_as_user,
            "runAsGroup": template.run_as_user,
            "fsGroup": template.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(template, event, key, oom_kills)],
        "volumes": [{"name": WORKSPACE_NAME, "emptyDir": {}}, *(volume.source() for volume in asked.volumes)],
    }
    if asked.services:
        spec["initContainers"] = [_service(template, service) for service in asked.services]
    if deadline_s := asked.deadline_s or template.deadline_s:
        spec["activeDeadlineSeconds"] = deadline_s
    if template.service_account:
        spec["serviceAccountName"] = template.service_account
        spec["automountServiceAccountToken"] = True
    configured = (template.image_pull_secret,) if template.image_pull_secret else ()
    if pull_secrets := asked.pull_secrets or configured:
        spec["imagePullSecrets"] = [{"name": name} for name in pull_secrets]
    if node_selector := asked.node_selector or template.node_selector:
        spec["nodeSelector"] = dict(node_selector)
    if tolerations := asked.tolerations or template.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in tolerations]
    if asked.runtime_class:
        spec["runtimeClassName"] = asked.runtime_class
    if asked.priority_class:
        spec["priorityClassName"] = asked.priority_class
    if not asked.host_users:
        spec["hostUsers"] = False
    return spec


def _away_from(nodes: Sequence[str]) -> dict[str, Any]:
    """Prefer any other node, by its name: a cluster of one node runs the worker all the same. A requirement takes one
    name (validation.ValidateNodeFieldSelectorRequirement), and all requirements of a term have to be met.

    Preferred, and not required, for autoscalers, too: Karpenter adds no node for a pod that requires one by field or
    host name, and before its version 1.5 for none that prefers one so (kubernetes-sigs/karpenter#1596, #2182).
    """
    away = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    term = {"weight": 100, "preference": {"matchFields": away}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}


def _container(template: PodTemplate, event: ScaleEvent, key: AttemptKey, oom_kills: int) -> dict[str, Any]:
    asked = event.overrides
    memory = memory_of(asked.memory, asked.oom_memory, oom_kills) if oom_kills else asked.memory
    command = template.command if asked.command is None else asked.command
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": asked.image or template.image,
        "imagePullPolicy": template.image_pull_policy,
        "workingDir": WORKSPACE,
        "env": worker_environment(event, key),
        "resources": _resources(template, asked.cpu, memory, asked.ephemeral_storage),
        "securityContext": _RESTRICTED,
        "volumeMounts": [
            {"name": WORKSPACE_NAME, "mountPath": WORKSPACE},
            *(volume.volume_mount() for volume in asked.volumes),
        ],
        "terminationMessagePath": output.PATH,
        "terminationMessagePolicy": output.POLICY,
    }
    return container | _words(command, asked.args)


def _service(template: PodTemplate, service: Service) -> dict[str, Any]:
    """A native sidecar: it starts before `agent`, and the kubelet ends it after `agent`."""
    container: dict[str, Any] = {
        "name": service.name,
        "image": service.image,
        "imagePullPolicy": template.image_pull_policy,
        "restartPolicy": "Always",
        "env": _plain_variables(service.env),
        "resources": _resources(template, service.cpu, service.memory),
        "securityContext": _RESTRICTED,
        "startupProbe": _startup_probe(service.ready),
    }
    return container | _words(service.command, service.args)


def _words(command: Sequence[str] | None, args: Sequence[str] | None) -> dict[str, list[str]]:
    """A container's `command` and `args`; where one is None or empty, the image's own. Literally: an expanded $(OTTO_X)
    would put an event's text into a shell's line, and $$ is the shell's.
    """
    given = {"command": command, "args": args}
    return {name: escape_expansion(words) for name, words in given.items() if words}


def _startup_probe(ready: ReadyCheck) -> dict[str, Any]:
    """The kubelet starts the next container when it succeeds, and restarts the service where it does not in time."""
    words = escape_expansion(ready.exec)  # the kubelet expands those of a probe, too
    return {
        **({"tcpSocket": {"port": ready.tcp}} if ready.tcp else {"exec": {"command": words}}),
        "periodSeconds": CHECK_EVERY_S,
        "timeoutSeconds": CHECK_S,
        "failureThreshold": ready.timeout_s // CHECK_EVERY_S,
    }


def _resources(template: PodTemplate, cpu: str, memory: str, ephemeral_storage: str = "") -> dict[str, Any]:
    """What an event or a profile asks for is request and limit: it is what the scheduler has to find room for."""
    disk = {"ephemeral-storage": ephemeral_storage} if ephemeral_storage else {}
    return {
        "requests": {"cpu": cpu or template.cpu_request, "memory": memory or template.memory_request} | disk,
        "limits": {"cpu": cpu or template.cpu_limit, "memory": memory or template.memory_limit} | disk,
    }
