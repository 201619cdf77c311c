"""What is measured. Each scenario fills one part of the report and can be run alone: `make bench ONLY=idle`."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.bench import clocks, peers
from tests.bench.product import OPEN, STREAM, Product, recorded_at
from tests.bench.ratios import estimate, growth, percentile
from tests.bench.runs import BESIDES_S, PER_POD_S, Bench, Run, as_dict, once, per_pod
from tests.e2e.waiting import wait_for

Report = dict[str, Any]


def pairs(bench: Bench) -> Report:
    """The product, its two shapes of load, and its peers, side by side."""
    pods = bench.pick(1000, 100)
    systems: dict[str, Callable[[], Run]] = {
        "one event": lambda: bench.product(1, pods),
        "events of one": lambda: bench.product(pods, 1),
        "bare": lambda: bench.peer(peers.bare, pods),
        "polling, lifted": lambda: bench.peer(peers.polling, 1, pods, rate=0),
        "typed": lambda: bench.peer(peers.typed, pods),
    }
    rounds, unclean = bench.paired(systems)

    def ratio(one: str, other: str, what: str) -> Any:
        return estimate([getattr(each[one], what) / max(1e-9, getattr(each[other], what)) for each in rounds])

    median = {name: statistics.median(each[name].pods_per_s for each in rounds) for name in systems}
    return {
        "pods": pods,
        "unclean": unclean,
        "rounds": [{name: as_dict(run) for name, run in each.items()} for each in rounds],
        "pods_per_s": median,
        "own_cpu_per_1000": {name: statistics.median(each[name].cpu_per_1000 for each in rounds) for name in systems},
        "server_cpu_per_1000": {
            name: statistics.median(each[name].server_cpu_s / each[name].pods * 1000 for each in rounds)
            for name in systems
        },
        "redis_cpu_per_1000": statistics.median(each["one event"].redis_cpu_s / pods * 1000 for each in rounds),
        "to_bare": ratio("one event", "bare", "pods_per_s"),
        "to_polling_lifted": ratio("one event", "polling, lifted", "pods_per_s"),
        "to_typed": ratio("one event", "typed", "pods_per_s"),
        "events_time": ratio("events of one", "one event", "seconds"),
        "typed_cpu": ratio("typed", "one event", "own_cpu_s"),
        "calls_per_pod": [
            per_pod(each[name].calls, pods) for each in rounds for name in ("one event", "events of one")
        ],
    }


def stock(bench: Bench) -> Report:
    """The polling design with its default limit: its rate is set by the limit, so few pods show it."""
    pods, events = bench.pick(100, 14), bench.pick(10, 2)
    limited = bench.peer(peers.polling, 1, pods, rate=5)
    bench.say(f"polling, 5 requests/s: {pods} pods in {limited.seconds:.1f} s")
    serial = bench.peer(peers.polling, events, 1, rate=0)
    bench.say(f"polling, one event after the other: {events} in {serial.seconds:.1f} s")
    return {
        "limited": as_dict(limited),
        "serial": as_dict(serial),
        # the burst is free, which matters for few pods only
        "limited_pods_per_s": pods / (limited.seconds * (3 * pods) / max(1, 3 * pods - 10)),
        "serial_events_per_s": events / serial.seconds,
    }


def sizes(bench: Bench) -> Report:
    """One event of many sizes, and a few events of one pod."""
    report: Report = {}
    for events, pods in bench.pick([(1, 1), (1, 100), (10, 1), (1, 1000), (1, 10000)], [(1, 1), (5, 1)]):
        if (each := bench.attempt(f"{events} x {pods}", partial(_size, bench, events, pods))) is not None:
            report[f"{events} x {pods}"] = each
    return report


def _size(bench: Bench, events: int, pods: int) -> Report:
    run = bench.product(events, pods)
    each = per_pod(run.calls, run.pods)
    bench.say(f"{events} x {pods}: {run.seconds:.2f} s, {run.pods_per_s:.0f} pods/s, {each:.2f} requests per pod")
    return as_dict(run)


def latency(bench: Bench) -> Report:
    """From XADD's return to the create request, one event at a time, with nothing else to do."""
    return bench.calmest(partial(_latency, bench), 3)


def _latency(bench: Bench) -> Report:
    events = bench.pick(300, 20)
    bench.lab.node.run(0.05)
    with Product(bench.lab) as product:
        run = Run(events)
        with bench.measured(run, product.pid):
            taken = reactions(bench, product, events)
            run.complete = product.until_done(60)
        bench.faults.add(product.faults())
    answer = spread(taken)
    shown = f"p50 {answer['p50_ms']:.2f} ms, p99 {answer['p99_ms']:.2f} ms"
    bench.say(f"event -> create request: {shown}; others took {run.foreign:.0%}")
    return {**answer, "foreign": run.foreign}


def reactions(bench: Bench, product: Product, events: int) -> list[float]:
    """From XADD's return to the create request, one event at a time, seconds; these are the product's first events."""
    taken: list[float] = []
    for number in range(events):
        sent = product.send(1)
        created = partial(_created, bench, number + 1)
        taken.append(wait_for(created, "the create request", 20).received - sent)
        threading.Event().wait(0.12)  # let the pod end, so that the next event finds nothing going on
    return taken


def _created(bench: Bench, number: int) -> Any:
    asked = [call for call in bench.lab.audit.look().asked if call.verb == "create" and call.resource == "pods"]
    return asked[number - 1] if len(asked) >= number else None


def spread(seconds: list[float]) -> Report:
    """Percentiles of these times, and all of them, in milliseconds."""
    ms = [1000 * each for each in seconds]
    return {
        "count": len(ms),
        "p50_ms": percentile(ms, 0.5),
        "p99_ms": percentile(ms, 0.99),
        "worst_ms": max(ms),
        "ms": ms,
    }


def ends(bench: Bench) -> Report:
    """From the end of a pod (the node sends its status) to its result (Redis' clock) and to its delete request."""
    return bench.calmest(partial(_ends, bench), 3)


def _ends(bench: Bench) -> Report:
    pods = bench.pick(1000, 60)
    bench.lab.node.run(None)
    with Product(bench.lab) as product:
        product.send(pods)
        bench.lab.node.until_running(pods)
        threading.Event().wait(bench.pick(3, 0.5))
        run = Run(pods)
        with bench.measured(run, product.pid):
            bench.lab.node.release(rate=50)
            run.complete = product.until_done(60 + pods / 50)
        faults, recorded = product.faults(), recorded_at(product.results())
    bench.faults.add(faults)
    ended = {each["name"]: each for each in bench.lab.node.state(ends=True)["ends"]}
    deleted = {call.name: call.received for call in bench.lab.audit.done("delete")}
    ends = {
        # the stricter start: the status was only just sent, and has yet to be stored
        "to_result": spread([recorded[name] - each["sent"] / 1e6 for name, each in ended.items() if name in recorded]),
        "to_delete": spread([deleted[name] - each["sent"] / 1e6 for name, each in ended.items() if name in deleted]),
        "answered_to_result": spread(
            [recorded[name] - each["answered"] / 1e6 for name, each in ended.items() if name in recorded]
        ),
        "node_lag_ms": run.node_lag_ms,
        "foreign": run.foreign,
    }
    for name in ("to_result", "to_delete"):
        bench.say(
            f"end of pod {name.replace('_', ' ')}: p50 {ends[name]['p50_ms']:.2f} ms, p99 {ends[name]['p99_ms']:.2f} ms"
        )
    return ends


def calls(bench: Bench) -> Report:
    """Requests per pod at several run times.

    A minute is lived through in the full run; a longer run time is only reported in the pod's status.
    """
    pods = bench.pick(200, 20)
    report: Report = {}
    for run_s, lived_s in bench.pick([(1, 1.0), (60, 60.0), (600, 65.0)], [(1, 1.0), (600, 1.0)]):
        if (each := bench.attempt(f"run time {run_s} s", partial(_calls, bench, pods, run_s, lived_s))) is not None:
            report[f"{run_s} s"] = each
    return report


def _calls(bench: Bench, pods: int, run_s: float, lived_s: float) -> Report:
    bench.lab.node.run(None)
    with Product(bench.lab) as product:
        product.send(pods)
        bench.lab.node.until_running(pods)
        threading.Event().wait(lived_s)
        bench.lab.node.release(ran_s=run_s)
        product.until_done(120)
        by_verb = dict(bench.lab.audit.look().by_verb())
        bench.faults.add(product.faults())
    each, besides = per_pod(by_verb, pods), once(by_verb)
    bench.say(f"run time {run_s} s: {each:.2f} requests per pod, {besides} for the whole run")
    return {"pods": pods, "lived_s": lived_s, "by_verb": by_verb, "per_pod": each, "besides": besides}


def idle(bench: Bench) -> Report:
    """Live pods to which nothing happens: requests per second, and the CPU of both sides."""
    return bench.calmest(partial(_idle, bench), 3)


def _idle(bench: Bench) -> Report:
    pods, window_s = bench.pick(1000, 100), bench.pick(60.0, 4.0)
    bench.lab.node.run(None)
    bench.lab.clear()
    base_s = window_s / 3
    before = clocks.cpu_s(bench.lab.server_pids)
    threading.Event().wait(base_s)
    base = (clocks.cpu_s(bench.lab.server_pids) - before) / base_s
    with Product(bench.lab) as product:
        product.send(pods)
        bench.lab.node.until_running(pods)
        threading.Event().wait(bench.pick(5, 1))
        bench.lab.audit.forget()
        run = Run(pods)
        began = time.monotonic()
        with bench.measured(run, product.pid):
            threading.Event().wait(window_s)
        seconds = time.monotonic() - began
        rss_mib = clocks.status(product.pid, "VmRSS") / 1024
        bench.lab.audit.forget()
        bench.lab.node.release()
        product.until_done(120)
        bench.faults.add(product.faults())
    watches = run.calls.pop("watch", 0)
    requests = sum(run.calls.values())
    own, servers = run.own_cpu_s / seconds, run.server_cpu_s / seconds
    bench.say(
        f"{pods} live, {seconds:.0f} s: {requests} requests and {watches} renewals of the watch, "
        f"own CPU {own:.2%} of a core, servers {servers:.2%} (without us {base:.2%}), RSS {rss_mib:.0f} MiB"
    )
    return {
        "pods": pods, "seconds": seconds, "requests": requests, "requests_per_s": requests / seconds,
        "watch_renewals": watches, "own_cores": own, "server_cores": servers, "server_cores_without": base,
        "rss_mib": rss_mib, "foreign": run.foreign,
    }  # fmt: skip


def intake(bench: Bench) -> Report:
    """How fast events are accepted that all wait for a thread: by the set of open tasks, looked at from outside."""
    return bench.calmest(partial(_intake, bench), 3)


def _intake(bench: Bench) -> Report:
    events = bench.pick(20000, 2000)
    bench.lab.node.run(None)
    with Product(bench.lab, {"READ_AHEAD": 100000, "MAX_WORKERS": 1}) as product:
        product.controller.kill()
        bench.lab.clear()
        with product.redis.pipeline(transaction=False) as pipeline:
            for number in range(events):
                pipeline.xadd(STREAM, {"type": "scale_up", "task_id": f"task-{number}"})
            pipeline.execute()
        run, seen = Run(events), [(time.monotonic(), 0)]
        product.launch()
        with bench.measured(run, product.pid):
            deadline = time.monotonic() + 120
            while seen[-1][1] < events and time.monotonic() < deadline:
                threading.Event().wait(0.005)
                seen.append((time.monotonic(), int(product.redis.zcard(OPEN))))
        product.controller.kill()
    accepted = seen[-1][1]
    from_, to = ((next(at for at, count in seen if count >= share * accepted)) for share in (0.05, 0.95))
    rate = 0.9 * accepted / max(1e-6, to - from_)
    bench.say(f"intake: {accepted} of {events} events, {rate:.0f}/s, {run.own_cpu_s / events * 1e6:.0f} us CPU each")
    bench.faults.lost += events - accepted
    return {
        "events": events,
        "accepted": accepted,
        "events_per_s": rate,
        "cpu_us": run.own_cpu_s / events * 1e6,
        "foreign": run.foreign,
    }


def scaling(bench: Bench) -> Report:
    """All live at once, twice as many each time: own CPU per pod, and memory. Linear means that a ratio is 1."""
    report: Report = {}
    for pods in bench.pick([500, 1000, 2000, 4000, 8000], [50, 100]):
        measure = partial(bench.calmest, partial(_all_live, bench, pods), 2)
        if (each := bench.attempt(f"{pods} live", measure)) is not None:
            report[str(pods)] = each
    cpu = {int(pods): each["cpu_per_1000"] for pods, each in report.items()}
    rss = {int(pods): each["rss_mib"] for pods, each in report.items()}
    return {"runs": report, "cpu_per_1000": cpu, "rss_mib": rss, "growth": growth(cpu)}


def _all_live(bench: Bench, pods: int) -> Report:
    bench.lab.node.run(None)
    run = Run(pods)
    with Product(bench.lab, {"MAX_WORKERS": pods}) as product:
        with bench.measured(run, product.pid):
            product.send(pods)
            bench.lab.node.until_running(pods)
            threading.Event().wait(1)
            rss_mib = clocks.status(product.pid, "VmRSS") / 1024
            bench.lab.node.release()
            run.complete = product.until_done(BESIDES_S + pods * PER_POD_S)
        run.faults = product.faults()
    bench.faults.add(run.faults)
    bench.say(
        f"{pods} live: {run.cpu_per_1000:.2f} CPU-s per 1,000, RSS {rss_mib:.0f} MiB, peak {run.peak_mib:.0f} MiB"
    )
    return {**as_dict(run), "rss_mib": rss_mib}
