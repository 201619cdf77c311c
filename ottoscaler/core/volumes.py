"""Volumes of a profile: which kinds there are, where they may be mounted, and what the pod says of them."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

#: The directory in which a worker starts: an empty volume of its own.
WORKSPACE: Final = "/workspace"
#: The name of that volume in the pod.
WORKSPACE_NAME: Final = "workspace"

_MOUNT: Final = re.compile(r"(?:/[A-Za-z0-9_.-]{1,63}){1,16}")
#: The runtime and the kubelet mount their own there: devices, the kernel's files, the termination message, tokens,
#: names of hosts. Nothing is mounted on them or below them.
_OF_THE_NODE: Final = (
    "/dev", "/proc", "/sys", "/run/secrets", "/var/run", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
)  # fmt: skip
#: Directories of an image that its programs need; a volume there would hide them. Below them there may be volumes.
_OF_THE_IMAGE: Final = frozenset(
    {
        *("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/run", "/sbin", "/usr", "/var"),
        *("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/sbin", "/usr/local"),
        *("/usr/local/bin", "/usr/local/lib", "/usr/local/sbin", "/usr/share", "/etc/ssl", "/etc/ssl/certs"),
    }
)


class Volume(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One volume of a worker and its directory `mount`. One of `empty_dir` (its largest size), `claim` (the name of a
    PersistentVolumeClaim), `config_map` and `secret` (their names) is set. The last two are always mounted read-only.
    """

    name: str
    mount: str
    empty_dir: str = ""
    claim: str = ""
    config_map: str = ""
    secret: str = ""
    read_only: bool = False

    def source(self) -> dict[str, Any]:
        """Its entry in the pod's `volumes`."""
        if self.empty_dir:
            return {"name": self.name, "emptyDir": {"sizeLimit": self.empty_dir}}
        if self.claim:
            claim: dict[str, Any] = {"claimName": self.claim}
            return {"name": self.name, "persistentVolumeClaim": claim | ({"readOnly": True} if self.read_only else {})}
        if self.config_map:
            return {"name": self.name, "configMap": {"name": self.config_map}}
        return {"name": self.name, "secret": {"secretName": self.secret}}

    def volume_mount(self) -> dict[str, Any]:
        """Its entry in the container's `volumeMounts`."""
        read_only = self.read_only or bool(self.config_map or self.secret)
        return {"name": self.name, "mountPath": self.mount} | ({"readOnly": True} if read_only else {})


def mount_fault(path: str) -> str:
    """Why a volume cannot be mounted there; empty if it can.

    Only the text counts. A link in the image may lead anywhere, but the image is the profile's or one that the policy
    allows.
    """
    if not _MOUNT.fullmatch(path) or any(part in (".", "..") for part in path.split("/")):
        return "an absolute path like /cache is expected, without . and .."
    if path == WORKSPACE:
        return f"{WORKSPACE} is the worker's own directory; a directory below it is possible"
    if any(is_below(path, place) for place in _OF_THE_NODE):
        return "the node mounts its own files there"
    return "it would hide files that the image's programs need" if path in _OF_THE_IMAGE else ""


def is_below(path: str, place: str) -> bool:
    """Is it that directory, or inside it?"""
    return path == place or path.startswith(f"{place}/")
