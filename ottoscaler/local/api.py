"""The Kubernetes API over the store: which request does what, and what it answers.

Only what the controller, ``kubectl get/describe/logs/delete`` and the tests use: no PUT, dry run, server-side apply,
JSON patch, protobuf, exec, OpenAPI or access control. The reference is kube-apiserver 1.34;
``tests/local/test_contract_api.py`` runs the same checks against both.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ottoscaler.local import patch, pods, tables, watch
from ottoscaler.local.discovery import DOCUMENTS
from ottoscaler.local.logfile import LogOptions
from ottoscaler.local.objects import KINDS, ApiError, Object, Reply, Request, Stream, conflict, encode, invalid
from ottoscaler.local.query import matcher
from ottoscaler.local.store import DeleteOptions, Store, StoredObject

_PATH = re.compile(
    r"/api/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?"
)
_NAMESPACE_PATH = re.compile(r"/api/v1/(?P<resource>namespaces)/(?P<name>[^/]+)")
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_OPEN_PAGES = 100


class LogSource(Protocol):
    """Where the output of containers is: the node."""

    def logs(self, pod: Object, container: str, options: LogOptions) -> Iterator[bytes]:
        """The chunks of a container's log. Raises ApiError 400 while there is none."""
        ...


@dataclass(frozen=True, slots=True)
class ResourcePath:
    """What a path names; empty strings for what it leaves out."""

    resource: str
    namespace: str
    name: str
    subresource: str

    @property
    def key(self) -> tuple[str, str]:
        """The store's key."""
        return (self.namespace, self.name)


class Api:
    """The whole API. Every method may be called by any thread."""

    def __init__(self, store: Store, log_source: LogSource) -> None:
        self._store = store
        self._logs = log_source
        self._pages: OrderedDict[str, tuple[int, list[StoredObject]]] = OrderedDict()
        self._pages_lock = threading.Lock()
        self._verbs: dict[tuple[str, bool, str], tuple[str, Callable[[Request, ResourcePath], Reply | Stream]]] = {
            ("GET", False, ""): ("list", self._list),
            ("POST", False, ""): ("create", self._create),
            ("GET", True, ""): ("get", self._get),
            ("PATCH", True, ""): ("patch", self._patch),
            ("DELETE", True, ""): ("delete", self._delete),
            ("GET", True, "status"): ("get", self._get),
            ("PATCH", True, "status"): ("patch", self._patch),
            ("GET", True, "log"): ("get", self._read_log),
            ("POST", True, "binding"): ("create", self._bind),
        }

    def handle(self, request: Request) -> Reply | Stream:
        """Answer one request. Raises ApiError for every answer that is an error."""
        path = request.path.rstrip("/")
        if path in DOCUMENTS:
            return Reply(encode(DOCUMENTS[path]))
        if path in ("/healthz", "/livez", "/readyz"):
            return Reply(b"ok", content_type="text/plain")
        if path == _REVIEWS and request.method == "POST":
            # kubectl sends protobuf here; whatever it asks, the answer is yes.
            review = request.json() if request.content_type == "application/json" else {}
            kind = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {}}
            return Reply(encode(kind | review | {"status": {"allowed": True}}), 201)
        if request.query.get("dryRun"):
            raise ApiError(400, "the embedded Kubernetes API has no dry run")  # rather than carry it out
        target = _parse_path(path)
        verb, handler = self._verbs.get((request.method, bool(target.name), target.subresource), ("", None))
        if (
            handler is None
            or verb not in KINDS[target.resource].verbs
            or (target.subresource and target.resource != "pods")
        ):
            raise ApiError(
                405, "the server does not allow this method on the requested resource", reason="MethodNotAllowed"
            )
        return handler(request, target)

    def add_namespace(self, name: str, uid: str = "") -> None:
        """Make a namespace that is there from the start; `uid`: by which it is known after a restart, too."""
        self._store.create("namespaces", {"metadata": {"name": name}, "status": {"phase": "Active"}}, uid=uid)
        self._add_service_account(name)

    def compact(self) -> None:
        """Forget changes and open pages, as etcd's compaction does."""
        with self._pages_lock:
            for token in self._pages:
                self._pages[token] = (0, [])
        self._store.compact()

    def _get(self, request: Request, target: ResourcePath) -> Reply:
        record = self._store.get(target.resource, *target.key)
        if tables.wants_table(request):
            return Reply(encode(tables.table(target.resource, [record.object], {})))
        return Reply(record.raw)

    def _list(self, request: Request, target: ResourcePath) -> Reply | Stream:
        labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
        matches = matcher(target.resource, namespace=target.namespace, labels=labels, fields=fields)
        if request.flag("watch"):
            if "sendInitialEvents" in request.query:
                reason = "forbidden for watch unless the WatchList feature gate is enabled"
                raise ApiError(422, f"sendInitialEvents: Forbidden: sendInitialEvents is {reason}")
            return Stream(watch.stream(self._store, target.resource, matches, request))
        version, records = (
            self._resume_list(request.query["continue"])
            if request.query.get("continue")
            else self._store.select(target.resource, matches)
        )
        if (request.number("resourceVersion") or 0) > version:
            raise ApiError(
                504,
                f"Too large resource version: {request.query['resourceVersion']}, current: {version}",
                retry_after=1,
            )
        metadata: Object = {"resourceVersion": str(version)}
        limit = request.number("limit") or len(records)
        if len(records) > limit:
            metadata["continue"] = self._keep_page(version, records[limit:])
            # The API server counts what remains only where that costs it nothing: without selectors.
            metadata |= {} if labels or fields else {"remainingItemCount": len(records) - limit}
        if tables.wants_table(request):
            return Reply(encode(tables.table(target.resource, [each.object for each in records[:limit]], metadata)))
        return Reply(_encode_list(target.resource, metadata, records[:limit]))

    def _keep_page(self, version: int, rest: list[StoredObject]) -> str:
        token = secrets.token_hex(16)
        with self._pages_lock:
            self._pages[token] = (version, rest)
            if len(self._pages) > _OPEN_PAGES:
                self._pages.popitem(last=False)
        return token

    def _resume_list(self, token: str) -> tuple[int, list[StoredObject]]:
        """The rest of a list, as it was when its first page was given."""
        with self._pages_lock:
            version, rest = self._pages.get(token, (-1, []))
        if version < 0 and not re.fullmatch(r"[0-9a-f]{32}", token):
            raise ApiError(400, "continue key is not valid: illegal base64 data")
        if version <= 0:
            raise ApiError(410, "The provided continue parameter is too old to display a consistent list result.")
        return version, rest

    def _create(self, request: Request, target: ResourcePath) -> Reply:
        body, kind = request.json(), KINDS[target.resource].kind
        metadata = body.setdefault("metadata", {})
        if body.get("kind", kind) != kind:
            raise ApiError(400, f'{body["kind"]} in version "v1" cannot be handled as a {kind}')
        if metadata.get("resourceVersion"):
            raise ApiError(500, "resourceVersion should not be set on objects to be created", reason="")
        if target.namespace and metadata.setdefault("namespace", target.namespace) != target.namespace:
            raise ApiError(400, "the namespace of the provided object does not match the namespace sent on the request")
        headers: dict[str, str] = {}
        if target.resource == "pods":
            headers = _unknown_field_warnings(request, pods.drop_unknown(body))
            pods.validate_pod(body)
            body = pods.with_defaults(body)
            self._require_service_account(body)
        elif target.resource == "namespaces":
            body["status"] = {"phase": "Active"}
        if not metadata.get("name") and not metadata.get("generateName"):
            raise ApiError(422, "metadata.name: Required value: name or generateName is required")
        record = self._store.create(target.resource, body)
        if target.resource == "namespaces":
            self._add_service_account(record.object["metadata"]["name"])
        return Reply(record.raw, 201, headers=headers)

    def _add_service_account(self, namespace: str) -> None:
        """Every namespace has the account "default": in a real cluster the controller manager makes it."""
        self._store.create("serviceaccounts", {"metadata": {"name": "default", "namespace": namespace}})

    def _require_service_account(self, pod: Object) -> None:
        name, namespace = pod["spec"]["serviceAccountName"], pod["metadata"]["namespace"]
        if self._store.find("namespaces", "", namespace) and not self._store.find("serviceaccounts", namespace, name):
            subject = f'pods "{pod["metadata"].get("name", "")}" is forbidden'
            raise ApiError(
                403,
                f'{subject}: error looking up service account {namespace}/{name}: serviceaccount "{name}" not found',
            )

    def _patch(self, request: Request, target: ResourcePath) -> Reply:
        apply = patch.patcher(request.content_type)
        body = request.json()

        def change(old: Object) -> Object:
            # Without its version: only one that the client sends is a precondition.
            bare = {
                **old,
                "metadata": {key: value for key, value in old["metadata"].items() if key != "resourceVersion"},
            }
            new: Object = apply(bare, body)
            _check_same(target, old=old["metadata"], sent=new.setdefault("metadata", {}))
            if target.subresource == "status":
                return {**old, "status": new.get("status", {})}
            if target.resource != "pods":
                return {"kind": old["kind"], "apiVersion": "v1"} | new
            pods.validate_pod(new)
            new = {**pods.with_defaults(new), "status": old["status"]}
            pods.validate_pod_update(old, new)
            return {"kind": old["kind"], "apiVersion": "v1"} | new

        return Reply(self._store.update(target.resource, target.key, change).raw)

    def _delete(self, request: Request, target: ResourcePath) -> Reply:
        body = request.json()
        conditions = body.get("preconditions") or {}
        grace = body.get("gracePeriodSeconds", request.number("gracePeriodSeconds"))
        options = DeleteOptions(grace, conditions.get("uid") or "", conditions.get("resourceVersion") or "")
        record = self._store.delete(target.resource, target.key, options)
        if target.resource == "namespaces":
            self._empty_namespace(target.name)
        return Reply(record.raw)

    def _empty_namespace(self, name: str) -> None:
        for resource in ("pods", "events", "serviceaccounts"):
            _, records = self._store.select(resource, matcher(resource, namespace=name, labels="", fields=""))
            for record in records:
                self._store.delete(resource, (name, record.object["metadata"]["name"]), DeleteOptions(grace=0))

    def _bind(self, request: Request, target: ResourcePath) -> Reply:
        node = (request.json().get("target") or {}).get("name")

        def change(pod: Object) -> Object:
            if pod["spec"].get("nodeName"):
                reason = f'pod {target.name} is already assigned to node "{pod["spec"]["nodeName"]}"'
                raise conflict("pods/binding", target.name, reason)
            pod["spec"]["nodeName"] = node
            return pod

        self._store.update("pods", target.key, change)
        return Reply(
            encode({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}), 201
        )

    def _read_log(self, request: Request, target: ResourcePath) -> Reply | Stream:
        pod = self._store.get("pods", *target.key).object
        names = [container["name"] for container in pod["spec"]["containers"]]
        name = request.query.get("container") or (names[0] if len(names) == 1 else "")
        if not name:
            raise ApiError(
                400, f"a container name must be specified for pod {target.name}, choose one of: [{' '.join(names)}]"
            )
        if name not in names:
            raise ApiError(400, f"container {name} is not valid for pod {target.name}")
        if not pod["spec"].get("nodeName"):
            return Reply(b"", 204)
        return Stream(self._logs.logs(pod, name, LogOptions.of(request)), content_type="text/plain")


def _parse_path(path: str) -> ResourcePath:
    found = _NAMESPACE_PATH.fullmatch(path) or _PATH.fullmatch(path)
    parts = {} if found is None else {key: value or "" for key, value in found.groupdict().items()}
    kind = KINDS.get(parts.get("resource", ""))
    namespace = parts.get("namespace", "")
    if kind is None or (namespace and not kind.namespaced) or (parts["name"] and kind.namespaced and not namespace):
        raise ApiError(404, "the server could not find the requested resource", reason="NotFound")
    return ResourcePath(parts["resource"], namespace, parts["name"], parts.get("sub", ""))


def _check_same(target: ResourcePath, *, old: Object, sent: Object) -> None:
    """A client that sends version or uid means this very state, this very object. Raises ApiError 409, 422."""
    if (sent.get("resourceVersion") or old["resourceVersion"]) != old["resourceVersion"]:
        reason = "the object has been modified; please apply your changes to the latest version and try again"
        raise conflict(target.resource, target.name, reason)
    if sent.get("uid", old["uid"]) != old["uid"]:
        raise invalid(target.name, [("metadata.uid", f'Invalid value: "{sent["uid"]}": field is immutable')])


def _unknown_field_warnings(request: Request, unknown: list[str]) -> dict[str, str]:
    """What fieldValidation asks for where fields are unknown: nothing, a Warning header (the default) or a refusal."""
    how = request.query.get("fieldValidation", "Warn")
    faults = [f'unknown field "{path}"' for path in unknown]
    if faults and how == "Strict":
        raise ApiError(
            400, f'Pod in version "v1" cannot be handled as a Pod: strict decoding error: {", ".join(faults)}'
        )
    if not faults or how == "Ignore":
        return {}
    return {"Warning": ", ".join('299 - "{}"'.format(fault.replace('"', '\\"')) for fault in faults)}


def _encode_list(resource: str, metadata: Object, records: list[StoredObject]) -> bytes:
    """A list from the stored bytes; its items carry neither kind nor apiVersion."""
    kind = KINDS[resource].kind
    head = encode({"kind": f"{kind}List", "apiVersion": "v1", "metadata": metadata})[:-1]
    skip = len(encode({"kind": kind, "apiVersion": "v1"}))
    return head + b',"items":[' + b",".join(b"{" + record.raw[skip:] for record in records) + b"]}"
