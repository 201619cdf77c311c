"""What the parts of `RedisStream` share: the connections, one set for each kind of wait, and how a script is called.

Reads of the stream that block have connections of their own, and so have the leases, with short time-outs: a slow
script of a worker must not cost a lease.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ottoscaler.adapters.redis_client import Heard, address, connect, drop_idle, mute, translated
from ottoscaler.adapters.redis_cluster import FollowingRedis
from ottoscaler.adapters.replies import answers_of, chunks
from ottoscaler.adapters.scripts import Scripts
from ottoscaler.adapters.tasks import Key, decode_termination
from ottoscaler.errors import StreamUnavailable
from ottoscaler.ports import Answer, Status
from ottoscaler.settings import KeySettings, RedisSettings

#: A lost answer of a blocking read is noticed this long after the block's end, seconds. With the longest pause of
#: retries.py it is how long after a silence of the network events are read again.
READ_MARGIN_S = 1.5
SCRIPT_TIMEOUT_S = 5.0
LEASE_TIMEOUT_S = 2.0
CONNECTIONS = 16
#: Connections for what comes before a task is ours: for the reader, control and the lease thread.
READERS = 3


class StreamCalls:
    """The connections to one Redis, and the calls on them. Any thread."""

    def __init__(
        self, server: RedisSettings, keys: KeySettings, *, lease_s: float, consumer: str, boot: str, heard: Heard = mute
    ) -> None:
        """`heard` is told of each call how it ended: empty for an answer, else the error."""
        self._keys = keys
        self._key = Key(keys.prefix)
        self._scripts = Scripts(keys)
        self._consumer = consumer
        self._boot = boot
        self._base = f"{consumer}/{boot}/"
        self._lease_ms = int(lease_s * 1000)
        self._block_ms = server.block_ms
        self._telling = partial(translated, address(server), heard)
        read_timeout_s = server.block_ms / 1000 + READ_MARGIN_S
        self._reading = connect(server, timeout_s=read_timeout_s, connections=READERS, bounded=True)
        self._peeking = connect(server, timeout_s=read_timeout_s, connections=1, bounded=True)
        self._leasing = connect(server, timeout_s=LEASE_TIMEOUT_S, connections=1)  # for renewals alone
        self._taking = connect(server, timeout_s=LEASE_TIMEOUT_S, connections=2)
        self._client = connect(server, timeout_s=SCRIPT_TIMEOUT_S, connections=CONNECTIONS)
        self._clients = (self._reading, self._peeking, self._leasing, self._taking, self._client)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    def _hashes(self, event_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        hashes: list[dict[bytes, bytes]] = []
        with self._calling():
            for part in chunks(event_ids):
                pipe = self._client.pipeline(transaction=False)
                for event_id in part:
                    pipe.hgetall(self._key.task(event_id))
                hashes += answers_of(self._client, pipe, {})
        return hashes

    @contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            with self._telling():
                yield
        except StreamUnavailable as error:
            if error.unclear:
                for client in self._clients:
                    drop_idle(client)
            raise

    # -- scripts

    def _answer(self, function: str, event_id: str, *arguments: Any) -> Answer:
        reply = self._run(function, [self._key.task(event_id)], event_id, *arguments)
        termination = decode_termination(reply[1]) if len(reply) > 1 else None
        attempt = int(reply[2]) if len(reply) > 2 else 0
        told = [text.decode() for text in reply[3:]]
        return Answer(Status[reply[0].decode().upper()], termination, attempt, *told)

    def _run(self, function: str, tasks: Sequence[str], *arguments: Any, client: FollowingRedis | None = None) -> Any:
        with self._calling():
            return self._scripts.run(client or self._client, function, tasks, arguments)
