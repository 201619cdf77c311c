"""Merge patch (RFC 7386) and strategic merge patch, as far as pods need them.

Strategic: lists of objects that have a merge key are merged by it. The keys are those of the ``patchMergeKey`` tags in
the Kubernetes API types; ``$patch`` is not understood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ottoscaler.local.objects import ApiError, Object

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "conditions": "type",
    "ownerReferences": "uid",
    "podIPs": "ip",
}


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: objects are merged, null removes, any other value replaces. Neither argument is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic(target: Any, patch: Any) -> Any:
    """Strategic merge: as merge, but known lists are merged item by item. Neither argument is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        # Directives such as $setElementOrder/conditions only give an order, which nothing here depends on.
        if key.startswith("$"):
            continue
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, list) and key in _MERGE_KEYS:
            merged[key] = _merge_list(merged.get(key) or [], value, _MERGE_KEYS[key])
        else:
            merged[key] = strategic(merged.get(key), value)
    return merged


def _merge_list(current: list[Object], patch: list[Object], key: str) -> list[Object]:
    by_key = {item.get(key): item for item in current}
    for item in patch:
        by_key[item.get(key)] = strategic(by_key.get(item.get(key)), item)
    return list(by_key.values())


_BY_CONTENT_TYPE: dict[str, Callable[[Any, Any], Any]] = {
    "application/merge-patch+json": merge,
    "application/strategic-merge-patch+json": strategic,
}


def patcher(content_type: str) -> Callable[[Any, Any], Any]:
    """The function for a PATCH of this content type. Raises ApiError 415."""
    known = _BY_CONTENT_TYPE.get(content_type)
    if known is None:
        accepted = ", ".join(_BY_CONTENT_TYPE)
        raise ApiError(
            415, f"the body of the request was in an unknown format - accepted media types include: {accepted}"
        )
    return known
