"""From a profile of the policy file to a `Profile`: an allow-list of fields, of which none takes a part of a pod as it
is. A field that Kubernetes has and this list has not cannot be set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ottoscaler.core.loaders import ENV_NAME, is_ours
from ottoscaler.core.manifest import CONTAINER, LABEL_VALUE
from ottoscaler.core.memory_sizes import LEAST_FACTOR, MAX_FACTOR
from ottoscaler.core.overrides import MAX_DEADLINE_S, MAX_KEEP_FAILED_S, MAX_RETRIES, SecretEnv
from ottoscaler.core.policy import GRANTED, Profile
from ottoscaler.core.policy_values import OBJECT_NAME, Path, Values
from ottoscaler.core.refusal import shortened
from ottoscaler.core.services import MAX_READY_S, READY_S, ReadyCheck, Service
from ottoscaler.core.volumes import WORKSPACE_NAME, Volume, is_below, mount_fault

#: Secrets, ConfigMaps and claims that a profile may name: the admission policy of deploy/ lets workers have no others.
WORKERS_PREFIX: Final = "ottoscaler-worker-"
#: Most volumes and services of one profile.
MAX_VOLUMES: Final = 16
MAX_SERVICES: Final = 8

_SECRET_KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_PART: Final = re.compile(r"[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?")
_LABEL: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_CONTROL_PLANE: Final = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
#: Priority classes of Kubernetes itself: a worker of one would push the cluster's own parts off a node.
_SYSTEM_CLASSES: Final = "system-"

#: What an event could replace beside a secret, and so print it.
_PRINTS_SECRETS: Final = ("image", "command", "args", "env")
#: The kinds of volumes. A profile names nothing of the node and no other kind.
_KINDS: Final = ("empty_dir", "claim", "config_map", "secret")

PROFILE: Final = frozenset({
    *("image", "command", "args", "env", "secret_env", "cpu", "memory", "node_selector", "tolerations"),
    *("ephemeral_storage", "volumes", "services", "pull_secrets", "runtime_class", "host_users", "priority_class"),
    *("disruption_budget", "worker_logs"),
    *("deadline_s", "retries", "keep_failed_s", "overrides", "oom_memory_factor"),
})  # fmt: skip
#: Which program streams the logs of the profile's workers, instead of WORKER_LOGS.
_WORKER_LOGS: Final = re.compile("controller|agent|none")


class ProfileReader(Values):
    """Reads profiles; what cannot be read is a fault and has its default."""

    def profile(self, data: object, path: Path) -> Profile:
        """The profile that this part of the file describes; `path` says where it is."""
        given = self._map(data, path, PROFILE)
        profile = Profile(
            overrides=frozenset(self._each(given, path, "overrides", self._granted)),
            image=self._image(given, path),
            command=self._words(given, path, "command"),
            args=self._words(given, path, "args"),
            env=self._env(given, path),
            secret_env=self._each(given, path, "secret_env", self._secret),
            cpu=self._amount(given, path, "cpu"),
            memory=self._amount(given, path, "memory"),
            oom_memory_factor=self._factor(given, path, "oom_memory_factor", LEAST_FACTOR, MAX_FACTOR),
            node_selector=self._node_selector(given, path),
            tolerations=self._each(given, path, "tolerations", self._toleration),
            ephemeral_storage=self._amount(given, path, "ephemeral_storage"),
            volumes=self._each(given, path, "volumes", self._volume),
            services=self._each(given, path, "services", self._service),
            pull_secrets=self._each(given, path, "pull_secrets", self._object),
            runtime_class=self._text(given, path, "runtime_class", OBJECT_NAME) or "",
            host_users=self._flag(given, path, "host_users", default=True),
            priority_class=self._text(given, path, "priority_class", OBJECT_NAME) or "",
            disruption_budget=self._flag(given, path, "disruption_budget"),
            worker_logs=self._text(given, path, "worker_logs", _WORKER_LOGS) or "",
            deadline_s=self._number(given, path, "deadline_s", 0, 1, MAX_DEADLINE_S),
            retries=self._number(given, path, "retries", 0, 0, MAX_RETRIES) if "retries" in given else None,
            keep_failed_s=(
                self._number(given, path, "keep_failed_s", 0, 0, MAX_KEEP_FAILED_S)
                if "keep_failed_s" in given
                else None
            ),
        )
        if profile.priority_class.startswith(_SYSTEM_CLASSES):
            self._fault((*path, "priority_class"), f"{shortened(profile.priority_class)} is for Kubernetes itself")
        if profile.oom_memory_factor and not profile.memory:
            self._fault((*path, "oom_memory_factor"), "a profile with it has to set memory, from which it grows")
        self._check_volumes(profile, (*path, "volumes"))
        self._check_services(profile, (*path, "services"))
        self._check_secrets(profile, path)
        return profile

    def _check_volumes(self, profile: Profile, path: Path) -> None:
        """A mount inside another one depends on their order, and fails where the outer one is read-only."""
        if len(profile.volumes) > MAX_VOLUMES:
            self._fault(path, f"{len(profile.volumes)} volumes; at most {MAX_VOLUMES} are expected")
        for number, one in enumerate(profile.volumes):
            for other in profile.volumes[:number]:
                if one.name == other.name:
                    self._fault(path, f"the name {one.name} is there twice")
                if is_below(one.mount, other.mount) or is_below(other.mount, one.mount):
                    self._fault(path, f"{other.mount} and {one.mount} are inside one another")

    def _check_services(self, profile: Profile, path: Path) -> None:
        """They share one network: of two with one port, one would never get ready, or the check would ask the other."""
        if len(profile.services) > MAX_SERVICES:
            self._fault(path, f"{len(profile.services)} services; at most {MAX_SERVICES} are expected")
        names = [one.name for one in profile.services]
        ports = [one.ready.tcp for one in profile.services if one.ready.tcp]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._fault(path, f"the name {name} is there twice")
        for port in sorted({port for port in ports if ports.count(port) > 1}):
            self._fault(path, f"two services cannot have the port {port}: they share the worker's localhost")

    def _check_secrets(self, profile: Profile, path: Path) -> None:
        """An event that could choose the program would have it print the secret."""
        names = [one.name for one in profile.secret_env]
        for name in sorted({name for name in names if names.count(name) > 1 or name in profile.env}):
            self._fault((*path, "secret_env"), f"{name} is set more than once")
        if not profile.secret_env and not any(one.secret for one in profile.volumes):
            return
        for field in ("image", "command"):
            if not getattr(profile, field):
                where = (*path, "secret_env" if profile.secret_env else "volumes")
                self._fault(where, f"a profile with secrets has to set {field}")
        for field in _PRINTS_SECRETS:
            if field in profile.overrides:
                self._fault((*path, "overrides"), f"a profile with secrets does not let events set {field}")

    def _granted(self, data: object, path: Path) -> str | None:
        if (text := self._is(data, str, path)) is None:
            return None
        if text not in GRANTED:
            self._fault(path, f"{shortened(text)}; one of {', '.join(sorted(GRANTED))} is expected")
            return None
        return text

    def _secret(self, data: object, path: Path) -> SecretEnv | None:
        given = self._map(data, path, frozenset({"name", "secret", "key"}))
        name, secret = self._text(given, path, "name", ENV_NAME), self._workers(given, path, "secret")
        key = self._text(given, path, "key", _SECRET_KEY)
        for field in ("name", "secret", "key"):
            if field not in given:
                self._fault(path, f"{field} is missing")
        if name and is_ours(name):
            self._fault((*path, "name"), f"{name} is set by the controller")
        return SecretEnv(name, secret, key) if name and secret and key else None

    def _volume(self, data: object, path: Path) -> Volume | None:
        given = self._map(data, path, frozenset({"name", "mount", "read_only", *_KINDS}))
        name, mount = self._text(given, path, "name", _PART), self._text(given, path, "mount")
        for field in ("name", "mount"):
            if field not in given:
                self._fault(path, f"{field} is missing")
        if name == WORKSPACE_NAME:
            self._fault((*path, "name"), f"{name} is the volume of the worker's own directory")
        if mount is not None and (fault := mount_fault(mount)):
            self._fault((*path, "mount"), f"{shortened(mount)}; {fault}")
        if len(kinds := [kind for kind in _KINDS if kind in given]) != 1:
            self._fault(path, f"one of {', '.join(_KINDS)} is expected")
            return None
        if "read_only" in given and kinds != ["claim"]:
            self._fault((*path, "read_only"), "only a claim may be mounted in two ways")
        (kind,) = kinds
        value = self._amount(given, path, kind) if kind == "empty_dir" else self._workers(given, path, kind)
        read_only = self._flag(given, path, "read_only")
        return (
            Volume(name=name, mount=mount, read_only=read_only, **{kind: value}) if name and mount and value else None
        )

    def _service(self, data: object, path: Path) -> Service | None:
        names = frozenset({"name", "image", "command", "args", "env", "cpu", "memory", "ready"})
        given = self._map(data, path, names)
        for field in ("name", "image", "ready"):
            if field not in given:
                missing = "ready is missing: the worker would start before it" if field == "ready" else ""
                self._fault(path, missing or f"{field} is missing")
        name, image = self._text(given, path, "name", _PART), self._image(given, path)
        if name == CONTAINER:
            self._fault((*path, "name"), f"{name} is the worker's own container")
        ready = self._ready(given["ready"], (*path, "ready")) if "ready" in given else None
        service = Service(
            name=name or "",
            image=image,
            ready=ready or ReadyCheck(),
            command=self._words(given, path, "command"),
            args=self._words(given, path, "args"),
            env=self._env(given, path),
            cpu=self._amount(given, path, "cpu"),
            memory=self._amount(given, path, "memory"),
        )
        return service if name else None

    def _ready(self, data: object, path: Path) -> ReadyCheck | None:
        given = self._map(data, path, frozenset({"tcp", "exec", "timeout_s"}))
        timeout_s = self._number(given, path, "timeout_s", READY_S, 1, MAX_READY_S)
        if ("tcp" in given) is ("exec" in given):
            self._fault(path, "one of tcp (a port) and exec (a command) is expected")
            return None
        words = self._words(given, path, "exec") or ()
        if "exec" in given and not words:
            self._fault((*path, "exec"), "a command is expected")
        return ReadyCheck(self._number(given, path, "tcp", 0, 1, 65535), words, timeout_s)

    def _workers(self, given: Mapping[str, Any], path: Path, field: str) -> str | None:
        """The name of an object that is meant for workers."""
        name = self._text(given, path, field, OBJECT_NAME)
        if name and not name.startswith(WORKERS_PREFIX):
            self._fault((*path, field), f"{shortened(name)}; a name that begins with {WORKERS_PREFIX} is expected")
            return None
        return name

    def _object(self, data: object, path: Path) -> str | None:
        if (name := self._is(data, str, path)) is not None and not OBJECT_NAME.fullmatch(name):
            self._fault(path, f"{shortened(name)}; the form {OBJECT_NAME.pattern} is expected")
            return None
        return name

    def _node_selector(self, given: Mapping[str, Any], path: Path) -> dict[str, str]:
        where = (*path, "node_selector")
        found = self._map(given.get("node_selector", {}), where, None)
        for name in found:
            if not _LABEL.fullmatch(name):
                self._fault((*where, name), f"{shortened(name)} is no name of a label")
        return {name: self._text(found, where, name, LABEL_VALUE) or "" for name in found}

    def _toleration(self, data: object, path: Path) -> dict[str, Any] | None:
        given = self._map(data, path, frozenset({"key", "operator", "value", "effect"}))
        key = self._text(given, path, "key", _LABEL)
        operator = self._text(given, path, "operator", re.compile("Exists|Equal")) or "Equal"
        effect = self._text(given, path, "effect", re.compile("NoSchedule|PreferNoSchedule|NoExecute"))
        value = self._text(given, path, "value", LABEL_VALUE)
        if not key and "key" not in given:
            self._fault(path, "key is missing: workers do not tolerate every taint")
        if key in _CONTROL_PLANE:
            self._fault((*path, "key"), "workers do not run on the control plane")
        if operator == "Exists" and value:
            self._fault((*path, "value"), "there is none with the operator Exists")
        kept = {"key": key, "operator": operator, "value": value, "effect": effect}
        return {name: text for name, text in kept.items() if text}
