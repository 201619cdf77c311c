"""A web server in a thread, for tests that are its clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ottoscaler.adapters.viewers import Viewers
from ottoscaler.adapters.web import Page, WebServer
from ottoscaler.flow.stop import StopSignal
from ottoscaler.settings import WebSettings
from tests.fakes.clock import SystemClock
from tests.fakes.wait import PATIENCE_S, eventually


@contextmanager
def serving(
    pages: Mapping[str, Page], viewers: Viewers | None = None, *, address: str = "127.0.0.1", end_s: float = PATIENCE_S
) -> Iterator[int]:
    """Serve these pages; yields the port. At the end no thread is left, at the latest after `end_s` seconds."""
    before, stop = threading.active_count(), StopSignal()
    web = WebServer(WebSettings(port=0, address=address), pages, viewers)
    stop.spawn("web", web.run)
    try:
        yield web.port
    finally:
        stop.set()
        web.close()
        assert stop.join(SystemClock(), SystemClock().now() + end_s) == []
        eventually(lambda: threading.active_count() <= before, end_s, "the threads to end")
    assert stop.cause is None
