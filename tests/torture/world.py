"""The servers, the links between them and three places for controllers, and the loop in which everything goes wrong."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.waiting import wait_for
from tests.torture.account import WORKER_RETRIES, Account
from tests.torture.kubelet import Kubelet
from tests.torture.points import USUAL
from tests.torture.producer import STREAM, Producer, Sent
from tests.torture.quota import Quota
from tests.torture.slots import Slot, Toll
from tests.torture.weather import Weather

ROOT = Path(__file__).resolve().parents[2]
SLOTS = 3
TICK_S = 0.03
#: A task that was taken up ten times without progress counts as poison. Lives are so short here, on a loaded machine,
#: that it would come to that: the controllers are spared for a while when they come near it.
MERCY_AT = 5
TELL_S = 30.0
#: With so many kills each of the usual points has to be reached.
WHOLE = 100
PENDING_TIMEOUT_S = 4
#: Open events, and how many more are sent while there are fewer.
FEW, MANY = 8, 30
#: Until all is done after the last kill, seconds.
END_S = 120.0
NAMESPACE = "torture"


@dataclass(frozen=True)
class Amount:
    """How much of everything, by the number of kills: for 100 of them what a run in CI has to have."""

    kills: int

    @property
    def events(self) -> int:
        """Events to be sent."""
        return 3 * self.kills

    @property
    def pods(self) -> int:
        """Worker pods."""
        return 9 * self.kills

    @property
    def redis_kills(self) -> int:
        """Of redis-server."""
        return max(1, self.kills // 10)

    @property
    def kube_kills(self) -> int:
        """Of kube-apiserver."""
        return max(1, self.kills // 25)

    @property
    def quotas(self) -> int:
        """Times without room."""
        return max(1, self.kills // 10)

    @property
    def faults(self) -> int:
        """Of the network."""
        return 2 * self.kills

    @property
    def repetitions(self) -> int:
        """Deaths at each point."""
        return max(1, self.kills // 50)

    @property
    def wipes(self) -> int:
        """Of Redis, with its controller alive, and as many with it dead."""
        return max(1, self.kills // 100)


@dataclass
class Done:
    """What was done to the servers so far."""

    redis_kills: int = 0
    kube_kills: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self.began


class World:
    """All of it. One thread; a context manager that starts the servers and ends everything."""

    def __init__(self, directory: Path, amount: Amount, seed: int) -> None:
        self.amount = amount
        self.done = Done()
        self.toll = Toll(amount.repetitions)
        self._dice = random.Random(seed)
        self._seed = seed
        self._directory = directory
        self._opened = ExitStack()
        self._pause = threading.Event()
        self._redis = RedisServer(directory / "redis")
        self._kube = KubeServer(directory / "kube")

    def __enter__(self) -> World:
        with ExitStack() as opened:
            opened.callback(self._redis.stop)
            self._start_redis()
            opened.callback(self._kube.close)
            self._kube.open()
            self._kube.new_namespace(NAMESPACE)
            self.client = self._redis.client()
            opened.callback(self.client.close)
            self.producer = Producer(self.client, random.Random(self._dice.random()))
            self.kubelet = Kubelet(self._kube.kubeconfig, NAMESPACE, self._seed, PENDING_TIMEOUT_S)
            opened.callback(self.kubelet.close)
            self.kubelet.start()
            self._quota = Quota(self._kube.kubeconfig, NAMESPACE, random.Random(self._dice.random()))
            opened.callback(self._quota.close)
            self._redis_links = [_opened(opened, self._redis.port) for _ in range(SLOTS)]
            self._kube_links = [_opened(opened, self._kube.port) for _ in range(SLOTS)]
            self.weather = Weather(self._redis_links, self._kube_links, random.Random(self._dice.random()))
            self.slots = [self._slot(number) for number in range(SLOTS)]
            for slot in self.slots:
                opened.callback(slot.close)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()

    def _slot(self, number: int) -> Slot:
        directory = self._directory / f"slot-{number}"
        server = f"https://127.0.0.1:{self._kube_links[number].port}"
        text = self._kube.kubeconfig.read_text(encoding="utf-8")
        kubeconfig = self._directory / f"kubeconfig-{number}"
        kubeconfig.write_text(re.sub(r'server: "[^"]*"', f'server: "{server}"', text), encoding="utf-8")
        environ = {
            "PYTHONPATH": str(ROOT),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self._redis_links[number].port),
            "REDIS_BLOCK_MS": "1000",
            "KUBECONFIG": str(kubeconfig),
            "NAMESPACE": NAMESPACE,
            "MAX_WORKERS": "30",
            "READ_AHEAD": "3",
            "LEASE_S": "6",
            "PENDING_TIMEOUT_S": str(PENDING_TIMEOUT_S),
            "INFRA_RETRIES": "10",
            "WORKER_RETRIES": str(WORKER_RETRIES),
            "TERMINATION_GRACE_S": "2",
        }
        return Slot(number, directory, environ, random.Random(self._dice.random()), self.toll, self.in_flight)

    # -- the run

    def torture(self, deadline_s: float, tell: Callable[[World], None]) -> None:
        """Until there was enough of everything, or for so long."""
        told_at = 0.0
        while list(self.too_little()) and self.done.seconds < deadline_s:
            spared = self._most_tries() >= MERCY_AT
            for slot in self.slots:
                slot.tick(spared=spared)
            self._feed()
            self._kill_servers()
            self._quota.tick(self.amount.quotas * self._progress(lead=1.2))
            self.weather.tick(self.amount.faults * self._progress(lead=1.15))
            self._pause.wait(TICK_S)
            if self.done.seconds - told_at > TELL_S:
                told_at = self.done.seconds
                tell(self)

    def figures(self) -> list[tuple[str, int, int]]:
        """What, how much, and how much there has to be."""
        return [
            ("kills with work in flight", self.toll.kills, self.amount.kills),
            ("events", len(self.producer.sent), self.amount.events),
            ("pods", len(self.kubelet.book), self.amount.pods),
            ("kills of redis-server", self.done.redis_kills, self.amount.redis_kills),
            ("kills of kube-apiserver", self.done.kube_kills, self.amount.kube_kills),
            ("quotas without room", self._quota.times, self.amount.quotas),
            ("network faults", self.weather.faults, self.amount.faults),
        ]

    def too_little(self) -> Iterator[str]:
        """What there was not enough of."""
        yield from (f"{count} {what}, wanted {wanted}" for what, count, wanted in self.figures() if count < wanted)
        if self.amount.kills >= WHOLE:
            yield from (f"nobody died at {point!r}" for point in USUAL if not self.toll.points[point])

    def settle(self) -> bool:
        """Good weather and controllers that live: returns whether all work came to its end."""
        self.weather.clear()
        self._quota.clear()
        for slot in self.slots:
            slot.close()
            slot.start([])
        return self.wait_idle()

    def wait_idle(self) -> bool:
        """Wait until nothing is left to do; False if that takes too long."""
        with suppress(AssertionError):
            wait_for(self._is_idle, "the end of all work", END_S)
            return True
        return False

    def account(self, sent: Sequence[Sent]) -> Account:
        """What came of these events."""
        events = {event.event_id for event in sent}
        return Account(
            sent=sent,
            results=[fields for _, fields in self.client.xrange("otto:scale:results")],
            dead=[fields for _, fields in self.client.xrange("otto:scale:dead")],
            book=[run for run in self.kubelet.book if run.event_id in events],
            pods=self._pods(),
            open_ids=self.client.zrange("otto:scale:open", 0, -1),
            pending=self._pending(),
        )

    def in_flight(self) -> bool:
        """Is there a task or an entry that is not done with, and a pod that has not ended?"""
        return self.kubelet.live > 0 and bool(self.client.zcard("otto:scale:open") or self._pending())

    def _progress(self, lead: float = 1.0) -> float:
        """How far the run is: 1 when it could end, and more while a point was not reached.

        Faults come a little earlier than kills, so that there are enough.
        """
        return lead * (self.toll.kills + 1) / self.amount.kills

    def _most_tries(self) -> int:
        """How often in a row an open task was taken up without any progress."""
        pipe = self.client.pipeline(transaction=False)
        for event_id in self.client.zrange("otto:scale:open", 0, -1):
            pipe.hget(f"otto:scale:task:{event_id}", "tries")
        return max((int(tries or 0) for tries in pipe.execute()), default=0)

    def _feed(self) -> None:
        waiting = int(self.client.zcard("otto:scale:open")) + self._unread()
        share = self._progress(lead=1.1)
        events, pods = len(self.producer.sent), len(self.kubelet.book)
        behind = events < self.amount.events * share or pods < self.amount.pods * share
        if waiting < FEW or (behind and waiting < MANY):
            self.producer.send()

    def _start_redis(self) -> None:
        """So that every answer comes after the write of the file, also while the disk is slow.

        With "everysec" it may come up to two seconds before, and a kill would then lose what was acknowledged.
        """
        self._redis.start_loading(appendfsync="no")
        self._redis.await_answer()

    def _kill_servers(self) -> None:
        if self.done.redis_kills < int(self.amount.redis_kills * self._progress(lead=1.1)):
            self._redis.kill()
            self._pause.wait(self._dice.uniform(0, 1))
            self._start_redis()
            self.done.redis_kills += 1
        if self.done.kube_kills < int(self.amount.kube_kills * self._progress(lead=1.1)):
            self._kube.kill()
            self._pause.wait(self._dice.uniform(0, 1))
            self._kube.start()
            self.done.kube_kills += 1

    def _is_idle(self) -> bool:
        for slot in self.slots:
            slot.watch()
        return not (self.client.zcard("otto:scale:open") or self._pending() or self._unread() or self._pods())

    def _pods(self) -> list[str]:
        return [run.name for run in self.kubelet.book if not run.gone]

    def _groups(self) -> list[dict[str, Any]]:
        with suppress(Exception):
            return list(self.client.xinfo_groups(STREAM))
        return []

    def _pending(self) -> int:
        return sum(int(group["pending"]) for group in self._groups())

    def _unread(self) -> int:
        delivered = next((str(group["last-delivered-id"]) for group in self._groups()), "0-0")
        return len(self.client.xrange(STREAM, f"({delivered}", count=MANY))


def _opened(opened: ExitStack, port: int) -> TcpProxy:
    proxy = TcpProxy(port)
    opened.callback(proxy.close)
    return proxy
