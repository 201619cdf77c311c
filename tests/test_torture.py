"""What `make torture` is made of, as far as it can be tested without servers: it must not break unseen."""

from __future__ import annotations

import re

import pytest

from ottoscaler.adapters.cluster import KubeCluster
from ottoscaler.adapters.redis_backend import RedisBackend
from tests.torture import crash_points, gateway
from tests.torture.final_checks import History, held_by_too_many, out_of_order
from tests.torture.kubelet import Fate, Run
from tests.torture.producer import Sent
from tests.torture.troubles import KINDS, Chosen, kinds_of


def test_the_calls_at_which_a_controller_dies_are_there() -> None:
    """A method that is renamed takes its points with it."""
    assert [name for name in crash_points.AFTER_STREAM if not callable(getattr(RedisBackend, name, None))] == []
    assert [name for name in crash_points.AFTER_CLUSTER if not callable(getattr(KubeCluster, name, None))] == []
    assert set(crash_points.BEFORE) <= {*crash_points.AFTER_STREAM, *crash_points.AFTER_CLUSTER, "finish"}


@pytest.mark.parametrize(
    ("method", "path", "verb"),
    [
        ("POST", "/api/v1/namespaces/n/pods", "create"),
        ("GET", "/api/v1/namespaces/n/pods/a?x=1", "get"),
        ("DELETE", "/api/v1/namespaces/n/pods/a", "delete"),
        ("GET", "/api/v1/namespaces/n/pods?labelSelector=a", "list"),
        ("GET", "/api/v1/namespaces/n/pods?watch=true&a=b", "watch"),
        ("GET", "/api/v1/namespaces/n/pods?a=b&watch=1", "watch"),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", ""),
    ],
)
def test_requests_are_distinguished_by_their_verb(method: str, path: str, verb: str) -> None:
    """So that a fault meets what it is meant for."""
    assert gateway.verb_of(method, path) == verb


def test_a_shifted_clock_shifts_a_stamp() -> None:
    """Over midnight, too."""
    assert gateway.shifted(b"2026-01-01T00:30:00Z", -4200) == b"2025-12-31T23:20:00Z"


def test_a_conflict_of_a_quota_is_a_status_and_a_page_is_none() -> None:
    """As an API server and a proxy write them."""
    status, headers, body = gateway.answer_of({"fault": "conflict"})
    assert (status, headers["Content-Type"], b'"reason":"Conflict"' in body) == (409, "application/json", True)
    status, headers, body = gateway.answer_of({"fault": "html", "status": 302, "body": "html"})
    assert (status, headers["Location"], body[:6]) == (302, "/login", b"<html>")


def test_kinds_of_trouble_are_chosen_by_name() -> None:
    """These only, or all but those."""
    assert kinds_of("", "") == set(KINDS)
    assert kinds_of("denied,html", "") == {"denied", "html"}
    assert kinds_of("", "clock") == set(KINDS) - {"clock"}
    with pytest.raises(ValueError, match=re.escape("no such trouble: nothing")):
        kinds_of("nothing", "")


def test_a_run_of_a_hundred_kills_has_three_hundred_other_faults() -> None:
    """And at least one of each kind, however small the run."""
    chosen = Chosen(100, kinds_of("", ""))
    others = {kind: chosen.wanted(kind) for kind in KINDS if kind != "kills"}
    assert (chosen.wanted("kills"), sum(others.values()) >= 300) == (100, True)
    assert all(Chosen(1, chosen.kinds).wanted(kind) == 1 for kind in KINDS if KINDS[kind][1] < 200)


def keyed(*tasks: tuple[int, float, float], key: str = "one", copies: int = 1) -> History:
    """What came of tasks of one concurrency key: place in the stream, start and end of the one program."""
    fields = {"type": "scale_up", "pod_count": "1", "concurrency_key": key}
    sent = [Sent(f"e-{place}", fields, copies=copies, entry_id=f"1-{place}") for place, _, _ in tasks]
    book = [
        Run(f"u-{place}", f"pod-{place}", f"e-{place}", 1, 1, Fate(0, 0, ""), started_at=began, ended_at=end)
        for place, began, end in tasks
    ]
    return History(sent=sent, results=[], dead=[], book=book, pods=[], open_ids=[], pending=0)


@pytest.mark.parametrize(
    ("history", "many", "early"),
    [
        (keyed((1, 1, 2), (2, 2, 3), (10, 3, 4)), 0, 0),
        (keyed((1, 1, 3), (2, 2, 4)), 1, 1),
        (keyed((1, 3, 4), (2, 1, 2)), 0, 1),
        (keyed((2, 1, 2), (10, 3, 4), (9, 5, 6)), 0, 1),  # by number, not by text
        (keyed((1, 3, 4), (2, 1, 2), copies=2), 0, 0),
        (keyed((1, 1, 0), (2, 2, 3)), 1, 1),  # one that never ended
        (keyed((1, 1, 5), (2, 1, 5), key="two"), 0, 0),
        (keyed((1, 2, 5), (2, 1, 3), (3, 4, 6), key="two"), 0, 0),
        (keyed((1, 1, 5), (2, 1, 5), (3, 4, 6), key="two"), 1, 1),
        (keyed((1, 5, 6), (2, 5, 6), (3, 1, 2), key="two"), 0, 1),
    ],
)
def test_tasks_of_a_concurrency_key_take_turns_in_order(history: History, many: int, early: int) -> None:
    """What the account at the end complains of."""
    assert len(list(held_by_too_many(history))) == many
    assert len(list(out_of_order(history))) == early
