"""What the tests of the flow share: the lines that the program wrote."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from ottoscaler import logs
from tests.fakes.server import FakeRedis
from tests.schemas import faults


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
