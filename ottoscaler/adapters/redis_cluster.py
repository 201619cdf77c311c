"""Following a Redis Cluster: all our keys share one slot, so what is to be known is which node has that slot just now.

A client begins at REDIS_HOST. A node that does not have the slot answers MOVED and names the one that does; from then
on all connections go there. While the slot migrates, a node answers ASK for keys that have gone ahead: that one command
goes to the other node. When the node dies, any other one of the cluster knows its successor. Every command, also one
without a key such as TIME, goes to the same node: clocks of two nodes are never compared. A server that is no cluster
never answers so, and nothing changes. See https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any, Final, TypeAlias, cast

import redis
from redis.exceptions import AskError, MovedError

#: Redirections that one command follows: the specification's own clients use as many.
MAX_REDIRECTIONS: Final = 5
#: The other nodes are asked for with a new connection, at most this often, seconds.
LEARN_EVERY_S: Final = 10.0

Address: TypeAlias = tuple[str, int]

#: The scripts that may have to be loaded on a node that a single command is sent to, by digest.
_sources: dict[str, bytes] = {}


def remember_script(digest: str, source: bytes) -> None:
    """From now on, this script is loaded where an ASK leads to a node that does not have it. Any thread."""
    _sources[digest] = source


class ClusterNodes:
    """Which node has our slot, and which others there are. Any thread."""

    def __init__(self, seed: Address) -> None:
        self._lock = threading.Lock()
        self._seed = seed
        self._owner = seed  # guarded by _lock
        self._known: list[Address] = [seed]  # guarded by _lock
        self._learn_at = 0.0  # guarded by _lock

    @property
    def slot_node(self) -> Address:
        """Where to send commands to."""
        with self._lock:
            return self._owner

    def moved(self, owner: Address) -> None:
        """A node says that this one has the slot."""
        with self._lock:
            self._owner = owner
            if owner not in self._known:
                self._known.append(owner)

    def move_on_from(self, node: Address) -> None:
        """This node did not answer: the next one of the cluster is asked which node has the slot. Alone, it is asked
        again.
        """
        with self._lock:
            # Many threads may doubt the same dead node: only the first of them moves on, or they would move past the
            # nodes that live.
            if node == self._owner:
                at = self._known.index(node) if node in self._known else -1
                self._owner = self._known[(at + 1) % len(self._known)]

    def refresh_due(self) -> bool:
        """Are the other nodes to be asked for? True for one caller at a time."""
        with self._lock:
            due = time.monotonic() >= self._learn_at
            if due:  # noted before the answer: after a failover all connections are made again, and one of them asks
                self._learn_at = time.monotonic() + LEARN_EVERY_S
            return due

    def update_from_slots(self, slots: Any, asked: Address) -> None:
        """The answer to CLUSTER SLOTS by this node, for which a node without a host stands for itself."""
        found = {(_text(host) or asked[0], int(port)) for _, _, *nodes in slots for host, port, *_ in nodes}
        with self._lock:
            self._known = [self._seed, *sorted(found - {self._seed})]


class RedirectingConnection(redis.Connection):
    """A connection to the node that has our slot: where that is another one by now, it connects to that."""

    def __init__(self, *, nodes: ClusterNodes, **options: Any) -> None:
        cast("Any", super()).__init__(**options)
        self._nodes = nodes

    def connect(self) -> None:
        """Connect, unless it is connected to the right node. Raises what redis-py raises."""
        owner = self._nodes.slot_node
        if (self.host, self.port) != owner:
            # A connection from the pool may still be open to the node that had the slot before: each command on it
            # would be redirected once more.
            cast("Any", self).disconnect()
            self.host, self.port = owner
        try:
            cast("Any", super()).connect()
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            self._nodes.move_on_from(owner)
            raise

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, and from time to time ask which other nodes there are: this one may die."""
        super().on_connect_check_health(check_health)
        me: Any = self
        met = me.handshake_metadata or {}  # the answer to HELLO
        if _text(met.get(b"mode")) == "cluster" and self._nodes.refresh_due():
            me.send_command("CLUSTER", "SLOTS", check_health=False)
            with suppress(redis.ResponseError):  # no right to it: MOVED names the nodes as well, one by one
                self._nodes.update_from_slots(me.read_response(), (self.host, self.port))


class RedirectingSSLConnection(RedirectingConnection, redis.SSLConnection):
    """The same with TLS; each node has to prove the name or address by which the cluster knows it."""


class RedirectingRedis(redis.Redis):
    """A client that follows MOVED and ASK. Any thread."""

    nodes: ClusterNodes | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """The answer to one command. Raises what redis-py raises."""
        if self.nodes is None:
            return self._execute_once(args, options)
        # Bounded: two nodes that each name the other, as in a split cluster, must not keep a thread for good.
        for _ in range(MAX_REDIRECTIONS):
            node = self.nodes.slot_node
            try:
                return self._execute_once(args, options)
            except MovedError as error:
                self.nodes.moved(_redirection_target(error, node))
            except AskError as error:
                return self._follow_ask(_redirection_target(error, node), args, options)
            except (redis.ConnectionError, redis.TimeoutError):
                # Not repeated here: it may have been carried out, and only the caller knows if that may happen twice.
                self.nodes.move_on_from(node)
                raise
        raise redis.ConnectionError(f"redirected more than {MAX_REDIRECTIONS} times, last to {self.nodes.slot_node}")

    def _execute_once(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """The answer to one command that is sent once. redis-py's own `execute_command` does the same inside retries,
        which are off, and keeps figures for OpenTelemetry, which is not there.
        """
        pool: Any = self.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_command(*args)
            return cast("Any", self).parse_response(connection, args[0], **options)
        except (redis.ConnectionError, redis.TimeoutError):
            # An answer that comes late would be taken for the next command's.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def execute_pipeline(self, pipe: Any) -> list[Any]:
        """The answers of a pipeline of this client, an error in the place of an answer where there is one.

        What was redirected is sent again, one by one: the slot rarely moves. Raises what concerns all of them.
        """
        commands, node = list(pipe.command_stack), self.nodes.slot_node if self.nodes else None
        try:
            found: list[Any] = pipe.execute(raise_on_error=False)
        except (redis.ConnectionError, redis.TimeoutError):
            if self.nodes and node:
                self.nodes.move_on_from(node)
            raise
        for number, (args, options) in enumerate(commands):
            if isinstance(found[number], AskError):  # MovedError is one, too
                try:
                    found[number] = self.execute_command(*args, **options)
                except redis.ResponseError as error:
                    found[number] = error
        return found

    def connection_ids(self) -> list[int]:
        """The numbers by which the server knows the open connections of this client, for CLIENT UNBLOCK."""
        pool: Any = self.connection_pool
        hellos = [each.handshake_metadata or {} for each in list(pool._connections) if each.is_connected]
        return [int(hello[b"id"]) for hello in hellos if b"id" in hello]

    def _follow_ask(self, node: Address, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """One command on the node to which the slot is migrating, over a connection for this alone."""
        pool = self.connection_pool
        connection = pool.connection_class(**{**pool.connection_kwargs, "nodes": ClusterNodes(node)})
        try:
            connection.connect()
            try:
                return self._send_after_asking(connection, args, options)
            except redis.exceptions.NoScriptError:
                connection.send_command("SCRIPT", "LOAD", _sources[args[1]])
                connection.read_response()
                return self._send_after_asking(connection, args, options)
        finally:
            connection.disconnect()

    def _send_after_asking(self, connection: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        connection.send_command("ASKING")
        connection.read_response()
        connection.send_command(*args)
        return cast("Any", self).parse_response(connection, args[0], **options)


def _redirection_target(error: AskError, asked: Address) -> Address:
    """Where a redirection leads; without a host it is the one that was asked, on another port."""
    return (error.host or asked[0], error.port)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
