"""Reading one container's log, once or to its end, over cuts of the connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from ottoscaler.adapters.pod_logs import PodLogs
from ottoscaler.errors import ClusterRejected, ClusterUnavailable
from ottoscaler.forwarder.lines import Gap, Line
from ottoscaler.forwarder.masking import Form, FormMasker, mask_line
from ottoscaler.forwarder.pod_log import PodLogReader, Position

#: How soon a log is opened again, seconds: at first, and at most. Each time without a new line doubles it.
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
#: How many readings of a container that has ended may fail before the rest is given up: about 20 s.
FAILURES: Final = 8


class LogReader:
    """The log of one container of one pod. One thread."""

    def __init__(self, source: PodLogs, pod: str, container: str, masks: Sequence[Form] = ()) -> None:
        """`masks`: what the policy masks beside what always is."""
        self._source = source
        self.pod = pod
        self._container = container
        self._position = Position()
        self._masker = FormMasker(masks)
        self.lines = 0
        """How many lines it has given."""
        self.opened = False
        """Whether it has been read at all, even if it was empty."""
        self.error = ""
        """The kubelet's error text, where one stood in the place of lines in the last reading."""

    def read(self, *, follow: bool = False) -> Iterator[Line | Gap]:
        """What has come since the last reading; with `follow`, also what comes, until the container ends or the
        connection does. Secrets are masked by their form.

        Raises as `PodLogs.read`.
        """
        answer = PodLogReader(self._position)
        since = self._position.cursor.second
        try:
            for chunk in self._source.read(self.pod, self._container, since=since, follow=follow):
                self.opened = True
                yield from self._masked(answer.feed(chunk))
            self.opened = True
            # A following reading may have ended inside of a line, which then comes again as a whole.
            if not follow:
                yield from self._masked(answer.end())
        finally:
            answer.cut()
            self._position, self.error = answer.position, answer.error

    def _masked(self, found: Iterable[Line | Gap]) -> Iterator[Line | Gap]:
        for one in found:
            if isinstance(one, Line):
                self.lines += 1
                yield mask_line(one, self._masker)
            else:
                yield one


class LogFollowing:
    """Follows one container's log until the container has ended and all of its log was read. One thread."""

    def __init__(
        self,
        reader: LogReader,
        *,
        has_ended: Callable[[], bool],
        stop: threading.Event,
        emit: Callable[[Line], None],
        note: Callable[[str], None],
    ) -> None:
        """`has_ended` says whether the container writes no more. `stop` ends the waits. `emit` gets the lines, `note` a
        sentence for a person.
        """
        self._reader = reader
        self._has_ended = has_ended
        self._stop = stop
        self._emit = emit
        self._note = note
        self._noted = ""
        self._cut = False  # the last reading broke off

    def run(self) -> None:
        """Follow to the end. Raises ClusterRejected without the right to read logs, or for a container that the pod
        does not have.
        """
        pause_s, failures = FIRST_PAUSE_S, 0
        while not self._stop.is_set() and failures < FAILURES:
            before = self._reader.lines
            # Asked before the reading: what was written before the end is then read for certain.
            ended = self._has_ended()
            if self._read_on(follow=not ended) and ended:
                return
            failures = failures + 1 if ended else 0
            pause_s = FIRST_PAUSE_S if self._reader.lines > before else min(2 * pause_s, LONGEST_PAUSE_S)
            # A follow that ends by itself mostly means that the container has: its status follows within a second.
            self._stop.wait(pause_s)
        if not self._stop.is_set():
            self._note(f"The rest of the log of {self._reader.pod} cannot be read.")

    def _read_on(self, *, follow: bool) -> bool:
        """One reading. Returns whether it came to the end of what there is."""
        try:
            for one in self._reader.read(follow=follow):
                if isinstance(one, Line):
                    self._emit(one)
                else:
                    self._note(gap_text(self._reader.pod))
        except ClusterRejected as error:
            if is_final(error):
                raise
            if error.reason == "NotFound" and self._cut:
                self._note_once(f"The end of the log of {self._reader.pod} may be missing: the pod was deleted.")
            return True  # no such pod any more, or the container has not started (yet)
        except ClusterUnavailable as error:
            if not self._stop.is_set() and not self._cut:
                self._note_once(f"{error}; trying again")
            self._cut = True
            return False
        self._cut = False
        if self._reader.error:
            self._note_once(kubelet_text(self._reader))
        else:
            self._noted = ""
        return True

    def _note_once(self, text: str) -> None:
        """The same words again and again say nothing new."""
        if text != self._noted:
            self._noted = text
            self._note(text)


def is_final(error: ClusterRejected) -> bool:
    """Will no later moment change this answer: there is no right to read logs, or the pod has no such container?"""
    return error.reason == "Forbidden" or "is not valid for pod" in str(error)


def gap_text(pod: str) -> str:
    """What there is to say where lines may be missing."""
    return f"Lines of {pod} may be missing here: its node has rotated the log away."


def kubelet_text(reader: LogReader) -> str:
    """What there is to say where words of the kubelet's own stand in the place of lines."""
    return f"The kubelet says of {reader.pod}: {reader.error}"
