"""The viewers of the status page: everything first, then what changes; few places; no viewer is waited for."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import pytest

from ottoscaler.adapters import viewers as viewers_module
from ottoscaler.adapters.page_files import page_files
from ottoscaler.adapters.viewers import MOST_VIEWERS, Viewers, _Viewer
from ottoscaler.adapters.web import Page, WebResponse
from ottoscaler.core.page_changes import PageState, changes, full
from ottoscaler.errors import RedisUnavailable
from tests.adapters.web_server import serving
from tests.fakes.wait import eventually

pytestmark = pytest.mark.timeout(60)


class World:
    """What is looked at."""

    def __init__(self) -> None:
        self.state: PageState = {"tasks": {"a": {"n": 1}}}
        self.error = ""
        self.looks = 0

    def look(self) -> PageState:
        self.looks += 1
        if self.error:
            raise RedisUnavailable(self.error)
        return self.state


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """It is looked at often, so that a test is short."""
    monkeypatch.setattr(viewers_module, "LOOK_EVERY_S", 0.02)
    return World()


def pages_for(viewers: Viewers) -> Mapping[str, Page]:
    """The page, and its stream for these viewers."""
    return {**page_files(), "/stream": lambda _: WebResponse(b"", viewers=viewers)}


class Browser:
    """Reads the stream as a browser does."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self.connection.request("GET", "/stream")
        self.answer = self.connection.getresponse()

    def message(self) -> tuple[str, Any]:
        """The next event and what it says."""
        lines: list[str] = []
        while (raw := self.answer.readline()).rstrip(b"\n"):
            lines.append(raw.decode().rstrip("\n"))
        assert raw, "the stream has ended"
        return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))

    def until(self, kind: str) -> Any:
        """What the next event of this kind says."""
        while True:
            found, data = self.message()
            if found == kind:
                return data

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.fixture
def viewers(world: World) -> Viewers:
    """Of that world."""
    return Viewers(world.look)


@pytest.fixture
def port(viewers: Viewers) -> Iterator[int]:
    """Where they come to."""
    with serving(pages_for(viewers), viewers) as found:
        yield found


def test_everything_comes_first_and_then_what_changes(port: int, world: World) -> None:
    """New and changed rows, and null for those that are gone."""
    with closing(Browser(port)) as browser:
        assert browser.answer.headers["Content-Type"] == "text/event-stream"
        assert browser.message() == ("full", {"tasks": {"a": {"n": 1}}})
        assert browser.until("tick") == {"trouble": ""}
        world.state = {"tasks": {"b": {"n": 2}}, "dead": {"d": ["x"]}}
        assert browser.until("change") == {"tasks": {"a": None, "b": {"n": 2}}, "dead": {"d": ["x"]}}


def test_a_row_that_was_made_again_is_no_change() -> None:
    """Only what it says counts."""
    assert changes({"tasks": {"a": {"n": 1}}}, {"tasks": {"a": {"n": 1}}}) == b""
    assert changes({"tasks": {"a": {"n": 1}}}, {"tasks": {"a": {"n": 2}}}) != b""


def test_a_later_viewer_begins_with_everything_too(port: int, world: World) -> None:
    """Whatever others have seen."""
    with closing(Browser(port)) as first:
        first.until("full")
        world.state = {"tasks": {"b": {"n": 2}}}
        first.until("change")
        with closing(Browser(port)) as second:
            assert second.message() == ("full", {"tasks": {"b": {"n": 2}}})


def test_nothing_is_looked_at_without_a_viewer(port: int, world: World, viewers: Viewers) -> None:
    """Neither before the first nor after the last; the next one is served again."""
    assert world.looks == 0
    for _ in range(3):
        with closing(Browser(port)) as browser:
            browser.until("full")
            assert [each for each in threading.enumerate() if each.name == "web-request"]
        eventually(lambda: viewers.count == 0, 20, "the viewer to be gone")
    looks = world.looks
    eventually(lambda: not [each for each in threading.enumerate() if each.name == "web-request"], 20, "no thread")
    assert world.looks == looks


@pytest.mark.parametrize(("took_s", "pause_s"), [(0, 1), (0.005, 1), (0.01, 2), (0.015, 3), (1, 3)])
def test_looks_that_take_long_are_fewer(took_s: float, pause_s: float) -> None:
    """They take 0.5 % of a processor, as long as that leaves one every 3 s: what is older than 5 s is called old."""
    assert viewers_module.pause_after(took_s) == pytest.approx(pause_s)


@pytest.mark.parametrize(
    ("sent", "end", "left"),
    [(b"", "", False), (b"x", "", False), (b"", "closed", True), (b"", "reset", True)],
)
def test_a_viewer_has_left_when_its_end_is_closed(sent: bytes, end: str, left: bool) -> None:
    """What it sends is forgotten."""
    ours, its = socket.socketpair()
    ours.setblocking(False)
    with ours, its:
        its.sendall(sent)
        if end == "reset":  # as a socket ends that was not read to its end
            ours.sendall(b"unread")
        if end:
            its.close()
        assert _Viewer(ours).has_left() is left


@pytest.mark.parametrize(
    ("full_buffer", "without_progress_s", "kept"),
    [(False, 0, True), (False, 100, True), (True, 0, True), (True, 9, True), (True, 11, False)],
)
def test_a_viewer_is_kept_while_it_takes_something(
    monkeypatch: pytest.MonkeyPatch, full_buffer: bool, without_progress_s: float, kept: bool
) -> None:
    """Given up only if something waits for it and nothing went out for STALLED_S."""
    assert viewers_module.STALLED_S == 10
    now = [1000.0]
    monkeypatch.setattr(viewers_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ours, its = socket.socketpair()
    ours.setblocking(False)
    with ours, its:
        viewer = _Viewer(ours)
        viewer.add(bytes(viewers_module.MOST_BYTES) if full_buffer else b"x")
        assert viewer.send()
        assert viewer.waits is full_buffer
        now[0] += without_progress_s
        assert viewer.send() is kept


def test_while_nothing_is_known_no_row_is_shown(port: int, world: World, viewers: Viewers) -> None:
    """A queue that cannot be read is not an empty one; what was known stays, with the reason."""
    world.error = "Redis is away"
    with closing(Browser(port)) as browser:
        assert browser.message() == ("tick", {"trouble": "Redis is away"})
        world.error = ""
        assert browser.until("full") == {"tasks": {"a": {"n": 1}}}
        world.error = "Redis is away again"
        eventually(lambda: browser.until("tick")["trouble"], 20, "the reason")
        world.error = ""
        eventually(lambda: not browser.until("tick")["trouble"], 20, "its end")
    eventually(lambda: viewers.count == 0, 20, "the viewer to be gone")
    world.error = "Redis is away"
    with closing(Browser(port)) as browser:  # what the earlier one was shown is not known any more
        assert browser.message() == ("tick", {"trouble": "Redis is away"})


def test_a_viewer_that_sends_something_stays(port: int, world: World, viewers: Viewers) -> None:
    """What it sends is no end."""
    with closing(socket.create_connection(("127.0.0.1", port), 20)) as talkative:
        talkative.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        assert talkative.recv(100)
        talkative.sendall(b"x")
        looks = world.looks
        eventually(lambda: world.looks > looks + 2, 20, "more looks")
        assert viewers.count == 1


def test_the_seventeenth_gets_a_sentence(port: int, viewers: Viewers) -> None:
    """And a probe an answer, however many look; a place that gets free is given again."""
    with ExitStack() as stack:
        for _ in range(MOST_VIEWERS):
            stack.enter_context(closing(Browser(port))).until("full")
        refused = Browser(port)
        assert refused.answer.status == 503
        assert b"16 people look at this page already" in refused.answer.read()
        refused.close()
        probe = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(20):
            probe.request("GET", "/page.css")
            assert probe.getresponse().read()
            probe.close()
    eventually(lambda: viewers.count == 0, 20, "all of them to be gone")
    with closing(Browser(port)) as browser:
        browser.until("full")


def test_one_that_reads_nothing_is_dropped(
    port: int, world: World, viewers: Viewers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And delays no other."""
    monkeypatch.setattr(viewers_module, "MOST_BYTES", 1_000_000)
    with closing(socket.create_connection(("127.0.0.1", port))) as slow, closing(Browser(port)) as other:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        eventually(lambda: viewers.count == 2, 20, "both")
        other.until("full")  # what was there before is no change to it
        for number in range(2000):
            if viewers.count == 1:
                break
            world.state = {"tasks": {"a": {"n": number, "text": "x" * 100_000}}}
            other.until("change")
        assert viewers.count == 1


def test_one_that_stalls_is_dropped(port: int, world: World, viewers: Viewers, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without progress, however little is kept for it."""
    monkeypatch.setattr(viewers_module, "STALLED_S", 0.2)
    world.state = {"tasks": {"a": {"text": "x" * 6_000_000}}}
    with closing(socket.create_connection(("127.0.0.1", port))) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        eventually(lambda: world.looks > 0, 20, "it to be there")
        eventually(lambda: viewers.count == 0, 20, "it to be dropped")


def test_a_defect_ends_the_viewers_and_nothing_else(port: int, world: World, viewers: Viewers) -> None:
    """They come again, and are served."""

    def fail() -> PageState:
        raise KeyError("a defect")

    look, viewers._read_state = viewers._read_state, fail
    with closing(Browser(port)) as browser:
        assert browser.answer.read() == b""
    eventually(lambda: viewers.count == 0, 20, "it to be gone")
    viewers._read_state = look
    with closing(Browser(port)) as browser:
        browser.until("full")


def test_the_end_of_the_server_ends_them(world: World) -> None:
    """No thread is left (see `serving`)."""
    viewers = Viewers(world.look)
    with serving(pages_for(viewers), viewers) as port:
        browser = Browser(port)
        browser.until("full")
    browser.close()
    assert not viewers.reserve()


def test_many_come_and_go_at_once(port: int, viewers: Viewers) -> None:
    """No place is lost."""

    def come() -> None:
        for _ in range(10):
            with closing(Browser(port)) as browser:
                if browser.answer.status == 200:
                    browser.until("tick")

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    eventually(lambda: viewers.count == 0, 20, "all of them to be gone")


def test_what_changes_is_small() -> None:
    """Nothing for equal states; 1,000 workers of which 50 change are 50 rows."""
    old = {"workers": {str(n): {"n": n} for n in range(1000)}}
    new = {"workers": {**old["workers"], **{str(n): {"n": -n} for n in range(1, 51)}}}
    assert changes(old, old) == b""
    data = json.loads(changes(old, new).split(b"data: ")[1])
    assert len(data["workers"]) == 50
    assert full(old).startswith(b"event: full\ndata: {")


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js"])
def test_a_file_of_the_page_runs_nothing_but_ours(port: int, path: str) -> None:
    """No inline script, no other server, no frame."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read().decode()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not {"innerHTML", "insertAdjacent", "document.write", "eval(", "onclick", "style="} & set(body.split())
    assert "http://www.w3.org" in body or "http" not in body
    connection.close()
