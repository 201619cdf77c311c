"""What the configuration says and will not do as it seems: logged once, at the start."""

from __future__ import annotations

from collections.abc import Iterator

from ottoscaler.cli import cgroup
from ottoscaler.core.shares import EQUAL_SHARES, Shares
from ottoscaler.settings import Settings

_UNUSED_SHARES = (
    "The policy has tenants, and TENANT_FIELD is not set: all events share the room as one tenant, and no max_workers "
    "holds. Set TENANT_FIELD to the event field that names the tenant, such as repository"
)


def start_warnings(settings: Settings, shares: Shares) -> Iterator[tuple[str, str]]:
    """The event and the message of each log line. `shares`: what each tenant may have by the policy in force."""
    if sentence := cgroup.pids_limit_warning(settings.flow.max_workers, cgroup.pids_limit()):
        yield "pids.advice", sentence
    for sentence in settings.misspelled_variables:
        yield "config.unknown", sentence
    for name in settings.unsupported_variables:
        yield "config.not_yet", f"{name} is set and has no effect yet"
    if shares != EQUAL_SHARES and not settings.flow.tenant_field:
        yield "config.tenants_unused", _UNUSED_SHARES
