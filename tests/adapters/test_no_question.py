"""A call that asks Redis nothing counts as no answer: in an outage it would look as if Redis were back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

from ottoscaler.adapters.redis_backend import RedisBackend
from ottoscaler.adapters.redis_calls import RedisCalls
from ottoscaler.errors import RedisUnavailable
from ottoscaler.settings import KeySettings, RedisSettings

#: A port that no server listens on.
NO_SERVER = 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda backend: backend.known_tasks([]),
        lambda backend: backend.stored_workers([]),
        lambda backend: backend.write_status([]),
        lambda backend: backend.release({}),
        lambda backend: backend.accept([], []),
    ],
    ids=["known_tasks", "stored_workers", "write_status", "release", "accept"],
)
def test_a_question_about_nothing_is_no_answer(ask: Callable[[RedisBackend], object]) -> None:
    """Of each method that takes many; a question about one fails."""
    replies: list[str] = []
    calls = RedisCalls(
        RedisSettings(host="127.0.0.1", port=NO_SERVER), KeySettings(consumer="c"), lease_s=15.0, consumer="c",
        incarnation="i", on_reply=replies.append,
    )  # fmt: skip
    with closing(RedisBackend(calls)) as backend:
        ask(backend)
        assert replies == []
        with pytest.raises(RedisUnavailable):
            backend.known_tasks(["e"])
        assert len(replies) == 1
