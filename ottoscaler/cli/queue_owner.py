"""Why the controller ends at its start: the queue in Redis is not its own. What to do about it is in each sentence."""

from __future__ import annotations

from ottoscaler.settings import Settings


def other_group_error(prefix: str, group: str) -> str:
    """The keys in Redis with this prefix belong to that group."""
    expected = f"KEY_PREFIX={prefix!r}: expected one of its own for each group, and this is that of the group {group!r}"
    return f"{expected}; if that has no task any more and will not come back: redis-cli DEL {prefix}group"


def other_cluster_error(settings: Settings, address: str, cluster: str, held: str) -> str:
    """The queue belongs to the cluster `held`; the controller sees `cluster`, at `address`."""
    prefix = settings.keys.prefix
    return (
        f"KEY_PREFIX={prefix!r}: this queue belongs to another cluster or namespace ({held}), and the controller sees "
        f"{cluster} at {address}: set KUBECONFIG and NAMESPACE to those, or use a queue of its own; to move the queue "
        f"here, let its tasks end there, stop all controllers there, then: redis-cli HDEL {prefix}group cluster"
    )
