"""One run of one system, measured from outside, and rounds of several systems in random order.

A round in which others took more than a tenth of the machine is thrown away and repeated, at most as often as there are
rounds; after that it counts, and is marked as not clean.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench import clocks, peers
from tests.bench.lab import Lab
from tests.bench.product import Faults, Product

FOREIGN = 0.10
#: Of the time that there is, rounds take no more than this.
PAIRS_SHARE = 0.5
#: Longest time for one pod on a slow machine, and for whatever else there is, seconds.
PER_POD_S, BESIDES_S = 0.05, 60.0


@dataclass(slots=True)
class Run:
    """What one run came to. Times in seconds, calls by verb."""

    pods: int
    seconds: float = 0.0
    """From the event (of a peer: the first create request) to the answer to the last delete."""
    own_cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    redis_cpu_s: float = 0.0
    foreign: float = 0.0
    creates_per_s: float = 0.0
    peak_mib: float = 0.0
    node_lag_ms: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    """The same by `apiserver_request_total`, the node's and the harness's included."""
    faults: Faults = field(default_factory=Faults)
    complete: bool = True

    @property
    def pods_per_s(self) -> float:
        """Whole lifecycles."""
        return self.pods / max(1e-9, self.seconds)

    @property
    def cpu_per_1000(self) -> float:
        """Its own CPU."""
        return self.own_cpu_s / self.pods * 1000


class Bench:
    """What the scenarios share. One thread."""

    def __init__(self, lab: Lab, *, quick: bool, rounds: int, seed: int, budget_s: float) -> None:
        self.lab = lab
        self.quick = quick
        self.rounds = rounds
        self.order = random.Random(seed)
        self.began = time.monotonic()
        self.budget_s = budget_s
        self.faults = Faults()
        self.failures: dict[str, str] = {}
        """What did not come to an end, and why."""
        self.left_out: list[str] = []
        """What was not begun, for want of time."""
        self._numbers = 0

    def say(self, text: str) -> None:
        """Progress."""
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    def attempt(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What was measured; None where it does not come to an end, or there is no time left to begin it.

        One such thing must not cost the figures of all others.
        """
        if time.monotonic() - self.began > self.budget_s:
            self.left_out.append(name)
            self.say(f"{name} is left out: the time is used up")
            return None
        try:
            return measure()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            self.failures[name] = f"{type(error).__name__}: {error}"[:2000]
            self.say(f"{name} FAILED: {self.failures[name][:300]}")
            return None

    def pick(self, full: Any, quick: Any) -> Any:
        """The figure for the full run or for the quick one."""
        return quick if self.quick else full

    @property
    def prefix(self) -> str:
        """How the names of a peer's pods begin: no two runs have the same."""
        self._numbers += 1
        return f"peer-{self._numbers}"

    # -- runs

    @contextmanager
    def measured(self, run: Run, pid: int, *besides: int) -> Iterator[None]:
        """CPU of all sides, foreign load and requests between begin and end of the block. `besides`: processes that are
        no foreign load either.
        """
        pids = [*self.lab.pids, pid, *besides]
        counted = self.lab.counters.pods()
        machine, own, servers = clocks.machine(pids), clocks.cpu_s([pid]), clocks.cpu_s(self.lab.server_pids)
        redis = clocks.cpu_s([self.lab.redis.pid])
        yield
        run.own_cpu_s = clocks.cpu_s([pid]) - own
        run.server_cpu_s = clocks.cpu_s(self.lab.server_pids) - servers
        run.redis_cpu_s = clocks.cpu_s([self.lab.redis.pid]) - redis
        run.foreign = clocks.machine(pids).foreign(machine)
        run.peak_mib = clocks.status(pid, "VmHWM") / 1024
        run.calls = dict(self.lab.audit.look().by_verb())
        run.counted = dict(self.lab.counters.pods() - counted)
        run.node_lag_ms = self.lab.node.state()["lag_ms"] if self.lab.node else 0.0

    def product(
        self, events: int, pods: int, run_s: float = 1.0, *, fields: Sequence[Mapping[str, str]] = ({},),
        **settings: object,
    ) -> Run:  # fmt: skip
        """The product with so many events of so many pods that run so long. `fields`: what the events have besides, by
        turns.
        """
        run = Run(events * pods)
        self._node.run(run_s)
        with Product(self.lab, settings) as product:
            with self.measured(run, product.pid):
                began = min(product.send(pods, fields[number % len(fields)]) for number in range(events))
                run.complete = product.until_done(BESIDES_S + events * pods * PER_POD_S)
            self.timed(run, began)
            run.faults = product.faults()
        self.faults.add(run.faults)
        return run

    def peer(self, make: Callable[..., peers.Peer], *sizes: int, **options: Any) -> Run:
        """A peer with one second of run time."""
        self.lab.clear()
        self._node.run(1.0)
        with make(self.lab, *sizes, prefix=self.prefix, **options) as peer:
            self.lab.audit.begin()
            output: dict[str, Any] = {}
            run = Run(0)
            with self.measured(run, peer.pid):
                output = peer.run(BESIDES_S + 700)
        run.pods = output["pods"]
        run.complete = not output["failed"]
        self.timed(run, None)
        run.faults = Faults(leaked=len(self.lab.pods()), refused=self.lab.audit.look().refused)
        self.lab.clear()
        return run

    def warm_up(self, pods: int) -> None:
        """Create and delete so many: a cold API server is two to four times slower."""
        self._node.run(None)
        with peers.warm(self.lab, pods, prefix=self.prefix) as peer:
            output = peer.run(300)
        self.lab.clear()
        self.say(f"warm: {pods} pods created and deleted in {output['seconds']:.1f} s")

    def timed(self, run: Run, began: float | None) -> None:
        """Note how long it took, from `began` (None: the first create request), by the audit log."""
        creates, deletes = self.lab.audit.done("create"), self.lab.audit.done("delete")
        if not creates or not deletes:
            run.complete = False
            run.seconds = BESIDES_S
            return
        first = min(call.received for call in creates)
        last = max(call.answered for call in creates)
        run.seconds = max(call.answered for call in deletes) - (first if began is None else began)
        run.creates_per_s = len(creates) / max(1e-6, last - first)

    @property
    def _node(self) -> Any:
        assert self.lab.node is not None
        return self.lab.node

    def calmest(self, measure: Callable[[], dict[str, Any]], tries: int = 3) -> dict[str, Any]:
        """What was measured with the least foreign load (`foreign`): again, if it was too much, a few times at most."""
        seen: list[dict[str, Any]] = []
        while not seen or (not self.quick and len(seen) < tries and min(each["foreign"] for each in seen) > FOREIGN):
            seen.append(measure())
            if len(seen) < tries and time.monotonic() - self.began > self.budget_s:
                break
        return min(seen, key=lambda each: float(each["foreign"]))

    # -- rounds

    def paired(self, systems: dict[str, Callable[[], Run]]) -> tuple[list[dict[str, Run]], int]:
        """Rounds of all systems, each in random order; returns them, and how many of them are not clean."""
        rounds: list[dict[str, Run]] = []
        noisy: list[dict[str, Run]] = []
        while len(rounds) < self.rounds and len(rounds) + len(noisy) < 2 * self.rounds:
            if (rounds or noisy) and time.monotonic() - self.began > PAIRS_SHARE * self.budget_s:
                break
            names = list(systems)
            self.order.shuffle(names)
            done = {name: systems[name]() for name in names}
            clean = all(run.foreign <= FOREIGN for run in done.values())
            (rounds if clean or self.quick else noisy).append(done)
            output = ", ".join(f"{name} {run.pods_per_s:.0f}/s" for name, run in sorted(done.items()))
            worst = max(run.foreign for run in done.values())
            self.say(
                f"round {len(rounds)}/{self.rounds}: {output}; others took {worst:.0%}{'' if clean else ': not clean'}"
            )
        missing = self.rounds - len(rounds)
        unclean = noisy[-missing:] if missing > 0 else []
        if self.quick:
            return rounds, sum(any(run.foreign > FOREIGN for run in each.values()) for each in rounds)
        return rounds + unclean, len(unclean)


def once(calls: Mapping[str, int]) -> int:
    """Requests that a process makes however many pods there are: what it may do, the list, the watch."""
    return sum(calls.get(verb, 0) for verb in ("list", "watch", "create selfsubjectaccessreviews"))


def per_pod(calls: Mapping[str, int], pods: int) -> float:
    """All other requests."""
    return (sum(calls.values()) - once(calls)) / pods


def as_dict(run: Run) -> dict[str, Any]:
    """For the JSON file."""
    return {**asdict(run), "pods_per_s": run.pods_per_s, "cpu_per_1000": run.cpu_per_1000}
