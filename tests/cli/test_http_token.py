"""HTTP_TOKEN_FILE: what asks for the token, and which is taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ottoscaler.adapters.http_token import CACHE_S, HttpToken
from ottoscaler.adapters.web import Page, WebRequest, WebResponse
from ottoscaler.cli.status_page import guarded
from tests.fakes.wait import eventually


def _pages() -> Mapping[str, Page]:
    paths = ("/", "/page.js", "/page.css", "/livez", "/readyz", "/metrics", "/stream", "/search")
    return {path: lambda _: WebResponse(b"x") for path in paths}


@pytest.mark.contract("2.HTTP_TOKEN_FILE")
@pytest.mark.parametrize(
    ("given", "status"),
    [("", 401), ("Bearer", 401), ("Bearer wrong", 401), ("Basic s3cret", 401), ("s3cret", 401), ("Bearer s3cret", 200)],
)
def test_a_token_guards_what_speaks_of_tasks(tmp_path: Path, given: str, status: int) -> None:
    """Probes and the files of the page are open."""
    (tmp_path / "token").write_text("s3cret\n")
    pages = guarded(_pages(), str(tmp_path / "token"))
    answers = {path: page(WebRequest("", {"authorization": given})).status for path, page in pages.items()}
    secret = {"/metrics", "/stream", "/search"}
    assert {path for path, answer in answers.items() if answer != 200} == (secret if status == 401 else set())
    assert guarded(_pages(), None).keys() == pages.keys()


def test_a_token_may_be_changed_and_none_opens_nothing(tmp_path: Path) -> None:
    """Its file is read again; an empty one, or none, accepts nothing."""
    path = tmp_path / "token"
    path.write_text("one")
    token = HttpToken(str(path))
    assert token.accepts("Bearer one")
    path.write_text("two")
    eventually(lambda: token.accepts("Bearer two"), CACHE_S + 20, "the new token")
    assert not token.accepts("Bearer one")
    path.write_text("\n")
    eventually(lambda: not token.accepts("Bearer two"), CACHE_S + 20, "the empty file to count")
    assert not token.accepts("Bearer ")
    path.unlink()
    eventually(lambda: not token.accepts("Bearer two"), CACHE_S + 20, "the missing file to count")
