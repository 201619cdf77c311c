"""The status page in a real Chromium: with a real controller, and with rows as the controller's adapters write them."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from ottoscaler.adapters.page_reader import PageReader
from ottoscaler.cli.page_source import PageSource
from ottoscaler.cli.status_page import guarded, pages_of
from ottoscaler.cli.worker_details import WorkerDetails
from ottoscaler.core.pods import AttemptKey, Phase, PodSnapshot
from ottoscaler.core.results import rfc3339
from ottoscaler.core.status_codes import WORKER_CODES, StatusCode
from ottoscaler.core.verdicts import EndReason
from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.ports import OpenTask, StatusUpdate
from ottoscaler.settings import Settings
from ottoscaler.stored import TaskNote, WorkerNote
from tests.adapters import web_server
from tests.cli.browser import PATIENCE_S, Browser, Tab, browser
from tests.cli.conftest import Controller as Acting
from tests.e2e.controller import Controller
from tests.fakes.wait import eventually
from tests.npm import installed

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=document.title='caught'>\u202e\x1b[31m"
SHOWN = "<img src=x onerror=document.title='caught'>\\u202e\\u001b[31m"
AXE = Path(__file__).with_name("package.json")
#: The pod of the first worker that `stand` writes.
POD = PodSnapshot(
    AttemptKey("0123456789", 1, 1), "pod-1", "uid", "7", "e", "i", Phase.RUNNING, 1767225600.0, node="n-1"
)
#: What keeps a person from using a page; less is advice.
SERIOUS = ("serious", "critical")


class System:
    """Redis, a cluster, and a controller that may be started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server, self.cluster = EmbeddedRedis(folder / "redis"), LocalCluster(folder / "cluster")
        self.server.start()
        self.cluster.start()
        self.client = redis.Redis(host=self.server.host, port=self.server.port, decode_responses=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.controller = self.start()

    def start(self) -> Controller:
        """A controller that takes events."""
        environ = {
            "REDIS_HOST": self.server.host, "REDIS_PORT": str(self.server.port), "REDIS_CONSUMER": "c",
            "KUBECONFIG": str(self.cluster.kubeconfig), "HTTP_PORT": str(self.port),
            "OTTO_AGENT_COMMAND": "sleep 600",
        }  # fmt: skip
        self.controller = Controller(self.folder, environ).ready()
        return self.controller

    def send(self, kind: str = "scale_up", **fields: str) -> None:
        """One event."""
        self.client.xadd("otto:scale:events", {"type": kind, **fields})  # type: ignore[arg-type]

    def close(self) -> None:
        self.controller.close()
        self.client.close()
        self.cluster.close()
        self.server.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all of them."""
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Started once."""
    with closing(System(tmp_path_factory.mktemp("page"))) as started:
        yield started


class Looked:
    """Details without a cluster: what a hostile worker writes."""

    def look(self, name: str) -> Mapping[str, Any]:
        """Of any pod."""
        lines = [f"line {number}" for number in range(19)]
        return {"lines": [*lines, HOSTILE], "note": "", "pulled_at": rfc3339(time.time()), "pulled": HOSTILE}


@contextmanager
def serving(settings: Settings, token: Path | None = None) -> Iterator[int]:
    """The page as the controller serves it, without a controller; yields its port."""
    with closing(PageReader(settings.redis, settings.keys)) as reader:
        pods = {POD.name: POD}
        source = PageSource(reader, lambda: {"health": ["a fault"], "live": 1, "max": 2}, lambda: pods)
        pages, viewers = pages_of(source, cast(WorkerDetails, Looked()))
        with web_server.serving(guarded(pages, str(token) if token else None), viewers) as port:
            yield port


@contextmanager
def shown(chromium: Browser, port: int) -> Iterator[Tab]:
    """A tab with the page, closed at the end: a hidden one would go on without one."""
    tab = chromium.tab()
    tab.open(f"http://127.0.0.1:{port}/")
    try:
        yield tab
    finally:
        tab.close()


def stand(acting: Acting, task: OpenTask, codes: dict[int, StatusCode]) -> None:
    """What the owner of a task writes of its workers, and of itself."""
    since, next_at = rfc3339(time.time() - 100), rfc3339(time.time() + 60)
    notes = {
        index: WorkerNote(code.facts.state, 1, f"pod-{index}", code=code, detail="words", since=since, next_at=next_at)
        for index, code in codes.items()
    }
    worst = min(codes.values(), key=lambda code: code.rank)
    of_task = TaskNote(worst.facts.why("words"), code=worst, since=since, next_at=next_at)
    acting.stream.write_status([StatusUpdate(task.event.event_id, task.owner, notes, of_task)])


def taken(acting: Acting, client: redis.Redis, settings: Settings, **fields: str) -> OpenTask:
    """A new task."""
    client.xadd(settings.keys.stream, {"type": "scale_up", **fields})  # type: ignore[arg-type]
    task = acting.take()
    assert task is not None
    return task


# -- with a real controller


def test_a_running_task_is_seen_to_end(system: System, chromium: Browser) -> None:
    """Without a reload, with the code and the time of each step of its worker."""
    with shown(chromium, system.port) as tab:
        tab.until("link", "Live")
        system.send(task_id="watched", repository="acme/shop", commit_sha="c0ffee")
        assert "acme/shop @ c0ffee" in tab.until("tasks", "watched")
        assert "Next: its deadline is at" in tab.until("workers", "the worker runs")
        tab.until("workers", "started +")
        tab.ask("document.querySelector('#workers button').focus()")
        tab.press("Enter", 13)
        times = tab.until("details-times", "pulled +")
        assert times.index("scheduled") < times.index("pulled") < times.index("started")
        assert "already present on machine" in tab.text("details-pulled")
        assert "LOG_HANDLER_ADDRESS" in tab.text("details-note")
        tab.press("Escape", 27)
        eventually(lambda: tab.ask("byId('details').open") is False, PATIENCE_S, "the details to be closed")
        system.send("scale_down", task_id="watched")
        timeline = tab.until("results", "ScaledDown")
        assert all(step in timeline for step in ("queued", "created", "scheduled", "started", "ended", "recorded"))
        eventually(lambda: "watched" not in tab.text("tasks"), PATIENCE_S, "the task to be gone from the open ones")


def test_a_dead_letter_shows_its_reason_and_no_markup(system: System, chromium: Browser) -> None:
    """What an event says is text, in every place, and what hides or turns text is written out."""
    before = len(chromium.complaints)
    with shown(chromium, system.port) as tab:
        system.send(task_id="bad", pod_count=HOSTILE, reason=HOSTILE)
        assert "img src=x onerror" in tab.until("dead", "pod_count")
        system.client.xadd(
            "otto:scale:results", {"kind": "worker", "outcome": "failed", "task_id": HOSTILE, "message": HOSTILE}
        )
        eventually(lambda: tab.text("results").count(SHOWN) == 3, PATIENCE_S, "both results")
        tab.type("find", HOSTILE.partition("'")[0])
        tab.until("found", "1 result,")
        assert tab.ask("[document.title, document.images.length]") == ["Ottoscaler", 0]
    assert chromium.complaints[before:] == []


def test_it_survives_a_restart_of_the_controller(system: System, chromium: Browser) -> None:
    """Meanwhile a banner says how old what is shown is; then all of it is new, and what was typed stays."""
    dead = "otto:scale:dead"
    letter = {"dead_reason": "Invalid", "group": "ottoscaler", "event_id": "goes"}
    gone = system.client.xadd(dead, letter)  # type: ignore[arg-type]
    with shown(chromium, system.port) as tab:
        tab.until("dead", gone)
        system.controller.process.send_signal(signal.SIGSTOP)
        tab.until("banner", "The controller sends nothing")
        assert "What is shown is" in tab.text("banner")
        system.controller.process.send_signal(signal.SIGCONT)
        tab.until("link", "Live")
        tab.type("find", "come")
        system.controller.kill()
        tab.until("link", "Not up to date")
        system.client.xdel(dead, gone)
        system.client.xadd(dead, letter | {"event_id": "comes"})  # type: ignore[arg-type]
        system.start()
        tab.until("link", "Live")
        assert "comes" in tab.until("dead", "comes")
        assert tab.ask("byId('banner').hidden") is True
        assert tab.ask("byId('find').value") == "come"
        tab.ask("byId('find').value = ''; byId('find').dispatchEvent(new Event('input'))")
        eventually(lambda: "comes" in tab.text("dead") and gone not in tab.text("dead"), PATIENCE_S, "the new letters")


# -- with rows as the adapters write them


def test_worst_comes_first_and_a_code_filters(
    chromium: Browser, controller: Acting, client: redis.Redis, settings: Settings
) -> None:
    """With the words of the table of codes; by keyboard."""
    stand(controller, taken(controller, client, settings, task_id="fine"), {1: StatusCode.RUNNING})
    codes = {1: StatusCode.RUNNING, 2: StatusCode.IMAGE_BACKOFF}
    stand(controller, taken(controller, client, settings, task_id="stuck", pod_count="2"), codes)
    with serving(settings) as port, shown(chromium, port) as tab:
        tab.until("link", "Live")
        assert tab.until("tasks", "fine").index("stuck") < tab.text("tasks").index("fine")
        facts = StatusCode.IMAGE_BACKOFF.facts
        first = tab.until("workers", "image backoff").partition("running")[0]
        assert facts.why("words") in first
        assert f"To do: {facts.advice}" in first
        assert facts.next_step("#").partition("#")[0] in first
        assert tab.ask("byId('codes').innerText").split("\n") == ["image backoff 1", "running 2"]
        tab.ask("document.querySelector('[data-code=running]').focus()")
        tab.press("Enter", 13)
        eventually(lambda: "image backoff" not in tab.text("workers"), PATIENCE_S, "the filter")
        assert tab.ask("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_the_search_finds_what_is_not_shown(chromium: Browser, client: redis.Redis, settings: Settings) -> None:
    """By repository, on the server."""
    for number in range(120):
        fields = {"kind": "task", "task_id": f"old-{number}", "outcome": "succeeded", "repository": f"acme/r{number}"}
        client.xadd(settings.keys.result_stream, fields)  # type: ignore[arg-type]
    with serving(settings) as port, shown(chromium, port) as tab:
        tab.until("results", "old-119")
        assert "old-3\n" not in tab.text("results")
        tab.type("find", "acme/r3")
        tab.until("results", "old-3\n")
        assert tab.text("found") == "Found: 0 tasks, 11 results, 0 dead letters"


def test_the_last_lines_of_a_worker_are_text(
    chromium: Browser, controller: Acting, client: redis.Redis, settings: Settings
) -> None:
    """Of the worker with the button that was pressed; what hides or turns text is written out."""
    before = len(chromium.complaints)
    stand(controller, taken(controller, client, settings, task_id="a"), {1: StatusCode.RUNNING})
    with serving(settings) as port, shown(chromium, port) as tab:
        tab.until("workers", POD.name)
        tab.ask("document.querySelector('#workers button').click()")
        lines = tab.until("details-lines", SHOWN).split("\n")
        assert (len(lines), lines[0]) == (20, "line 0")
        assert tab.text("details-title") == POD.name
        assert tab.text("details-pulled") == SHOWN
        assert tab.ask("[document.title, document.images.length]") == ["Ottoscaler", 0]
        assert tab.ask("document.documentElement.scrollWidth <= window.innerWidth") is True
    assert chromium.complaints[before:] == []


def test_a_token_is_asked_for(chromium: Browser, settings: Settings, tmp_path: Path) -> None:
    """It is kept for the tab alone, and in no address."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with serving(settings, token) as port, shown(chromium, port) as tab:
        tab.until("banner", "asks for its token")
        assert tab.ask("byId('main').hidden") is True
        tab.type("token", "wrong")
        tab.press("Enter", 13)
        tab.until("banner", "refuses this token")
        tab.type("token", "s3cret")
        tab.press("Enter", 13)
        tab.until("link", "Live")
        assert "s3cret" not in tab.ask("location.href + document.cookie + JSON.stringify(localStorage)")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_axe_finds_nothing_serious(
    chromium: Browser, controller: Acting, client: redis.Redis, settings: Settings, scheme: str, width: int
) -> None:
    """With rows of every kind, also while what is shown is old; contrast as WCAG AA asks."""
    codes = dict(enumerate((StatusCode.QUOTA, StatusCode.RUNNING, StatusCode.RETRY), start=1))
    stand(controller, taken(controller, client, settings, task_id="a", pod_count="3", repository="acme/x"), codes)
    controller.end(taken(controller, client, settings, pod_count="2"), EndReason.COMPLETED, EndReason.ERROR)
    taken_fields = {"type": "scale_up", "pod_count": "lots"}
    client.xadd(settings.keys.stream, taken_fields)  # type: ignore[arg-type]
    controller.take()
    axe = (installed(AXE, "page-tests") / "node_modules" / "axe-core" / "axe.min.js").read_text()
    with serving(settings) as port, shown(chromium, port) as tab:
        tab.emulate(scheme, width)
        tab.until("results", "Error")
        tab.until("workers", "quota")
        tab.ask(f"{axe}; undefined")
        tab.ask("document.querySelector('#workers button').click()")
        tab.until("details-lines", "line 0")
        opened = [one["id"] for one in tab.ask("axe.run()")["violations"] if one["impact"] in SERIOUS]
        assert opened == []
        tab.ask("byId('details').close()")
        for stale in (False, True):
            if stale:
                tab.ask("state.trouble = 'Redis is away'; byId('login').hidden = false; show()")
            found = tab.ask("axe.run({resultTypes: ['violations']})")["violations"]
            assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == []
            assert tab.ask("document.documentElement.scrollWidth <= window.innerWidth") is True


def test_a_thousand_workers_keep_no_task_of_the_page_long(
    chromium: Browser, controller: Acting, client: redis.Redis, settings: Settings
) -> None:
    """With 50 updates a second. Processor time: what else the machine does is no matter of the page."""
    tasks = [taken(controller, client, settings, task_id=f"t{n}", pod_count="50") for n in range(20)]
    for task in tasks:
        stand(controller, task, dict.fromkeys(range(1, 51), StatusCode.RUNNING))
    ends = threading.Event()

    def update() -> None:
        for step in range(1000):
            code = WORKER_CODES[step % len(WORKER_CODES)]
            stand(controller, tasks[step % len(tasks)], dict.fromkeys(range(1, 51), code))
            if ends.wait(1):
                return

    updating = threading.Thread(target=update)

    def look() -> None:
        with shown(chromium, port) as tab:
            tab.until("link", "Live")
            updating.start()
            for _ in range(8):
                tab.until("hour-text", "Workers that ended")
                ends.wait(1)
            assert tab.ask("Object.keys(state.sections.workers).length") == 1000
            assert tab.ask("document.querySelectorAll('*').length") < 3000

    with serving(settings) as port:
        try:
            times = chromium.tasks_of_main_threads(look)
        finally:
            ends.set()
            updating.join(PATIENCE_S)
    print("the longest, ms:", times[-8:])
    assert len(times) > 100
    # The start of the process and its first frame, which loads fonts, are some; one of each update would be eight.
    assert sum(each > 50 for each in times) <= 3
