"""The logs of containers, as the Kubernetes API serves them (`pods/log`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

import urllib3

from ottoscaler.adapters.kube_answers import Verb
from ottoscaler.adapters.kube_http import KubeHttp
from ottoscaler.adapters.pod_log_query import log_query
from ottoscaler.core.wording import one_line
from ottoscaler.errors import ClusterUnavailable
from ottoscaler.settings import KubeSettings

#: A log that stays silent for longer is opened again, seconds: a link may be dead without a sign, and proxies end idle
#: ones after some minutes.
SILENCE_S: Final = 120.0
#: How many logs are opened at once. Each open makes the API server connect to a kubelet.
_OPENS: Final = 16
_CHUNK: Final = 65536


class PodLogs:
    """Reads logs in one namespace. Any thread; `close` ends what is being read."""

    def __init__(self, settings: KubeSettings) -> None:
        """Raises ConfigError if there is no way to a cluster."""
        self._http = KubeHttp(settings)
        self._pods = f"/api/v1/namespaces/{settings.namespace}/pods"
        self._opens = threading.BoundedSemaphore(_OPENS)

    def close(self) -> None:
        """Cut what is being read, and refuse everything from now on; idempotent."""
        self._http.close()

    def read(self, pod: str, container: str, *, since: str = "", follow: bool = False) -> Iterator[bytes]:
        """The bytes of a container's log, each line with its time in front.

        Arguments: the pod's name, the container's; RFC 3339, of which the API takes whole seconds, empty for all; to go
        on with what is written until the container ends.

        Raises ClusterRejected where asking again changes nothing for now: reason NotFound (no such pod), Forbidden (no
        right to read logs), BadRequest (no such container, or none of it has started yet); ClusterUnavailable for
        everything else, also in the middle of the log.
        """
        with self._opens:
            response = self._http.open_stream(
                f"{self._pods}/{pod}/log", query=log_query(container, since=since, follow=follow),
                read_timeout_s=SILENCE_S, verb=Verb.LOG, name=pod, content_type="text/plain",
            )  # fmt: skip
        try:
            yield from response.stream(_CHUNK)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            self._http.drop_idle()
            raise ClusterUnavailable(f"the log of {pod} broke off ({one_line(error, 200)})") from error
        finally:
            self._http.close_stream(response)
