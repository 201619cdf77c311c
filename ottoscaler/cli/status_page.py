"""The status page: what its paths answer, and what this process adds to what Redis says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

from ottoscaler.adapters.http_token import HttpToken
from ottoscaler.adapters.page_files import page_files
from ottoscaler.adapters.page_reader import PageReader
from ottoscaler.adapters.viewers import Viewers
from ottoscaler.adapters.web import Page, WebRequest, WebResponse
from ottoscaler.cli.page_source import PageSource
from ottoscaler.cli.worker_details import WorkerDetails
from ottoscaler.core.pods import PodSnapshot
from ottoscaler.errors import ConfigError, Unavailable
from ottoscaler.flow.health import Health
from ottoscaler.flow.registry import PodRegistry
from ottoscaler.settings import Settings

#: Longest text that is searched for, characters.
MOST_CHARACTERS: Final = 200
#: What no token is asked for: probes, and the files of the page, which say nothing about any task.
_OPEN: Final = frozenset({"/livez", "/readyz", "/", "/page.css", "/page.js"})
_NO_TOKEN: Final = WebResponse(b"the token of HTTP_TOKEN_FILE is needed\n", 401, headers={"WWW-Authenticate": "Bearer"})


def status_page(
    settings: Settings, health: Health, registry: PodRegistry, masks: Callable[[], Sequence[str]] = tuple
) -> tuple[Mapping[str, Page], Viewers]:
    """Path -> page, and the viewers, which are to be closed in the end. `masks`: what the policy masks in logs, now."""
    # its connections are opened for the first viewer
    reader = PageReader(settings.redis, settings.keys)
    source = PageSource(reader, lambda: _own_figures(settings, health, registry), lambda: _pods(registry))
    return pages_of(source, WorkerDetails(settings, lambda: _pods(registry), masks))


def pages_of(source: PageSource, details: WorkerDetails) -> tuple[Mapping[str, Page], Viewers]:
    """The same, of what this source and these details read."""
    viewers = Viewers(source.look)
    pages: dict[str, Page] = {
        **page_files(),
        "/stream": lambda _: WebResponse(b"", viewers=viewers),
        "/search": lambda request: _search(source, request),
        "/worker": lambda request: _worker(details, request),
    }
    return pages, viewers


def guarded(pages: Mapping[str, Page], token_file: str | None) -> Mapping[str, Page]:
    """The same pages; where there is a token, those that say something about tasks answer only to a request with it."""
    if token_file is None:
        return pages
    token = HttpToken(token_file)

    def ask_first(page: Page) -> Page:
        return lambda request: page(request) if token.accepts(request.headers.get("authorization", "")) else _NO_TOKEN

    return {path: page if path in _OPEN else ask_first(page) for path, page in pages.items()}


def _own_figures(settings: Settings, health: Health, registry: PodRegistry) -> Mapping[str, Any]:
    wrong = [*health.livez(), *health.readyz()]
    return {"health": wrong, "live": registry.owned_live_count, "max": settings.flow.max_workers}


def _pods(registry: PodRegistry) -> Mapping[str, PodSnapshot]:
    """The pods of all replicas, as far as this process has seen them, by their names."""
    return {pod.name: pod for pod in registry.snapshots()}


def _search(source: PageSource, request: WebRequest) -> WebResponse:
    return _answer(request, "q", source.search)


def _worker(details: WorkerDetails, request: WebRequest) -> WebResponse:
    return _answer(request, "pod", details.look)


def _answer(request: WebRequest, field: str, look: Callable[[str], Mapping[str, Any] | None]) -> WebResponse:
    """What a look finds for this field of the query, as JSON; 404 where it finds nothing."""
    try:
        text = parse_qs(request.query[:2000], max_num_fields=8).get(field, [""])[0][:MOST_CHARACTERS]
        found = look(text)
    except ValueError:
        return WebResponse(b"too many fields in the query\n", 400)
    except (Unavailable, ConfigError) as error:
        return WebResponse(f"{error}\n".encode(), 503)
    if found is None:
        return WebResponse(b"this replica knows no such pod (any more)\n", 404)
    return WebResponse(json.dumps(found).encode(), content_type="application/json")
