"""The benchmark's own judgement: figures from pairs, the clock in the audit log, and which counts fail a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import goals
from tests.bench.clocks import AuditLog, Machine
from tests.bench.product import recorded_at
from tests.bench.ratios import estimate, growth, percentile
from tests.bench.runs import per_pod


def line(stage: str, verb: str, code: int = 0, name: str = "a", resource: str = "pods") -> str:
    """One line of an audit log, with fields that are of no use to us."""
    fields = {
        "kind": "Event",
        "stage": stage,
        "verb": verb,
        "user": {"username": "system:serviceaccount:bench:ottoscaler"},
        "objectRef": {"resource": resource, "namespace": "bench", "name": name},
        "responseStatus": {"code": code},
        "requestReceivedTimestamp": "2026-01-01T00:00:00.250000Z",
        "stageTimestamp": "2026-01-01T00:00:00.750000Z",
    }
    return json.dumps(fields) + "\n"


def test_median_and_interval() -> None:
    """The interval holds the median and lies within what was seen; one pair alone is no wider than itself."""
    answer = estimate([0.9, 1.0, 1.1, 1.2, 0.8, 1.0, 1.05])
    assert (answer.median, answer.count) == (1.0, 7)
    assert 0.8 <= answer.low <= 1.0 <= answer.high <= 1.2
    assert estimate([3.0]).low == estimate([3.0]).high == 3.0


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_percentile(share: float, value: int) -> None:
    """Of a hundred values, the p99 is the 99th."""
    assert percentile(list(range(100, 0, -1)), share) == value


def test_growth_by_doubling() -> None:
    """Only sizes of which the double was measured have a ratio."""
    assert growth({500: 1.0, 1000: 1.5, 3000: 9.0}) == {500: 1.5}


def test_audit_log_is_read_as_it_grows(tmp_path: Path) -> None:
    """Half a line waits for its other half; a refused create counts, one that met its own pod does not."""
    path = tmp_path / "audit.log"
    path.write_text(line("RequestReceived", "create"), encoding="utf-8")
    log = AuditLog(path)
    log.begin()
    with path.open("a", encoding="utf-8") as file:
        file.write(line("RequestReceived", "delete") + line("ResponseComplete", "delete", 200)[:40])
    assert [call.verb for call in log.look().asked] == ["delete"]
    with path.open("a", encoding="utf-8") as file:
        file.write(line("ResponseComplete", "delete", 200)[40:])
        file.writelines(line("ResponseComplete", "create", code) for code in (201, 409, 429))
    (deleted,) = log.look().done("delete")
    assert (deleted.name, deleted.answered - deleted.received) == ("a", 0.5)
    assert log.refused == 1
    log.forget()
    assert (log.asked, log.answered, log.refused) == ([], [], 1)


def test_other_resources_are_named(tmp_path: Path) -> None:
    """A request for anything but a pod counts too, under a name of its own."""
    path = tmp_path / "audit.log"
    path.write_text(line("RequestReceived", "create", resource="events") + line("RequestReceived", "list"), "utf-8")
    calls = AuditLog(path).look().by_verb()
    assert calls == {"create events": 1, "list": 1}
    assert per_pod(calls, 1) == 1


def test_foreign_load_is_what_is_not_ours() -> None:
    """Of two busy seconds one was ours."""
    assert Machine(12.0, 6.0, 100.0).foreign(Machine(10.0, 5.0, 99.0)) > 0
    assert Machine(12.0, 7.0, 100.0).foreign(Machine(10.0, 5.0, 99.0)) == 0


def test_a_result_has_the_time_of_its_entry() -> None:
    """Redis' own milliseconds; the first entry counts, and the task's is not a worker's."""
    entries = [
        ("1000-0", {"kind": "worker", "pod": "a"}),
        ("2000-0", {"kind": "worker", "pod": "a"}),
        ("3000-0", {"kind": "task"}),
    ]
    assert recorded_at(entries) == {"a": 1.0005}


def whole_report(**changed: Any) -> dict[str, Any]:
    """What a run without a fault reports, as far as counts go."""
    run = {"pods": 5, "complete": True, "calls": {"create": 5, "delete": 5}, "counted": {"POST": 5, "DELETE": 5}}
    return {
        "faults": {"leaked": 0, "refused": 0, "lost": 0, "doubled": 0},
        "failures": {},
        "calls": {"1 s": {"per_pod": 2.0}},
        "pairs": {"rounds": [{"one event": run, "events of one": run}]},
        "idle": {"requests": 0},
        **changed,
    }


def test_right_counts_pass() -> None:
    """Nothing is found in a run without a fault, nor in one of which nothing was measured."""
    assert goals.breaches(whole_report()) == goals.breaches({}) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"faults": {"leaked": 1, "refused": 0, "lost": 0, "doubled": 0}},
        {"calls": {"1 s": {"per_pod": 2.01}}},
        {"idle": {"requests": 1}},
        {"failures": {"recovery": "TimeoutExpired"}},
        {"logs": {"wrong": 1}},
    ],
)
def test_wrong_counts_fail(changed: dict[str, Any]) -> None:
    """Each count is looked at."""
    assert len(goals.breaches(whole_report(**changed))) == 1


@pytest.mark.parametrize(
    "changed",
    [{"complete": False}, {"calls": {"create": 6, "delete": 5}}, {"counted": {"POST": 5, "DELETE": 4}}],
)
def test_wrong_counts_of_a_run_fail(changed: dict[str, Any]) -> None:
    """A run that did not end, a request too many, two clocks that disagree."""
    report = whole_report()
    run = report["pairs"]["rounds"][0]["one event"]
    report["pairs"]["rounds"] = [{"one event": {**run, **changed}, "events of one": run}]
    assert goals.breaches(report)


def test_the_table_shows_what_was_not_measured() -> None:
    """An empty report has every goal, and not one verdict that it is met."""
    rows = goals.rows({})
    assert {row.verdict for row in rows} == {"not measured"}
    assert len(list(goals.table({}))) == len(rows) + 1


def test_the_table_says_met_and_missed() -> None:
    """The same figure on both sides of its goal."""

    def verdict(p50: float) -> str:
        (row,) = [row for row in goals.rows({"latency": {"p50_ms": p50, "p99_ms": 14}}) if row.met is not None]
        return row.verdict

    assert (verdict(2.9), verdict(3.1)) == ("met", "MISSED")


def test_small_sizes_are_judged_by_counts_only() -> None:
    """The quick run says what it saw of times, and calls nothing met or missed."""
    report = {"conditions": {"quick": True}, "latency": {"p50_ms": 9, "p99_ms": 99}, "idle": whole_report()["idle"]}
    report["faults"] = whole_report()["faults"]
    verdicts = {row.figure: row.verdict for row in goals.rows(report)}
    assert verdicts["event -> create request, idle"] == "not judged"
    assert verdicts["leaked pods, refused creates, lost events"] == "met"
