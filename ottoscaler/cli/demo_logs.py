"""The demo's log handler: the reference handler as a process beside it, to which the controller streams.

Without the packages of the forwarder there is none, and the demo goes on without lines.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from ottoscaler.cli.log_forwarding import missing_packages
from ottoscaler.cli.system import SCRIPT
from ottoscaler.local.guard import GuardedProcess

#: How long the handler may take to listen, seconds: it imports gRPC, on a machine that starts all the rest as well.
START_S: Final = 30.0
_LOOK_S: Final = 0.05
#: What `handler` prints: where it listens, and each line with its worker's pod.
_LISTENS: Final = re.compile(r"^Log handler listens on (\S+) ", re.MULTILINE)
_LINE: Final = re.compile(r"(\S+) (?:combined|stdout|stderr): (.*)", re.DOTALL)
#: The end entry of a log is a remark of the sender's, so its source may be another one than that of the lines.
_END: Final = re.compile(r"end of log: [0-9]+ lines?, [0-9]+ dropped")


class DemoLogs:
    """The lines of the workers, as they come. One thread; a context manager that starts the handler and ends it."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where the handler's output goes."""
        self._output = folder / "handler.log"
        self._place = 0
        self._missing = missing_packages()
        # It chooses the port itself: one that was free a moment ago may be taken when the handler comes to it.
        command = [sys.executable, str(SCRIPT), "handler", "--address", "127.0.0.1:0"]
        self._process = GuardedProcess(command, log=self._output)
        self._address = ""
        self.ended: set[str] = set()
        """Pods with a log that has come to its end."""

    def __enter__(self) -> DemoLogs:
        """Raises LocalSystemError when the handler does not listen within START_S."""
        if self._missing:
            return self
        with ExitStack() as opened:
            opened.callback(self._process.close)
            self._process.start()
            self._address = self._await_address()
            opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.close()

    @property
    def is_on(self) -> bool:
        """Whether there is a handler."""
        return not self._missing and self._process.exit_code is None

    @property
    def environ(self) -> dict[str, str]:
        """What the controller needs of it."""
        return {"LOG_HANDLER_ADDRESS": self._address} if self._address else {}

    @property
    def advice(self) -> str:
        """Why there are no lines; empty: there are."""
        if not self._missing:
            return ""
        return (
            f"The workers' lines are not shown: {', '.join(self._missing)} is not installed "
            "(ottoscaler/forwarder/requirements.txt)."
        )

    def new_lines(self) -> Sequence[str]:
        """What has come since the last call: the pod and its line."""
        if not self._output.exists():
            return []
        with self._output.open("rb") as file:
            file.seek(self._place)
            whole = file.read().rpartition(b"\n")[0]
        self._place += len(whole) + 1 if whole else 0
        found = []
        for text in whole.decode(errors="replace").split("\n"):
            if (line := _LINE.fullmatch(text)) is None:
                continue
            if _END.fullmatch(line[2]):
                self.ended.add(line[1])
            else:
                found.append(f"{line[1]} | {line[2]}")
        return found

    def _await_address(self) -> str:
        pause, until = threading.Event(), time.monotonic() + START_S
        while True:
            text = self._output.read_text(errors="replace") if self._output.exists() else ""
            if found := _LISTENS.search(text):
                return found[1]
            if self._process.exit_code is not None or time.monotonic() >= until:
                raise self._process.failure("the log handler did not start")
            pause.wait(_LOOK_S)
