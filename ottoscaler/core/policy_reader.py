"""From the data of a policy file to a `Policy`: every fault is found at once, each with its place in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from ottoscaler.core.amounts import CPU_FORM, MEMORY_FORM, cpu_m, cpu_text, memory_bytes, memory_text
from ottoscaler.core.images import Pattern, parse_image, parse_pattern
from ottoscaler.core.loaders import ENV_NAME, is_ours, never_set
from ottoscaler.core.overrides import MAX_DEADLINE_S, MAX_KEEP_FAILED_S, MAX_PRIORITY, MAX_RETRIES, Most, SecretEnv
from ottoscaler.core.policy import GRANTED, Policy, Profile
from ottoscaler.core.refusal import shortened

#: Where something is in the file: names of fields and indices of lists, from the outermost.
Path = tuple[str | int, ...]
#: What is wrong, and where.
Faults = list[tuple[Path, str]]

#: Secrets that a profile may name: the admission policy of deploy/ lets workers read no others.
SECRET_PREFIX: Final = "ottoscaler-worker-"

_MAX_PODS: Final = 1_000_000
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_OBJECT: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_SECRET_KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ENV_PATTERN: Final = re.compile(r"[A-Z0-9_*]{1,63}")
_LABEL: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_CONTROL_PLANE: Final = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")

#: What an event could replace beside a secret, and so print it.
_PRINTS_SECRETS: Final = ("image", "command", "args", "env")

TOP: Final = frozenset({"version", "images", "command", "env", "max", "default_profile", "profiles"})
PROFILE: Final = frozenset({
    *("image", "command", "args", "env", "secret_env", "cpu", "memory", "node_selector", "tolerations"),
    *("deadline_s", "retries", "keep_failed_s", "overrides"),
})  # fmt: skip

_T = TypeVar("_T")


def read_policy(data: object) -> Policy | Faults:
    """The policy, or all that is wrong with it. `data`: what a YAML file with text, numbers, lists and maps says."""
    reader = _Reader()
    policy = reader.policy(data)
    return reader.faults or policy


class _Reader:
    """Reads one file; what cannot be read is a fault and has its default."""

    def __init__(self) -> None:
        self.faults: Faults = []

    def policy(self, data: object) -> Policy:
        top = self._map(data, (), TOP)
        if self._is(top.get("version"), int) != 1:
            self._fault(
                ("version",) if "version" in top else (),
                "1 is expected" if "version" in top else "version is missing; 1 is expected",
            )
        images = self._map(top.get("images", {}), ("images",), frozenset({"allow", "digest_only"}))
        command = self._map(top.get("command", {}), ("command",), frozenset({"allow", "max_items", "max_bytes"}))
        env = self._map(top.get("env", {}), ("env",), frozenset({"allow", "max_items"}))
        names = frozenset({"cpu", "memory", "deadline_s", "retries", "priority", "pod_count", "keep_failed_s"})
        most = self._map(top.get("max", {}), ("max",), names)
        profiles = self._profiles(top.get("profiles", {}))
        policy = Policy(
            profiles=profiles,
            default_profile=self._text(top, (), "default_profile", _NAME) or "",
            images=self._each(images, ("images",), "allow", self._pattern),
            digest_only=self._flag(images, ("images",), "digest_only"),
            commands=self._flag(command, ("command",), "allow"),
            command_items=self._number(command, ("command",), "max_items", 64, 1, 1024),
            command_bytes=self._number(command, ("command",), "max_bytes", 8192, 1, 65536),
            env=self._each(env, ("env",), "allow", self._env_pattern),
            env_items=self._number(env, ("env",), "max_items", 50, 1, 1024),
            most=Most(
                deadline_s=self._number(most, ("max",), "deadline_s", MAX_DEADLINE_S, 1, MAX_DEADLINE_S),
                retries=self._number(most, ("max",), "retries", MAX_RETRIES, 0, MAX_RETRIES),
                priority=self._number(most, ("max",), "priority", MAX_PRIORITY, 0, MAX_PRIORITY),
                keep_failed_s=self._number(most, ("max",), "keep_failed_s", 0, 0, MAX_KEEP_FAILED_S),
                source={name: f"policy: max.{name}" for name in names},
            ),
            max_cpu_m=cpu_m(self._amount(most, ("max",), "cpu")) or 0,
            max_memory=memory_bytes(self._amount(most, ("max",), "memory")) or 0,
            max_pod_count=self._number(most, ("max",), "pod_count", 0, 1, _MAX_PODS),
        )
        self._check_granted(policy, most)
        return policy

    def _check_granted(self, policy: Policy, most: Mapping[str, Any]) -> None:
        """What a profile lets events set needs a limit."""
        if policy.default_profile and policy.default_profile not in policy.profiles:
            expected = ", ".join(sorted(policy.profiles)) or "none"
            self._fault(
                ("default_profile",), f"{shortened(policy.default_profile)} is no profile; there are: {expected}"
            )
        needed = {
            "image": (bool(policy.images), "images.allow"),
            "command": (policy.commands, "command.allow: true"),
            "args": (policy.commands, "command.allow: true"),
            "env": (bool(policy.env), "env.allow"),
            **{name: (name in most, f"max.{name}") for name in ("cpu", "memory", "deadline_s", "keep_failed_s")},
        }
        for name, profile in policy.profiles.items():
            for field in sorted(profile.overrides & needed.keys()):
                given, rule = needed[field]
                if not given:
                    self._fault(("profiles", name, "overrides"), f"{field} needs {rule}, which is not set")

    # -- profiles

    def _profiles(self, data: object) -> dict[str, Profile]:
        found = self._map(data, ("profiles",), None)
        for name in found:
            if not _NAME.fullmatch(name):
                self._fault(("profiles", name), f"the name {shortened(name)} is not of the form {_NAME.pattern}")
        return {name: self._profile(one, ("profiles", name)) for name, one in found.items()}

    def _profile(self, data: object, path: Path) -> Profile:
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
            node_selector=self._node_selector(given, path),
            tolerations=self._each(given, path, "tolerations", self._toleration),
            deadline_s=self._number(given, path, "deadline_s", 0, 1, MAX_DEADLINE_S),
            retries=self._number(given, path, "retries", 0, 0, MAX_RETRIES) if "retries" in given else None,
            keep_failed_s=(
                self._number(given, path, "keep_failed_s", 0, 0, MAX_KEEP_FAILED_S)
                if "keep_failed_s" in given
                else None
            ),
        )
        if profile.secret_env:
            self._check_secrets(profile, path)
        return profile

    def _check_secrets(self, profile: Profile, path: Path) -> None:
        """An event that could choose the program would have it print the secret."""
        for field in ("image", "command"):
            if not getattr(profile, field):
                self._fault((*path, "secret_env"), f"a profile with secrets has to set {field}")
        for field in _PRINTS_SECRETS:
            if field in profile.overrides:
                self._fault((*path, "overrides"), f"a profile with secrets does not let events set {field}")
        names = [one.name for one in profile.secret_env]
        for name in sorted({name for name in names if names.count(name) > 1 or name in profile.env}):
            self._fault((*path, "secret_env"), f"{name} is set more than once")

    def _granted(self, data: object, path: Path) -> str | None:
        if (text := self._is(data, str, path)) is None:
            return None
        if text not in GRANTED:
            self._fault(path, f"{shortened(text)}; one of {', '.join(sorted(GRANTED))} is expected")
            return None
        return text

    def _secret(self, data: object, path: Path) -> SecretEnv | None:
        given = self._map(data, path, frozenset({"name", "secret", "key"}))
        name, secret = self._text(given, path, "name", ENV_NAME), self._text(given, path, "secret", _OBJECT)
        key = self._text(given, path, "key", _SECRET_KEY)
        for field in ("name", "secret", "key"):
            if field not in given:
                self._fault(path, f"{field} is missing")
        if name and is_ours(name):
            self._fault((*path, "name"), f"{name} is set by the controller")
        if secret and not secret.startswith(SECRET_PREFIX):
            self._fault((*path, "secret"), f"{shortened(secret)}; a name that begins with {SECRET_PREFIX} is expected")
        return SecretEnv(name, secret, key) if name and secret and key else None

    def _env(self, given: Mapping[str, Any], path: Path) -> dict[str, str]:
        found = self._map(given.get("env", {}), (*path, "env"), None)
        values = {name: self._text(found, (*path, "env"), name) or "" for name in found}
        for name in found:
            if not ENV_NAME.fullmatch(name):
                self._fault((*path, "env", name), f"the name {shortened(name)} is not of the form {ENV_NAME.pattern}")
            elif is_ours(name):
                self._fault((*path, "env", name), f"{name} is set by the controller")
        return values

    def _node_selector(self, given: Mapping[str, Any], path: Path) -> dict[str, str]:
        where = (*path, "node_selector")
        found = self._map(given.get("node_selector", {}), where, None)
        for name in found:
            if not _LABEL.fullmatch(name):
                self._fault((*where, name), f"{shortened(name)} is no name of a label")
        return {name: self._text(found, where, name, _LABEL_VALUE) or "" for name in found}

    def _toleration(self, data: object, path: Path) -> dict[str, Any] | None:
        given = self._map(data, path, frozenset({"key", "operator", "value", "effect"}))
        key = self._text(given, path, "key", _LABEL)
        operator = self._text(given, path, "operator", re.compile("Exists|Equal")) or "Equal"
        effect = self._text(given, path, "effect", re.compile("NoSchedule|PreferNoSchedule|NoExecute"))
        value = self._text(given, path, "value", _LABEL_VALUE)
        if not key and "key" not in given:
            self._fault(path, "key is missing: workers do not tolerate every taint")
        if key in _CONTROL_PLANE:
            self._fault((*path, "key"), "workers do not run on the control plane")
        if operator == "Exists" and value:
            self._fault((*path, "value"), "there is none with the operator Exists")
        kept = {"key": key, "operator": operator, "value": value, "effect": effect}
        return {name: text for name, text in kept.items() if text}

    def _image(self, given: Mapping[str, Any], path: Path) -> str:
        text = self._text(given, path, "image")
        image = parse_image(text or "")
        if text is not None and image is None:
            self._fault(
                (*path, "image"), f"{shortened(text)}; an image like registry.example.com/team/name:tag is expected"
            )
        return str(image) if image is not None else ""

    # -- values

    def _pattern(self, data: object, path: Path) -> Pattern | None:
        if (text := self._is(data, str, path)) is None:
            return None
        if (pattern := parse_pattern(text)) is None:
            self._fault(path, f"{shortened(text)}; a pattern like registry.example.com/team/** is expected")
        return pattern

    def _env_pattern(self, data: object, path: Path) -> re.Pattern[str] | None:
        if (text := self._is(data, str, path)) is None:
            return None
        if not _ENV_PATTERN.fullmatch(text):
            self._fault(path, f"{shortened(text)}; the name of a variable is expected, or one with * like BUILD_*")
            return None
        if "*" not in text and (reason := never_set(text)):
            self._fault(path, f"{text} cannot be allowed: {reason}")
        return re.compile("[A-Z0-9_]*".join(re.escape(part) for part in text.split("*")))

    def _words(self, given: Mapping[str, Any], path: Path, name: str) -> tuple[str, ...] | None:
        if name not in given:
            return None
        return self._each(given, path, name, lambda one, where: self._plain(one, where))

    def _plain(self, data: object, path: Path) -> str | None:
        text = self._is(data, str, path)
        if text is not None and "\0" in text:
            self._fault(path, "a NUL character")
        return text

    def _amount(self, given: Mapping[str, Any], path: Path, name: str) -> str:
        """As Kubernetes writes it; empty where it is not set. A number is taken for its text: `cpu: 2`."""
        if name not in given:
            return ""
        text = str(given[name]) if type(given[name]) in (int, float, str) else ""
        value, form = (cpu_m(text), CPU_FORM) if name == "cpu" else (memory_bytes(text), MEMORY_FORM)
        if value is None:
            self._fault((*path, name), f"{shortened(str(given[name]))}; {form} is expected")
            return ""
        return cpu_text(value) if name == "cpu" else memory_text(value)

    def _number(self, given: Mapping[str, Any], path: Path, name: str, default: int, least: int, most: int) -> int:
        if name not in given:
            return default
        value = given[name]
        if type(value) is int and least <= value <= most:
            return value
        self._fault((*path, name), f"{shortened(str(value))}; a whole number from {least} to {most} is expected")
        return default

    def _flag(self, given: Mapping[str, Any], path: Path, name: str) -> bool:
        return self._is(given.get(name, False), bool, (*path, name)) or False

    def _text(self, given: Mapping[str, Any], path: Path, name: str, form: re.Pattern[str] | None = None) -> str | None:
        if name not in given:
            return None
        text = self._plain(given[name], (*path, name))
        if text is not None and form is not None and not form.fullmatch(text):
            self._fault((*path, name), f"{shortened(text)}; the form {form.pattern} is expected")
            return None
        return text

    def _each(
        self, given: Mapping[str, Any], path: Path, name: str, read: Callable[[object, Path], _T | None]
    ) -> tuple[_T, ...]:
        data = given.get(name, [])
        if not isinstance(data, list):
            self._fault((*path, name), "a list is expected")
            return ()
        found: Iterator[_T | None] = (read(one, (*path, name, number)) for number, one in enumerate(data))
        return tuple(one for one in found if one is not None)

    def _map(self, data: object, path: Path, allowed: frozenset[str] | None) -> dict[str, Any]:
        """The map, with its known names only; None allows every name."""
        if not isinstance(data, dict):
            self._fault(path, "a map is expected")
            return {}
        for name in data:
            if not isinstance(name, str):
                self._fault(path, f"the name {shortened(str(name))} is no text: quote it")
            elif allowed is not None and name not in allowed:
                self._fault((*path, name), f"unknown; one of {', '.join(sorted(allowed))} is expected")
        return {name: one for name, one in data.items() if isinstance(name, str) and (not allowed or name in allowed)}

    def _is(self, data: object, kind: type[_T], path: Path | None = None) -> _T | None:
        if type(data) is kind:
            return data
        if path is not None:
            expected = {str: "a text is expected: quote it", bool: "true or false is expected"}[kind]
            self._fault(path, f"{shortened(str(data))}; {expected}")
        return None

    def _fault(self, path: Path, sentence: str) -> None:
        self.faults.append((path, sentence))
