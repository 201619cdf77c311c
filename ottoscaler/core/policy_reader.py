"""From the data of a policy file to a `Policy`: every fault is found at once, each with its place in the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ottoscaler.core.amounts import cpu_m, memory_bytes
from ottoscaler.core.images import ImagePattern, parse_pattern
from ottoscaler.core.loaders import never_set
from ottoscaler.core.log_masks import MAX_PATTERNS, mask_fault
from ottoscaler.core.overrides import MAX_DEADLINE_S, MAX_KEEP_FAILED_S, MAX_PRIORITY, MAX_RETRIES, Most
from ottoscaler.core.policy import Policy, Profile
from ottoscaler.core.policy_values import Faults, Path
from ottoscaler.core.profile_reader import ProfileReader
from ottoscaler.core.refusal import shortened
from ottoscaler.core.shares import MAX_TENANT, MAX_WEIGHT, Share, Shares

_MAX_PODS: Final = 1_000_000
_TENANT: Final = re.compile(rf"[^\x00-\x1f\x7f]{{1,{MAX_TENANT}}}")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ENV_PATTERN: Final = re.compile(r"[A-Z0-9_*]{1,63}")

TOP: Final = frozenset({"version", "images", "command", "env", "max", "default_profile", "profiles", "tenants", "logs"})


def read_policy(data: object) -> Policy | Faults:
    """The policy, or all that is wrong with it. `data`: what a YAML file with text, numbers, lists and maps says."""
    reader = _Reader()
    policy = reader.policy(data)
    return reader.faults or policy


class _Reader(ProfileReader):
    """Reads one file; what cannot be read is a fault and has its default."""

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
            tenants=self._tenants(top.get("tenants", {})),
            log_masks=self._log_masks(top.get("logs", {})),
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
            if profile.oom_memory_factor and "memory" not in most:
                sentence = "memory grows up to max.memory, which is not set"
                self._fault(("profiles", name, "oom_memory_factor"), sentence)
            for field in sorted(profile.overrides & needed.keys()):
                given, rule = needed[field]
                if not given:
                    self._fault(("profiles", name, "overrides"), f"{field} needs {rule}, which is not set")

    def _log_masks(self, data: object) -> tuple[str, ...]:
        found = self._each(self._map(data, ("logs",), frozenset({"mask"})), ("logs",), "mask", self._log_mask)
        if len(found) > MAX_PATTERNS:
            self._fault(("logs", "mask"), f"{len(found)} patterns; at most {MAX_PATTERNS} are expected")
        return found

    def _log_mask(self, data: object, path: Path) -> str | None:
        if (text := self._is(data, str, path)) is None:
            return None
        if fault := mask_fault(text):
            self._fault(path, f"{shortened(text)}; {fault}")
            return None
        return text

    def _tenants(self, data: object) -> Shares:
        found = self._map(data, ("tenants",), None)
        for name in found:
            if not _TENANT.fullmatch(name):
                self._fault(("tenants", name), f"the name {shortened(name)} is not of the form {_TENANT.pattern}")
        shares = {name: self._share(one, ("tenants", name)) for name, one in found.items()}
        return Shares(shares.get("default", Share()), shares)

    def _share(self, data: object, path: Path) -> Share:
        given = self._map(data, path, frozenset({"weight", "max_workers"}))
        return Share(
            weight=self._number(given, path, "weight", 1, 1, MAX_WEIGHT),
            max_workers=self._number(given, path, "max_workers", 0, 1, _MAX_PODS),
        )

    def _profiles(self, data: object) -> dict[str, Profile]:
        found = self._map(data, ("profiles",), None)
        for name in found:
            if not _NAME.fullmatch(name):
                self._fault(("profiles", name), f"the name {shortened(name)} is not of the form {_NAME.pattern}")
        return {name: self.profile(one, ("profiles", name)) for name, one in found.items()}

    def _pattern(self, data: object, path: Path) -> ImagePattern | None:
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
