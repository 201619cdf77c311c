"""All that goes wrong besides the controllers' deaths, and how much of each there has to be."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.tcp_proxy import TcpProxy
from tests.torture.clocks import Clocks
from tests.torture.kubelet import Kubelet
from tests.torture.log_handler import LogHandler
from tests.torture.network_faults import NetworkFaults
from tests.torture.producer import Producer
from tests.torture.quota import Quota
from tests.torture.refusals import Refusals
from tests.torture.slots import Slot
from tests.torture.strangers import Strangers

#: Every kind of trouble: what the report calls it, and how much of it goes with a hundred kills of controllers.
KINDS: Final[Mapping[str, tuple[str, int]]] = {
    "kills": ("kills with work in flight", 100),
    "redis-kills": ("kills of redis-server", 10),
    "kube-kills": ("kills of kube-apiserver", 4),
    "quota": ("quotas without room", 10),
    "network": ("network faults", 200),
    "denied": ("commands denied by Redis", 15),
    "wrong-type": ("keys of a wrong type", 12),
    "oom": ("times without memory in Redis", 6),
    "pause": ("pauses of redis-server", 8),
    "conflict": ("conflicts of a quota", 30),
    "html": ("answers of a proxy", 60),
    "clock": ("clocks set", 30),
    "log-handler": ("times without a log handler", 15),
    "oversized": ("oversized entries", 8),
    "invalid": ("invalid events", 25),
}
_REFUSALS: Final = ("denied", "wrong-type", "oom", "pause")
_STRANGERS: Final = ("conflict", "html")
#: Faults come a little earlier than kills, so that there are enough.
LEAD: Final = 1.15


@dataclass(frozen=True)
class Chosen:
    """The kinds that this run has, and its size."""

    kills: int
    kinds: frozenset[str]

    def wanted(self, kind: str) -> int:
        """How much of a kind there has to be."""
        return max(1, KINDS[kind][1] * self.kills // 100) if kind in self.kinds else 0


@dataclass
class Place:
    """Where it goes wrong."""

    redis: RedisServer
    kube: KubeServer
    namespace: str
    producer: Producer
    kubelet: Kubelet
    strangers: Strangers
    slots: list[Slot]
    redis_links: list[TcpProxy]
    kube_links: list[TcpProxy]
    log_handler: LogHandler
    start_redis: Callable[[], None]


class Troubles:
    """Makes them. One thread."""

    def __init__(self, place: Place, chosen: Chosen, dice: random.Random) -> None:
        self._place = place
        self._chosen = chosen
        self._dice = dice
        self._pause = threading.Event()
        self._server_kills = {"redis-kills": 0, "kube-kills": 0}
        self._oversized = 0

        def more() -> random.Random:
            return random.Random(dice.random())

        self._network = NetworkFaults(place.redis_links, place.kube_links, more())
        self._quota = Quota(place.kube.kubeconfig, place.namespace, more())
        self._refusals = Refusals(place.redis, place.producer.redis, more())
        self._clocks = Clocks(place.kubelet, place.strangers, place.slots, more())

    def close(self) -> None:
        """Close the connections."""
        self._quota.close()

    @property
    def is_refusing(self) -> bool:
        """Does Redis refuse something now? Then a producer had better wait."""
        return self._refusals.busy

    def counts(self, kills: int) -> dict[str, int]:
        """How much of each kind there was; `kills` are the controllers'."""
        return {
            **dict.fromkeys(KINDS, 0), **self._server_kills, **self._refusals.hits, **self._place.strangers.hits,
            "kills": kills, "quota": self._quota.times, "network": self._network.faults, "clock": self._clocks.steps,
            "log-handler": self._place.log_handler.faults,
            "oversized": self._oversized, "invalid": self._place.producer.bad - self._oversized,
        }  # fmt: skip

    def figures(self, kills: int) -> list[tuple[str, int, int]]:
        """What, how much, and how much there has to be, of the kinds that were chosen."""
        counts = self.counts(kills)
        return [
            (text, counts[kind], self._chosen.wanted(kind))
            for kind, (text, _) in KINDS.items()
            if kind in self._chosen.kinds
        ]

    def tick(self, progress: float) -> None:
        """A little of everything; `progress` is 1 when there should be enough."""

        def wanted(*kinds: str) -> dict[str, float]:
            return {kind: LEAD * progress * self._chosen.wanted(kind) for kind in kinds if kind in self._chosen.kinds}

        self._refusals.tick(wanted(*_REFUSALS))
        self._place.strangers.tick(wanted(*_STRANGERS))
        self._clocks.tick(sum(wanted("clock").values()))
        self._network.tick(sum(wanted("network").values()))
        self._place.log_handler.tick(sum(wanted("log-handler").values()))
        if self._refusals.busy:
            return  # the rest needs a Redis that can be asked
        self._quota.tick(sum(wanted("quota").values()))
        self._kill_servers(wanted("redis-kills", "kube-kills"))
        if self._oversized < int(sum(wanted("oversized").values())):
            self._place.producer.send_oversized()
            self._oversized += 1

    def clear(self) -> None:
        """All is well from now on."""
        self._refusals.clear()
        self._place.strangers.clear()
        self._clocks.clear()
        self._network.clear()
        self._place.log_handler.clear()
        self._quota.clear()

    def _kill_servers(self, wanted: Mapping[str, float]) -> None:
        place, done = self._place, self._server_kills
        if done["redis-kills"] < int(wanted.get("redis-kills", 0)):
            place.redis.kill()
            self._pause.wait(self._dice.uniform(0, 1))
            place.start_redis()
            done["redis-kills"] += 1
        if done["kube-kills"] < int(wanted.get("kube-kills", 0)):
            place.kube.kill()
            self._pause.wait(self._dice.uniform(0, 1))
            place.kube.start()
            done["kube-kills"] += 1


def kinds_of(only: str, without: str) -> frozenset[str]:
    """The kinds that two lists name, separated by commas; all for none. Raises ValueError for an unknown one."""
    named = {kind for text in (only, without) for kind in text.split(",") if kind}
    if unknown := named - set(KINDS):
        raise ValueError(f"no such trouble: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    chosen = {kind for kind in only.split(",") if kind} or set(KINDS)
    return frozenset(chosen - set(without.split(",")))
