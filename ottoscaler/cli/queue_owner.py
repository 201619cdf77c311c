"""Whether the queue in Redis is this controller's own: if not, the controller ends at its start.

What to do about it is in each sentence.
"""

from __future__ import annotations

from ottoscaler import logs
from ottoscaler.errors import ConfigError
from ottoscaler.ports import Cluster, Preflight
from ottoscaler.retries import Retries
from ottoscaler.settings import Settings

_log = logs.get(__name__)


def check_cluster(settings: Settings, cluster: Cluster, address: str, stream: Preflight, retries: Retries) -> None:
    """One queue belongs to one cluster and namespace: a replica that sees other pods takes every pod of the queue for
    lost, and starts everything again. `address`: of the API server. Raises Stopping, and ConfigError if the queue is
    another cluster's.
    """
    seen = retries.retry_forever("look which cluster this is", cluster.cluster_id)
    if not seen:
        _log.warning(
            "kubernetes.unknown",
            "The controller may not get namespace %s, so it cannot check that this queue belongs to this cluster: "
            "bind our user to a Role with that verb on namespaces", settings.kube.namespace,
        )  # fmt: skip
        return
    held = retries.retry_forever("reach Redis", lambda: stream.bind_queue_to_cluster(seen))
    if held != seen:
        raise ConfigError((other_cluster_error(settings, address, seen, held),))


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
