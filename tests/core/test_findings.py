"""The rules of `doctor` about Redis, the queue and the clocks: what a server says -> code, severity and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from ottoscaler.core.findings import (
    Finding,
    Severity,
    broken,
    clock_finding,
    fine,
    tally,
    unknown,
    warning,
    worst_first,
)
from ottoscaler.core.redis_findings import (
    QueueFacts,
    no_info_finding,
    owner_finding,
    queue_finding,
    results_finding,
    server_findings,
)

pytestmark = pytest.mark.contract("1.doctor")

#: A server as we ask for it.
WELL = {"redis_version": "7.0.15", "role": "master", "aof_enabled": 1, "maxmemory_policy": "noeviction"}
QUEUE = QueueFacts("events", "otto", waiting=0, exact=True, oldest_s=0.0, open_tasks=0, live=["otto-0"])


def troubles(info: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Code, severity and text of all that is not well."""
    return [(each.code, each.severity, each.text) for each in server_findings(info) if each.is_trouble]


def test_a_server_as_we_ask_for_it_has_no_trouble() -> None:
    """And each check says so."""
    assert troubles(WELL) == []
    codes = [finding.code for finding in server_findings(WELL)]
    assert codes == ["redis.version", "redis.role", "redis.persistence", "redis.eviction", "redis.memory"]
    assert troubles({}) == []


@pytest.mark.parametrize(
    ("info", "code", "severity", "words"),
    [
        ({"redis_version": "6.2.14"}, "redis.version", "broken", "Redis is version 6.2.14: 7.0 or later, or Valkey,"),
        ({"redis_version": "7.2.4", "valkey_version": "6.1.0"}, "redis.version", "broken", "Valkey is version 6.1.0"),
        ({"maxmemory_policy": "allkeys-lru"}, "redis.eviction", "warning", "set maxmemory-policy noeviction"),
        ({"aof_enabled": 0}, "redis.persistence", "warning", "set appendonly yes"),
        ({"aof_last_write_status": "err"}, "redis.persistence", "broken", "make room on its disk"),
        ({"used_memory": 96, "maxmemory": 100}, "redis.memory", "warning", "96% of maxmemory is used"),
        ({"role": "slave", "master_host": "a", "master_port": 1}, "redis.role", "broken", "a replica of a:1"),
    ],
)
def test_what_is_set_up_wrongly_is_named(info: Mapping[str, Any], code: str, severity: str, words: str) -> None:
    """One line, with what to do."""
    [(found, how_bad, text)] = troubles({**WELL, **info})
    assert (found, how_bad) == (code, severity)
    assert words in text


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"cluster_enabled": 1}, "A node of a Redis Cluster"),
        ({"valkey_version": "8.1.1"}, "Valkey 8.1.1"),
        ({"used_memory": 50, "maxmemory": 100}, "50% of maxmemory is used"),
        ({}, "A master, and no cluster"),
    ],
)
def test_what_is_well_is_said(info: Mapping[str, Any], words: str) -> None:
    """For a person that looks whether it is the right server."""
    assert words in [finding.text for finding in server_findings({**WELL, **info})]


def test_a_sentinel_is_no_server() -> None:
    """It answers to INFO, and keeps no data."""
    [finding] = server_findings({**WELL, "redis_mode": "sentinel"})
    assert (finding.code, finding.severity) == ("redis.sentinel", Severity.BROKEN)
    assert "REDIS_SENTINELS" in finding.text


@pytest.mark.parametrize(
    ("changes", "severity", "text"),
    [
        ({}, "ok", "1 controller (otto-0); waiting in events: 0 events; open: 0 tasks"),
        (
            {"waiting": 2, "oldest_s": 599, "open_tasks": 1, "live": ["a", "b"]},
            "ok",
            "2 controllers (a, b); waiting in events: 2 events (the oldest for 10 min); open: 1 task",
        ),
        (
            {"waiting": 1, "oldest_s": 7200},
            "warning",
            "waiting in events: 1 event (the oldest for 2 h); open: 0 tasks; 'python ottoscaler.py status' shows why",
        ),
        (
            {"waiting": 10_000, "exact": False, "oldest_s": 2520, "live": []},
            "broken",
            "No controller reads the group otto: waiting in events: at least 10000 events (the oldest for 42 min);"
            " open: 0 tasks; start one",
        ),
        (
            {"open_tasks": 3, "live": []},
            "broken",
            "No controller reads the group otto: waiting in events: 0 events; open: 3 tasks; start one",
        ),
        (
            {"live": []},
            "ok",
            "Nothing waits in the group otto; a controller that runs is seen here from its first event on",
        ),
    ],
)
def test_a_queue_that_does_not_move_is_named(changes: Mapping[str, Any], severity: str, text: str) -> None:
    """Without a controller it is broken, with one a long wait is worth a look."""
    assert queue_finding(replace(QUEUE, **changes)) == Finding("queue.progress", Severity(severity), text)


@pytest.mark.parametrize(
    ("length", "oldest_s", "severity"),
    [(97, 60, "ok"), (98, 86_400, "ok"), (98, 86_399, "warning"), (120, 3 * 3600, "warning"), (0, 0, "ok")],
)
def test_results_that_are_kept_for_a_short_time_are_named(length: int, oldest_s: float, severity: str) -> None:
    """A full stream alone is the rule: what counts is how long a result stays."""
    assert results_finding("results", length, 100, oldest_s).severity == severity


def test_the_time_that_results_stay_is_said() -> None:
    """In the largest unit."""
    assert "120 of at most 100 results, and the oldest is 3 h old" in results_finding("r", 120, 100, 3 * 3600).text
    assert "the oldest is 5 s old" in results_finding("r", 100, 100, 5).text
    assert "holds 1 of at most 100 results" in results_finding("r", 1, 100, 90_000 * 3).text


@pytest.mark.parametrize(("held", "severity"), [("", "ok"), ("otto", "ok"), ("other", "broken")])
def test_a_prefix_of_another_group_is_named(held: str, severity: str) -> None:
    """In the words of the controller, which refuses to start."""
    finding = owner_finding(held, "otto", "the sentence")
    assert (finding.code, finding.severity) == ("queue.owner", severity)
    text = {"": "KEY_PREFIX is still free", "otto": "KEY_PREFIX belongs to the group otto", "other": "the sentence"}
    assert finding.text == text[held]


def test_no_right_to_ask_is_a_finding() -> None:
    """And no error."""
    assert no_info_finding().severity is Severity.UNKNOWN


@pytest.mark.parametrize(
    ("ahead", "severity", "words"),
    [
        ({}, "unknown", "not compared"),
        ({"Redis": 0.2, "the API server": -4.9}, "ok", "agree"),
        ({"Redis": 5.0, "the API server": -5.0}, "ok", "agree"),
        ({"Redis": 47.2, "the API server": -6}, "warning", "The clock of Redis is 47 s ahead of this machine's"),
        ({"Redis": 0.0, "the API server": -5.1}, "warning", "The clock of the API server is 5 s behind this machine's"),
    ],
)
def test_clocks_that_differ_are_named(ahead: Mapping[str, float], severity: str, words: str) -> None:
    """The worst of them."""
    finding = clock_finding(ahead)
    assert (finding.code, finding.severity) == ("clock.skew", severity)
    assert words in finding.text


def test_the_worst_come_first() -> None:
    """And within one severity the order of the checks."""
    mixed = [fine("a", ""), warning("b", ""), unknown("c", ""), broken("d", ""), warning("e", ""), broken("f", "")]
    assert [finding.code for finding in worst_first(mixed)] == ["d", "f", "b", "e", "c", "a"]
    assert tally(mixed) == {"broken": 2, "warning": 2, "unknown": 1, "ok": 1}
    assert tally([]) == {"broken": 0, "warning": 0, "unknown": 0, "ok": 0}
