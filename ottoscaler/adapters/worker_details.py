"""What the Kubernetes API has of one pod that no watch shows: when its image was pulled, and the end of its log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import urllib3

from ottoscaler.adapters.kube_answers import Verb, decoded
from ottoscaler.adapters.kube_http import KubeHttp
from ottoscaler.core.manifest import CONTAINER
from ottoscaler.core.wording import one_line
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.settings import KubeSettings

#: How long the end of a log may take, seconds: a person waits for it, and a thread of the page.
READ_S: Final = 5.0
#: How much of it is read, in lines and bytes. What is shown is far less; what comes before it shows a private key that
#: began earlier, and has to be masked.
READ_LINES: Final = 450
READ_BYTES: Final = 512 * 1024
_CHUNK: Final = 65536
_EVENTS: Final = 100


@dataclass(frozen=True, slots=True)
class Pull:
    """That the node has the worker's image: since when (RFC 3339), and the kubelet's words."""

    at: str
    message: str


class _About(msgspec.Struct, frozen=True):
    part: str = msgspec.field(default="", name="fieldPath")


class _Event(msgspec.Struct, frozen=True):
    message: str = ""
    about: _About = msgspec.field(default=_About(), name="involvedObject")
    last: str | None = msgspec.field(default=None, name="lastTimestamp")
    at: str | None = msgspec.field(default=None, name="eventTime")


class _EventList(msgspec.Struct, frozen=True):
    items: list[_Event] | None = None  # null: none


_events = msgspec.json.Decoder(_EventList)
#: Which container an Event of the kubelet is about; an Event that does not say it is taken, too.
_OF_WORKER: Final = ("", f"spec.containers{{{CONTAINER}}}")


class PodDetails:
    """Looks at one pod at a time, with connections of its own. Any thread."""

    def __init__(self, settings: KubeSettings) -> None:
        """Raises ConfigError if there is no way to a cluster."""
        self._http = KubeHttp(settings)
        self._inside = f"/api/v1/namespaces/{settings.namespace}"

    def pull(self, uid: str) -> Pull | None:
        """When the kubelet had the image of the worker's container, by its last Event about that; None where there is
        none: not yet, or not any more, for the API server keeps Events for an hour. Raises ClusterRejected without the
        right to list Events, ClusterUnavailable.
        """
        query = {"fieldSelector": f"involvedObject.uid={uid},reason=Pulled", "limit": _EVENTS}
        found = decoded(_events, self._http.call(Verb.LIST_EVENTS, f"{self._inside}/events", query=query)).items
        pulls = [
            Pull(event.last or event.at or "", event.message)
            for event in found or ()
            if event.about.part in _OF_WORKER and (event.last or event.at)
        ]
        return max(pulls, key=lambda pull: pull.at, default=None)

    def log_end(self, pod: str) -> Iterator[bytes]:
        """The end of the log of its worker's container, each line with its time in front: READ_LINES lines, at most
        READ_BYTES, for at most READ_S.

        Raises ClusterRejected: reason NotFound (no such pod), Forbidden (no right to read logs), BadRequest (the
        container has not started); ClusterUnavailable for everything else.
        """
        query = {"container": CONTAINER, "timestamps": "true", "tailLines": READ_LINES, "limitBytes": READ_BYTES}
        path, until = f"{self._inside}/pods/{pod}/log", time.monotonic() + READ_S
        response = self._http.open_stream(
            path, query=query, read_timeout_s=READ_S, verb=Verb.LOG, name=pod, content_type="text/plain"
        )
        try:
            for chunk in response.stream(_CHUNK):
                yield chunk
                if time.monotonic() > until:
                    raise ClusterUnavailable(f"the log of {pod} takes longer than {READ_S:.0f} s", unclear=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterUnavailable(f"the log of {pod} broke off ({one_line(error, 200)})") from error
        finally:
            self._http.close_stream(response)
