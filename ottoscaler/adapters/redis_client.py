"""How a Redis client is made: every default that differs between releases of redis-py is set here.

Retries are off (retries.py is the only place where anything is tried twice), every wait has an end, and what goes wrong
comes out as RedisUnavailable with a sentence that names the server and what to do.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any, cast

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from ottoscaler.adapters.redis_cluster import (
    ClusterNodes,
    RedirectingConnection,
    RedirectingRedis,
    RedirectingSSLConnection,
)
from ottoscaler.errors import ConfigError, RedisUnavailable
from ottoscaler.settings import RedisSettings
from ottoscaler.settings_files import file_error_reason, read_text, redact_value

CONNECT_TIMEOUT_S = 2.0
HEALTH_CHECK_S = 15
POOL_WAIT_S = 5.0
#: More than a read of the largest valid events brings: 100 of 64 KiB.
MAX_REPLY_BYTES = 8 * 1024 * 1024

_NO_DATABASES = "SELECT is not allowed in cluster mode"
_NO_COMMON_SLOT = (
    "KEY_PREFIX, REDIS_STREAM, RESULT_STREAM, DEAD_LETTER_STREAM: expected names that share one hash tag, such as"
    " {{otto}}:scale:, {{otto}}:events, {{otto}}:results and {{otto}}:dead, since Redis at {} is a Redis Cluster and"
    " keeps names without one on several nodes"
)

#: How redis-py names a sentinel in an error: its client with all settings.
_SENTINEL = re.compile(r"<redis\.client\.Redis\(.*?,host=([^,]*),port=([0-9]+),.*?\)>\)>\)>")

OnReply = Callable[[str], None]


def ignore_reply(error: str) -> None:
    """An `on_reply` that does nothing."""


class PasswordUnreadable(redis.RedisError):
    """The file that holds the password cannot be read."""


class _PasswordFile(redis.CredentialProvider):
    """Reads the password at each connection, so that a rotated one is used without a restart."""

    def __init__(self, username: str | None, path: str) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """User, if there is one, and password. Raises PasswordUnreadable."""
        try:
            password = read_text(self._path).rstrip("\r\n")
        except (OSError, ValueError) as error:
            raise PasswordUnreadable(f"{redact_value(self._path)}: {file_error_reason(error)}") from error
        return (self._username, password) if self._username else (password,)


class _Pool(redis.BlockingConnectionPool):
    """At its bound a thread waits for a connection; where none gets free in time, that is a ConnectionError."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections, or the idle ones.

        The idle ones are taken out first: redis-py closes them in place, and another thread could be given one of them
        in between.
        """
        if inuse_connections:
            super().disconnect()
            return
        idle = []
        with suppress(Empty):
            while True:
                idle.append(self.pool.get_nowait())
        for connection in idle:
            if connection is not None:
                connection.disconnect()
            self.pool.put_nowait(connection)


class _SentinelPool(SentinelConnectionPool, _Pool):
    """The same for the master that the sentinels name: redis-py's own does not wait, it raises at its bound."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        """The same; with all connections also those to the sentinels."""
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in cast("Any", self).sentinel_manager.sentinels:
                sentinel.connection_pool.disconnect()


class ReplyTooLarge(redis.RedisError):
    """A reply had more bytes than were allowed: the connection was closed before it was read to the end."""


class _BoundedParser(redis.connection.DefaultParser):  # type: ignore[misc, valid-type]
    """Reads replies of at most MAX_REPLY_BYTES: producers decide how long the reply to a read is, and must not decide
    how much memory we need. Counts what the socket gives, since hiredis does not say how long a reply is.
    """

    _received = 0

    def read_response(self, *args: Any, **options: Any) -> Any:
        """One reply. Raises ReplyTooLarge."""
        self._received = 0
        return super().read_response(*args, **options)

    def read_from_socket(self, *args: Any, **options: Any) -> bool:
        """What is there, into the buffer. Raises ReplyTooLarge."""
        reader = self._reader
        before = reader.len() if reader is not None else 0
        there = bool(super().read_from_socket(*args, **options))
        self._received += reader.len() - before if reader is not None else 0
        if self._received > MAX_REPLY_BYTES:
            raise ReplyTooLarge(f"the reply has more than {MAX_REPLY_BYTES} bytes")
        return there


class _Packer:
    """Writes a command as the server reads it. redis-py's own looks at each argument first, in Python, for types that
    none of ours has; a script call has thirty.
    """

    def pack(self, *command: Any) -> list[bytes]:
        """The bytes of a command; its name may be of two words."""
        return [hiredis.pack_command((*command[0].split(), *command[1:]))]


def connect(
    settings: RedisSettings, *, timeout_s: float, connections: int = 4, bounded: bool = False
) -> RedirectingRedis:
    """A client that is safe to share between threads; it connects when it is first used. A Redis Cluster is followed,
    see redis_cluster.py.

    Arguments: where and as which user, how long an answer may take in seconds (longer than any blocking read), and how
    many connections at most; a thread that finds none free waits POOL_WAIT_S for one. `bounded`: a reply of more than
    MAX_REPLY_BYTES raises ReplyTooLarge.
    """
    common: dict[str, Any] = {
        "db": settings.db,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        # Behind a NAT an idle connection dies without a word: otherwise its next user would wait for the time-out.
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_S,
        # redis-py repeats nothing: after a time-out the script may have been carried out, and a lease has no time for
        # more tries. retries.py decides, with a bound and a log line.
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,
        "command_packer": _Packer(),
        "driver_info": None,  # otherwise CLIENT SETINFO, a right that Redis 7.0 does not know
        **({"parser_class": _BoundedParser} if bounded else {}),
        **_credential_options(settings),
        **_tls_options(settings),
    }
    bound = {"max_connections": connections, "timeout": POOL_WAIT_S}
    if settings.sentinels:
        asking = {
            "socket_timeout": CONNECT_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S, "driver_info": None,
            "retry": Retry(NoBackoff(), 0), **_tls_options(settings),
        }  # fmt: skip
        sentinel = Sentinel(list(settings.sentinels), sentinel_kwargs=asking, **common)
        pool = cast("Any", _SentinelPool)(settings.sentinel_master or "", sentinel, **common, **bound)
        return _client_of_pool(pool, None)
    common.pop("ssl", None)
    nodes = ClusterNodes((settings.host, settings.port))
    kind = RedirectingSSLConnection if settings.tls else RedirectingConnection
    pool = cast("Any", _Pool)(
        connection_class=kind, host=settings.host, port=settings.port, nodes=nodes, **common, **bound
    )
    return _client_of_pool(pool, nodes)


def _client_of_pool(pool: _Pool, nodes: ClusterNodes | None) -> RedirectingRedis:
    client: Any = RedirectingRedis.from_pool(pool)
    client.nodes = nodes
    return client  # type: ignore[no-any-return]  # redis-py does not say which class it makes


def drop_idle(client: redis.Redis) -> None:
    """Close the idle connections: when one is dead, so may be the others, and each would cost its next user a time-out.
    Any thread.
    """
    client.connection_pool.disconnect(inuse_connections=False)


def address(settings: RedisSettings) -> str:
    """Address and user of this Redis, for messages: never with a password."""
    user = f" (user {settings.username})" if settings.username else ""
    if settings.sentinels:
        asked = ", ".join(f"{host}:{port}" for host, port in settings.sentinels)
        return f"{settings.sentinel_master} (by sentinels {asked}){user}"
    return f"{settings.host}:{settings.port}{user}"


def no_common_slot_error(where: str) -> ConfigError:
    """The configured names do not share a slot of the Redis Cluster at this address."""
    return ConfigError((_NO_COMMON_SLOT.format(where),))


@contextmanager
def translate_errors(where: str, on_reply: OnReply = ignore_reply) -> Iterator[None]:
    """Turn what redis-py raises into RedisUnavailable, or into ConfigError where a cluster cannot ever take what is
    configured. Arguments: the server's address, for the message; what gets how the call ended: empty for a reply,
    otherwise the error.
    """
    try:
        yield
    except redis.exceptions.ClusterCrossSlotError as error:
        raise no_common_slot_error(where) from error
    except (redis.RedisError, OSError) as error:
        if _NO_DATABASES in str(error):
            raise ConfigError((f"REDIS_DB: expected 0, since Redis at {where} is a Redis Cluster",)) from error
        unavailable = RedisUnavailable(f"Redis at {where} {_error_sentence(error)}", unclear=_is_outcome_unclear(error))
        on_reply(str(unavailable))
        raise unavailable from error
    on_reply("")


def _credential_options(settings: RedisSettings) -> dict[str, Any]:
    if settings.password_file:
        return {"credential_provider": _PasswordFile(settings.username, settings.password_file)}
    return {"username": settings.username, "password": settings.password}


def _tls_options(settings: RedisSettings) -> dict[str, Any]:
    if not settings.tls:
        return {}
    # certificates of one's own making, which Python 3.13 would refuse for want of extensions, are as good as before
    lenient = {"ssl_exclude_verify_flags": [ssl.VerifyFlags.VERIFY_X509_STRICT]}
    checks = {"ssl_ca_certs": settings.ca_file, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
    return {"ssl": True, **checks, **lenient}


def _error_sentence(error: Exception) -> str:
    """What happened and what to do; the server's own words are kept, for they never carry the password."""
    text = _SENTINEL.sub(r"\1:\2", " ".join(str(error).split()))
    match error:
        case PasswordUnreadable():
            return f"is not asked, since its password cannot be read (REDIS_PASSWORD_FILE={text}): mend that file"
        case redis.sentinel.MasterNotFoundError():
            return (
                f"is not known to any sentinel that answers ({text}): are they running, and are REDIS_SENTINELS and"
                " REDIS_SENTINEL_MASTER right?"
            )
        case redis.AuthenticationError():
            return (
                f"refuses our user or password ({text}): set REDIS_USERNAME and REDIS_PASSWORD or REDIS_PASSWORD_FILE"
            )
        case redis.exceptions.NoPermissionError():
            return f"does not permit a command ({text}): give the user the rights in deploy/REFERENCE.md"
        case redis.ReadOnlyError():
            return f"is a read-only replica ({text}): set REDIS_HOST to the master"
        case redis.exceptions.OutOfMemoryError():
            return f"is out of memory ({text}): raise maxmemory or delete what is not needed"
        case redis.BusyLoadingError():
            return "is still loading its data: wait until it has read them from its disk"
        case redis.ResponseError() if "can't run this command" in text or "ACL failure in script" in text:
            return f"does not permit a command of our scripts ({text}): give the user the rights in deploy/REFERENCE.md"
        case redis.ResponseError() if "WRONGTYPE" in text:
            return (
                f"has something else under a key of ours ({text}): rename or delete that key; what needs it waits until"
                " then"
            )
        case redis.ResponseError() if text.startswith("MISCONF"):
            return f"cannot write to its disk, and so takes no writes ({text}): make room on it or mend it"
        case redis.exceptions.TryAgainError():
            return f"is moving our keys to another node ({text}): trying again until they are there"
        case redis.exceptions.ClusterDownError():
            return f"is a cluster that takes no commands now ({text}): it needs a master for each slot"
        case redis.ResponseError() if "DB index is out of range" in text:
            return f"has no database of that number ({text}): set REDIS_DB to a smaller one"
        case redis.TimeoutError():
            return (
                f"does not answer in time ({text}): it may be overloaded, or speak TLS where REDIS_TLS says otherwise"
            )
        case redis.ConnectionError() | OSError():
            return f"cannot be reached ({text}): is it running, and are REDIS_HOST, REDIS_PORT and REDIS_TLS right?"
    return f"answered with an error: {text}"


def _is_outcome_unclear(error: Exception) -> bool:
    """May the command have been carried out? Yes, unless the server said no."""
    return not isinstance(error, redis.ResponseError)
