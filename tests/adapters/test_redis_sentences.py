"""Each error of Redis is one sentence: what happened, and what the reader can do."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest
import redis

from ottoscaler.adapters.redis_client import connect, translate_errors
from ottoscaler.errors import RedisUnavailable
from ottoscaler.settings import RedisSettings

ERRORS = [
    (redis.AuthenticationError("WRONGPASS"), "refuses our user or password", "set REDIS_USERNAME"),
    (
        redis.exceptions.NoPermissionError("no xadd"),
        "does not permit a command (no xadd)",
        "rights in deploy/REFERENCE.md",
    ),
    (redis.ReadOnlyError("READONLY"), "is a read-only replica", "set REDIS_HOST to the master"),
    (redis.exceptions.OutOfMemoryError("OOM"), "is out of memory", "raise maxmemory"),
    (redis.BusyLoadingError("LOADING"), "is still loading its data", "wait until"),
    (redis.ResponseError("The user can't run this command"), "does not permit a command of our scripts", "REFERENCE"),
    (redis.ResponseError("ACL failure in script"), "does not permit a command of our scripts", "REFERENCE"),
    (
        redis.ResponseError("WRONGTYPE the key a:key:b holds something else than a list"),
        "has something else under a key of ours (WRONGTYPE the key a:key:b holds something else than a list)",
        "rename or delete that key",
    ),
    (redis.ResponseError("MISCONF no disk"), "cannot write to its disk", "make room on it"),
    (redis.exceptions.TryAgainError("TRYAGAIN"), "is moving our keys to another node", "trying again"),
    (redis.exceptions.ClusterDownError("CLUSTERDOWN"), "is a cluster that takes no commands", "a master for each slot"),
    (redis.TimeoutError("Timeout"), "does not answer in time", "(Timeout): it may be overloaded, or speak TLS"),
    (redis.ConnectionError("refused"), "cannot be reached", "are REDIS_HOST, REDIS_PORT and REDIS_TLS right?"),
    (redis.ResponseError("DB index is out of range"), "has no database of that number", "set REDIS_DB to a smaller"),
    (OSError("no route"), "cannot be reached (no route)", "is it running"),
    (redis.ResponseError("ERR something else"), "answered with an error: ERR something else", ""),
]


@pytest.mark.parametrize(("error", "happened", "remedy"), ERRORS, ids=lambda value: str(value)[:20])
def test_an_error_says_what_happened_and_what_to_do(error: Exception, happened: str, remedy: str) -> None:
    """And to which server."""
    with pytest.raises(RedisUnavailable) as raised, translate_errors("here:1"):
        raise error
    sentence = str(raised.value)
    assert sentence.startswith(f"Redis at here:1 {happened}")
    assert remedy in sentence


@pytest.mark.parametrize(("content", "reason"), [(None, "no such file or directory"), (b"hunter22\xff", "not UTF-8")])
def test_a_password_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """The file is read at each connection, so it may go wrong at any time: the server is not to blame."""
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = RedisSettings(host="127.0.0.1", port=port, password_file=str(file))
        with (
            closing(connect(settings, timeout_s=2)) as client,
            pytest.raises(RedisUnavailable) as raised,
            translate_errors("here:1"),
        ):
            client.ping()
    assert str(raised.value) == (
        f"Redis at here:1 is not asked, since its password cannot be read (REDIS_PASSWORD_FILE='{file}': {reason}):"
        " mend that file"
    )


def test_sentinels_that_do_not_answer_are_named_shortly() -> None:
    """By their addresses, and not by all settings of a client; and the variables are those of sentinels."""
    free = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            free.append(("127.0.0.1", listener.getsockname()[1]))
    settings = RedisSettings(sentinels=tuple(free), sentinel_master="main", password="hunter22")
    with (
        closing(connect(settings, timeout_s=2)) as client,
        pytest.raises(RedisUnavailable) as raised,
        translate_errors("here:1"),
    ):
        client.ping()
    sentence = str(raised.value)
    assert sentence.startswith("Redis at here:1 is not known to any sentinel that answers (No master found for 'main'")
    assert all(f"127.0.0.1:{port} - " in sentence for _, port in free)
    assert sentence.endswith("are REDIS_SENTINELS and REDIS_SENTINEL_MASTER right?")
    assert len(sentence) < 300
