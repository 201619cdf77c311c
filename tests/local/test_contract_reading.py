"""What Ottoscaler relies on in the Kubernetes API: lists and watches.
Checked against both servers, as test_contract_api is.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.local.kube import Space


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("i=1", ["p1"]),
        ("i==1", ["p1"]),
        ("i!=1", ["p0", "p2"]),
        ("i in (0,2)", ["p0", "p2"]),
        ("i notin (0)", ["p1", "p2"]),
        ("i,i!=0", ["p1", "p2"]),
        ("!i", []),
        ("missing", []),
    ],
)
def test_label_selectors(space: Space, selector: str, expected: list[str]) -> None:
    """Equality, sets and existence, joined by a comma."""
    for index in range(3):
        space.make(f"p{index}", metadata={"labels": {"i": str(index)}})
    assert space.names(labelSelector=selector) == expected


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("metadata.name=p0", ["p0"]),
        ("status.phase!=Pending", []),
        ("spec.nodeName=elsewhere,status.phase=Pending", ["p1"]),
    ],
)
def test_field_selectors(space: Space, selector: str, expected: list[str]) -> None:
    """Name, phase and node can be selected by."""
    space.make("p0")
    space.make("p1", nodeName="elsewhere")
    assert space.names(fieldSelector=selector) == expected


@pytest.mark.parametrize("query", [{"labelSelector": "a in b c"}, {"fieldSelector": "spec.foo=1"}])
def test_a_bad_selector_is_a_bad_request(space: Space, query: dict[str, str]) -> None:
    """A selector that cannot be read selects nothing by accident."""
    assert space.kube.call("GET", space.path(), **query).status == 400


def test_a_list_is_sorted_and_its_items_have_no_kind(space: Space) -> None:
    """PodList with a version of its own."""
    for name in ("b", "a"):
        space.make(name)
    body = space.kube.call("GET", space.path()).body
    assert body["kind"] == "PodList"
    assert int(body["metadata"]["resourceVersion"]) >= int(body["items"][1]["metadata"]["resourceVersion"])
    assert [item["metadata"]["name"] for item in body["items"]] == ["a", "b"]
    assert "kind" not in body["items"][0]


def test_all_namespaces_can_be_listed_at_once(space: Space) -> None:
    """/api/v1/pods finds the pod of this namespace too."""
    space.make("one")
    items = space.kube.call("GET", "/api/v1/pods", fieldSelector="metadata.name=one").body["items"]
    assert space.name in [item["metadata"]["namespace"] for item in items]


def test_pages_show_one_moment(space: Space) -> None:
    """What is created between two pages is not in the second."""
    for name in ("a", "b", "d"):
        space.make(name)
    first = space.kube.call("GET", space.path(), limit=2).body
    space.make("c")
    assert first["metadata"]["remainingItemCount"] == 1
    assert space.names(limit=2, **{"continue": first["metadata"]["continue"]}) == ["d"]


def test_a_bad_continue_token_is_refused(space: Space) -> None:
    """400, or 410 for one that is too old: the list begins again."""
    assert space.kube.call("GET", space.path(), limit=1, **{"continue": "garbage"}).status in (400, 410)


def test_a_list_from_the_future_times_out(space: Space) -> None:
    """A version that no server has given yet is 504."""
    future = int(space.version()) + 1_000_000
    assert space.kube.call("GET", space.path(), resourceVersion=future).status == 504


def test_a_watch_from_a_list_shows_every_later_change_in_order(space: Space) -> None:
    """Deleting a pod that runs nowhere is MODIFIED, with grace 0, and then DELETED."""
    version = space.version()
    space.make("one")
    space.patch("one", {"metadata": {"labels": {"x": "1"}}})
    space.delete("one")
    events = space.watch(resourceVersion=version)
    assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
    assert versions == sorted(set(versions))
    assert events[2][1]["metadata"]["deletionGracePeriodSeconds"] == 0


def test_a_watch_ends_after_its_time(space: Space) -> None:
    """timeoutSeconds ends the stream, without an error."""
    begun = time.monotonic()
    assert space.watch(resourceVersion=space.version()) == []
    assert 0.8 < time.monotonic() - begun < 5


def test_a_watch_with_a_selector_sees_pods_come_and_go(space: Space) -> None:
    """An object that begins to match is ADDED; one that ceases is DELETED, as it was, under the new version."""
    version = space.version()
    space.make("one", metadata={"labels": {"q": "no"}})
    space.patch("one", {"metadata": {"labels": {"q": "yes"}}})
    space.patch("one", {"metadata": {"labels": {"q": "no"}}})
    (entered, first), (left, last) = space.watch(resourceVersion=version, labelSelector="q=yes")
    assert (entered, left) == ("ADDED", "DELETED")
    assert last["metadata"]["labels"]["q"] == "yes"
    assert int(last["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])


def test_twenty_watches_all_see_the_same(space: Space) -> None:
    """Watches do not take events from each other."""
    version = space.version()
    with ThreadPoolExecutor(20) as pool:
        watches = [pool.submit(space.watch, 3, resourceVersion=version) for _ in range(20)]
        made = [space.make()["metadata"]["name"] for _ in range(5)]
        seen = [[obj["metadata"]["name"] for _, obj in each.result()] for each in watches]
    assert seen == [made] * 20


def test_a_watch_from_too_old_a_version_gets_expired_in_the_stream(space: Space) -> None:
    """HTTP 200, then one ERROR event with code 410: list again."""
    events = space.watch(resourceVersion=1)
    if not events:
        pytest.skip("allowed, not required: this server has not forgotten anything yet")
    ((kind, status),) = events
    assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
