"""What the tests of the flow share: the lines that the program wrote."""

from __future__ import annotations

import io
import json

import pytest

from ottoscaler import logs


class Lines:
    """The log, as operators read it. Any thread."""

    def __init__(self) -> None:
        self._out = io.StringIO()
        logs.setup("DEBUG", "json", self._out)

    def all(self) -> list[dict[str, object]]:
        """Every line, decoded."""
        return [json.loads(line) for line in self._out.getvalue().splitlines() if line.endswith("}")]

    def of(self, event: str) -> list[str]:
        """The messages of one event, in their order."""
        return [str(line["message"]) for line in self.all() if line["event"] == event]


@pytest.fixture
def log() -> Lines:
    """The program's log, in memory."""
    return Lines()
