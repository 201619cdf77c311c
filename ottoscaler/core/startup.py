"""Why a container has not started: from the words of the kubelet, the scheduler and the container runtime to a
`StartTrouble`.

Only fields that the API server and the kubelet write are read. The words of a container that has run (its exit code,
its termination message) never get here: the worker may have written them.
"""

from __future__ import annotations

import re
from enum import IntEnum, auto
from typing import Final


class StartTrouble(IntEnum):
    """Why a pod has not started yet, as far as it is a fault; NONE is false. GATED is no fault: a scheduling gate holds
    the pod back on purpose. SERVICE_STARTING is none as long as it does not last: a service is not ready yet. The
    numbers are never shown or stored.
    """

    NONE = 0
    INVALID_IMAGE = auto()
    IMAGE_PULL = auto()
    IMAGE_PULL_TRANSIENT = auto()
    CONFIG = auto()
    START = auto()
    COMMAND = auto()
    SERVICE = auto()
    SERVICE_STARTING = auto()
    UNSCHEDULABLE = auto()
    GATED = auto()


#: Words for a container that the runtime could not start, waiting or terminated. PreCreate and PreStart are the
#: kubelet's own steps (CPUs, devices), and no hooks of the pod.
START_REASONS: Final = frozenset(
    {
        "StartError",
        "ContainerCannotRun",
        "RunContainerError",
        "CreateContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "PostStartHookError",
    }
)
#: What a container waits for in the normal course of a start.
_ORDINARY: Final = frozenset({"", "ContainerCreating", "PodInitializing"})
_CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "InvalidMountPropagation"})
_PULL_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "RegistryUnavailable",
        "ErrImageNeverPull",
        "SignatureValidationFailed",
    }
)
#: What registries say when asking again changes nothing; every other text is a passing fault.
_PULL_PERMANENT = re.compile(
    r"not found|manifest unknown|does not exist|unauthorized|authorization failed|denied|forbidden|no basic auth"
    r"|invalid reference|ErrImageNeverPull|no match for platform|no matching manifest|no image found in"
    r"|name unknown|not known to registry|did not resolve to an alias|short name mode is enforcing"
    r"|rejected by policy|SignatureValidationFailed"
    r"|no longer supported",
    re.IGNORECASE,
)
_PULL_TRANSIENT = re.compile(
    # a number behind one of :./- is part of an image's name, not a status
    r"toomanyrequests|too many requests|QPS exceeded|timeout|timed out|(?<![:./-])\b(?:429|50[0234])\b"
    # what a load balancer sent instead of the image; the node's firewall, disk and store of layers
    r"|unexpected media type|connect: (?:permission denied|operation not permitted)"
    r"|failed to (?:unpack|extract)|(?:extraction|parent) snapshot",
    re.IGNORECASE,
)
#: Names of images and addresses in such a text: the words that they are made of say nothing ("acme/timeout:1").
_PULL_NAMES = re.compile(
    r"[^\s\"'`,]*/[^\s\"'`,]*|(?<=image )\"[^\"]*\"|(?<=reference )\"[^\"]*\""
    r"|(?<=short-name )\"[^\"]*\"|(?<=image name )\S+|(?<=manifest for )\S+|(?<=denied for )[^\s,]+"
    r"|(?<=reading manifest )\S+(?= in )",
    re.IGNORECASE,
)
#: Docker's exit codes for a program that cannot be invoked and for one that is not there
#: (https://docs.docker.com/reference/cli/docker/container/run/#exit-status). Only the runtime's own count: see
#: `cannot_execute`.
_RUNTIME_CODES: Final = frozenset({126, 127})
#: What runtimes say when the container's own program cannot be executed. Each pattern names the program or the step, so
#: that a runtime, a shim or a hook which is missing on the node does not match: that is the platform's fault.
_CANNOT_EXECUTE = re.compile(
    # runc, under containerd, CRI-O and Docker: 'unable to start container process: … exec: "x": permission denied'
    r"container process.*\bexec:? (?:\\*\"[^\"]*\"|/[^\"\s]*): (?:.*: )?(?:executable file not found"
    r"|no such file or directory|permission denied|exec format error|is a directory|not a directory"
    r"|invalid argument|argument list too long)|container process.*\bchdir to cwd\b"
    # crun, under CRI-O and Podman
    r"|executable file [`'\"][^`'\"]*[`'\"]? not found|cannot find [`'\"][^`'\"]*[`'\"] in \$PATH"
    r"|\bopen executable: |\bexec container process\b|\bchdir to [`'\"]"
    # gVisor, Kata, youki, Windows
    r"|error finding executable|failed to load \S+: (?:no such file|permission denied|exec format)"
    r"|the file \S+ was not found|executable '[^']*' (?:for container )?not found"
    r"|CreateProcess.*(?:cannot find the (?:file|path) specified|is not a valid)",
    re.IGNORECASE | re.DOTALL,
)
#: What is missing or refused there is the runtime's or a hook's program, not the container's.
_NODES_OWN = re.compile(r"\bhooks?\b|\bshim(?:-\w+)*\": executable|runtime error \(", re.IGNORECASE)


def waiting_trouble(reason: str, message: str) -> StartTrouble:
    """The trouble of a container that waits, by `state.waiting` of its status."""
    text = describe(reason, message)
    if reason == "InvalidImageName":
        return StartTrouble.INVALID_IMAGE
    if reason in _PULL_REASONS:
        words = _PULL_NAMES.sub("…", text)
        permanent = _PULL_PERMANENT.search(words) and not _PULL_TRANSIENT.search(words)
        return StartTrouble.IMAGE_PULL if permanent else StartTrouble.IMAGE_PULL_TRANSIENT
    if reason in _CONFIG_REASONS:
        return StartTrouble.CONFIG
    if reason in START_REASONS:
        return StartTrouble.COMMAND if cannot_execute(message) else StartTrouble.START
    return StartTrouble.NONE


def describe(reason: str, message: str) -> str:
    """What the kubelet says of a container that waits; empty where it merely starts."""
    if reason in _ORDINARY:
        return ""
    return f"{reason}: {message}" if message else reason


def cannot_execute(message: str, exit_code: int | None = None) -> bool:
    """Did the runtime fail because the container's program cannot be executed: not there, no right, no program, no
    working directory?

    Arguments: the runtime's message, and the exit code that it gave to a container which it could not start. Neither
    may be those of a program that ran: a shell's own exit code 127 says nothing here.
    """
    if _NODES_OWN.search(message):
        return False
    return exit_code in _RUNTIME_CODES or _CANNOT_EXECUTE.search(message) is not None
