"""The rules about Redis and about the queue in it: from what the server says to findings. The start-up of the
controller logs the same sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ottoscaler.core.findings import Finding, broken, fine, unknown, warning
from ottoscaler.core.wording import count_text

#: The first major version of Redis with all commands that the scripts use. Valkey says 7.2 for itself.
LEAST_MAJOR: Final = 7
#: From this part of maxmemory on, writes will soon be refused.
NEARLY_FULL: Final = 0.9
#: An event that waits longer than this, seconds, is worth a look although a controller reads.
LONG_WAIT_S: Final = 600.0
#: From this part of RESULT_MAXLEN on, each new result removes an old one.
TRIMS_FROM: Final = 0.98
#: Results that are kept for a shorter time than this, seconds, may go before a consumer has read them.
SHORT_KEEP_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """How the queue stands: entries that no task knows yet (`exact` False: at least as many), the age of the oldest of
    them in seconds, open tasks, and the consumers that a living controller runs under.
    """

    stream: str
    group: str
    waiting: int
    exact: bool
    oldest_s: float
    open_tasks: int
    live: Sequence[str]


def server_findings(info: Mapping[str, Any]) -> Sequence[Finding]:
    """How a server is set up, by its INFO (https://redis.io/docs/latest/commands/info/)."""
    version = str(info.get("valkey_version") or info.get("redis_version") or "7.0")
    name = "Valkey" if "valkey_version" in info else "Redis"
    if info.get("redis_mode") == "sentinel":
        return [
            broken(
                "redis.sentinel",
                "This is a sentinel and keeps no data: set REDIS_SENTINELS and REDIS_SENTINEL_MASTER instead of"
                " REDIS_HOST and REDIS_PORT",
            )
        ]
    return [_version(name, version), _role(info), _persistence(info), _eviction(info), _memory(info)]


def _version(name: str, version: str) -> Finding:
    if int(version.partition(".")[0]) < LEAST_MAJOR:
        return broken("redis.version", f"{name} is version {version}: 7.0 or later, or Valkey, is needed")
    return fine("redis.version", f"{name} {version}")


def _role(info: Mapping[str, Any]) -> Finding:
    if info.get("role") == "slave":
        master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return broken("redis.role", f"This is a replica of {master}: set REDIS_HOST to the master")
    return fine(
        "redis.role", "A node of a Redis Cluster" if info.get("cluster_enabled") else "A master, and no cluster"
    )


def _persistence(info: Mapping[str, Any]) -> Finding:
    if not info.get("aof_enabled", 1):
        return warning(
            "redis.persistence",
            "Redis keeps no append-only file: what is accepted is lost when it restarts; set appendonly yes",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return broken(
            "redis.persistence",
            "Redis cannot write its append-only file, and so takes no writes: make room on its disk",
        )
    return fine("redis.persistence", "The append-only file is on")


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return warning(
            "redis.eviction",
            f"Redis may evict keys (maxmemory-policy {policy}): tasks can vanish; set maxmemory-policy noeviction",
        )
    return fine("redis.eviction", "maxmemory-policy is noeviction")


def _memory(info: Mapping[str, Any]) -> Finding:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return fine("redis.memory", "maxmemory is not set")
    share = used / most
    text = f"{share:.0%} of maxmemory is used"
    if share < NEARLY_FULL:
        return fine("redis.memory", text)
    return warning(
        "redis.memory",
        f"{text}: writes will soon be refused; raise maxmemory, or trim the streams (deploy/REFERENCE.md)",
    )


# -- the queue


def queue_finding(facts: QueueFacts) -> Finding:
    """Does it move?"""
    count = f"{'' if facts.exact else 'at least '}{count_text(facts.waiting, 'event')}"
    oldest = f" (the oldest for {_duration(facts.oldest_s)})" if facts.waiting else ""
    waiting = f"waiting in {facts.stream}: {count}{oldest}; open: {count_text(facts.open_tasks, 'task')}"
    if not facts.live:
        if facts.waiting or facts.open_tasks:
            return broken("queue.progress", f"No controller reads the group {facts.group}: {waiting}; start one")
        # Redis lists a consumer from the first entry on that it gets: a controller that has had none is not seen
        sentence = (
            f"Nothing waits in the group {facts.group}; a controller that runs is seen here from its first event on"
        )
        return fine("queue.progress", sentence)
    if facts.waiting and facts.oldest_s > LONG_WAIT_S:
        return warning("queue.progress", f"{waiting}; 'python ottoscaler.py status' shows why")
    return fine("queue.progress", f"{count_text(len(facts.live), 'controller')} ({', '.join(facts.live)}); {waiting}")


def results_finding(stream: str, length: int, most: int, oldest_s: float) -> Finding:
    """Will results go before they are read? Arguments: the stream, its length, RESULT_MAXLEN, the age of the oldest
    entry in seconds.
    """
    if length < TRIMS_FROM * most or oldest_s >= SHORT_KEEP_S:
        return fine("results.trim", f"{stream} holds {length} of at most {most} results")
    return warning(
        "results.trim",
        f"{stream} holds {length} of at most {most} results, and the oldest is {_duration(oldest_s)} old: results are"
        " removed after about that time; read them sooner, or raise RESULT_MAXLEN",
    )


def owner_finding(held: str, group: str, error: str) -> Finding:
    """Is the prefix ours? `held`: the group that has it, empty for none; `error`: what the controller would say."""
    if held in ("", group):
        return fine("queue.owner", f"KEY_PREFIX belongs to the group {group}" if held else "KEY_PREFIX is still free")
    return broken("queue.owner", error)


def no_info_finding() -> Finding:
    """INFO is not permitted."""
    return unknown(
        "redis.version",
        "Redis does not permit INFO, so version, append-only file, eviction and memory are not checked: give the user"
        " the rights in deploy/REFERENCE.md",
    )


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
