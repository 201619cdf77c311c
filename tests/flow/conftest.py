"""What the tests of the flow share: the lines that the program wrote."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from ottoscaler import logs
from tests.fakes.server import FakeRedis
from tests.log_lines import CheckedLines
from tests.schemas import faults


class Lines:
    """The log, as operators read it. Any thread."""

    def __init__(self) -> None:
        self._out = io.StringIO()
        logs.setup("DEBUG", "json", self._out, instance="ottoscaler", consumer="c1")

    def all(self) -> list[dict[str, object]]:
        """Every line, decoded."""
        return [json.loads(line) for line in self._out.getvalue().splitlines() if line.endswith("}")]

    def of(self, event: str) -> list[str]:
        """The messages of one event, in their order."""
        return [str(line["message"]) for line in self.lines(event)]

    def lines(self, event: str) -> list[dict[str, object]]:
        """The lines of one event, in their order."""
        return [line for line in self.all() if line["event"] == event]


@pytest.fixture
def log() -> Lines:
    """The program's log, in memory."""
    return Lines()


@pytest.fixture(autouse=True)
def _lines_as_published() -> Iterator[None]:
    """Each line of the log that a test makes is as deploy/schemas says, and says its error once."""
    with CheckedLines() as lines:
        yield
    assert lines.faults() == []


@pytest.fixture(autouse=True)
def _as_published(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each result and each dead letter that is left at the end of a test is as deploy/schemas says."""
    servers: list[FakeRedis] = []
    initialise = FakeRedis.__init__

    def noted(self: FakeRedis, *args: object, **options: object) -> None:
        servers.append(self)
        initialise(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeRedis, "__init__", noted)
    yield
    for server in servers:
        assert [(entry, found) for entry in server.results() if (found := faults("result", entry))] == []
        assert [(entry, found) for entry in server.dead_letters() if (found := faults("dead_letter", entry))] == []
