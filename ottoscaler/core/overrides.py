"""The fields of one event that replace the configuration for its workers, and how they are read.

What was allowed is stored with the event, so that a task keeps what it was accepted with, whatever the policy and the
limits are later.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from ottoscaler.core.fields import OVERRIDE_FIELDS as OVERRIDE_FIELDS
from ottoscaler.core.nesting import json_depth
from ottoscaler.core.refusal import Violation, shortened
from ottoscaler.core.services import Service
from ottoscaler.core.volumes import Volume

#: Those of them that need no policy.
FIELDS_WITHOUT_POLICY: Final = frozenset({"deadline_s", "retries", "priority", "not_after"})

#: The longest deadline where WORKER_DEADLINE_S sets none, seconds: 30 days.
MAX_DEADLINE_S: Final = 30 * 86_400
MAX_RETRIES: Final = 10
MAX_PRIORITY: Final = 9
#: The priority of an event that sets none.
DEFAULT_PRIORITY: Final = 5
#: The longest time that failed pods are kept, seconds: 7 days.
MAX_KEEP_FAILED_S: Final = 7 * 86_400

_NUMBERS: Final = frozenset({"deadline_s", "retries", "priority", "keep_failed_s"})
_WHOLE: Final = re.compile(r"[0-9]{1,9}")
#: RFC 3339, section 5.6, without leap seconds.
RFC_3339: Final = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


class SecretEnv(msgspec.Struct, frozen=True):
    """A variable of which the kubelet takes the value from a Secret."""

    name: str
    secret: str
    key: str


class WorkerFields(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a profile and an event may both say of the workers; where a field is not set, the configuration holds.

    `command` and `args`: None: not set; empty: the image's own. `cpu` and `memory`: request and limit, as Kubernetes
    quantities. `deadline_s`: longest run of one attempt, seconds; 0: not set. `retries`: further attempts after the
    worker's own failures; None: not set. `keep_failed_s`: how long failed pods are kept, seconds; None: not set.
    `ephemeral_storage`: room on the node's disk, request and limit. `pull_secrets`: names of Secrets for registries.
    `host_users` False: the worker's users are not those of its node. `disruption_budget`: a PodDisruptionBudget of the
    installation selects the workers.
    """

    image: str = ""
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: dict[str, str] = {}
    secret_env: tuple[SecretEnv, ...] = ()
    cpu: str = ""
    memory: str = ""
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    ephemeral_storage: str = ""
    volumes: tuple[Volume, ...] = ()
    services: tuple[Service, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    runtime_class: str = ""
    host_users: bool = True
    priority_class: str = ""
    disruption_budget: bool = False
    worker_logs: str = ""
    deadline_s: int = 0
    retries: int | None = None
    keep_failed_s: int | None = None


class Overrides(WorkerFields, frozen=True, omit_defaults=True, kw_only=True):
    """What an event overrides. `asked`: the fields as they were sent. All others are what workers get, with what the
    policy's profile sets.

    `profile`: the policy's profile that was used. `oom_memory`: the memory after the first, second ... end of a worker
    as OOMKilled, where it grows. `priority`: 0 to 9. `not_after`: no worker starts later, seconds since the epoch;
    None: not set.
    """

    asked: dict[str, str] = {}
    profile: str = ""
    oom_memory: tuple[str, ...] = ()
    priority: int = DEFAULT_PRIORITY
    not_after: float | None = None


#: An event overrides nothing.
NO_OVERRIDES: Final = Overrides()

_list: Final = msgspec.json.Decoder(list[str])
_object: Final = msgspec.json.Decoder(dict[str, str])


class Most(msgspec.Struct, frozen=True):
    """The largest values of the fields that are numbers; `source` says for each which setting limits it."""

    deadline_s: int = MAX_DEADLINE_S
    retries: int = MAX_RETRIES
    priority: int = MAX_PRIORITY
    keep_failed_s: int = MAX_KEEP_FAILED_S
    source: dict[str, str] = {}


def numbers(asked: Mapping[str, str], most: Most) -> dict[str, Any]:
    """The values of those of these fields that are numbers or times. Raises Violation."""
    values: dict[str, Any] = {}
    for name in sorted(_NUMBERS & asked.keys()):
        least = 1 if name == "deadline_s" else 0
        values[name] = _whole(name, asked[name], least, getattr(most, name), most.source.get(name, ""))
    if "not_after" in asked:
        values["not_after"] = _time("not_after", asked["not_after"])
    return values


def words(name: str, text: str) -> tuple[str, ...]:
    """A JSON list of texts: a command's words. Raises Violation."""
    if json_depth(text) <= 1:
        try:
            found = _list.decode(text)
        except msgspec.MsgspecError:
            pass
        else:
            for number, word in enumerate(found):
                check_text(f"{name}[{number}]", word)
            return tuple(found)
    raise Violation(f'field {name} is {shortened(text)}; a JSON list of texts is expected, like ["npm", "test"]')


def variables(text: str) -> dict[str, str]:
    """A JSON object of texts: names and values of variables, each name once. Raises Violation."""
    if json_depth(text) <= 1:
        try:
            found = _object.decode(text)
        except msgspec.MsgspecError:
            pass
        else:
            if len(pairs := json.loads(text, object_pairs_hook=list)) > len(found):
                twice = min(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
                raise Violation(f"field env has the name {shortened(twice)} more than once")
            return found
    raise Violation(f'field env is {shortened(text)}; a JSON object of texts is expected, like {{"CI": "true"}}')


def check_text(path: str, text: str) -> None:
    """Raises Violation for what no program can be given."""
    if "\0" in text:
        raise Violation(f"field {path} is {shortened(text)}; it has a NUL character")


def _whole(name: str, text: str, least: int, most: int, source: str) -> int:
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        shown = f" ({source})" if source else ""
        raise Violation(f"field {name} is {shortened(text)}; a whole number from {least} to {most} is expected{shown}")
    return int(text)


def _time(name: str, text: str) -> float:
    try:
        if RFC_3339.fullmatch(text):
            return datetime.fromisoformat(_microseconds(text.upper())).timestamp()
    except (ValueError, OverflowError):  # a day that its month does not have, the year 0
        pass
    raise Violation(f"field {name} is {shortened(text)}; a time like 2030-01-31T12:00:00Z is expected (RFC 3339)")


def _microseconds(text: str) -> str:
    """The same time with at most six digits of a second."""
    return re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text)
