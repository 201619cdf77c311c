"""What the adapters of one Redis share: the connections, one set for each kind of wait, and how a script is called.

Reads of the stream that block have connections of their own, and so have the leases, with short time-outs: a slow
script of a worker must not cost a lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import redis

from ottoscaler.adapters.redis_client import OnReply, address, connect, drop_idle, ignore_reply, translate_errors
from ottoscaler.adapters.redis_cluster import RedirectingRedis
from ottoscaler.adapters.redis_values import chunks, decode_names, pipeline_replies
from ottoscaler.adapters.scripts import ScriptCall, Scripts
from ottoscaler.adapters.task_codec import RedisKeys, decode_termination
from ottoscaler.errors import RedisUnavailable
from ottoscaler.ports import ScriptReply, ScriptStatus
from ottoscaler.settings import KeySettings, RedisSettings

#: A lost answer of a blocking read is noticed this long after the block's end, seconds. With the longest pause of
#: retries.py it is how long after a silence of the network events are read again.
READ_MARGIN_S: Final = 1.5
SCRIPT_TIMEOUT_S: Final = 5.0
LEASE_TIMEOUT_S: Final = 2.0
CONNECTIONS: Final = 16
#: Connections for what comes before a task is ours: for the reader, control and the lease thread.
READER_CONNECTIONS: Final = 3

_STATUSES: Final = {status.name.lower().encode(): status for status in ScriptStatus}


class RedisCalls:
    """The connections to one Redis, and the calls on them. Any thread."""

    def __init__(
        self,
        server: RedisSettings,
        keys: KeySettings,
        *,
        lease_s: float,
        consumer: str,
        incarnation: str,
        on_reply: OnReply = ignore_reply,
        on_script: Callable[[str, float], None] = lambda kind, seconds: None,
    ) -> None:
        """`on_reply` gets for each call how it ended: empty for a reply, otherwise the error. `on_script` gets for each
        script what it is for (`worker`, `reader`, `lease` or `takeover`), and how long its trip took, seconds.
        """
        self._on_script = on_script
        self.names = keys
        self.key = RedisKeys(keys.prefix)
        self.consumer = consumer
        self.incarnation = incarnation
        self.process = f"{consumer}/{incarnation}/"
        self.lease_ms = int(lease_s * 1000)
        self.block_ms = server.block_ms
        self._scripts = Scripts(keys)
        self._translated = partial(translate_errors, address(server), on_reply)
        read_timeout_s = server.block_ms / 1000 + READ_MARGIN_S
        # Apart from scripts: a read blocks for REDIS_BLOCK_MS, and keeps its connection meanwhile.
        self.reading = connect(server, timeout_s=read_timeout_s, connections=READER_CONNECTIONS, bounded=True)
        self.peeking = connect(server, timeout_s=read_timeout_s, connections=1, bounded=True)
        # For renewals alone: a call of another thread on this connection would delay them, and a late renewal costs the
        # lease.
        self.leasing = connect(server, timeout_s=LEASE_TIMEOUT_S, connections=1)
        # Take-overs and notes are long and many: on the connections of the workers they would delay each attempt.
        self.taking = connect(server, timeout_s=LEASE_TIMEOUT_S, connections=2)
        self.client = connect(server, timeout_s=SCRIPT_TIMEOUT_S, connections=CONNECTIONS)
        self._clients = (self.reading, self.peeking, self.leasing, self.taking, self.client)
        self._kinds = {id(self.leasing): "lease", id(self.taking): "takeover", id(self.client): "worker"}

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """What redis-py raises inside becomes RedisUnavailable or ConfigError."""
        try:
            with self._translated():
                yield
        except RedisUnavailable as error:
            # A connection that got no answer is dead, and so may be the idle ones: each would cost its next user a
            # time-out.
            if error.unclear:
                for client in self._clients:
                    drop_idle(client)
            raise

    def open_event_ids(self, client: RedirectingRedis) -> list[str]:
        """The event ids of all open tasks of the group."""
        with self.translate_errors():
            return decode_names(cast("list[bytes]", client.zrange(self.key.open, 0, -1)))

    def hashes(self, event_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        """The task hashes of these events, in their order; empty for one that is not there."""
        hashes: list[dict[bytes, bytes]] = []
        if not event_ids:
            return hashes  # nothing is asked: in an outage this must not count as an answer of Redis
        with self.translate_errors():
            for part in chunks(event_ids):
                # No transaction: each hash is whole by itself, and MULTI would hold up all others for the whole part.
                pipe = self.client.pipeline(transaction=False)
                for event_id in part:
                    pipe.hgetall(self.key.task(event_id))
                hashes += pipeline_replies(self.client, pipe, {})
        return hashes

    def create_group(self, client: RedirectingRedis, stream: str, group: str, first: str) -> None:
        """Create a consumer group that reads from the entry `first` on, and the stream, if they are not there."""
        with self.translate_errors():
            try:
                client.xgroup_create(stream, group, id=first, mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):  # another replica was first, or an earlier start: it is as wanted
                    raise

    # -- scripts: the function's name, the keys that it is about, its arguments

    def run(self, function: str, keys: Sequence[str], *arguments: Any, client: RedirectingRedis | None = None) -> Any:
        """The reply of one script function."""
        client = client or self.client
        with self.translate_errors(), self._timed(client):
            return self._scripts.run(client, function, keys, arguments)

    def run_without_keys(self, function: str, *arguments: str, client: RedirectingRedis) -> Any:
        """The same for a function that gets all keys as arguments. Redis does not run a script with a key to which the
        user has no right, and does not say which key it was.
        """
        with self.translate_errors():
            return self._scripts.run_without_keys(client, function, arguments)

    def run_for_worker(self, function: str, keys: Sequence[str], *arguments: Any) -> ScriptReply:
        """The reply of a script function about one worker."""
        reply = self.run(function, keys, *arguments)
        termination = decode_termination(reply[1]) if len(reply) > 1 else None
        attempt = int(reply[2]) if len(reply) > 2 else 0
        return ScriptReply(_STATUSES[reply[0]], termination, attempt, *(text.decode() for text in reply[3:]))

    def run_many(self, client: RedirectingRedis, calls: Sequence[ScriptCall]) -> list[Any]:
        """The replies of many script functions, in one trip. Raises the first error after all have been sent: they are
        idempotent, so the caller repeats all.
        """
        if not calls:
            return []  # as in `hashes`
        with self.translate_errors(), self._timed(client):
            return self._scripts.run_many(client, calls)

    @contextmanager
    def _timed(self, client: RedirectingRedis) -> Iterator[None]:
        """One trip, whether it is answered or not."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._on_script(self._kinds.get(id(client), "reader"), time.monotonic() - began)


class RedisAdapter:
    """One of the ports on the connections that all of them share."""

    def __init__(self, redis: RedisCalls) -> None:
        self._redis = redis
