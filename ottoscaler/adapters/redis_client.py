"""How a Redis client is made, for whoever needs one: every default that differs between releases of redis-py is set
here.

Retries are off (retries.py is the only place where anything is tried twice), every wait has an end, and what goes wrong
comes out as StreamUnavailable with a sentence that names the server and what to do.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from ottoscaler.errors import StreamUnavailable
from ottoscaler.settings import RedisSettings

CONNECT_TIMEOUT_S = 2.0
HEALTH_CHECK_S = 15
POOL_WAIT_S = 5.0


Heard = Callable[[str], None]


def mute(error: str) -> None:
    """Nobody is told how a call ended."""


class _PasswordFile(redis.CredentialProvider):
    """Reads the password at each connection, so that a rotated one is used without a restart."""

    def __init__(self, username: str | None, path: str) -> None:
        self._username = username
        self._path = Path(path)

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """User, if there is one, and password."""
        password = self._path.read_text(encoding="utf-8").rstrip("\r\n")
        return (self._username, password) if self._username else (password,)


def connect(settings: RedisSettings, *, timeout_s: float, connections: int = 4) -> redis.Redis:
    """A client that is safe to share between threads; it connects when it is first used.

    Arguments: where and as whom, how long an answer may take in seconds (longer than any blocking read), and how many
    connections at most; a thread that finds none free waits POOL_WAIT_S for one.
    """
    common: dict[str, Any] = {
        "db": settings.db,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_S,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        "driver_info": None,  # else CLIENT SETINFO, a right that Redis 7.0 does not know
        **_credentials(settings),
        **_tls(settings),
    }
    if settings.sentinels:
        asking = {"socket_timeout": CONNECT_TIMEOUT_S, "driver_info": None, **_tls(settings)}
        sentinel = Sentinel(list(settings.sentinels), sentinel_kwargs=asking, **common)
        master: redis.Redis = sentinel.master_for(settings.sentinel_master or "", max_connections=connections)
        return master
    kind = redis.SSLConnection if settings.tls else redis.Connection
    common.pop("ssl", None)
    pool = redis.BlockingConnectionPool(
        connection_class=kind,
        host=settings.host,
        port=settings.port,
        max_connections=connections,
        timeout=POOL_WAIT_S,
        **common,
    )
    return redis.Redis.from_pool(pool)


def drop_idle(client: redis.Redis) -> None:
    """Close the connections that nobody uses just now: when one is dead, so may be the others, and each would cost
    whoever uses it next a time-out. Any thread.
    """
    pool: Any = client.connection_pool
    if not isinstance(pool, redis.BlockingConnectionPool):
        pool.disconnect(inuse_connections=False)
        return
    idle = []
    with suppress(Empty):
        while True:  # taken out first, so that no other thread gets one that is just being closed
            idle.append(pool.pool.get_nowait())
    for connection in idle:
        if connection is not None:
            connection.disconnect()
        pool.pool.put_nowait(connection)


def address(settings: RedisSettings) -> str:
    """Where this Redis is and as whom we come, for messages: never with a password."""
    user = f" (user {settings.username})" if settings.username else ""
    if settings.sentinels:
        asked = ", ".join(f"{host}:{port}" for host, port in settings.sentinels)
        return f"{settings.sentinel_master} (by sentinels {asked}){user}"
    return f"{settings.host}:{settings.port}{user}"


@contextmanager
def translated(where: str, heard: Heard = mute) -> Iterator[None]:
    """Turn what redis-py raises into StreamUnavailable. Arguments: the server's address, for the message; who is told
    how the call ended: empty for an answer, else the error.
    """
    try:
        yield
    except (redis.RedisError, OSError) as error:
        told = StreamUnavailable(f"Redis at {where} {_sentence(error)}", unclear=_unclear(error))
        heard(str(told))
        raise told from error
    heard("")


def _credentials(settings: RedisSettings) -> dict[str, Any]:
    if settings.password_file:
        return {"credential_provider": _PasswordFile(settings.username, settings.password_file)}
    return {"username": settings.username, "password": settings.password}


def _tls(settings: RedisSettings) -> dict[str, Any]:
    if not settings.tls:
        return {}
    # certificates of one's own making, which Python 3.13 would refuse for want of extensions, are as good as before
    lenient = {"ssl_exclude_verify_flags": [ssl.VerifyFlags.VERIFY_X509_STRICT]}
    checks = {"ssl_ca_certs": settings.ca_file, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
    return {"ssl": True, **checks, **lenient}


def _sentence(error: Exception) -> str:
    """What happened and what to do; the server's own words are kept, for they never carry the password."""
    text = " ".join(str(error).split())
    match error:
        case redis.AuthenticationError():
            return (
                f"refuses our user or password ({text}): set REDIS_USERNAME and REDIS_PASSWORD or REDIS_PASSWORD_FILE"
            )
        case redis.exceptions.NoPermissionError():
            return f"does not permit a command ({text}): give the user the rights that README lists"
        case redis.ReadOnlyError():
            return f"is a read-only replica ({text}): set REDIS_HOST to the master"
        case redis.exceptions.OutOfMemoryError():
            return f"is out of memory ({text}): raise maxmemory or delete what is not needed"
        case redis.BusyLoadingError():
            return "is still loading its data: wait until it has read them from its disk"
        case redis.ResponseError() if "can't run this command" in text:
            return f"does not permit a command of our scripts ({text}): give the user the rights that README lists"
        case redis.ResponseError() if text.startswith("MISCONF"):
            return f"cannot write to its disk, and so takes no writes ({text}): make room on it or mend it"
        case redis.TimeoutError():
            return f"does not answer in time ({text})"
        case redis.ConnectionError() | OSError():
            return f"is out of reach ({text}): is it running, and are REDIS_HOST and REDIS_PORT right?"
    return f"answered with an error: {text}"


def _unclear(error: Exception) -> bool:
    """May the command have been carried out? Yes, unless the server said no."""
    return not isinstance(error, redis.ResponseError) or isinstance(error, redis.exceptions.ClusterError)
