"""What logs cost, and what they must not: the log forwarder beside the controller, with a log handler that is good,
slow, stopped or wrong, and pods that write nothing or far more than is read.

The API server passes on what the fake node writes; a handler of our own counts it. The forwarder's rates are lines for
each second of its own CPU: what it does when a core is its own, whatever else uses the machine meanwhile.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from ottoscaler.forwarder.masking import FormMasker
from tests.bench import clocks, peers
from tests.bench.product import OPEN, Product, recorded_at
from tests.bench.ratios import estimate
from tests.bench.runs import Bench, Run
from tests.bench.scenarios import spread
from tests.cli.processes import below
from tests.e2e.waiting import wait_for

Report = dict[str, Any]
#: How the handler behaves while pods end; `off`: there is none.
MODES: Final = ("off", "good", "stopped", "slow", "lying")
#: The lease of a task in these runs, seconds: the default.
LEASE_S: Final = 15.0
_FORWARDER: Final = "ottoscaler.forwarder.process"
_LINE: Final = b"%d INFO worker: step 12 of the build is done, 3 of 40 tests are left"


class Handler:
    """The handler of `log_sink` as a process. One thread; a `with` block ends it."""

    def __init__(self, batch: int = 500) -> None:
        command = [sys.executable, "-m", "tests.bench.log_sink", str(batch)]
        self._process = subprocess.Popen(
            command, cwd=peers.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self._read(20))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def settings(self) -> dict[str, object]:
        """What a controller that streams logs there is started with."""
        return {"LOG_HANDLER_ADDRESS": f"127.0.0.1:{self.port}"}

    def ask(self, command: str) -> Report:
        """Carry out a command of log_sink; returns its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer: Report = json.loads(self._read(60))
        return answer

    def stop(self) -> None:
        """It answers nothing until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Handler:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=20)

    def _read(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        assert ready, "the log handler says nothing"
        return self._process.stdout.readline()


def logs(bench: Bench) -> Report:
    """The log forwarder: what it does with a core, what it costs while nothing is written, and what results cost."""
    report: Report = {}
    bare = bench.attempt("the bare loop beside logs", partial(_bare, bench))
    report.update(bare or {})
    parts: dict[str, Callable[[Bench], Report]] = {"flood": _flood, "singles": _singles}
    if not bench.quick:
        parts |= {"quiet": _quiet, "delay": _delay}
    parts["results"] = _results
    for name, part in parts.items():
        if (answer := bench.attempt(f"logs, {name}", partial(part, bench))) is not None:
            report[name] = answer
    report["mask_us"] = mask_us()
    report["wrong"] = sum(report[name]["wrong"] for name in ("flood", "singles") if name in report)
    return report


def _bare(bench: Bench) -> Report:
    """The figure by which absolute ones are scaled, from the same minutes."""
    return {"bare_pods_per_s": bench.peer(peers.bare, bench.pick(1000, 50)).pods_per_s}


def mask_us() -> float:
    """CPU time of masking for each line, microseconds: the best of some batches, for others use the machine too."""
    masker, lines = FormMasker(), [_LINE % number for number in range(250)]
    best = float("inf")
    for _ in range(200):
        began = time.thread_time()
        for _ in masker.mask_each(lines):
            pass
        best = min(best, (time.thread_time() - began) / len(lines))
    return best * 1e6


# -- how much, and whether all of it


def _flood(bench: Bench) -> Report:
    """Pods that have written all of their lines at once, in batches."""
    return _all_lines(bench, bench.pick(10, 3), bench.pick(100_000, 3000), batch=500)


def _singles(bench: Bench) -> Report:
    """The same with one line in each message."""
    return _all_lines(bench, bench.pick(5, 2), bench.pick(10_000, 500), batch=1)


def _all_lines(bench: Bench, pods: int, total: int, *, batch: int) -> Report:
    with _running(bench, pods, rate=1e6, total=total, batch=batch) as (product, handler, forwarder):
        wait_for(lambda: handler.ask("count")["lines"] > pods * total * 0.05, "the first lines", 60)
        lines, cpu, began = handler.ask("count")["lines"], clocks.cpu_s([forwarder]), time.monotonic()
        wait_for(lambda: handler.ask("count")["lines"] > pods * total * 0.95, "nearly all lines", 300)
        lines, cpu = handler.ask("count")["lines"] - lines, clocks.cpu_s([forwarder]) - cpu
        seconds = time.monotonic() - began
        rss_mib = clocks.status(forwarder, "VmHWM") / 1024
        _end(bench, product)
        state = handler.ask("state")
    ends = [each["end"] or {"lines": 0, "dropped": 0} for each in state["workers"].values()]
    wrong = sum(each["doubled"] + each["missing"] for each in state["workers"].values())
    wrong += abs(pods * total - state["lines"]) + sum(end["dropped"] for end in ends)
    wrong += abs(pods * total - sum(end["lines"] for end in ends))
    answer = {"lines": state["lines"], "wrong": wrong, "per_cpu_s": lines / cpu, "per_s": lines / seconds}
    bench.say(
        f"{batch} in a message: {answer['per_cpu_s']:.0f} lines for each second of its CPU, {answer['per_s']:.0f} in a "
        f"second beside all else; {wrong} wrong, peak {rss_mib:.0f} MiB"
    )
    return {**answer, "peak_mib": rss_mib}


@contextmanager
def _running(
    bench: Bench, pods: int, *, rate: float, total: int = 0, batch: int = 500
) -> Iterator[tuple[Product, Handler, int]]:
    """A controller with so many pods that run and write; the handler, and the process of the forwarder."""
    assert bench.lab.node is not None
    bench.lab.node.run(None)
    bench.lab.node.write_logs(rate, total=total)
    with Handler(batch) as handler, Product(bench.lab, handler.settings) as product:
        product.send(pods)
        bench.lab.node.until_running(pods)
        yield product, handler, forwarder_of(product)


def _end(bench: Bench, product: Product) -> None:
    assert bench.lab.node is not None
    bench.lab.node.release()
    product.until_done(120)
    bench.faults.add(product.faults())


def forwarder_of(product: Product) -> int:
    """The process of the log forwarder."""
    return next(pid for pid, words in below(product.pid).items() if _FORWARDER in words)


# -- while nothing is written


def _quiet(bench: Bench) -> Report:
    """A thousand follows to which nothing happens, and the controller with and without them."""
    pods, window_s = bench.pick(1000, 50), bench.pick(60.0, 2.0)
    off = _own_idle(bench, pods, window_s)
    with _running(bench, pods, rate=0) as (product, _, forwarder):
        node = bench.lab.node
        wait_for(lambda: node is not None and node.logs()["follows"] >= pods, "all follows", 120)
        threading.Event().wait(5)
        before, began = (clocks.cpu_s([forwarder]), clocks.cpu_s([product.pid])), time.monotonic()
        threading.Event().wait(window_s)
        seconds = time.monotonic() - began
        cores, own = clocks.cpu_s([forwarder]) - before[0], clocks.cpu_s([product.pid]) - before[1]
        rss_mib, own_mib = (clocks.status(pid, "VmRSS") / 1024 for pid in (forwarder, product.pid))
        _end(bench, product)
    answer = {"follows": pods, "cores": cores / seconds, "rss_mib": rss_mib}
    answer |= {"own_cores": own / seconds, "own_mib": own_mib, "off": off}
    bench.say(
        f"{pods} quiet follows: {answer['cores']:.2%} of a core, {rss_mib:.0f} MiB; the controller "
        f"{answer['own_cores']:.2%} and {own_mib:.0f} MiB, without logs {off['cores']:.2%} and {off['mib']:.0f} MiB"
    )
    return answer


def _own_idle(bench: Bench, pods: int, window_s: float) -> Report:
    """The controller of the same pods without logs."""
    assert bench.lab.node is not None
    bench.lab.node.run(None)
    with Product(bench.lab) as product:
        product.send(pods)
        bench.lab.node.until_running(pods)
        threading.Event().wait(5)
        before, began = clocks.cpu_s([product.pid]), time.monotonic()
        threading.Event().wait(window_s)
        cores = (clocks.cpu_s([product.pid]) - before) / (time.monotonic() - began)
        mib = clocks.status(product.pid, "VmRSS") / 1024
        _end(bench, product)
    return {"cores": cores, "mib": mib}


def _delay(bench: Bench) -> Report:
    """From the time of a line to the handler, with little to do."""
    seconds = bench.pick(30.0, 2.0)
    with _running(bench, 10, rate=5) as (product, handler, _):
        threading.Event().wait(3)
        skip = len(handler.ask("state")["ms"])
        threading.Event().wait(seconds)
        found = handler.ask("state")["ms"][skip:]
        _end(bench, product)
    answer = spread([each / 1000 for each in found])
    bench.say(f"line -> handler: p50 {answer['p50_ms']:.1f} ms, p99 {answer['p99_ms']:.1f} ms, {len(found)} lines")
    return answer


# -- what results cost


class LeaseWatch:
    """The oldest lease that was ever seen, by Redis' own clock. A thread; a `with` block ends it."""

    def __init__(self, product: Product) -> None:
        self._redis = product.redis
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.oldest_s = 0.0

    def __enter__(self) -> LeaseWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._stopping.wait(0.1):
            seconds, microseconds = self._redis.time()
            now = seconds + microseconds / 1e6
            for _, until_ms in self._redis.zrange(OPEN, 0, -1, withscores=True):
                self.oldest_s = max(self.oldest_s, LEASE_S - (until_ms / 1000 - now))


def _results(bench: Bench) -> Report:
    """From the end of a pod to its result while a hundred pods write a thousand lines a second each: for each way in
    which the handler behaves, over a controller without logs in the same round.
    """
    rounds: list[dict[str, Report]] = []
    for _ in range(bench.pick(max(1, min(bench.rounds, 3)), 1)):
        modes = list(MODES)
        bench.order.shuffle(modes)
        rounds.append({mode: _ends_in(bench, mode) for mode in modes})
    ratios = {
        f"{mode}_{what}": estimate([each[mode][what] / max(1e-9, each["off"][what]) for each in rounds])
        for mode in MODES[1:]
        for what in ("p50_ms", "p99_ms")
    }
    oldest = {mode: max(each[mode]["oldest_lease_s"] for each in rounds) for mode in MODES}
    return {"rounds": rounds, "ratios": ratios, "oldest_lease_s": oldest}


def _ends_in(bench: Bench, mode: str) -> Report:
    if mode == "off":
        return _ends_of(bench, mode, None)
    with Handler() as handler:
        handler.ask(f"mode {'good' if mode == 'stopped' else mode}")
        return _ends_of(bench, mode, handler)


def _ends_of(bench: Bench, mode: str, handler: Handler | None) -> Report:
    """Pods end one by one: first those that write a line a second, then those that flood."""
    node = bench.lab.node
    assert node is not None
    flooding, others, rate = bench.pick((100, 200, 5), (5, 10, 20))
    node.run(None)
    node.write_logs(bench.pick(1000, 200))
    with Product(bench.lab, handler.settings if handler else {}) as product:
        product.send(flooding)
        node.until_running(flooding)
        node.write_logs(1)
        product.send(others)
        node.until_running(flooding + others)
        threading.Event().wait(bench.pick(5, 1))
        if handler and mode == "stopped":
            handler.stop()
        run, besides = Run(flooding + others), [forwarder_of(product), handler.pid] if handler else []
        cpu = clocks.cpu_s(besides[:1])
        with LeaseWatch(product) as leases, bench.measured(run, product.pid, *besides):
            node.release(others, rate=rate, newest=True)
            wait_for(lambda: node.state()["ended"] >= others, "most ends", 60 + others / rate)
            node.release(rate=rate)
            wait_for(lambda: node.state()["ended"] >= flooding + others, "all ends", 60 + flooding / rate)
            wait_for(lambda: not product.redis.zcard(OPEN), "all results", 60)
            cpu = clocks.cpu_s(besides[:1]) - cpu
        if handler:
            handler.resume()
        product.until_done(120)
        faults, recorded = product.faults(), recorded_at(product.results())
    bench.faults.add(faults)
    ended = node.state(ends=True)["ends"]
    answer = spread([recorded[each["name"]] - each["sent"] / 1e6 for each in ended if each["name"] in recorded])
    stored = spread([recorded[each["name"]] - each["answered"] / 1e6 for each in ended if each["name"] in recorded])
    answer |= {"stored_p50_ms": stored["p50_ms"], "stored_p99_ms": stored["p99_ms"]}
    answer |= {"oldest_lease_s": leases.oldest_s, "foreign": run.foreign, "forwarder_cpu_s": cpu}
    answer |= {"own_cpu_s": run.own_cpu_s, "server_cpu_s": run.server_cpu_s}
    answer["lines"] = handler.ask("count")["lines"] if handler else 0
    bench.say(
        f"logs {mode}: end of pod -> result p50 {answer['p50_ms']:.2f} ms, p99 {answer['p99_ms']:.2f} ms; "
        f"status stored -> result p50 {stored['p50_ms']:.2f} ms, p99 {stored['p99_ms']:.2f} ms; "
        f"oldest lease {leases.oldest_s:.1f} s, {answer['lines']} lines, CPU-s: forwarder {cpu:.1f}, "
        f"controller {run.own_cpu_s:.1f}, API server and etcd {run.server_cpu_s:.1f}; "
        f"others took {run.foreign:.0%}"
    )
    return answer
