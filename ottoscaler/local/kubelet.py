"""What the node reports and how it reads a pod: container states, status, conditions, images, environment. Pure
functions.

Sentences and reasons are those of kubelet 1.34 with containerd, because the controller distinguishes causes by them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ottoscaler.local.objects import Object, timestamp

NODE_NAME = "local-node"
DEADLINE_MESSAGE = "Pod was active on the node longer than the specified deadline"
#: What the kubelet takes of a log as termination message, lines and bytes, and of the file that is written for it.
LOG_LINES, LOG_BYTES = 80, 2048
_MESSAGE_BYTES = 4096
_ADDRESS = "127.0.0.1"
_MISSING_REGISTRY = "missing.invalid/"
# distribution/reference: [host[:port]/]path[:tag][@digest], the path in lower case.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)
_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")


def waiting(reason: str, message: str = "") -> Object:
    """A container's state before it runs."""
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def terminated(started_at: str, code: int, message: str = "") -> Object:
    """A container's state after a process ended; ``code`` as Popen gives it: -n after signal n. ``message`` is its
    termination message.
    """
    exit_code = 128 - code if code < 0 else code
    state: Object = {"exitCode": exit_code, "reason": "Error" if exit_code else "Completed"}
    state |= ({"signal": -code} if code < 0 else {}) | ({"message": message} if message else {})
    return {"terminated": {**state, "startedAt": started_at, "finishedAt": timestamp()}}


def message_of(file: Path) -> bytes:
    """The termination message in a file: its end, as far as the kubelet reads it; empty if its container removed it."""
    if not file.is_file():  # a pipe would be waited for
        return b""
    try:
        with file.open("rb") as opened:
            opened.seek(-min(_MESSAGE_BYTES, file.stat().st_size), os.SEEK_END)
            return opened.read(_MESSAGE_BYTES)
    except OSError:
        return b""


def start_error(container: Object, error: Exception) -> Object:
    """A container's state when its command could not be executed; it never started, hence the time."""
    word = (container.get("command") or container["args"])[0]
    reason = (error.strerror or "").lower() if isinstance(error, OSError) else str(error)
    if "/" not in word and isinstance(error, FileNotFoundError):
        reason = "executable file not found in $PATH"
    runc = f'unable to start container process: error during container init: exec: "{word}": {reason}: unknown'
    message = f"failed to create containerd task: OCI runtime create failed: runc create failed: {runc}"
    state = {"exitCode": 128, "reason": "StartError", "message": message}
    return {"terminated": {**state, "startedAt": "1970-01-01T00:00:00Z", "finishedAt": timestamp()}}


def permanent_waiting_state(container: Object) -> Object | None:
    """The waiting state of a container that can never start on this node, None when nothing is in its way.

    There are no registries: images under ``missing.invalid/`` cannot be pulled, all others are taken for granted.
    """
    image = container["image"]
    if not _IMAGE.fullmatch(image):
        parse = f'couldn\'t parse image name "{image}": invalid reference format'
        message = f'Failed to apply default image tag "{image}": {parse}'
        return waiting("InvalidImageName", message)
    if image.startswith(_MISSING_REGISTRY):
        return waiting("ErrImagePull", _pull_message(image))
    for entry in container.get("env") or []:
        for kind, noun in (("secretKeyRef", "secret"), ("configMapKeyRef", "configmap")):
            reference = (entry.get("valueFrom") or {}).get(kind)
            if reference and not reference.get("optional"):
                return waiting("CreateContainerConfigError", f'{noun} "{reference["name"]}" not found')
    if not container.get("command") and not container.get("args"):
        return waiting("CreateContainerError", "failed to generate container spec: no command specified")
    return None


def back_off(container: Object) -> Object:
    """The waiting state between two attempts to pull."""
    image = container["image"]
    return waiting("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {_pull_message(image)}')


def _pull_message(image: str) -> str:
    full = image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
    pull = f'failed to pull and unpack image "{full}": failed to resolve reference "{full}": {full}: not found'
    return f"rpc error: code = NotFound desc = {pull}"


def phase(states: Iterable[Object], *, expired: bool) -> str:
    """The pod's phase, from its containers' states and whether its deadline has passed."""
    states = list(states)
    if any("running" in state for state in states):
        return "Pending" if any("waiting" in state for state in states) else "Running"
    # A terminal phase is reported only once nothing runs any more.
    if expired:
        return "Failed"
    if any("waiting" in state for state in states):
        return "Pending"
    return "Failed" if any(state["terminated"]["exitCode"] for state in states) else "Succeeded"


def status(pod: Object, states: Mapping[str, Object], *, expired: bool) -> Object:
    """The pod's whole status, made from its present one and its containers' states."""
    old, now = pod["status"], phase(states.values(), expired=expired)
    new: Object = {
        **old,
        "phase": now,
        "hostIP": _ADDRESS,
        "hostIPs": [{"ip": _ADDRESS}],
        "podIP": _ADDRESS,
        "podIPs": [{"ip": _ADDRESS}],
        "startTime": old.get("startTime") or timestamp(),
        "containerStatuses": [_container_status(each, states[each["name"]]) for each in pod["spec"]["containers"]],
    }
    if expired and now == "Failed":
        new |= {"reason": "DeadlineExceeded", "message": DEADLINE_MESSAGE}
    unready = [name for name, state in states.items() if "running" not in state]
    reason: Object = {
        "reason": "ContainersNotReady",
        "message": f"containers with unready status: [{' '.join(unready)}]",
    }
    reason = {"Succeeded": {"reason": "PodCompleted"}, "Failed": {"reason": "PodFailed"}}.get(now, reason)
    for kind in ("Initialized", "ContainersReady", "Ready"):
        true = kind == "Initialized" or not unready
        new["conditions"] = with_condition(new, kind, true=true, reason={} if true else reason)
    return new


def with_condition(status: Object, kind: str, *, true: bool, reason: Object) -> list[Object]:
    """The status's conditions with one set; its transition time changes only when its value does."""
    old = status.get("conditions") or []
    before: Object = next((each for each in old if each["type"] == kind), {})
    value = "True" if true else "False"
    since = before["lastTransitionTime"] if before.get("status") == value else timestamp()
    condition = {"type": kind, "status": value, "lastProbeTime": None, "lastTransitionTime": since, **reason}
    return [each for each in old if each["type"] != kind] + [condition]


def environment(pod: Object, container: Object, base: Mapping[str, str]) -> dict[str, str]:
    """The container's environment over ``base``: values, $(VAR) of what was defined before, fields of the pod."""
    env = {**base, "HOSTNAME": pod["metadata"]["name"]}
    for entry in container.get("env") or []:
        source = entry.get("valueFrom") or {}
        if "fieldRef" in source:
            env[entry["name"]] = _downward_field(pod, source["fieldRef"].get("fieldPath", ""))
        elif not source:
            env[entry["name"]] = expand_variables(entry.get("value") or "", env)
    return env


def expand_variables(text: str, env: Mapping[str, str]) -> str:
    """Replace $(VAR) by its value and $$ by $; an unknown reference stays as it is (Kubernetes documentation, "Define
    Dependent Environment Variables").
    """
    return _VARIABLE.sub(lambda found: "$" if found[0] == "$$" else env.get(found[1], found[0]), text)


def local_path(path: str, mounts: Mapping[str, Path]) -> Path | None:
    """Where a path inside the container is on this machine: the deepest mount that holds it, or None."""
    inside = Path(path)
    for mount in sorted(mounts, key=len, reverse=True):
        if inside.is_relative_to(mount):
            return mounts[mount] / inside.relative_to(mount)
    return None


def _downward_field(pod: Object, path: str) -> str:
    """A field by its path, such as status.podIP or metadata.labels['app']; "" when it is not there."""
    path, _, key = path.removesuffix("']").partition("['")
    value: object = pod
    for name in [*path.split("."), *([key] if key else [])]:
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _container_status(container: Object, state: Object) -> Object:
    running = "running" in state
    common = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0, "lastState": {}}
    return {**common, "ready": running, "started": running, "state": state}


def node_object(cpu: int, memory: str, pods: int) -> Object:
    """The Node object; its capacity is what the scheduler counts with, not what this machine has."""
    capacity = {"cpu": str(cpu), "memory": memory, "pods": str(pods)}
    labels = {"kubernetes.io/hostname": NODE_NAME, "kubernetes.io/os": "linux"}
    conditions = [
        {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastTransitionTime": timestamp()}
    ]
    status = {
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": conditions,
        "addresses": [{"type": "InternalIP", "address": _ADDRESS}, {"type": "Hostname", "address": NODE_NAME}],
        "nodeInfo": {"kubeletVersion": "v1.34.4+ottoscaler-local", "operatingSystem": "linux"},
    }
    return {"metadata": {"name": NODE_NAME, "labels": labels}, "spec": {}, "status": status}
