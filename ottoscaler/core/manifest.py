"""The worker pod: this module alone decides what is created.

It meets the restricted Pod Security profile
(https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted), mounts no token, and carries in
labels and annotations all that is needed to take it up again when Redis has forgotten it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from ottoscaler.core import names, output
from ottoscaler.core.events import ScaleEvent
from ottoscaler.core.names import WorkerKey
from ottoscaler.core.pods import CONTAINER

WORKSPACE = "/workspace"


class Template(Protocol):
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


def build(template: Template, event: ScaleEvent, key: WorkerKey, *, instance: str, namespace: str) -> bytes:
    """The body of the create request for one attempt at one worker, as JSON.

    Arguments: the configuration, the event, event hash with index (from 1) and attempt (from 1), and where it will
    live. The same arguments give the same bytes.
    """
    spec = _spec(template, event, key)
    digest = hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest()
    metadata = {
        "name": names.pod_name(key),
        "namespace": namespace,
        "labels": names.labels_of(key, instance),
        "annotations": {
            names.ANNOTATION_EVENT_ID: event.event_id,
            names.ANNOTATION_TASK_ID: event.task_id,
            names.ANNOTATION_DIGEST: digest,
            names.ANNOTATION_EVENT: event.encode(),
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        },
    }
    return msgspec.json.encode({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def environment(event: ScaleEvent, key: WorkerKey) -> list[dict[str, Any]]:
    """The variables of a worker, in the form of a container's `env`."""
    own = {
        "OTTO_TASK_ID": event.task_id,
        "OTTO_EVENT_ID": event.event_id,
        "OTTO_WORKER_INDEX": str(key.index),
        "OTTO_WORKER_COUNT": str(event.pod_count),
        "OTTO_ATTEMPT": str(key.attempt),
        "OTTO_TASK_KEY": f"{event.event_id}/{key.index}",
        "OTTO_POD_NAME": names.pod_name(key),
        "OTTO_OUTPUT": output.PATH,
        "HOME": WORKSPACE,
    }
    if event.traceparent:
        own["TRACEPARENT"] = event.traceparent
    passed = {f"OTTO_{name.upper()}": value for name, value in event.passed_on.items()}
    # an event must not read other variables
    variables: list[dict[str, Any]] = [
        {"name": name, "value": literal(value)} for name, value in {**event.overrides.env, **passed, **own}.items()
    ]
    for one in event.overrides.secret_env:
        source = {"secretKeyRef": {"name": one.secret, "key": one.key}}
        variables.append({"name": one.name, "valueFrom": source})
    variables.append({"name": "OTTO_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}})
    return variables


def literal(text: str) -> str:
    """A text that the kubelet hands on as it was, where it would expand `$(NAME)` and read `$$` as `$`: in `command`,
    `args` and the values of `env`
    (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/).
    """
    return text.replace("$", "$$")


def _spec(template: Template, event: ScaleEvent, key: WorkerKey) -> dict[str, Any]:
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
        "containers": [_container(template, event, key)],
        "volumes": [{"name": "workspace", "emptyDir": {}}],
    }
    if deadline_s := event.overrides.deadline_s or template.deadline_s:
        spec["activeDeadlineSeconds"] = deadline_s
    if template.service_account:
        spec["serviceAccountName"] = template.service_account
        spec["automountServiceAccountToken"] = True
    if template.image_pull_secret:
        spec["imagePullSecrets"] = [{"name": template.image_pull_secret}]
    if node_selector := event.overrides.node_selector or template.node_selector:
        spec["nodeSelector"] = dict(node_selector)
    if tolerations := event.overrides.tolerations or template.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in tolerations]
    return spec


def _container(template: Template, event: ScaleEvent, key: WorkerKey) -> dict[str, Any]:
    asked = event.overrides
    command = template.command if asked.command is None else asked.command
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": asked.image or template.image,
        "imagePullPolicy": template.image_pull_policy,
        "workingDir": WORKSPACE,
        "env": environment(event, key),
        # what an event or a profile asks for is request and limit: it is what the scheduler has to find room for
        "resources": {
            "requests": {
                "cpu": asked.cpu or template.cpu_request,
                "memory": asked.memory or template.memory_request,
            },
            "limits": {"cpu": asked.cpu or template.cpu_limit, "memory": asked.memory or template.memory_limit},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "workspace", "mountPath": WORKSPACE}],
        "terminationMessagePath": output.PATH,
        "terminationMessagePolicy": output.POLICY,
    }
    # Literally: an expanded $(OTTO_X) would put an event's text into a shell's line, and $$ is the shell's.
    if command:  # otherwise the image's own
        container["command"] = [literal(word) for word in command]
    if asked.args:
        container["args"] = [literal(word) for word in asked.args]
    return container


class _Annotations(msgspec.Struct, frozen=True):
    event: str = msgspec.field(default="", name=names.ANNOTATION_EVENT)


class _Metadata(msgspec.Struct, frozen=True):
    annotations: _Annotations = _Annotations()


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


_pod: Final = msgspec.json.Decoder(_Pod)  # at import: see core/events.py


def event_annotation(body: bytes) -> str:
    """The event that a pod's annotation carries, as JSON; empty if there is none. Raises msgspec.MsgspecError."""
    return _pod.decode(body).metadata.annotations.event
