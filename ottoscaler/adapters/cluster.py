"""Worker pods in the Kubernetes API: implements `ports.Cluster`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import msgspec
import urllib3

from ottoscaler import logs
from ottoscaler.adapters.kube_answers import Verb, decoded, error_for_response, is_deletion_accepted
from ottoscaler.adapters.kube_facts import ClusterFacts
from ottoscaler.adapters.kube_http import KubeHttp, OnRequest, ignore_request
from ottoscaler.api_server import ApiServer
from ottoscaler.core.autoscaler import PodEvent
from ottoscaler.core.events import ScaleEvent, decode
from ottoscaler.core.manifest import selector
from ottoscaler.core.pods import PodSnapshot, RawPod, created_pod_snapshot, foreign_pod_snapshot, pod_snapshot
from ottoscaler.core.raw_pod import event_annotation
from ottoscaler.core.wording import one_line
from ottoscaler.errors import ClusterRejected, ClusterUnavailable, WatchExpired
from ottoscaler.ports import CreateOutcome, PodList, WatchEvent, WatchEventType
from ottoscaler.settings import KubeSettings

#: The server ends a watch after this long; a dead link is noticed by the second figure, seconds
#: (kubernetes-client/python #1148).
WATCH_S = 30
WATCH_SILENCE_S = 40.0
PAGE = 500

#: Verbs on pods that the controller needs, and nothing more: deploy's Role has the same list.
VERBS = ("create", "get", "list", "watch", "delete")
#: Verbs on Events that it can do without (`Cluster.pod_events`); deploy's Role has them too.
EVENT_VERBS = ("list",)

_T = TypeVar("_T")
_log = logs.get(__name__)


class _ListMeta(msgspec.Struct, frozen=True):
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    token: str = msgspec.field(default="", name="continue")


class _RawList(msgspec.Struct, frozen=True):
    kind: Literal["PodList"]
    metadata: _ListMeta = _ListMeta()
    items: list[RawPod] | None = None  # null: none


class _LenientPodList(msgspec.Struct, frozen=True):
    """The same, in which a pod may be anything."""

    kind: Literal["PodList"]
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class _RawPod(RawPod, frozen=True, kw_only=True):
    kind: Literal["Pod"]


class _WatchLine(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw = msgspec.Raw(b"{}")


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()


class _KubeEventMetadata(msgspec.Struct, frozen=True):
    resource_version: str = msgspec.field(default="", name="resourceVersion")


class _KubeEventSource(msgspec.Struct, frozen=True):
    component: str = ""


class _KubeEvent(msgspec.Struct, frozen=True):
    metadata: _KubeEventMetadata = _KubeEventMetadata()
    reason: str = ""
    message: str = ""
    source: _KubeEventSource = _KubeEventSource()
    reporter: str = msgspec.field(default="", name="reportingComponent")


class _KubeEventList(msgspec.Struct, frozen=True):
    kind: Literal["EventList"]
    items: list[_KubeEvent] | None = None  # null: none


_pod_list = msgspec.json.Decoder(_RawList)
_loose_list = msgspec.json.Decoder(_LenientPodList)
_listed_pod = msgspec.json.Decoder(RawPod)
_pod = msgspec.json.Decoder(_RawPod)
_event_list = msgspec.json.Decoder(_KubeEventList)
_line = msgspec.json.Decoder(_WatchLine)
_bookmark = msgspec.json.Decoder(_Bookmark)
_CHANGES = {"ADDED": WatchEventType.UPDATED, "MODIFIED": WatchEventType.UPDATED, "DELETED": WatchEventType.DELETED}


class KubeCluster:
    """`ports.Cluster` over HTTP. Any thread."""

    def __init__(
        self,
        settings: KubeSettings,
        *,
        instance: str,
        on_reply: Callable[[str], None] = lambda error: None,
        urgent: Callable[[], bool] = lambda: False,
        on_request: OnRequest = ignore_request,
        on_wait: Callable[[str, float], None] = lambda cause, seconds: None,
        events: Collection[str] = (),
        reads_logs: bool = False,
    ) -> None:
        """`on_reply` gets how each request ended: empty for an answer, otherwise the error. `urgent` returns whether
        the requests of the calling thread wait for no other's. `on_request` and `on_wait`: see KubeHttp.
        `events`: list and watch only the pods of these events, given by their hashes (`manifest.event_hash`).
        `reads_logs`: the right to read the logs of pods is needed, too.
        """
        self._reads_logs = reads_logs
        self._on_reply = on_reply
        self._http = KubeHttp(settings, on_reply, urgent, on_request, on_wait)
        self._facts = ClusterFacts(self._http, settings.namespace)
        self._pods = f"/api/v1/namespaces/{settings.namespace}/pods"
        self._events = f"/api/v1/namespaces/{settings.namespace}/events"
        self._instance = instance
        self._selector = selector(instance, events)

    @property
    def address(self) -> str:
        """Where the API server is, for messages."""
        return self._http.address

    @property
    def server(self) -> ApiServer | None:
        """How another process reaches it; None where it has to read the kubeconfig itself."""
        return self._http.server

    def close(self) -> None:
        """See ports.Cluster."""
        self._http.close()

    def list(self) -> PodList:
        """See ports.Cluster. Pages of 500; a page that comes too late (410) starts the list again."""
        # From the beginning, not from the page that was too late: the pages of one list have to be of one version, or a
        # pod that changed in between would be missing.
        while True:
            try:
                return self._list()
            except WatchExpired:
                _log.warning("watch.list_expired", "The list of pods took too long; listing again")

    def _list(self) -> PodList:
        pods: list[PodSnapshot] = []
        token = ""
        while True:
            query = {"labelSelector": self._selector, "limit": PAGE, **({"continue": token} if token else {})}
            page, meta = _decode_list_page(self._http.call(Verb.LIST, self._pods, query=query), self._instance)
            pods += page
            token = meta.token
            if not token:
                return PodList(pods, meta.resource_version)

    def watch(self, resource_version: str) -> Iterator[WatchEvent]:
        """See ports.Cluster."""
        query = {
            "labelSelector": self._selector,
            "resourceVersion": resource_version,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_S,
        }
        response = self._http.open_stream(self._pods, query=query, read_timeout_s=WATCH_SILENCE_S)
        try:
            rest = b""
            for chunk in response.stream(65536):
                self._on_reply("")
                *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
                for line in lines:
                    if line and (event := _watch_event(line, self._instance)) is not None:
                        yield event
            if rest:  # a clean end has whole lines; what was cut off is an event that would be lost without a new watch
                raise ClusterUnavailable("the watch of pods ended in the middle of a line")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # The idle connections went through the same network: each could cost a worker's call its whole time-out.
            self._http.drop_idle()
            broken = ClusterUnavailable(f"the watch of pods broke off ({one_line(error, 200)})")
            self._on_reply(str(broken))
            raise broken from error
        finally:
            self._http.close_stream(response)

    def create(self, body: bytes) -> PodSnapshot | CreateOutcome:
        """See ports.Cluster."""
        asked = _listed_pod.decode(body)
        name = asked.metadata.name
        try:
            raw = self._decode_named_pod(self._http.call(Verb.CREATE, self._pods, name=name, body=body), name)
        except ClusterRejected as error:
            # No error: an earlier create of ours may have got through without an answer. The caller compares.
            if error.reason == "AlreadyExists":
                return CreateOutcome.ALREADY_THERE
            raise
        with _parse_errors_as_unavailable():
            return created_pod_snapshot(raw, asked)

    def dry_run(self, body: bytes) -> None:
        """Ask the API server whether it would create this pod. Raises ClusterRejected if not, ClusterUnavailable."""
        name = _listed_pod.decode(body).metadata.name
        self._http.call(Verb.CREATE, self._pods, name=name, query={"dryRun": "All"}, body=body)

    def get(self, name: str) -> PodSnapshot | None:
        """See ports.Cluster."""
        body = self._get(name)
        if body is None:
            return None
        raw = self._decode_named_pod(body, name)
        with _parse_errors_as_unavailable():
            return pod_snapshot(raw, self._instance) or foreign_pod_snapshot(raw)

    def annotated_event(self, name: str) -> ScaleEvent | None:
        """See ports.Cluster."""
        body = self._get(name)
        try:
            return decode(event_annotation(body)) if body is not None else None
        except (msgspec.MsgspecError, ValueError):
            return None

    def _get(self, name: str) -> bytes | None:
        try:
            return self._http.call(Verb.GET, f"{self._pods}/{name}", name=name)
        except ClusterRejected:  # NotFound: a look is refused for nothing else
            return None

    @staticmethod
    def _decode_named_pod(body: bytes, name: str) -> RawPod:
        """The pod of that name. Raises ClusterUnavailable where the body is anything else."""
        raw = decoded(_pod, body)
        if raw.metadata.name != name:
            raise ClusterUnavailable(f"the Kubernetes API answered with pod {raw.metadata.name[:100]!r} for {name}")
        return raw

    def delete(self, name: str, uid: str, resource_version: str | None = None, *, grace_s: int | None = None) -> bool:
        """See ports.Cluster. Preconditions:
        https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/delete-options/.
        """
        # The UID: by its name alone a deletion that is repeated late would end another pod of that name.
        conditions = {"uid": uid} if resource_version is None else {"uid": uid, "resourceVersion": resource_version}
        grace = {} if grace_s is None else {"gracePeriodSeconds": grace_s}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions, **grace}
        body = msgspec.json.encode(options)
        try:
            answer = self._http.call(Verb.DELETE, f"{self._pods}/{name}", name=name, body=body)
        except ClusterRejected as error:  # NotFound or Conflict
            return error.reason == "NotFound"
        if not is_deletion_accepted(answer):
            raise ClusterUnavailable(f"the answer to the deletion of {name} is not one of the Kubernetes API")
        return True

    def pod_events(self, uid: str) -> Sequence[PodEvent]:
        """See ports.Cluster. No more than one page: a pod has a handful of Events, and each is kept for an hour."""
        query = {"fieldSelector": f"involvedObject.uid={uid}", "limit": PAGE}
        found = decoded(_event_list, self._http.call(Verb.LIST_EVENTS, self._events, query=query)).items
        return [_pod_event(event) for event in found or ()]

    def missing_rights(self) -> Sequence[str]:
        """See ports.Cluster."""
        return self._facts.missing_rights(VERBS, logs=self._reads_logs)

    def cluster_id(self) -> str:
        """See ports.Cluster."""
        return self._facts.cluster_id()

    def server_version(self) -> tuple[int, int]:
        """See ports.Cluster."""
        return self._facts.server_version()


def _pod_event(event: _KubeEvent) -> PodEvent:
    version = event.metadata.resource_version
    component = event.source.component or event.reporter
    return PodEvent(event.reason, event.message, component, int(version) if version.isdigit() else 0)


def _decode_list_page(body: bytes, instance: str) -> tuple[Sequence[PodSnapshot], _ListMeta]:
    """The pods of one page of a list. One that cannot be read is logged and left out: it must not hide all others."""
    try:
        page = _pod_list.decode(body)
        found = [pod_snapshot(raw, instance) for raw in page.items or ()]
        return [pod for pod in found if pod is not None], page.metadata
    except (msgspec.MsgspecError, ValueError, RecursionError):
        loose = decoded(_loose_list, body)
    pods: list[PodSnapshot] = []
    for item in loose.items or ():
        try:
            pod = pod_snapshot(_listed_pod.decode(item), instance)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            _log.warning("watch.unreadable", "A pod in the list cannot be read and is skipped", error=str(error)[:200])
        else:
            pods += [pod] if pod is not None else []
    return pods, loose.metadata


@contextmanager
def _parse_errors_as_unavailable() -> Iterator[None]:
    """What cannot be read in a pod, such as a time, is trouble with that pod and no defect of ours."""
    try:
        yield
    except ValueError as error:
        raise ClusterUnavailable(f"the Kubernetes API sent a pod that cannot be read: {error}") from error


def _watch_event(line: bytes, instance: str) -> WatchEvent | None:
    """One line of a watch. A pod that cannot be read is logged and skipped: it must not end the watch for all others.

    Raises WatchExpired or ClusterUnavailable for an error of the server, and where the line is not one of a watch: what
    comes then is not from the API server, and what it left out only a list shows.
    """
    event = decoded(_line, line)
    if event.type == "ERROR":
        raise _stream_error(bytes(event.object))
    if event.type == "BOOKMARK":
        return WatchEvent(WatchEventType.BOOKMARK, decoded(_bookmark, event.object).metadata.resource_version, None)
    if event.type not in _CHANGES:
        raise ClusterUnavailable(f"the watch of pods sent an event of unknown type {event.type[:100]!r}")
    try:
        raw = _pod.decode(event.object)
        pod = pod_snapshot(raw, instance)
    except (msgspec.MsgspecError, ValueError) as error:
        _log.warning("watch.unreadable", "A pod in the watch cannot be read and is skipped", error=str(error)[:200])
        return None
    if pod is not None and event.type == "DELETED":
        pod = pod.as_gone()
    return WatchEvent(_CHANGES[event.type], raw.metadata.resource_version, pod)


def _stream_error(body: bytes) -> Exception:
    """Any ERROR inside a watch means: list again. 410 comes this way too, inside a 200 answer."""
    error = error_for_response(_status_code_of(body), body, Verb.WATCH)
    return error if isinstance(error, (WatchExpired, ClusterUnavailable)) else ClusterUnavailable(str(error))


def _status_code_of(body: bytes) -> int:
    try:
        return int(msgspec.json.decode(body)["code"])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, RecursionError):
        return 500
