"""Label and field selectors, as list and watch take them.

Reference: Kubernetes documentation, "Labels and Selectors" and "Field Selectors".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ottoscaler.local.objects import ApiError, Object

Matcher = Callable[[Object], bool]

_LABEL = re.compile(
    r"\s*(?:(?P<absent>!)\s*)?(?P<key>[^\s!=,()]+)\s*"
    r"(?:(?P<op>==|=|!=)\s*(?P<value>[^\s!=,()]*)|(?<=\s)(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?\s*"
)
_OUTSIDE_PARENTHESES = re.compile(r",(?![^(]*\))")
_FIELD = re.compile(r"(?P<path>[^=!]+)(?P<op>==|=|!=)(?P<value>.*)")

_COMMON_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
_FIELDS: Mapping[str, frozenset[str]] = {
    "pods": _COMMON_FIELDS
    | {"status.phase", "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName"},
    "events": _COMMON_FIELDS
    | {"reason", "type", "source", "reportingComponent"}
    | {
        f"involvedObject.{name}"
        for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
    },
}


def matcher(resource: str, *, namespace: str, labels: str, fields: str) -> Matcher:
    """What list and watch select: namespace ("" for all), label selector, field selector.
    Raises ApiError 400 for a bad selector.
    """
    checks = [_label_matcher(part) for part in _OUTSIDE_PARENTHESES.split(labels) if labels]
    checks += [_field_matcher(resource, part) for part in fields.split(",") if part]

    def matches(obj: Object) -> bool:
        inside = not namespace or obj["metadata"].get("namespace") == namespace
        return inside and all(check(obj) for check in checks)

    return matches


def _label_matcher(text: str) -> Matcher:
    found = _LABEL.fullmatch(text)
    if found is None or (found["absent"] and (found["op"] or found["set"])):
        raise ApiError(400, f'unable to parse requirement: invalid label selector "{text}"')
    key = found["key"]
    if found["absent"]:
        return lambda obj: key not in _labels_of(obj)
    if found["op"] is None and found["set"] is None:
        return lambda obj: key in _labels_of(obj)
    wanted = {value.strip() for value in (found["values"] if found["set"] else found["value"]).split(",")}
    # An object without the label matches != and notin.
    if found["op"] == "!=" or found["set"] == "notin":
        return lambda obj: _labels_of(obj).get(key) not in wanted
    return lambda obj: _labels_of(obj).get(key) in wanted


def _labels_of(obj: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = obj["metadata"].get("labels") or {}
    return labels


def _field_matcher(resource: str, text: str) -> Matcher:
    found = _FIELD.fullmatch(text)
    if found is None:
        raise ApiError(400, f"invalid selector: '{text}'; can't understand '{text}'")
    if found["path"] not in _FIELDS.get(resource, _COMMON_FIELDS):
        raise ApiError(400, f"field label not supported: {found['path']}")
    path, wanted, negated = found["path"].split("."), found["value"], found["op"] == "!="

    def matches(obj: Object) -> bool:
        value: object = obj
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return (("" if value is None else str(value)) == wanted) is not negated

    return matches
