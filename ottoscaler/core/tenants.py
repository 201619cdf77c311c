"""Tenants: which tenant an event belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ottoscaler.core.shares import MAX_TENANT

#: What the tenant of events without one is shown as.
_NO_TENANT: Final = "(none)"


def tenant_of(passed_on: Mapping[str, str], field: str) -> str:
    """The tenant of an event, by what it passes on; empty where TENANT_FIELD is not set, or the event has no such
    field. Of a longer value the beginning counts.
    """
    return passed_on.get(field, "")[:MAX_TENANT] if field else ""


def shown_tenant(tenant: str) -> str:
    """The name of a tenant, for people."""
    return tenant or _NO_TENANT
