"""Network faults on the links of one controller, one at a time, each counted when it has hit something."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.e2e.tcp_proxy import TcpProxy

#: Bytes of requests to Redis with answers worth losing: a read, and the protocol's functions as script arguments.
REDIS_REQUESTS = (
    b"XREADGROUP",
    b"\r\naccept\r\n",
    b"\r\nstore_attempt\r\n",
    b"\r\nrecord_result\r\n",
    b"\r\nrenew\r\n",
    b"EVALSHA",
)
#: What Kubernetes is asked is encrypted: any request.
KUBE_REQUESTS = (b"",)


@dataclass(frozen=True)
class _Until:
    """A fault that lasts, and how many connections or answers it had met before."""

    proxy: TcpProxy
    at: float


class NetworkFaults:
    """Bad at random, on all links. One thread."""

    def __init__(self, redis: Sequence[TcpProxy], kube: Sequence[TcpProxy], dice: random.Random) -> None:
        self._links = [(proxy, REDIS_REQUESTS) for proxy in redis] + [(proxy, KUBE_REQUESTS) for proxy in kube]
        self._dice = dice
        self._lasting: list[_Until] = []
        self._hits = 0
        self._next_at = 0.0

    @property
    def faults(self) -> int:
        """Faults that have hit so far: connections that were cut count as one, each lost or halved answer as one."""
        return self._hits + sum(proxy.lost for proxy, _ in self._links)

    def tick(self, wanted: float) -> None:
        """End what has lasted long enough, and begin something new if less than `wanted` has come."""
        now = time.monotonic()
        for lasting in [one for one in self._lasting if now >= one.at]:
            self._lasting.remove(lasting)
            lasting.proxy.heal()
        if self.faults < wanted and now >= self._next_at:
            self._next_at = now + self._dice.uniform(0.1, 0.5)
            self._strike(now)

    def clear(self) -> None:
        """Ends all faults."""
        for proxy, _ in self._links:
            proxy.heal()
        self._lasting.clear()

    def _strike(self, now: float) -> None:
        proxy, requests = self._dice.choice(self._links)
        if any(one.proxy is proxy for one in self._lasting):
            return
        kinds: list[tuple[int, Callable[[], None]]] = [
            (3, lambda: self._cut(proxy)),
            (4, lambda: proxy.lose_answer_to(self._dice.choice(requests))),
            (2, lambda: proxy.halve_answers()),
            (1, lambda: self._last(proxy, now, proxy.refuse)),
            (1, lambda: self._last(proxy, now, proxy.silence)),
            (1, lambda: self._last(proxy, now, lambda: setattr(proxy, "delay_s", self._dice.uniform(0.02, 0.2)))),
        ]
        self._dice.choices([strike for _, strike in kinds], [weight for weight, _ in kinds])[0]()

    def _cut(self, proxy: TcpProxy) -> None:
        self._hits += proxy.cut() > 0

    def _last(self, proxy: TcpProxy, now: float, begin: Callable[[], None]) -> None:
        self._hits += proxy.links > 0
        begin()
        self._lasting.append(_Until(proxy, now + self._dice.uniform(0.3, 1.2)))
