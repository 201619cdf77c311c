"""The room for pods: how many more this process may create, and of which tenant.

A data structure without a lock: it belongs to the ledger and is used under the ledger's lock only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ottoscaler.core.shares import EQUAL_SHARES, Shares
from ottoscaler.core.status_codes import StatusCode
from ottoscaler.core.tenants import shown_tenant
from ottoscaler.core.worker_status import Obstacle
from ottoscaler.flow.registry import PodRegistry

_NO_LIMIT: Final = 1_000_000_000

_Worker = tuple[str, int]


class Capacity:
    """How many pods this process may still create: what is seen of its pods, plus what may be there unseen.

    A claim is room for a worker with a pod that was not seen yet: a create in flight, or an attempt stored by a process
    that is gone. Claims are by event id and index. Capacity is derived from these two each time, never from a counter
    that goes up and down. Each claim may be a pod that waits for a node, too, of which there are at most `max_pending`
    (0: no limit); and it is one of its tenant's, which has at most as many live pods in the instance as `shares` say.

    Pods of other replicas count where they are seen: what those create at the same moment is not.
    """

    def __init__(self, registry: PodRegistry, max_workers: int, max_pending: int = 0) -> None:
        self._registry = registry
        self._max_workers = max_workers
        self.max_pending = max_pending
        self.set_shares(EQUAL_SHARES)
        # The tenant, and is it used, so that it cannot be taken back?
        self._claims: dict[_Worker, tuple[str, bool]] = {}
        self._claims_of: dict[str, set[_Worker]] = {}  # the same claims by tenant

    def set_shares(self, shares: Shares) -> None:
        """What each tenant may have from now on."""
        self.shares = shares
        self.limits_tenants = any(share.max_workers for share in (shares.default, *shares.named.values()))

    def is_free(self) -> bool:
        """Is there room for one more pod? Never while the cluster's state is unknown."""
        return self.left() > 0

    def left(self) -> int:
        """For how many more pods there is room: 0 while the cluster's state is unknown."""
        if not self._registry.is_known:
            return 0
        return max(0, self._left())

    @property
    def pending_is_full(self) -> bool:
        """Do as many pods wait for a node as may?"""
        return self.max_pending > 0 and self._registry.without_node + len(self._claims) >= self.max_pending

    def left_of(self, tenant: str) -> int:
        """For how many more pods of this tenant there is room, as far as its own maximum goes; below 0 where there are
        more than there may be.
        """
        most = self.shares.of(tenant).max_workers if self.limits_tenants else 0
        if not most:
            return _NO_LIMIT
        return most - self._registry.live_count_of(tenant) - len(self._claims_of.get(tenant, ()))

    def obstacle(self, tenant: str, *, alone: bool) -> Obstacle | None:
        """What keeps workers of this tenant from room; None if they wait for no more than a thread. `alone`: no other
        tenant waits for room.
        """
        if not self._registry.is_known:
            return Obstacle(StatusCode.CLUSTER_UNKNOWN)
        if self.pending_is_full:
            sentence = f"waits until fewer than {self.max_pending} pods wait for a node (MAX_PENDING)"
            return Obstacle(StatusCode.MAX_PENDING, sentence)
        if self.left_of(tenant) <= 0:
            most = self.shares.of(tenant).max_workers
            rule = tenant if tenant in self.shares.named else "default"
            sentence = (
                f"waits for its tenant's share: {shown_tenant(tenant)} has {most} workers, as many as it may"
                f" (policy: tenants.{rule}.max_workers)"
            )
            return Obstacle(StatusCode.TENANT_SHARE, sentence)
        if self._left() > 0:
            return None
        if alone:
            sentence = f"waits until fewer than {self._max_workers} of our workers run (MAX_WORKERS)"
            return Obstacle(StatusCode.CAPACITY, sentence)
        return Obstacle(StatusCode.TENANT_SHARE, "waits for its tenant's share: other tenants wait for room, too")

    def claim(self, worker: _Worker, tenant: str, *, used: bool = False) -> None:
        """This worker's pod may be there from now on."""
        self._claims[worker] = tenant, used
        self._claims_of.setdefault(tenant, set()).add(worker)

    def use(self, worker: _Worker) -> bool:
        """May it create its pod now? From here on its claim stays until it is settled.

        Not if there is more by now than when it got its claim: a task that was taken over has brought live pods, or
        pods of other replicas were seen. Then the claim is taken back, and the worker has to wait after all.
        """
        claim = self._claims.get(worker)
        if claim is None:
            return False
        tenant, used = claim
        if used:
            return True
        if not self._registry.is_known:
            return False
        if self._left() < 0 or self.left_of(tenant) < 0:
            self.end_claim(worker)
            return False
        self._claims[worker] = tenant, True
        return True

    def end_claim(self, worker: _Worker) -> bool:
        """Its pod is seen, or there is none: its claim ends. Returns whether there was one."""
        claim = self._claims.pop(worker, None)
        if claim is None:
            return False
        claims = self._claims_of[claim[0]]
        claims.discard(worker)
        if not claims:
            del self._claims_of[claim[0]]
        return True

    def drop(self, event_id: str, indices: Iterable[int]) -> None:
        """The task is not ours any more."""
        for index in indices:
            self.end_claim((event_id, index))

    def _left(self) -> int:
        """The same as `left` with a known cluster; below 0 where there are more than there may be."""
        claims = len(self._claims)
        left = self._max_workers - self._registry.owned_live_count - claims
        return min(left, self.max_pending - self._registry.without_node - claims) if self.max_pending else left
