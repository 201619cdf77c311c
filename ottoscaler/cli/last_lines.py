"""The last lines of a log, without secrets.

It is imported only when a viewer asks for a log: otherwise the controller has nothing of the log forwarder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ottoscaler.forwarder.lines import Gap, Line
from ottoscaler.forwarder.masking import FormMasker, mask_line, policy_forms
from ottoscaler.forwarder.pod_log import PodLogReader, Position


class LastLines:
    """The end of one log, from the bytes of the API's answer. One thread."""

    def __init__(self, masks: Sequence[str], *, lines: int, line_bytes: int) -> None:
        """Arguments: what the policy masks; how many lines are kept, and how many bytes of each."""
        self._reader, self._masker = PodLogReader(Position()), FormMasker(policy_forms(masks))
        self._line_bytes = line_bytes
        self._last: deque[str] = deque(maxlen=lines)

    @property
    def error(self) -> str:
        """The kubelet's error text, where one stood in the place of lines."""
        return self._reader.error

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._keep(self._reader.feed(data))

    def finish(self) -> Sequence[str]:
        """The answer has ended: the lines, the newest last."""
        self._keep(self._reader.end())
        return list(self._last)

    def _keep(self, found: Iterable[Line | Gap]) -> None:
        for one in found:
            if isinstance(one, Line):
                text = mask_line(one, self._masker).text
                cut = "..." if len(text) > self._line_bytes else ""
                self._last.append(text[: self._line_bytes].decode(errors="replace") + cut)
