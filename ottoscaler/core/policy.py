"""What events may override: the policy, and its decision on one event.

Whatever the policy does not allow is refused. Three layers, the last of which wins field by field: the configuration,
the profile, the event. Only `env` is joined by name. A `command` replaces the `args` of the layers below it, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec

from ottoscaler.core.amounts import CPU_FORM, MEMORY_FORM, cpu_m, cpu_text, memory_bytes, memory_text
from ottoscaler.core.images import ImagePattern, parse_image
from ottoscaler.core.loaders import ENV_NAME, never_set
from ottoscaler.core.memory_sizes import larger_sizes
from ottoscaler.core.overrides import (
    FIELDS_WITHOUT_POLICY,
    MAX_DEADLINE_S,
    NO_OVERRIDES,
    OVERRIDE_FIELDS,
    Most,
    Overrides,
    WorkerFields,
    check_text,
    numbers,
    variables,
    words,
)
from ottoscaler.core.refusal import DeadReason, Violation, shortened
from ottoscaler.core.shares import EQUAL_SHARES, Shares

#: Fields that need no leave of the profile: they say when workers run, and not what.
_ALWAYS: Final = frozenset({"profile", "priority", "not_after"})
#: What a profile may let events set.
GRANTED: Final = OVERRIDE_FIELDS - _ALWAYS


class Profile(WorkerFields, frozen=True, kw_only=True):
    """A named base for pods. `overrides`: what events may set. `oom_memory_factor`: by which the memory of a worker
    grows after each end as OOMKilled, up to the policy's `max_memory`; 0: it stays.
    """

    overrides: frozenset[str] = frozenset()
    oom_memory_factor: float = 0.0


class Policy(msgspec.Struct, frozen=True):
    """The rules. `max_cpu_m` is in thousandths of a core, `max_memory` in bytes; `max_pod_count` 0: no rule.
    `log_masks`: regular expressions of what is masked in logs, beside what always is.
    """

    profiles: dict[str, Profile] = {}
    default_profile: str = ""
    images: tuple[ImagePattern, ...] = ()
    digest_only: bool = False
    commands: bool = False
    command_items: int = 64
    command_bytes: int = 8192
    env: tuple[re.Pattern[str], ...] = ()
    env_items: int = 50
    most: Most = Most()
    max_cpu_m: int = 0
    max_memory: int = 0
    max_pod_count: int = 0
    tenants: Shares = EQUAL_SHARES
    log_masks: tuple[str, ...] = ()


class Rules(msgspec.Struct, frozen=True):
    """What events may override. `max_deadline_s` is WORKER_DEADLINE_S, which holds without a policy; 0: no limit."""

    max_deadline_s: int = 0
    policy: Policy | None = None


#: No policy, and no rule of the configuration's: for what only reads an event.
NO_RULES: Final = Rules()


def overrides_of(texts: Mapping[str, str], rules: Rules) -> Overrides:
    """What the fields of a scale_up override; other fields are ignored. Raises Violation if one is not allowed."""
    asked = {name: texts[name] for name in sorted(OVERRIDE_FIELDS & texts.keys())}
    if rules.policy is not None:
        return decide(rules.policy, asked)
    if not asked:
        return NO_OVERRIDES
    for name in asked:
        if name not in FIELDS_WITHOUT_POLICY:
            raise Violation(
                f"field {name} needs a policy, and POLICY_FILE is not set; remove it", DeadReason.UNSUPPORTED
            )
    return Overrides(asked=asked, **numbers(asked, _most(rules)))


def _most(rules: Rules) -> Most:
    source = {"deadline_s": "WORKER_DEADLINE_S"} if rules.max_deadline_s else {}
    return Most(deadline_s=rules.max_deadline_s or MAX_DEADLINE_S, source=source)


def decide(policy: Policy, asked: Mapping[str, str]) -> Overrides:
    """What the workers of an event get under this policy, and how long they may take.

    Arguments: the policy, and the fields of OVERRIDES that the event has. Raises Violation with the field, its value
    and the rule that refuses it.
    """
    name, profile = _profile(policy, asked)
    for field in asked:
        if field not in profile.overrides and field not in _ALWAYS:
            granted = ", ".join(sorted(profile.overrides)) or "nothing"
            _refuse(field, asked[field], f"with profile {name} events may set {granted}", f"profiles.{name}.overrides")
    values = msgspec.structs.asdict(profile)
    del values["overrides"], values["oom_memory_factor"]
    values |= numbers(asked, policy.most)
    if "image" in asked:
        values["image"] = _image(policy, asked["image"])
    _words(policy, asked, values)
    if "env" in asked:
        values["env"] = profile.env | _env(policy, asked["env"])
    if "cpu" in asked:
        values["cpu"] = _cpu(policy, asked["cpu"])
    if "memory" in asked:
        values["memory"] = _memory(policy, asked["memory"])
    sizes = larger_sizes(values["memory"], profile.oom_memory_factor, policy.max_memory)
    return Overrides(asked=dict(asked), profile=name, oom_memory=sizes, **values)


def _refuse(path: str, value: str, allowed: str, rule: str) -> NoReturn:
    raise Violation(f"field {path} is {shortened(value)}; {allowed} (policy: {rule})", DeadReason.NOT_ALLOWED)


def _profile(policy: Policy, asked: Mapping[str, str]) -> tuple[str, Profile]:
    name = asked.get("profile", policy.default_profile)
    if (profile := policy.profiles.get(name)) is not None:
        return name, profile
    expected = ", ".join(sorted(policy.profiles)) or "none"
    if not name:
        sentence = f"field profile is missing; the profiles are {expected} (policy: default_profile)"
        raise Violation(sentence, DeadReason.NOT_ALLOWED)
    _refuse("profile", name, f"the profiles are {expected}", "profiles")


def _image(policy: Policy, text: str) -> str:
    image = parse_image(text)
    if image is None:
        raise Violation(
            f"field image is {shortened(text)}; an image like registry.example.com/team/name:tag is expected"
        )
    if policy.digest_only and not image.digest:
        _refuse("image", text, "only images with a digest (name@sha256:...) are allowed", "images.digest_only")
    if not any(pattern.matches(image) for pattern in policy.images):
        patterns = ", ".join(pattern.text for pattern in policy.images[:5])
        _refuse("image", text, f"{image} matches none of the allowed patterns: {patterns}", "images.allow")
    return str(image)


def _words(policy: Policy, asked: Mapping[str, str], values: dict[str, Any]) -> None:
    items = size = 0
    for field in ("command", "args"):
        if field not in asked:
            continue
        if not policy.commands:
            _refuse(field, asked[field], "events may set no command", "command.allow")
        values[field] = found = words(field, asked[field])
        items += len(found)
        size += sum(len(word.encode()) for word in found)
        if items > policy.command_items:
            _refuse(field, asked[field], f"{items} words, at most {policy.command_items}", "command.max_items")
        if size > policy.command_bytes:
            _refuse(field, asked[field], f"{size} bytes, at most {policy.command_bytes}", "command.max_bytes")
    if "command" in asked and "args" not in asked:
        values["args"] = ()


def _env(policy: Policy, text: str) -> dict[str, str]:
    found = variables(text)
    for name, value in found.items():
        path = f"env.{name}" if ENV_NAME.fullmatch(name) else f"env[{shortened(name)}]"
        if not ENV_NAME.fullmatch(name):
            raise Violation(f"field {path} is {shortened(value)}; a name of the form {ENV_NAME.pattern} is expected")
        if reason := never_set(name):
            _refuse(path, value, f"no event may set {name}: {reason}", "none can allow it")
        if not any(pattern.fullmatch(name) for pattern in policy.env):
            _refuse(path, value, "this name is not allowed", "env.allow")
        check_text(path, value)
    if len(found) > policy.env_items:
        _refuse("env", text, f"{len(found)} variables, at most {policy.env_items}", "env.max_items")
    return found


def _cpu(policy: Policy, text: str) -> str:
    value = cpu_m(text)
    if value is None:
        raise Violation(f"field cpu is {shortened(text)}; {CPU_FORM} is expected")
    if value > policy.max_cpu_m:
        _refuse("cpu", text, f"at most {cpu_text(policy.max_cpu_m)}", "max.cpu")
    return cpu_text(value)


def _memory(policy: Policy, text: str) -> str:
    value = memory_bytes(text)
    if value is None:
        raise Violation(f"field memory is {shortened(text)}; {MEMORY_FORM} is expected")
    if value > policy.max_memory:
        _refuse("memory", text, f"at most {memory_text(policy.max_memory)}", "max.memory")
    return memory_text(value)
