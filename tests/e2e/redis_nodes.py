"""Several real redis-servers on this machine: a Redis Cluster of three masters, or a master with its sentinels."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from redis.cluster import RedisCluster

from tests.conftest import require
from tests.fakes.wait import eventually

SLOTS = 16384


class Node:
    """One redis-server. One thread."""

    def __init__(self, folder: Path, *options: str, tls: Sequence[str] = (), password: str = "") -> None:
        """Start it with these options; with the files of `tls` (certificate and key) it speaks nothing but TLS."""
        self.port = _free_port()
        self.tls, self.password = tls, password
        folder = folder / str(self.port)
        folder.mkdir(parents=True)
        ports = ["--port", str(self.port)]
        if tls:
            cert, key = tls
            ports = ["--port", "0", "--tls-port", str(self.port), "--tls-cert-file", cert, "--tls-key-file", key]
            ports += ["--tls-ca-cert-file", cert, "--tls-auth-clients", "no", "--tls-replication", "yes"]
            ports += ["--tls-cluster", "yes"]
        secret = ["--requirepass", password, "--masterauth", password] if password else []
        # a sentinel takes its file first
        first = [options[0]] if options and not options[0].startswith("--") else []
        usual = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0", "--dir", str(folder)]
        command = [require("redis-server"), *first, *ports, *usual, *secret, *options[len(first) :]]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._answers, 20, f"the server on port {self.port}")

    def client(self) -> Any:
        """A plain client of this node alone."""
        safe = {"ssl": True, "ssl_ca_certs": self.tls[0]} if self.tls else {}
        host = "localhost" if self.tls else "127.0.0.1"
        return redis.Redis(host, self.port, password=self.password or None, decode_responses=True, **safe)  # type: ignore[arg-type]

    def say(self, *command: object) -> Any:
        """The answer to one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO."""
        with self.client() as client:
            return dict(client.info(section))

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait(10)

    def close(self) -> None:
        """End it. Idempotent."""
        self._process.terminate()
        self._process.wait(10)

    def _answers(self) -> bool:
        with suppress(redis.RedisError, OSError):
            return bool(self.say("PING"))
        return False


class Cluster:
    """A Redis Cluster of three masters, each with so many replicas. One thread."""

    def __init__(self, folder: Path, replicas: int = 0, *, tls: Sequence[str] = (), password: str = "") -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--appendonly", "yes")
        # with TLS the nodes are known by the name in their certificate
        named = ("--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname")
        extra = named if tls else ()
        count = 3 * (1 + replicas)
        self.nodes = [Node(folder, *options, *extra, tls=tls, password=password) for _ in range(count)]
        self.masters = self.nodes[:3]
        first, *others = self.nodes
        for node in others:
            first.say("CLUSTER MEET", "127.0.0.1", node.port)
        for number, node in enumerate(self.masters):
            low, high = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            node.say("CLUSTER ADDSLOTSRANGE", low, high)
        eventually(lambda: all(self._knows_all(node) for node in self.nodes), 20, "the nodes to meet")
        for number, node in enumerate(self.nodes[3:]):
            node.say("CLUSTER REPLICATE", self.id_of(self.masters[number % 3]))
        eventually(lambda: all(self._ready(node) for node in self.nodes), 30, "the cluster to be ready")

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.close()

    def client(self) -> Any:
        """redis-py's own client of the cluster, to look past our code."""
        node = self.nodes[-1]
        safe = {"ssl": True, "ssl_ca_certs": node.tls[0]} if node.tls else {}
        host = "localhost" if node.tls else "127.0.0.1"
        return RedisCluster(host, node.port, password=node.password or None, decode_responses=True, **safe)  # type: ignore[arg-type]

    @staticmethod
    def id_of(node: Node) -> str:
        """The name by which the cluster knows a node."""
        return str(node.say("CLUSTER MYID"))

    def owner(self, key: str) -> Node:
        """The node that has a key's slot, as most of the living nodes see it."""
        slot = self.slot(key)
        for low, high, master, *_ in self._living()[0].say("CLUSTER SLOTS"):
            if low <= slot <= high:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"nobody has slot {slot}")

    def strangers(self, key: str) -> list[Node]:
        """The masters that do not have a key's slot."""
        owner = self.owner(key)
        return [node for node in self.masters if node is not owner]

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return int(self._living()[0].say("CLUSTER KEYSLOT", key))

    def start_migration(self, key: str, target: Node) -> None:
        """From now on a key's slot is moving to another node; not one key has moved yet."""
        source, slot = self.owner(key), self.slot(key)
        target.say("CLUSTER SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.say("CLUSTER SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, key: str, target: Node, count: int = 100_000) -> int:
        """Move so many keys of the slot; returns how many there were."""
        source = self.owner(key)
        keys = source.say("CLUSTER GETKEYSINSLOT", self.slot(key), count)
        if keys:
            secret = ("AUTH", target.password) if target.password else ()
            source.say("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *secret, "KEYS", *keys)
        return len(keys)

    def end_migration(self, key: str, target: Node) -> None:
        """Move what is left, and give the slot to the target."""
        while self.move_keys(key, target):
            pass
        source, slot, name = self.owner(key), self.slot(key), self.id_of(target)
        for node in (target, source, *self.masters):
            with suppress(redis.ResponseError):
                node.say("CLUSTER SETSLOT", slot, "NODE", name)

    def replica_of(self, node: Node) -> Node:
        """A replica of a master."""
        replicas = [each for each in self._living() if each.info("replication").get("master_port") == node.port]
        return replicas[0]

    def _living(self) -> list[Node]:
        return [node for node in self.nodes if node._process.poll() is None]

    def _knows_all(self, node: Node) -> bool:
        with node.client() as client:
            return int(client.cluster("info")["cluster_known_nodes"]) == len(self.nodes)

    def _ready(self, node: Node) -> bool:
        with node.client() as client:
            state = client.cluster("info")["cluster_state"]
        link = node.info("replication")
        return state == "ok" and link.get("master_link_status", "up") == "up"


class Sentinels:
    """A master, its replica, and three sentinels that replace it within about two seconds. One thread."""

    name = "mymaster"

    def __init__(self, folder: Path, *, tls: Sequence[str] = (), password: str = "") -> None:
        self.master = Node(folder, "--appendonly", "yes", tls=tls, password=password)
        follow = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replica = Node(folder, "--appendonly", "yes", *follow, tls=tls, password=password)
        eventually(lambda: self.replica.info("replication")["master_link_status"] == "up", 20, "the replica")
        self._sentinels = [self._sentinel(folder, number, tls, password) for number in range(3)]
        for sentinel in self._sentinels:
            eventually(lambda: self._knows_all(sentinel), 20, "the sentinels to meet")  # noqa: B023

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where the sentinels are."""
        host = "localhost" if self.master.tls else "127.0.0.1"
        return tuple((host, sentinel.port) for sentinel in self._sentinels)

    def await_failover(self) -> None:
        """Return when the replica is the master, and the sentinels say so."""
        eventually(lambda: self.replica.say("ROLE")[0] == "master", 30, "the replica to be the master")
        answer = lambda sentinel: sentinel.say("SENTINEL GET-MASTER-ADDR-BY-NAME", self.name)[1]  # noqa: E731
        for sentinel in self._sentinels:
            eventually(lambda: answer(sentinel) == self.replica.port, 30, "the sentinels to agree")  # noqa: B023

    def close(self) -> None:
        """End all of them."""
        for node in (*self._sentinels, self.replica, self.master):
            node.close()

    def _sentinel(self, folder: Path, number: int, tls: Sequence[str], password: str) -> Node:
        host = "localhost" if tls else "127.0.0.1"  # what the certificate says
        lines = [
            "sentinel resolve-hostnames yes",
            "sentinel announce-hostnames yes",
            f"sentinel monitor {self.name} {host} {self.master.port} 2",
            f"sentinel down-after-milliseconds {self.name} 1000",
            f"sentinel failover-timeout {self.name} 5000",
        ]
        if password:
            lines.append(f"sentinel auth-pass {self.name} {password}")
        config = folder / f"sentinel-{number}.conf"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Node(folder, str(config), "--sentinel", tls=tls)

    def _knows_all(self, sentinel: Node) -> bool:
        with sentinel.client() as client:
            [answer] = client.sentinel_masters().values()
        return bool(answer["num-other-sentinels"] == 2 and answer["num-slaves"] == 1)


def _free_port() -> int:
    """Below 55,536: a node of a cluster talks to the others on its port + 10,000."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_536:
            return port
