"""Each error of Redis is one sentence: what happened, and what the reader can do."""

from __future__ import annotations

import pytest
import redis

from ottoscaler.adapters.redis_client import translated
from ottoscaler.errors import StreamUnavailable

ERRORS = [
    (redis.AuthenticationError("WRONGPASS"), "refuses our user or password", "set REDIS_USERNAME"),
    (redis.exceptions.NoPermissionError("no xadd"), "does not permit a command (no xadd)", "rights that README lists"),
    (redis.ReadOnlyError("READONLY"), "is a read-only replica", "set REDIS_HOST to the master"),
    (redis.exceptions.OutOfMemoryError("OOM"), "is out of memory", "raise maxmemory"),
    (redis.BusyLoadingError("LOADING"), "is still loading its data", "wait until"),
    (redis.ResponseError("The user can't run this command"), "does not permit a command of our scripts", "README"),
    (redis.ResponseError("ACL failure in script"), "does not permit a command of our scripts", "README"),
    (redis.ResponseError("MISCONF no disk"), "cannot write to its disk", "make room on it"),
    (redis.exceptions.TryAgainError("TRYAGAIN"), "is moving our keys to another node", "trying again"),
    (redis.exceptions.ClusterDownError("CLUSTERDOWN"), "is a cluster that takes no commands", "a master for each slot"),
    (redis.TimeoutError("Timeout"), "does not answer in time", "(Timeout)"),
    (redis.ConnectionError("refused"), "is out of reach", "are REDIS_HOST and REDIS_PORT right?"),
    (OSError("no route"), "is out of reach (no route)", "is it running"),
    (redis.ResponseError("ERR something else"), "answered with an error: ERR something else", ""),
]


@pytest.mark.parametrize(("error", "happened", "remedy"), ERRORS, ids=lambda value: str(value)[:20])
def test_an_error_says_what_happened_and_what_to_do(error: Exception, happened: str, remedy: str) -> None:
    """And to which server."""
    with pytest.raises(StreamUnavailable) as raised, translated("here:1"):
        raise error
    told = str(raised.value)
    assert told.startswith(f"Redis at here:1 {happened}")
    assert remedy in told
