"""Which node of a Redis Cluster is used next, by itself: without a server and without a thread."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.exceptions import AskError, MovedError

from ottoscaler.adapters import redis_cluster
from ottoscaler.adapters.redis_cluster import LEARN_EVERY_S, MAX_REDIRECTIONS, ClusterNodes, RedirectingRedis

A, B, C, D = (("10.0.0.1", port) for port in (1, 2, 3, 4))
SLOTS = [[0, 8000, [b"10.0.0.1", 2, b"id"], [b"10.0.0.1", 3, b"id"]], [8001, 16383, [b"", 4, b"id"]]]


def test_the_open_connections_are_named_by_the_number_that_the_server_gave_them() -> None:
    """Not one that is closed, has not logged in yet, or is with a server that gives none."""
    client = RedirectingRedis()
    client.connection_pool._connections = [
        SimpleNamespace(is_connected=True, handshake_metadata={b"id": 7, b"proto": 3}),
        SimpleNamespace(is_connected=False, handshake_metadata={b"id": 8}),
        SimpleNamespace(is_connected=True, handshake_metadata=None),
        SimpleNamespace(is_connected=True, handshake_metadata={}),
        SimpleNamespace(is_connected=True, handshake_metadata={b"id": b"9"}),
    ]
    assert client.connection_ids() == [7, 9]
    client.connection_pool._connections = []


def test_the_seed_is_used_until_another_one_is_named() -> None:
    """And then that one, also when it is named twice."""
    nodes = ClusterNodes(A)
    assert nodes.slot_node == A
    for _ in range(2):
        nodes.moved(B)
        assert nodes.slot_node == B
    assert nodes._known == [A, B]


def test_after_a_failure_the_nodes_are_tried_in_turn() -> None:
    """After the last one the first, so that each is tried."""
    nodes = ClusterNodes(A)
    nodes.update_from_slots(SLOTS, A)
    tried = []
    for _ in range(5):
        tried.append(nodes.slot_node)
        nodes.move_on_from(nodes.slot_node)
    assert tried == [A, B, C, D, A]


def test_of_many_threads_that_doubt_a_node_only_the_first_moves_on() -> None:
    """The others would move past a node that lives."""
    nodes = ClusterNodes(A)
    nodes.update_from_slots(SLOTS, A)
    nodes.moved(C)
    for _ in range(3):
        nodes.move_on_from(C)
    assert nodes.slot_node == D
    nodes.move_on_from(B)
    assert nodes.slot_node == D


def test_a_node_that_is_no_longer_of_the_cluster_is_followed_by_the_seed() -> None:
    """It was named once, and the list of nodes has changed since."""
    nodes = ClusterNodes(A)
    nodes.moved(D)
    nodes.update_from_slots([[0, 16383, [b"10.0.0.1", 2, b"id"]]], A)
    nodes.move_on_from(D)
    assert nodes.slot_node == A


def test_the_list_of_nodes_is_replaced_and_begins_with_the_seed() -> None:
    """Each node once, replicas too; one without a host is where the list came from."""
    nodes = ClusterNodes(B)
    nodes.moved(("10.9.9.9", 9))
    nodes.update_from_slots(SLOTS, ("10.0.0.1", 7))
    assert nodes._known == [B, C, D]
    nodes.update_from_slots([[0, 1, [None, 5, b"id"]], [2, 3, [None, 5, b"id"]]], ("10.0.0.7", 7))
    assert nodes._known == [B, ("10.0.0.7", 5)]


def test_the_list_is_asked_for_by_one_caller_in_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and then at the end of each such time."""
    later = 100.0 + LEARN_EVERY_S
    clock = [moment for looked in (100.0, later) for moment in (looked, looked, looked, later - 0.1)]
    monkeypatch.setattr(redis_cluster, "time", SimpleNamespace(monotonic=lambda: clock.pop(0)))
    nodes = ClusterNodes(A)  # where it is due, the clock is read twice
    assert [nodes.refresh_due() for _ in range(5)] == [True, False, False, True, False]


class Client(RedirectingRedis):
    """A client whose answers are given; each command notes the node that it would have gone to."""

    def __init__(self, *answers: Any, nodes: ClusterNodes | None = None) -> None:
        self.nodes = nodes
        self.answers = list(answers)
        self.sent: list[Any] = []

    def _execute_once(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self.sent.append((args, options, self.nodes.slot_node if self.nodes else None))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _follow_ask(self, node: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return "asked", node, args, options


def test_a_command_follows_its_slot_a_few_times() -> None:
    """Five times, and the sentence says where it was sent to last."""
    client = Client(MovedError("1 10.0.0.1:2"), MovedError("1 :3"), "well", nodes=ClusterNodes(A))
    assert client.execute_command("GET", "x", one=1) == "well"
    assert client.sent == [(("GET", "x"), {"one": 1}, node) for node in (A, B, C)]
    turns = [MovedError(f"1 10.0.0.1:{port}") for port in (2, 3, 2, 3, 4)]
    lost = Client(*turns, nodes=ClusterNodes(A))
    with pytest.raises(redis.ConnectionError, match=rf"redirected more than {MAX_REDIRECTIONS} times, last to .*4"):
        lost.execute_command("GET", "x")
    assert len(lost.sent) == MAX_REDIRECTIONS


def test_a_command_for_a_key_that_has_gone_ahead_goes_after_it_alone() -> None:
    """The others stay where they were."""
    client = Client(AskError("1 10.0.0.1:2"), AskError("1 :3"), nodes=ClusterNodes(A))
    assert client.execute_command("GET", "x", one=1) == ("asked", B, ("GET", "x"), {"one": 1})
    assert client.execute_command("GET", "x") == ("asked", C, ("GET", "x"), {})
    assert client.nodes is not None
    assert client.nodes.slot_node == A


@pytest.mark.parametrize("error", [redis.ConnectionError("x"), redis.TimeoutError("x")])
def test_a_command_without_an_answer_moves_on_and_is_not_repeated(error: Exception) -> None:
    """It may have been carried out."""
    client = Client(error, nodes=ClusterNodes(A))
    assert client.nodes is not None
    client.nodes.update_from_slots(SLOTS, A)
    with pytest.raises(type(error)):
        client.execute_command("GET", "x")
    assert client.nodes.slot_node == B
    assert len(client.sent) == 1


def test_a_client_of_a_single_server_follows_nothing() -> None:
    """With sentinels, say: the error reaches the caller."""
    client = Client(MovedError("1 10.0.0.1:2"))
    with pytest.raises(MovedError):
        client.execute_command("GET", "x")
    assert len(client.sent) == 1


def pipeline(client: Client, *answers: Any) -> Any:
    """A pipeline with these commands and answers."""

    def execute(*, raise_on_error: bool) -> list[Any]:
        assert not raise_on_error
        if isinstance(answers[0], redis.ConnectionError):
            raise answers[0]
        return list(answers)

    commands: list[Any] = [(("GET", str(number)), {}) for number in range(len(answers))]
    return client.execute_pipeline(SimpleNamespace(command_stack=commands, execute=execute))


def test_of_a_pipeline_only_what_was_redirected_is_sent_again() -> None:
    """Errors stay where they are, also those of the second time; a lost connection concerns all of them."""
    fault, again = redis.ResponseError("WRONGTYPE"), redis.ResponseError("OOM")
    client = Client("two", again, nodes=ClusterNodes(A))
    moved, asked = MovedError("1 10.0.0.1:2"), AskError("1 10.0.0.1:2")
    assert pipeline(client, "zero", fault, moved, asked) == ["zero", fault, "two", again]
    assert [args for args, _, _ in client.sent] == [("GET", "2"), ("GET", "3")]
    assert client.nodes is not None
    client.nodes.update_from_slots(SLOTS, A)
    with pytest.raises(redis.ConnectionError):
        pipeline(client, redis.ConnectionError("x"))
    assert client.nodes.slot_node == B
    with pytest.raises(redis.ConnectionError):
        pipeline(Client(), redis.ConnectionError("x"))


def test_many_threads_share_the_nodes() -> None:
    """Each failure moves on by one, whichever thread has seen it."""
    nodes = ClusterNodes(A)
    nodes.update_from_slots(SLOTS, A)
    threads = [threading.Thread(target=nodes.move_on_from, args=(A,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nodes.slot_node == B
