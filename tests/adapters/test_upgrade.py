"""Task hashes that earlier releases wrote: what they say is read as it was meant."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import redis

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.adapters.task_codec import decode_workers, encode_worker_note
from ottoscaler.core.victim_selection import BlockingEvent
from ottoscaler.local.redis import EmbeddedRedis
from ottoscaler.ports import OpenTask
from ottoscaler.settings import KeySettings, RedisSettings
from ottoscaler.stored import WorkerNote
from tests.adapters.streams import accept


@pytest.mark.parametrize(
    ("attempt", "note", "seen"),
    [
        ("1:0", encode_worker_note(WorkerNote("running", 1, "p")), True),
        ("2:1", encode_worker_note(WorkerNote("pending", 2, "p")), True),
        ("2:1", encode_worker_note(WorkerNote("running", 1, "p")), False),
        ("1:0", encode_worker_note(WorkerNote("creating", 1, "p")), False),
        ("1:0", encode_worker_note(WorkerNote("waiting", 1, "")), False),
        ("1:0", "what somebody else has written", False),
        ("1:0", None, False),
        ("1:0:s", encode_worker_note(WorkerNote("creating", 1, "p")), True),
    ],
)
def test_an_attempt_with_a_noted_pod_was_seen(attempt: str, note: str | None, seen: bool) -> None:
    """Releases before the flag noted only the pod. Taken for unseen, an attempt that ended would be run once more."""
    fields = {b"attempt:1": attempt.encode()} | ({} if note is None else {b"worker:1": note.encode()})
    assert decode_workers(fields)[1].pod_was_seen is seen


def test_several_drains_were_one() -> None:
    """The field had one name, and has a list of them by now."""
    assert decode_workers({b"attempt:1": b"1:0", b"spared:1": b"d-1"})[1].spared_by == ("d-1",)


@pytest.mark.parametrize(
    ("fields", "holds_up"),
    [
        ({"type": "scale_down", "pod_count": "1"}, True),
        ({"type": "scale_up", "supersedes": "branch"}, True),
        ({"type": "scale_up"}, False),
    ],
)
def test_an_event_that_has_still_to_choose_gets_its_place_when_it_is_taken(
    tmp_path: Path, fields: dict[str, str], *, holds_up: bool
) -> None:
    """Earlier releases kept no places. Without one, later events would choose first."""
    server = EmbeddedRedis(tmp_path)
    server.start()
    settings = RedisSettings(host=server.host, port=server.port, block_ms=50)
    with (
        closing(server),
        closing(
            RedisBackend(RedisCalls(settings, KeySettings(consumer="new"), lease_s=9, consumer="new", incarnation="b"))
        ) as stream,
        closing(redis.Redis(server.host, server.port)) as client,
    ):
        stream.ensure_group()
        client.xadd("otto:scale:events", {"event_id": "e", **fields})
        task = accept(stream, stream.read(1)[0])
        assert task is not None
        client.delete("otto:scale:choices")
        client.zadd("otto:scale:open", {"e": 1})
        taken = stream.take_over("e", same_consumer=False)
        assert isinstance(taken, OpenTask)
        last = f"{int(task.event.stream_id.partition('-')[0]) + 1}-0"
        assert stream.blocker(last) == (BlockingEvent("e", taken.owner) if holds_up else None)
