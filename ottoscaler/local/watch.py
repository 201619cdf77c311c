"""The watch stream: what happened after a version, in order, until the time is up.

A watch that has fallen behind the window, or begins before it, gets one ERROR event with code 410 and ends: the API
server answers so, in the stream and with HTTP 200 (Kubernetes documentation, "API Concepts", section on 410 Gone).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ottoscaler.local import tables
from ottoscaler.local.objects import KINDS, ApiError, Object, Request, encode
from ottoscaler.local.query import Matcher
from ottoscaler.local.store import Change, Store

_DEFAULT_TIMEOUT_S = 1800
_BOOKMARK_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0  # how often a silent stream looks whether its client is still there


def stream(store: Store, resource: str, matches: Matcher, request: Request) -> Iterator[bytes]:
    """The lines of one watch; an empty chunk after a second without news."""
    try:
        yield from _watch_lines(store, resource, matches, request)
    except ApiError as error:
        yield _encode_line("ERROR", encode(error.status()))


def _watch_lines(store: Store, resource: str, matches: Matcher, request: Request) -> Iterator[bytes]:
    as_table = tables.wants_table(request)

    def line(kind: str, obj: Object, raw: bytes) -> bytes:
        return _encode_line(kind, encode(tables.table(resource, [obj], {})) if as_table else raw)

    deadline = time.monotonic() + (request.number("timeoutSeconds") or _DEFAULT_TIMEOUT_S)
    # No version, or 0: begin with what is there. Position first, then the state: a change between the two is left out
    # below.
    after = request.number("resourceVersion") or None
    position, floor = store.begin_watch(resource, after)
    if after is None:
        floor, records = store.select(resource, matches)
        yield b"".join(line("ADDED", record.object, record.raw) for record in records)
    next_bookmark = time.monotonic() + _BOOKMARK_EVERY_S if request.flag("allowWatchBookmarks") else float("inf")
    while (left := deadline - time.monotonic()) > 0:
        changes, position, current = store.read_changes(resource, position, min(_LOOK_EVERY_S, left))
        seen = [event_for_watcher(change, matches) for change in changes if change.record.version > floor]
        lines = [line(kind, obj, raw or encode(obj)) for kind, obj, raw in seen if kind]
        if time.monotonic() > next_bookmark:
            next_bookmark += _BOOKMARK_EVERY_S
            lines.append(_encode_line("BOOKMARK", encode(_bookmark(resource, current))))
        yield b"".join(lines)


def event_for_watcher(change: Change, matches: Matcher) -> tuple[str, Object, bytes]:
    """The event for this watcher: its type ("" for none), the object and, if there are any yet, its bytes.

    An object that enters the selection is ADDED, one that leaves it DELETED.
    """
    record, previous = change.record, change.previous
    inside = matches(record.object)
    was_inside = previous is not None and matches(previous.object)
    if change.kind == "DELETED":
        return ("DELETED" if inside else "", record.object, record.raw)
    if inside:
        return ("MODIFIED" if was_inside else "ADDED", record.object, record.raw)
    if previous is None or not was_inside:
        return ("", record.object, b"")
    # The state before, under the new version: that is what the API server sends.
    metadata = {**previous.object["metadata"], "resourceVersion": str(record.version)}
    return ("DELETED", {**previous.object, "metadata": metadata}, b"")


def _bookmark(resource: str, version: int) -> Object:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return {"kind": KINDS[resource].kind, "apiVersion": "v1", "metadata": metadata}


def _encode_line(kind: str, raw: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), raw)
