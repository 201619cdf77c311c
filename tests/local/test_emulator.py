"""What only the emulator does: faults and compaction on request, and what real servers are allowed to do otherwise."""

from __future__ import annotations

import json

import pytest

from tests.local.kube import Kube, Space


def test_a_watch_without_a_version_begins_with_what_is_there(node: Space) -> None:
    """Allowed, not required: real servers with an old etcd answer 504 in the stream."""
    for name in ("b", "a"):
        node.make(name)
    assert [(kind, obj["metadata"]["name"]) for kind, obj in node.watch()] == [("ADDED", "a"), ("ADDED", "b")]


def test_compaction_expires_earlier_versions(emulator: Kube, node: Space) -> None:
    """Only the emulator can do it on request: a watch from before is then too old, one from now goes on."""
    version = node.version()
    node.make("one")
    emulator.call("POST", "/_emulator/compact")
    ((kind, status),) = node.watch(resourceVersion=version)
    assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
    assert node.watch(resourceVersion=node.version()) == []


def test_continue_tokens_expire_with_compaction(emulator: Kube, node: Space) -> None:
    """410 Expired: the list begins again."""
    for name in ("a", "b"):
        node.make(name)
    token = emulator.call("GET", node.path(), limit=1).body["metadata"]["continue"]
    emulator.call("POST", "/_emulator/compact")
    assert emulator.call("GET", node.path(), limit=1, **{"continue": token}).status == 410


def test_a_dry_run_is_refused(node: Space) -> None:
    """It has none, and must not carry the request out."""
    node.make("one")
    answer = node.kube.call("DELETE", node.path("one"), dryRun="All")
    assert (answer.status, node.read("one").status) == (400, 200)


def test_an_injected_error_is_given_as_often_as_asked(emulator: Kube, node: Space) -> None:
    """A 429 with Retry-After, once, for this path only."""
    rule = {"method": "GET", "path_regex": f"/{node.name}/pods", "status": 429, "retry_after": 7}
    emulator.call("POST", "/_emulator/faults", [rule])
    first, second = node.read("none"), node.read("none")
    assert (first.status, first.headers["Retry-After"], first.body["reason"]) == (429, "7", "TooManyRequests")
    assert second.status == 404


def test_a_dropped_reply_comes_after_the_work_is_done(emulator: Kube, node: Space) -> None:
    """The client sees a broken connection, the pod is there."""
    rule = {"method": "POST", "path_regex": f"/{node.name}/pods", "drop_reply": True}
    emulator.call("POST", "/_emulator/faults", [rule])
    with pytest.raises(Exception, match=r"aborted|closed|reset"):
        node.make("one")
    assert node.read("one").status == 200


def test_bad_faults_are_refused(emulator: Kube) -> None:
    """A rule that cannot be read changes nothing."""
    answer = emulator.call("POST", "/_emulator/faults", [{"colour": "red"}])
    assert (answer.status, json.loads(answer.text)["reason"]) == (400, "BadRequest")
