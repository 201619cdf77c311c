"""Tables, the form in which ``kubectl get`` asks for lists: without them it would print names and ages only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from ottoscaler.local.objects import Object, Request, parse_time

_Row = Callable[[Object], list[Any]]


def wants_table(request: Request) -> bool:
    """Whether the client prefers a Table."""
    return request.accept.startswith("application/json;as=Table")


def table(resource: str, objects: Sequence[Object], metadata: Object) -> Object:
    """The objects as a meta.k8s.io/v1 Table."""
    names, row = _TABLES.get(resource, _PLAIN)
    columns = [{"name": name, "type": "string", "format": "", "description": "", "priority": 0} for name in names]
    rows = [{"cells": row(each), "object": _partial_metadata(each)} for each in objects]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    }


def _partial_metadata(obj: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _age_text(text: str | None) -> str:
    if not text:
        return "<unknown>"
    seconds = int((datetime.now(UTC) - parse_time(text)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def _created_ago(obj: Object) -> str:
    return _age_text(obj["metadata"].get("creationTimestamp"))


def _pod_row(pod: Object) -> list[Any]:
    status, containers = pod["status"], pod["spec"]["containers"]
    states = status.get("containerStatuses") or []
    ready = sum(1 for each in states if each["ready"])
    reason = status.get("reason") or status["phase"]
    for each in states:
        detail = each["state"].get("waiting") or each["state"].get("terminated") or {}
        reason = detail.get("reason") or reason
    if "deletionTimestamp" in pod["metadata"]:
        reason = "Terminating"
    return [pod["metadata"]["name"], f"{ready}/{len(containers)}", reason, "0", _created_ago(pod)]


def _event_row(event: Object) -> list[Any]:
    about = event.get("involvedObject") or {}
    what = f"{about.get('kind', '')}/{about.get('name', '')}".lower()
    return [
        _age_text(event.get("lastTimestamp")),
        event.get("type", ""),
        event.get("reason", ""),
        what,
        event.get("message", ""),
    ]


def _node_row(node: Object) -> list[Any]:
    return [
        node["metadata"]["name"],
        "Ready",
        "<none>",
        _created_ago(node),
        node["status"]["nodeInfo"]["kubeletVersion"],
    ]


_PLAIN: tuple[list[str], _Row] = (["Name", "Age"], lambda each: [each["metadata"]["name"], _created_ago(each)])
_TABLES: dict[str, tuple[list[str], _Row]] = {
    "pods": (["Name", "Ready", "Status", "Restarts", "Age"], _pod_row),
    "events": (["Last Seen", "Type", "Reason", "Object", "Message"], _event_row),
    "nodes": (["Name", "Status", "Roles", "Age", "Version"], _node_row),
    "namespaces": (
        ["Name", "Status", "Age"],
        lambda each: [each["metadata"]["name"], each["status"]["phase"], _created_ago(each)],
    ),
}
