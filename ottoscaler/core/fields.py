"""The names of an event's fields. Without a package, so that the reader of the settings can use them anywhere."""

from __future__ import annotations

import re
from typing import Final

FIELD_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")

#: Fields that change the workers of one event.
OVERRIDE_FIELDS: Final = frozenset(
    {
        *("image", "command", "args", "env", "cpu", "memory", "profile"),
        *("deadline_s", "retries", "priority", "not_after", "keep_failed_s"),
    }
)
#: Fields that say what is asked for.
REQUEST_FIELDS: Final = frozenset(
    {"type", "pod_count", "target_replicas", "task_id", "mode", "event_id", "supersedes", "traceparent"}
    | {"concurrency_key", "concurrency_limit"}
)
#: Fields that choose something; every other field is passed on to workers and results.
CHOOSING_FIELDS: Final = REQUEST_FIELDS | OVERRIDE_FIELDS
#: Passed-on fields become `OTTO_<FIELD>`: these would hide variables that every worker has.
RESERVED_FIELDS: Final = frozenset(
    {"worker_index", "worker_count", "attempt", "task_key", "pod_name", "namespace", "output"}
)


def is_tenant_field(name: str) -> bool:
    """May events name their tenant in this field? It has to be one that is passed on, and a text."""
    return FIELD_NAME.fullmatch(name) is not None and name not in CHOOSING_FIELDS | RESERVED_FIELDS | {"metadata"}
