"""The pods that `doctor` tries: those that the controller would create, without an event that asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ottoscaler.core.amounts import cpu_text, memory_text
from ottoscaler.core.events import BadEvent, ScaleEvent, parse
from ottoscaler.core.manifest import AttemptKey, build_pod, event_hash
from ottoscaler.core.policy import Profile, Rules
from ottoscaler.core.quantities import quantity
from ottoscaler.settings import Settings

_SOME_ID: Final = "1714557600000-0"


@dataclass(frozen=True, slots=True)
class WorkerPod:
    """The body of a create request, and what it is, for people."""

    what: str
    body: bytes


def worker_pods(settings: Settings, rules: Rules) -> Iterator[WorkerPod]:
    """A pod without a profile, and one of each profile that needs nothing more from an event."""
    plain = _event({}, Rules(rules.max_deadline_s))
    assert plain is not None
    yield WorkerPod("a worker without a profile", _body(plain, settings))
    for name in _profiles(rules):
        if (event := _event({"profile": name}, rules)) is not None:
            yield WorkerPod(f"a worker of profile {name}", _body(event, settings))


def largest_pods(settings: Settings, rules: Rules) -> Iterator[WorkerPod]:
    """Of each profile the pod that asks for most: with the policy's maxima, where events may ask for them, and after
    the last end as OOMKilled, where the memory grows. Profiles of which no worker is larger than its first are not
    among them.
    """
    for name, profile in _profiles(rules).items():
        asked = {"profile": name} | _maxima(profile, settings, rules)
        event, usual = _event(asked, rules), _event({"profile": name}, rules)
        if event is None or usual is None:
            continue
        oom_kills = min(len(event.overrides.oom_memory), _retries(profile, settings, rules))
        if oom_kills or event.overrides.asked != usual.overrides.asked:
            yield WorkerPod(f"the largest worker of profile {name}", _body(event, settings, oom_kills))


def _profiles(rules: Rules) -> Mapping[str, Profile]:
    return dict(sorted(rules.policy.profiles.items())) if rules.policy is not None else {}


def _event(fields: Mapping[str, str], rules: Rules) -> ScaleEvent | None:
    """A scale_up with these fields; None if the policy refuses it."""
    raw = {name.encode(): value.encode() for name, value in {"type": "scale_up", **fields}.items()}
    event = parse(_SOME_ID, raw, 1, rules)
    return None if isinstance(event, BadEvent) else event


def _maxima(profile: Profile, settings: Settings, rules: Rules) -> dict[str, str]:
    """The fields with which an event asks for more than the profile gives by itself."""
    policy, worker = rules.policy, settings.worker
    assert policy is not None
    most = {"cpu": cpu_text(policy.max_cpu_m), "memory": memory_text(policy.max_memory)}
    usual = {"cpu": profile.cpu or worker.cpu_limit, "memory": profile.memory or worker.memory_limit}
    return {
        field: value
        for field, value in most.items()
        if field in profile.overrides and (quantity(value) or 0) > (quantity(usual[field]) or 0)
    }


def _retries(profile: Profile, settings: Settings, rules: Rules) -> int:
    """How many further attempts a worker may have after failures of its own."""
    assert rules.policy is not None
    if "retries" in profile.overrides:
        return rules.policy.most.retries
    return settings.worker.worker_retries if profile.retries is None else profile.retries


def _body(event: ScaleEvent, settings: Settings, oom_kills: int = 0) -> bytes:
    key = AttemptKey(event_hash(settings.instance, f"doctor {event.event_id}"), 1, 1)
    return build_pod(
        settings.worker, event, key, event_json=event.encode(), instance=settings.instance,
        namespace=settings.kube.namespace, oom_kills=oom_kills,
    )  # fmt: skip
