"""What the status page reads of Redis, on the embedded server: bounded, and nothing that it does not show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, cast

import msgspec
import pytest
import redis

from ottoscaler.adapters.page_reader import PageReader
from ottoscaler.cli import page_source
from ottoscaler.cli.explanation import explain
from ottoscaler.cli.page_source import PageSource
from ottoscaler.core.pods import AttemptKey, Phase, PodSnapshot
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.verdicts import EndReason
from ottoscaler.ports import StatusUpdate
from ottoscaler.settings import Settings
from ottoscaler.stored import TaskNote, WorkerNote
from tests.cli.conftest import Controller

POD = PodSnapshot(
    AttemptKey("0123456789", 1, 1), "otto-agent-x-1", "uid", "7", "e", "i", Phase.PENDING, 1767225600.0, node="n-1"
)


@pytest.fixture
def page_reader(settings: Settings) -> Iterator[PageReader]:
    """The reader of the page."""
    with closing(PageReader(settings.redis, settings.keys)) as reader:
        yield reader


@pytest.fixture
def source(page_reader: PageReader) -> PageSource:
    """With what a process would know."""
    return PageSource(page_reader, lambda: {"health": [], "live": 1, "max": 2}, lambda: {POD.name: POD})


def test_an_empty_queue_is_shown_as_one(source: PageSource) -> None:
    """Each figure is there."""
    state = source.look()
    summary = state["summary"][""]
    assert {name: summary[name] for name in ("unread", "pending", "open", "dead", "live")} == {
        "unread": 0, "pending": 0, "open": 0, "dead": 0, "live": 1,
    }  # fmt: skip
    assert summary["hour"] == [0] * 60
    assert [state[name] for name in ("tasks", "workers", "results", "dead")] == [{}, {}, {}, {}]


def test_a_task_is_followed_to_its_end(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """Open, with the times of its pod; then as results of which one is the task's."""
    client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "2", "task_id": "t", "event_id": "e"})
    assert source.look()["summary"][""]["unread"] == 1
    task = controller.take()
    assert task is not None
    controller.start(task, 1)
    state = source.look()
    assert state["tasks"]["e"]["task"] == "t"
    assert state["tasks"]["e"]["workers"] == {"creating": 1, "waiting": 1}
    worker = state["workers"]["e/1"]
    assert (worker["created_at"], worker["node"], worker["code"]) == ("2026-01-01T00:00:00.000Z", "n-1", "creating")
    assert "started_at" not in worker
    controller.end(task, EndReason.COMPLETED, EndReason.ERROR)
    state = source.look()
    assert state["tasks"] == {}
    assert sorted(row["kind"] for row in state["results"].values()) == ["task", "worker", "worker"]
    assert all(row["recorded_at"] for row in state["results"].values())
    assert state["summary"][""]["hour"][-2:] in ([0, 2], [2, 0])
    assert sum(source.look()["summary"][""]["hour"]) == 2


def test_the_row_of_a_worker_is_made_again_only_when_it_changes(
    page_reader: PageReader, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """With what is stored of it, with its pod, and with its task: a wiped Redis may have an event of that id again."""
    pods = {POD.name: POD}
    source = PageSource(page_reader, dict, lambda: pods)
    for _ in range(2):
        client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "2", "task_id": "t", "event_id": "e"})
        task = controller.take()
        assert task is not None
        controller.start(task, 1)
        controller.start(task, 2)
        before = source.look()["workers"]
        assert {before[key]["received_at"] for key in ("e/1", "e/2")} == {task.received_at}
        again = source.look()["workers"]
        assert all(again[key] is before[key] for key in ("e/1", "e/2"))
        note = WorkerNote("running", 1, POD.name, code=StatusCode.RUNNING, since="2026-01-01T00:00:01.000Z")
        of_task = TaskNote("", code=StatusCode.RUNNING)
        controller.stream.write_status([StatusUpdate("e", task.owner, {1: note}, of_task)])
        after = source.look()["workers"]
        assert (after["e/1"]["code"], after["e/2"]) == ("running", before["e/2"])
        pods[POD.name] = msgspec.structs.replace(POD, started_at=1767225601.0)
        assert source.look()["workers"]["e/1"]["started_at"] == "2026-01-01T00:00:01.000Z"
        pods[POD.name] = POD
        client.delete(*client.keys(f"{settings.keys.prefix}*"))
        controller.stream.ensure_group()


def test_the_row_of_a_task_is_made_again_only_when_it_changes(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """With what is stored of it, and when its lease has run out, which nothing that is stored of it says."""
    client.xadd(settings.keys.stream, {"type": "scale_up", "event_id": "e"})
    task = controller.take()
    assert task is not None
    before = source.look()["tasks"]["e"]
    assert source.look()["tasks"]["e"] is before
    client.zincrby(f"{settings.keys.prefix}open", 5000, "e")
    assert source.look()["tasks"]["e"] is before
    controller.stream.write_status([StatusUpdate("e", task.owner, {}, TaskNote("so it is", code=StatusCode.QUOTA))])
    noted = source.look()["tasks"]["e"]
    assert (noted["why"], noted["code"]) == ("so it is", "quota")
    client.zadd(f"{settings.keys.prefix}open", {"e": 1000})
    assert source.look()["tasks"]["e"]["code"] == "lease_expired"


def test_a_result_says_whether_its_pod_is_there(
    page_reader: PageReader, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """A failed pod is kept for a while."""
    pods = {"": POD}
    source = PageSource(page_reader, dict, lambda: pods)
    client.xadd(settings.keys.result_stream, {"kind": "worker", "outcome": "failed", "pod": POD.name})
    (before,) = source.look()["results"].values()
    pods[POD.name] = POD
    (kept,) = source.look()["results"].values()
    (again,) = source.look()["results"].values()
    pods.clear()
    (after,) = source.look()["results"].values()
    assert ["has_pod" in row for row in (before, kept, after)] == [False, True, False]
    assert again is kept


def test_a_look_reads_a_task_of_one_worker_once(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """And all of them in one call: a command costs this process more than what it reads."""

    for _ in range(40):
        client.xadd(settings.keys.stream, {"type": "scale_up"})
        task = controller.take()
        assert task is not None
        controller.start(task, 1)
    source.look()  # that reads what the events pass on, which never changes
    client.config_resetstat()
    assert len(source.look()["tasks"]) == 40
    stats = cast("Mapping[str, Any]", client.info("commandstats"))
    calls = {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("hmget", "evalsha")}
    assert calls == {"hmget": 40, "evalsha": 1}  # the script's own reads are counted as well


def test_a_key_that_is_no_task_hides_no_other(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """Only a person can have put it there."""
    client.xadd(settings.keys.stream, {"type": "scale_up", "event_id": "e"})
    controller.take()
    client.set(f"{settings.keys.prefix}task:x", "a text")
    client.zadd(f"{settings.keys.prefix}open", {"x": 1, "gone": 1})
    assert list(source.look()["tasks"]) == ["e"]


def test_workers_are_read_up_to_a_bound(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks behind it are shown without them; the count is of all."""
    monkeypatch.setattr(page_source, "MOST_WORKERS", 3)
    monkeypatch.setattr(page_source, "MOST_TASKS", 2)
    for number in range(3):
        client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "2", "event_id": f"e{number}"})
        task = controller.take()
        assert task is not None
        for index in (1, 2):
            controller.start(task, index)
    state = source.look()
    assert len(state["workers"]) == 3
    assert len(state["tasks"]) == 2
    assert state["summary"][""]["open"] == 3


def test_the_event_itself_is_not_sent(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """It may be large, and hold what is meant for the worker alone."""
    client.xadd(settings.keys.stream, {"type": "scale_up", "reason": "for the worker alone"})
    controller.take()
    assert "for the worker alone" not in json.dumps(source.look())


def test_a_dead_letter_is_shown_with_its_reason(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings
) -> None:
    """The newest first."""
    client.xadd(settings.keys.stream, {"type": "scale_up", "pod_count": "lots", "event_id": "bad"})
    controller.take()
    [row] = source.look()["dead"].values()
    assert (row["reason"], row["event"]) == ("Invalid", "bad")
    assert "pod_count" in row["detail"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("ACME", ["a", "b"]), ("ACME/X", ["b"]), ("deadbeef", ["a"]), ("nothing", []), ("<b>", [])],
)
def test_a_search_looks_at_more_than_is_shown(
    source: PageSource, client: redis.Redis, settings: Settings, text: str, found: list[str]
) -> None:
    """By task, event, repository and commit; failures first, and without regard to case."""
    rows: list[Mapping[str, str]] = [
        {"task_id": "b", "outcome": "succeeded", "repository": "acme/x"},
        {"task_id": "a", "outcome": "failed", "repository": "Acme/y", "commit_sha": "deadbeef"},
    ]
    for row in rows:
        client.xadd(settings.keys.result_stream, {"kind": "task", **row})  # type: ignore[arg-type]
    answer = source.search(text)
    assert [row["task_id"] for row in answer["results"].values()] == found


@pytest.mark.parametrize("lease_is_over", [False, True])
def test_a_task_is_where_explain_says(
    source: PageSource, page_reader: PageReader, controller: Controller, client: redis.Redis, settings: Settings,
    lease_is_over: bool,
) -> None:  # fmt: skip
    """Code, words and times are the same, also those of a task that no replica works on."""
    fields = {"type": "scale_up", "task_id": "t", "event_id": "e", "repository": "acme/shop", "commit_sha": "c0ffee"}
    client.xadd(settings.keys.stream, fields)  # type: ignore[arg-type]
    task = controller.take()
    assert task is not None
    since, next_at = "2026-01-01T00:00:00.000Z", "2026-01-01T00:01:00.000Z"
    worker = WorkerNote("waiting", 1, "", code="quota", detail="cpu is used up", since=since, next_at=next_at)
    note = TaskNote("1 of 1 worker: cpu is used up", code="quota", since=since, next_at=next_at)
    controller.stream.write_status([StatusUpdate("e", task.owner, {1: worker}, note)])
    if lease_is_over:
        client.zadd(f"{settings.keys.prefix}open", {"e": 1000})
    state = source.look()
    [explained] = explain(page_reader, "e")
    row = state["tasks"]["e"]
    assert row["code"] == ("lease_expired" if lease_is_over else "quota")
    for name in ("code", "why", "since", "next_at", "owner"):
        assert row[name] == getattr(explained, name)
    assert (row["repository"], row["commit_sha"]) == ("acme/shop", "c0ffee")
    shown = state["workers"]["e/1"]
    first = explained.groups[0].first
    assert [shown[name] for name in ("code", "why", "since", "next_at")] == [
        "quota", first.why, since, next_at,
    ]  # fmt: skip
    assert state["codes"]["quota"]["next_at"] == StatusCode.QUOTA.facts.next_step("{at}")
    assert state["codes"].keys() == set(StatusCode)


def test_failures_stay_beside_the_newest_results(source: PageSource, client: redis.Redis, settings: Settings) -> None:
    """One among many is seen on the first look, and while further ones come."""
    for number in range(page_source.MOST_RESULTS + 10):
        outcome = "failed" if number == 0 else "succeeded"
        client.xadd(settings.keys.result_stream, {"kind": "worker", "outcome": outcome, "task_id": f"t{number}"})
    for _ in range(2):
        state = source.look()
        assert [row["task_id"] for row in state["results"].values() if row["outcome"] == "failed"] == ["t0"]
        assert len(state["results"]) == page_source.MOST_RESULTS + 1
        assert sum(state["summary"][""]["hour"]) == page_source.MOST_RESULTS + 10


def test_a_busy_hour_is_counted_in_parts(
    source: PageSource, client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look reads some; the newest results are there from the first on."""
    monkeypatch.setattr(page_source, "_PARTS", 1)
    with client.pipeline() as pipe:
        for number in range(2500):
            fields = {"kind": "worker", "outcome": "succeeded", "task_id": f"t{number}"}
            pipe.xadd(settings.keys.result_stream, fields)  # type: ignore[arg-type]
        pipe.execute()
    for counted in (1000, 2000, 2500, 2500):
        state = source.look()
        assert sum(state["summary"][""]["hour"]) == counted
        assert next(iter(state["results"].values()))["task_id"] == "t2499"


@pytest.mark.parametrize("text", ["open", "E-1", "acme/OPEN", "0ff1ce"])
def test_a_search_finds_open_tasks_too(
    source: PageSource, controller: Controller, client: redis.Redis, settings: Settings, text: str
) -> None:
    """Also those behind the ones that are shown."""
    fields = {"type": "scale_up", "task_id": "opened", "event_id": "e-1", "repository": "acme/open"}
    client.xadd(settings.keys.stream, {**fields, "commit_sha": "0ff1ce"})  # type: ignore[arg-type]
    controller.take()
    client.xadd(settings.keys.stream, {"type": "scale_up", "event_id": "other"})
    controller.take()
    assert list(source.search(text)["tasks"]) == ["e-1"]


def test_a_search_says_what_explain_says_of_an_id(source: PageSource, client: redis.Redis, settings: Settings) -> None:
    """Of an event that no controller has read, for instance."""
    client.xadd(settings.keys.stream, {"type": "scale_up", "event_id": "unread-1"})
    assert source.search(" unread-1 ")["tasks"]["unread-1"]["code"] == "unread"
    assert source.search("  ") == {"tasks": {}, "results": {}, "dead": {}}
