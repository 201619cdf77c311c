"""The emulator's etcd: objects, one rising resourceVersion over all of them, and the window of changes that watches
read from.

An object is serialised once, when it is written; reads, lists and every watcher share those bytes.
"""

from __future__ import annotations

import copy
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from ottoscaler.local.objects import KINDS, ApiError, Object, conflict, encode, not_found, parse_time, timestamp

WINDOW = 10_000  # changes kept per resource: a watch from before them is answered with 410 Expired
_NAME_ATTEMPTS = 8
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # those that the API server uses for generateName
_SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "name",
    "namespace",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One stored state of an object; neither object nor bytes ever change."""

    object: Object
    raw: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """One step in an object's life: kind is ADDED, MODIFIED or DELETED."""

    kind: str
    record: StoredObject
    previous: StoredObject | None


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """grace in seconds (None: the pod's own); uid and version are preconditions ("" for none)."""

    grace: int | None = None
    uid: str = ""
    version: str = ""


PLAIN_DELETE = DeleteOptions()


class Store:
    """All objects. Every method may be called by any thread.

    It starts no thread and opens no socket, and time is what ``now`` says: the fake of the tests is built on it, too.
    ``changed`` guards all state and wakes the threads that wait for a change.
    """

    def __init__(
        self, window: int = WINDOW, *, now: Callable[[], float] = time.time, version: int | None = None
    ) -> None:
        """Make an empty store that keeps ``window`` changes per resource; ``now``: seconds since the epoch;
        ``version``: the first one (None: one above those of every earlier store on this machine).
        """
        self._now = now
        # Milliseconds: after a restart versions go on rising, so a client's old version is too old, never one from the
        # future.
        self._version = time.time_ns() // 1_000_000 if version is None else version
        self.changed = threading.Condition(threading.RLock())
        self._records: dict[str, dict[Key, StoredObject]] = {resource: {} for resource in KINDS}
        self._changes: dict[str, deque[Change]] = {resource: deque() for resource in KINDS}
        self._dropped = dict.fromkeys(KINDS, 0)  # changes no longer in the window: the position of the oldest one kept
        self._oldest = dict.fromkeys(KINDS, self._version)  # a watch can begin at this version, not before
        self._window = window

    @property
    def version(self) -> int:
        """The version of the last write."""
        return self._version

    def find(self, resource: str, namespace: str, name: str) -> StoredObject | None:
        """The object's current record, or None."""
        return self._records[resource].get((namespace, name))

    def get(self, resource: str, namespace: str, name: str) -> StoredObject:
        """The object's current record. Raises ApiError 404."""
        record = self.find(resource, namespace, name)
        if record is None:
            raise not_found(resource, name)
        return record

    def select(self, resource: str, matches: Callable[[Object], bool]) -> tuple[int, list[StoredObject]]:
        """The records that match, sorted by namespace and name, and the version at which they were all current."""
        with self.changed:
            version, items = self._version, sorted(self._records[resource].items())
        return version, [record for _, record in items if matches(record.object)]

    def create(self, resource: str, obj: Object, *, uid: str = "") -> StoredObject:
        """Store a new object; its metadata gets name (from generateName), uid (a new one, unless given), version, time.
        Raises ApiError 404 (namespace), 409.
        """
        metadata = obj["metadata"]
        namespace = metadata.get("namespace", "")
        with self.changed:
            if namespace and self.find("namespaces", "", namespace) is None:
                raise not_found("namespaces", namespace)
            name = metadata.get("name") or self._generate_name(resource, namespace, metadata["generateName"])
            existing = self.find(resource, namespace, name)
            if existing is not None:
                leaving = "object is being deleted: " if "deletionTimestamp" in existing.object["metadata"] else ""
                message = f'{leaving}{resource} "{name}" already exists'
                raise ApiError(409, message, reason="AlreadyExists", details={"name": name, "kind": resource})
            owned = {
                "name": name,
                "uid": uid or str(uuid.uuid4()),
                "creationTimestamp": timestamp(0, self._now()),
                "generation": 1,
            }
            given = {key: value for key, value in metadata.items() if key not in _SERVER_OWNED or key == "namespace"}
            body = {key: value for key, value in obj.items() if key not in ("kind", "apiVersion", "metadata")}
            obj = {"kind": KINDS[resource].kind, "apiVersion": "v1", "metadata": given | owned, **body}
            return self._write(resource, obj, None)

    def update(self, resource: str, key: Key, change: Callable[[Object], Object]) -> StoredObject:
        """Store what ``change`` makes of a copy of the current object; a write that changes nothing keeps the version.

        What the server owns of the metadata stays as it is. Raises ApiError 404, and what ``change`` raises.
        """
        with self.changed:
            previous = self.get(resource, *key)
            old = previous.object["metadata"]
            new = change(copy.deepcopy(previous.object))
            metadata = new["metadata"]
            kept = {name: old[name] for name in (*_SERVER_OWNED, "resourceVersion") if name in old}
            new["metadata"] = {name: value for name, value in metadata.items() if name not in _SERVER_OWNED} | kept
            if new == previous.object:
                return previous
            if new.get("spec") != previous.object.get("spec"):
                new["metadata"]["generation"] = old["generation"] + 1
            return self._finish_deletion(resource, self._write(resource, new, previous))

    def delete(self, resource: str, key: Key, options: DeleteOptions = PLAIN_DELETE) -> StoredObject:
        """Delete now, or begin a pod's graceful end. Returns the last record; raises ApiError 404, 409 for a
        precondition.

        A pod that runs nowhere (unscheduled or finished) goes at once; watchers then see MODIFIED, with grace 0,
        before DELETED.
        """
        with self.changed:
            previous = self.get(resource, *key)
            self._check_preconditions(resource, previous.object["metadata"], options)
            if resource != "pods":
                return self._remove(resource, previous)
            marked = _mark_deleted(previous.object, options.grace, self._now())
            if marked == previous.object:
                return self._finish_deletion(resource, previous)
            return self._finish_deletion(resource, self._write(resource, marked, previous))

    def remove(self, resource: str, key: Key) -> StoredObject:
        """Remove the object at once, whatever holds it. Returns its last record; raises ApiError 404."""
        with self.changed:
            return self._remove(resource, self.get(resource, *key))

    def begin_watch(self, resource: str, version: int | None) -> tuple[int, int]:
        """Where a watch of changes after ``version`` (None: from now on) begins: a position for read, and the version.

        Raises ApiError 410 when changes after that version are no longer known.
        """
        with self.changed:
            changes, position = self._changes[resource], self._dropped[resource]
            if version is None:
                return position + len(changes), self._version
            if version < self._oldest[resource]:
                raise ApiError(410, f"too old resource version: {version} ({self._oldest[resource]})")
            newer = sum(1 for change in changes if change.record.version > version)
            return position + len(changes) - newer, version

    def read_changes(self, resource: str, position: int, timeout_s: float) -> tuple[list[Change], int, int]:
        """The changes since ``position``, waiting at most ``timeout_s`` for one; the next position; the version now.

        With 0 it never lets go of ``changed``: a caller that holds it would miss what is notified in that moment.
        Raises ApiError 410 when the window has moved past the position.
        """
        with self.changed:
            if timeout_s > 0 and position == self._end_position(resource):
                self.changed.wait_for(lambda: self._end_position(resource) > position, timeout_s)
            dropped, changes = self._dropped[resource], self._changes[resource]
            if position < dropped:
                raise ApiError(410, f"too old resource version ({self._oldest[resource]})")
            return (
                [changes[at - dropped] for at in range(position, self._end_position(resource))],
                self._end_position(resource),
                self._version,
            )

    def compact(self) -> None:
        """Forget all changes, as etcd's compaction does: every watch that begins before now is too old."""
        with self.changed:
            for resource, changes in self._changes.items():
                self._dropped[resource] += len(changes)
                self._oldest[resource] = self._version
                changes.clear()

    def _end_position(self, resource: str) -> int:
        return self._dropped[resource] + len(self._changes[resource])

    def _generate_name(self, resource: str, namespace: str, prefix: str) -> str:
        for _ in range(_NAME_ATTEMPTS):
            name = prefix[:58] + "".join(random.choices(_SUFFIX_LETTERS, k=5))
            if self.find(resource, namespace, name) is None:
                break
        return name

    def _check_preconditions(self, resource: str, metadata: Object, options: DeleteOptions) -> None:
        for what, wanted, actual in (
            ("UID", options.uid, metadata["uid"]),
            ("ResourceVersion", options.version, metadata["resourceVersion"]),
        ):
            if wanted and wanted != actual:
                reason = f"the {what} in the precondition ({wanted}) does not match the {what} in record ({actual})."
                raise conflict(
                    KINDS[resource].kind,
                    metadata["name"],
                    f"{reason} The object might have been deleted and then recreated",
                )

    def _write(self, resource: str, obj: Object, previous: StoredObject | None) -> StoredObject:
        record = self._record(obj)
        metadata = obj["metadata"]
        self._records[resource][metadata.get("namespace", ""), metadata["name"]] = record
        self._announce_change(resource, Change("MODIFIED" if previous else "ADDED", record, previous))
        return record

    def _remove(self, resource: str, previous: StoredObject) -> StoredObject:
        metadata = previous.object["metadata"]
        record = self._record({**previous.object, "metadata": dict(metadata)})
        del self._records[resource][metadata.get("namespace", ""), metadata["name"]]
        self._announce_change(resource, Change("DELETED", record, previous))
        return record

    def _finish_deletion(self, resource: str, record: StoredObject) -> StoredObject:
        """Remove an object if its deletion waits for nothing any more."""
        metadata = record.object["metadata"]
        waits = metadata.get("deletionGracePeriodSeconds", 0) > 0 or bool(metadata.get("finalizers"))
        if "deletionTimestamp" in metadata and not waits:
            self._remove(resource, record)
        return record

    def _record(self, obj: Object) -> StoredObject:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        return StoredObject(obj, encode(obj), self._version)

    def _announce_change(self, resource: str, change: Change) -> None:
        changes = self._changes[resource]
        changes.append(change)
        if len(changes) > self._window:
            self._oldest[resource] = changes.popleft().record.version
            self._dropped[resource] += 1
        self.changed.notify_all()


def _mark_deleted(pod: Object, asked: int | None, now: float) -> Object:
    """The pod with deletionTimestamp and grace.
    A second delete can only shorten the grace (BeforeDelete in the API server).
    """
    metadata = pod["metadata"]
    grace = pod["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else max(asked, 0)
    if not pod["spec"].get("nodeName") or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        grace = 0
    when = timestamp(grace, now)
    if "deletionTimestamp" in metadata:
        before = metadata["deletionGracePeriodSeconds"]
        grace = before if asked is None and grace > 0 else min(grace, before)
        moved = parse_time(metadata["deletionTimestamp"]) - timedelta(seconds=before - grace)
        when = moved.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**pod, "metadata": {**metadata, "deletionTimestamp": when, "deletionGracePeriodSeconds": grace}}
