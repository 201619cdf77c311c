"""The files of the status page, as they are sent: read once, with what keeps a browser from running anything else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ottoscaler.adapters.web import Page, WebResponse

_FOLDER: Final = Path(__file__).with_name("page")
#: No script but ours, nothing inline, no other server, no frame, no form; text that a script puts into markup is
#: refused by the browser (https://www.w3.org/TR/trusted-types/).
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}
_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def page_files() -> Mapping[str, Page]:
    """Path -> what answers it."""
    return {"/": _file("page.html"), "/page.css": _file("page.css"), "/page.js": _file("page.js")}


def _file(name: str) -> Page:
    kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    answer = WebResponse((_FOLDER / name).read_bytes(), content_type=kind, headers=_HEADERS)
    return lambda _: answer
