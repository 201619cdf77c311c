"""The servers, the links between them and three places for controllers, and the loop in which everything goes wrong."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.e2e.kube_server import KubeServer
from tests.e2e.redis_server import RedisServer
from tests.e2e.tcp_proxy import TcpProxy
from tests.e2e.waiting import wait_for
from tests.torture.crash_points import USUAL
from tests.torture.final_checks import WORKER_RETRIES, History
from tests.torture.kubelet import Kubelet
from tests.torture.log_checks import LogHistory
from tests.torture.log_handler import DRAIN_S, LogHandler
from tests.torture.pod_logs import PodLogServer
from tests.torture.producer import STREAM, Producer, Sent
from tests.torture.refusals import PASSWORD, USER, Refusals
from tests.torture.slots import Slot, Toll
from tests.torture.strangers import Strangers
from tests.torture.troubles import KINDS, LEAD, Chosen, Place, Troubles

ROOT = Path(__file__).resolve().parents[2]
SLOTS = 3
TICK_S = 0.03
#: A task that was taken up ten times without progress counts as poison. Lives are so short here, on a loaded machine,
#: that it would come to that: the controllers are spared for a while when they come near it.
MERCY_AT = 5
TELL_S = 30.0
#: With so many kills each of the usual points has to be reached.
WHOLE = 100
#: Controllers that ended by themselves: then something is broken, and the run ends.
HOPELESS = 10
#: So long a kill takes about, seconds: so long is a run that has none.
KILL_S = 0.6
PENDING_TIMEOUT_S = 2
#: Open events, and how many more are sent while there are fewer.
FEW, MANY = 8, 30
#: Until all is done after the last kill, seconds.
END_S = 120.0
NAMESPACE = "torture"
_KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:%d"}}]
users: [{name: u, user: {}}]
"""


@dataclass(frozen=True)
class Amount:
    """How much of everything, by the number of kills: for 100 of them what a run in CI has to have."""

    kills: int
    chosen: Chosen

    @property
    def events(self) -> int:
        """Events to be sent."""
        return 3 * self.kills

    @property
    def pods(self) -> int:
        """Worker pods."""
        return 9 * self.kills

    @property
    def keyed(self) -> int:
        """Events with a concurrency key."""
        return max(4, self.kills // 8)

    @property
    def repetitions(self) -> int:
        """Deaths at each point."""
        return max(1, self.kills // 50)

    @property
    def logs(self) -> bool:
        """Whether logs are on."""
        return "log-handler" in self.chosen.kinds

    @property
    def wipes(self) -> int:
        """Of Redis, with its controller alive, and as many with it dead."""
        return max(1, self.kills // 100) if "kills" in self.chosen.kinds else 0


class TortureRun:
    """All of it. One thread; a context manager that starts the servers and ends everything."""

    def __init__(self, directory: Path, amount: Amount, seed: int) -> None:
        self.amount = amount
        self._began = time.monotonic()
        self.toll = Toll(amount.repetitions)
        self._dice = random.Random(seed)
        self._seed = seed
        self._directory = directory
        self._opened = ExitStack()
        self._pause = threading.Event()
        self._redis = RedisServer(directory / "redis")
        self._kube = KubeServer(directory / "kube")
        self.settled_at = math.inf
        """When all faults had ended, seconds since the epoch."""

    def __enter__(self) -> TortureRun:
        with ExitStack() as opened:
            opened.callback(self._redis.stop)
            self._start_redis()
            opened.callback(self._kube.close)
            self._kube.open()
            self._kube.new_namespace(NAMESPACE)
            self.client = self._redis.client()
            opened.callback(self.client.close)
            invalid = "invalid" in self.amount.chosen.kinds
            self.producer = Producer(self.client, random.Random(self._dice.random()), invalid)
            self.kubelet = Kubelet(self._kube.kubeconfig, NAMESPACE, self._seed, PENDING_TIMEOUT_S)
            opened.callback(self.kubelet.close)
            self.kubelet.start()
            pod_logs = PodLogServer(self.kubelet.find)
            opened.callback(pod_logs.close)
            self.log_handler = LogHandler(self._directory / "log-handler", random.Random(self._dice.random()))
            opened.callback(self.log_handler.close)
            self.strangers = Strangers(self._kube.kubeconfig, SLOTS, pod_logs.port, random.Random(self._dice.random()))
            opened.callback(self.strangers.close)
            self._redis_links = [_opened(opened, self._redis.port) for _ in range(SLOTS)]
            self._kube_links = [_opened(opened, port) for port in self.strangers.ports]
            self.slots = [self._slot(number) for number in range(SLOTS)]
            for slot in self.slots:
                opened.callback(slot.close)
            place = Place(
                self._redis, self._kube, NAMESPACE, self.producer, self.kubelet, self.strangers, self.slots,
                self._redis_links, self._kube_links, self.log_handler,
                self._start_redis,
            )  # fmt: skip
            self.troubles = Troubles(place, self.amount.chosen, self._dice)
            opened.callback(self.troubles.close)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()

    def _slot(self, number: int) -> Slot:
        directory = self._directory / f"slot-{number}"
        kubeconfig = self._directory / f"kubeconfig-{number}"
        kubeconfig.write_text(_KUBECONFIG % self._kube_links[number].port, encoding="utf-8")
        environ = {
            "PYTHONPATH": str(ROOT),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self._redis_links[number].port),
            "REDIS_USERNAME": USER,
            "REDIS_PASSWORD": PASSWORD,
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
            "WORKER_DEADLINE_S": "900",  # less than a wrong clock is wrong by
        }
        if self.amount.logs:
            address = f"127.0.0.1:{self.log_handler.process.port}"
            environ |= {"LOG_HANDLER_ADDRESS": address, "LOG_DRAIN_S": str(DRAIN_S)}
        dice, mortal = random.Random(self._dice.random()), "kills" in self.amount.chosen.kinds
        return Slot(number, directory, environ, dice, self.toll, self.in_flight, mortal=mortal)

    # -- the run

    def torture(self, deadline_s: float, tell: Callable[[TortureRun], None]) -> None:
        """Until there was enough of everything, or for so long."""
        told_at, spared = 0.0, False
        while list(self.too_little()) and self.seconds < deadline_s and len(self.toll.faults) < HOPELESS:
            if not self.troubles.is_refusing:
                spared = self._most_tries() >= MERCY_AT
                self._feed()
            for slot in self.slots:
                slot.tick(spared=spared)
            self.troubles.tick(self._progress())
            self._pause.wait(TICK_S)
            if self.seconds - told_at > TELL_S:
                told_at = self.seconds
                tell(self)

    def figures(self) -> list[tuple[str, int, int]]:
        """What, how much, and how much there has to be."""
        events, pods = len(self.producer.sent), len(self.kubelet.book)
        return [
            ("events", events, self.amount.events),
            ("pods", pods, self.amount.pods),
            ("events of a concurrency key", self.producer.keyed, self.amount.keyed),
            *self.troubles.figures(self.toll.kills),
        ]

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._began

    def too_little(self) -> Iterator[str]:
        """What there was not enough of."""
        yield from (f"{count} {what}, wanted {wanted}" for what, count, wanted in self.figures() if count < wanted)
        if self.amount.kills >= WHOLE and self.amount.chosen.kinds == frozenset(KINDS):
            yield from (f"no controller died at {point!r}" for point in USUAL if not self.toll.points[point])

    def settle(self) -> bool:
        """No more faults, and controllers that live: returns whether all work came to its end."""
        self.troubles.clear()
        for slot in self.slots:
            slot.close()
            slot.start([])
        self.settled_at = time.time()
        return self.wait_idle()

    def wait_idle(self) -> bool:
        """Wait until nothing is left to do; False if that takes too long."""
        with suppress(AssertionError):
            wait_for(self._is_idle, "the end of all work", END_S)
            return True
        return False

    def history(self, sent: Sequence[Sent]) -> History:
        """What came of these events."""
        events = {event.event_id for event in sent}
        return History(
            sent=sent,
            results=[fields for _, fields in self.client.xrange("otto:scale:results")],
            dead=[fields for _, fields in self.client.xrange("otto:scale:dead")],
            book=[run for run in self.kubelet.book if run.event_id in events],
            pods=self._pods(),
            open_ids=self.client.zrange("otto:scale:open", 0, -1),
            pending=self._pending(),
        )

    def logs(self) -> LogHistory:
        """What came of the logs."""
        handler, given_up = self.log_handler, set[str]()
        for path in self._directory.glob("slot-*/controller-*.log"):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if '"logs.given_up"' in line:
                    given_up.add(json.loads(line)["pod"])
        results: list[Any] = self.client.xrange("otto:scale:results")
        return LogHistory(
            book=self.kubelet.book,
            entries={run.name: handler.process.entries(run.name) for run in self.kubelet.book},
            given_up=given_up,
            recorded={each["pod_uid"]: int(at.split("-")[0]) / 1000 for at, each in results if each.get("pod_uid")},
            away=handler.away,
            settled_at=self.settled_at,
        )

    def in_flight(self) -> bool:
        """Is there a task or an entry that is not done with, and a pod that has not ended?"""
        if self.kubelet.live == 0:
            return False
        return self.troubles.is_refusing or bool(self.client.zcard("otto:scale:open") or self._pending())

    def _progress(self) -> float:
        """How far the run is: 1 when it could end, and more while there was not enough of something."""
        if "kills" in self.amount.chosen.kinds:
            return (self.toll.kills + 1) / self.amount.kills
        return self.seconds / (KILL_S * self.amount.kills)

    def _most_tries(self) -> int:
        """How often in a row an open task was taken up without any progress."""
        pipe = self.client.pipeline(transaction=False)
        for event_id in self.client.zrange("otto:scale:open", 0, -1):
            pipe.hget(f"otto:scale:task:{event_id}", "tries")
        return max((int(tries or 0) for tries in pipe.execute()), default=0)

    def _feed(self) -> None:
        waiting = int(self.client.zcard("otto:scale:open")) + self._unread()
        share = LEAD * self._progress()
        events, pods = len(self.producer.sent), len(self.kubelet.book)
        behind = events < self.amount.events * share or pods < self.amount.pods * share
        if waiting < FEW or (behind and waiting < MANY):
            self.producer.send()

    def _start_redis(self) -> None:
        """So that every answer comes after the write of the file, also while the disk is slow.

        With "everysec" it may come up to two seconds before, and a kill would then lose what was acknowledged.
        """
        self._redis.start_loading(appendfsync="no", aclfile=Refusals.rights(self._directory / "redis"))
        self._redis.await_answer()

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
        # counted there: what is unread may be large, and no text
        count = "return #redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])"
        return int(self.client.eval(count, 1, STREAM, f"({delivered}", MANY))


def _opened(opened: ExitStack, port: int) -> TcpProxy:
    proxy = TcpProxy(port)
    opened.callback(proxy.close)
    return proxy
