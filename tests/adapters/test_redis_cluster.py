"""A real Redis Cluster of three masters: any node will do, and slots and masters may change in mid-task."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from ottoscaler.adapters.redis_client import address, connect, translate_errors
from ottoscaler.adapters.redis_cluster import remember_script
from ottoscaler.core.manifest import event_hash
from ottoscaler.errors import ConfigError, RedisUnavailable
from ottoscaler.settings import RedisSettings
from tests.adapters.redis_commands import NAMES, all_commands_work, run, stream_at
from tests.adapters.test_redis_client import certificate
from tests.e2e.redis_nodes import Cluster, Node
from tests.fakes.clock import SystemClock
from tests.fakes.wait import eventually
from tests.flow.simulated_controller import ALL, FakeServers, SimulatedController

pytestmark = [pytest.mark.real, pytest.mark.contract("2.REDIS_HOST"), pytest.mark.timeout(180)]

STREAM = NAMES["REDIS_STREAM"]
#: More than a failover takes: a second until the master counts as dead, one or two for the vote.
LONG_S = 30


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three masters with a replica each."""
    made = Cluster(tmp_path, 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters, for tests that leave them as they are."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


def settings_of(node: Node, **more: Any) -> RedisSettings:
    """How a process is configured that knows this node."""
    return RedisSettings(host="127.0.0.1", port=node.port, block_ms=100, **more)


def test_any_node_will_do(calm: Cluster) -> None:
    """Each leads to the one that has the slot; a script, a pipeline and a command without a key go there, too."""
    owner = calm.owner(STREAM)
    for node in calm.nodes:
        with closing(stream_at(settings_of(node))) as stream:
            assert stream.reserve_prefix() == "ottoscaler"
            stream.ensure_group()
            assert stream.known_tasks(["not-sent-1", "not-sent-2"]) == {}
            assert stream._redis.client.nodes is not None
            assert stream._redis.client.nodes.slot_node[1] == owner.port
            assert stream._redis.client.info("server")["tcp_port"] == owner.port


def test_keys_that_have_gone_ahead_are_asked_for(cluster: Cluster) -> None:
    """ASK is followed for one command and for a script that the other node has never seen; the rest stays."""
    source, target = cluster.owner(STREAM), cluster.strangers(STREAM)[0]
    with (
        closing(connect(settings_of(source), timeout_s=2)) as client,
        closing(stream_at(settings_of(source))) as stream,
    ):
        stream.reserve_prefix()
        client.set("{otto}:a", "1")
        cluster.start_migration(STREAM, target)
        client.set("{otto}:new", "2")
        assert (client.get("{otto}:a"), client.get("{otto}:new")) == (b"1", b"2")
        assert (source.say("EXISTS", "{otto}:a"), client.nodes and client.nodes.slot_node[1]) == (1, source.port)
        pipe = client.pipeline(transaction=False)
        for name in ("a", "new", "none"):
            pipe.get(f"{{otto}}:{name}")
        assert client.execute_pipeline(pipe) == [b"1", b"2", None]
        cluster.move_keys(STREAM, target)
        source_text = b"return redis.call('GET', KEYS[1])"
        digest = client.script_load(source_text)
        remember_script(digest, source_text)
        assert client.evalsha(digest, 1, "{otto}:a") == b"1"  # which is not there any more
        cluster.end_migration(STREAM, target)
        assert client.get("{otto}:a") == b"1"
        assert client.nodes.slot_node[1] == target.port if client.nodes else False
        assert stream.reserve_prefix() == "ottoscaler"


def test_a_split_slot_is_a_passing_trouble(cluster: Cluster) -> None:
    """Our scripts use several keys: while those are on two nodes nothing was carried out, and the sentence says so."""
    target = cluster.strangers(STREAM)[0]
    with closing(stream_at(settings_of(cluster.owner(STREAM)))) as stream:
        stream.reserve_prefix()
        cluster.start_migration(STREAM, target)
        with pytest.raises(RedisUnavailable, match=r"is moving our keys to another node") as raised:
            stream.reserve_prefix()
        assert not raised.value.unclear
        cluster.end_migration(STREAM, target)
        assert stream.reserve_prefix() == "ottoscaler"


def test_a_dead_node_does_not_matter(cluster: Cluster) -> None:
    """Also the one that REDIS_HOST names, and that never redirected us: the others are known by then."""
    owner = cluster.owner(STREAM)
    with closing(stream_at(settings_of(owner))) as stream:
        stream.reserve_prefix()
        errors = []

        def works() -> bool:
            try:
                return stream.reserve_prefix() == "ottoscaler"
            except RedisUnavailable as error:
                errors.append(str(error))
                return False

        owner.say("WAIT", 1, 1000)
        owner.kill()
        eventually(works, LONG_S, "the cluster to have a new master")
    assert errors


def test_without_a_master_for_each_slot_it_is_down(tmp_path: Path) -> None:
    """And the sentence names what the cluster needs."""
    cluster = Cluster(tmp_path)
    with closing(stream_at(settings_of(cluster.owner(STREAM)))) as stream:
        stream.reserve_prefix()
        cluster.strangers(STREAM)[0].kill()

        def raised() -> str:
            try:
                stream.reserve_prefix()
            except RedisUnavailable as error:
                return str(error)
            return ""

        assert "a master for each slot" in eventually(raised, LONG_S, "the cluster to be down")
    cluster.close()


@pytest.mark.parametrize(
    "apart",
    [
        {"KEY_PREFIX": "otto:scale:"}, {"REDIS_STREAM": "otto:events"}, {"RESULT_STREAM": "{other}:results"},
        {"DEAD_LETTER_STREAM": "{}otto:dead"}, {"KEY_PREFIX": "{}:"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.contract("2.KEY_PREFIX")
def test_names_without_a_common_slot_are_named_at_the_start(calm: Cluster, apart: dict[str, str]) -> None:
    """The cluster can never take them: one sentence at the first call that the controller makes, and it ends."""
    for node in calm.nodes:
        with (
            closing(stream_at(settings_of(node), **apart)) as stream,
            pytest.raises(ConfigError, match=r"share one hash tag, such as \{otto\}"),
        ):
            stream.reserve_prefix()


@pytest.mark.contract("1.run")
def test_the_controller_ends_where_its_names_share_no_slot(calm: Cluster, tmp_path: Path) -> None:
    """Exit code 2 and the sentence, before anything is taken; no trace of a program."""
    kubeconfig = tmp_path / "kubeconfig"
    cluster, context = {"server": "http://127.0.0.1:1"}, {"cluster": "c", "user": "u"}
    raised = {
        "clusters": [{"name": "c", "cluster": cluster}], "contexts": [{"name": "x", "context": context}],
        "users": [{"name": "u", "user": {}}], "current-context": "x",
    }  # fmt: skip
    kubeconfig.write_text(json.dumps(raised), encoding="utf-8")
    environ = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(calm.nodes[0].port), "KUBECONFIG": str(kubeconfig)}
    ended = run({**environ, "KEY_PREFIX": "otto:scale:", "HTTP_PORT": "0"}, "run")
    assert ended.returncode == 2, ended
    assert "expected names that share one hash tag" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.contract("2.REDIS_DB")
def test_another_database_is_refused(calm: Cluster) -> None:
    """A cluster has but one."""
    settings = settings_of(calm.nodes[0], db=3)
    with (
        closing(connect(settings, timeout_s=2)) as client,
        pytest.raises(ConfigError, match="REDIS_DB: expected 0"),
        translate_errors(address(settings)),
    ):
        client.ping()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_commands_work_through_any_node(calm: Cluster, number: int) -> None:
    """send, status, dead: with the stream, tasks and dead letters of the whole cluster."""
    node, other = calm.nodes[number], calm.nodes[(number + 1) % 3]
    with closing(stream_at(settings_of(other))) as stream:
        all_commands_work({"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(node.port)}, stream, f"e-{number}")


@pytest.mark.contract("2.REDIS_TLS")
@pytest.mark.contract("2.REDIS_PASSWORD")
def test_with_tls_and_a_password(tmp_path: Path) -> None:
    """Each node is checked by the name that it announces, and a redirected command is as safe as the first."""
    cert, key = certificate(tmp_path, "localhost")
    cluster = Cluster(tmp_path, tls=(cert, key), password="secret")
    settings = {"tls": True, "ca_file": cert, "password": "secret"}
    environ = {"REDIS_HOST": "localhost", "REDIS_TLS": "true", "REDIS_CA_FILE": cert, "REDIS_PASSWORD": "secret"}
    for number, node in enumerate(cluster.nodes):
        server = RedisSettings(host="localhost", port=node.port, block_ms=100, **settings)  # type: ignore[arg-type]
        with closing(stream_at(server)) as stream:
            all_commands_work({**environ, "REDIS_PORT": str(node.port)}, stream, f"e-{number}")
    cluster.close()


@pytest.mark.contract("5.exactly-once")
def test_a_migration_and_a_failover_in_mid_task(cluster: Cluster) -> None:
    """Two controllers work on while the slot moves to another master and that one is killed: all ends exactly once."""
    servers, client = FakeServers(SystemClock()), cluster.client()
    streams = [stream_at(settings_of(cluster.masters[number]), f"c{number}", 5) for number in (0, 1)]
    for stream in streams:
        stream.ensure_group()
    long = {f"otto-agent-{event_hash('ottoscaler', 'e-0')}-{index}" for index in (1, 2, 3)}
    auto = (lambda name: None if name in long else 0, False)  # the pods of the first event run until we end them
    controllers = [
        SimulatedController(
            servers, consumer=f"c{number}", stream=streams[number], auto=auto[number], threads=ALL, LEASE_S=5
        )
        for number in (0, 1)
    ]
    with closing(client), closing(streams[0]), closing(streams[1]), controllers[0], controllers[1]:
        flow = Flow(client)
        target = cluster.strangers(STREAM)[0]
        flow.go_on_for(2)
        cluster.start_migration(STREAM, target)
        cluster.move_keys(STREAM, target, 20)
        flow.go_on_for(2)
        cluster.end_migration(STREAM, target)
        flow.go_on_for(3)
        cluster.owner(STREAM).kill()
        flow.go_on_for(6)
        flow.close()
        for pod in long:
            controllers[0].cluster.succeed(pod)
        eventually(lambda: len(_results(client, "task")) >= len(flow.sent), 60, f"{len(flow.sent)} tasks to end")
        once_each(client, flow.sent, controllers[0])


def once_each(client: Any, sent: list[str], controller: SimulatedController) -> None:
    """Each event has one result, each worker has one, each pod was created once, and nothing is open."""
    tasks = Counter(result["event_id"] for result in _results(client, "task"))
    workers = Counter((result["event_id"], result["index"]) for result in _results(client, "worker"))
    assert tasks == Counter(sent)
    assert workers == Counter((event_id, str(index)) for event_id in sent for index in (1, 2, 3))
    assert {result["outcome"] for result in _results(client, "worker")} == {"succeeded"}
    eventually(lambda: controller.cluster.names() == set(), 20, "all pods to be deleted")
    assert controller.calls("create") == len(workers)
    assert client.zcard("{otto}:scale:open") == 0


class Flow:
    """A producer: an event of three workers every 50 ms, sent again until it is answered. A thread of its own."""

    def __init__(self, client: Any) -> None:
        self.sent: list[str] = []
        """The event ids so far."""
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def go_on_for(self, seconds: float) -> None:
        """Return after the given time."""
        self._over.wait(seconds)

    def close(self) -> None:
        """Send no more."""
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._over.wait(0.05):
            name = f"e-{len(self.sent)}"
            event = {"type": "scale_up", "event_id": name, "pod_count": "3"}
            for _ in range(200):
                try:
                    self._client.xadd(STREAM, event)
                    break
                except (redis.RedisError, OSError):
                    self._over.wait(0.1)
            self.sent.append(name)


def _results(client: Any, kind: str) -> list[dict[str, str]]:
    try:
        return [fields for _, fields in client.xrange("{otto}:results") if fields["kind"] == kind]
    except (redis.RedisError, OSError):
        return []
