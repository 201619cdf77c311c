"""Recovery after `kill -9`: from the exec of a new process until it has adopted every live pod.

Adopted is what clocks outside the process agree on: Redis says that every open task is the new incarnation's, the API
server has its watch and has answered whatever else it was asked about the pods, the kernel counts a thread for each
live pod, and Redis has answered a script for each: with it the thread sees that its worker is still wanted. This is
shown afterwards: all pods are ended at once, and every result has to come exactly once.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

from tests.bench import clocks
from tests.bench.product import OPEN, Product
from tests.bench.runs import Bench

#: So long without an answer means that nothing more is being asked, seconds.
QUIET_S = 0.7


def recovery(bench: Bench) -> dict[str, Any]:
    """With a thousand and with ten thousand live pods."""
    report: dict[str, Any] = {}
    for pods in bench.pick([1000, 10000], [100]):
        measure = partial(bench.calmest, partial(_recover, bench, pods), 2)
        if (each := bench.attempt(f"recovery with {pods} live", measure)) is not None:
            report[str(pods)] = each
    return report


def _recover(bench: Bench, pods: int) -> dict[str, Any]:
    bench.lab.node.run(None)
    with Product(bench.lab, {"MAX_WORKERS": pods}) as product:
        product.send(pods)
        bench.lab.node.until_running(pods, 60 + pods * 0.05)
        threading.Event().wait(1)
        owners = _owners(product)
        product.controller.kill()
        bench.lab.audit.forget()
        product.redis.config_resetstat()
        before, machine = clocks.cpu_s(bench.lab.server_pids), clocks.machine(bench.lab.pids)
        began = time.time()
        product.launch()
        times = _adopted(bench, product, pods, owners, began)
        own = clocks.cpu_s([product.pid])
        servers = clocks.cpu_s(bench.lab.server_pids) - before
        foreign = clocks.machine([*bench.lab.pids, product.pid]).foreign(machine)
        asked = dict(bench.lab.audit.look().by_verb())
        bench.lab.audit.forget()
        bench.lab.node.release()
        product.until_done(60 + pods * 0.05)
        faults = product.faults()
    bench.faults.add(faults)
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items() if name != "all")
    bench.say(f"recovery with {pods} live: {times['all']:.2f} s after exec ({parts}), {own:.2f} CPU-s, {asked}")
    return {
        "pods": pods, "seconds": times, "own_cpu_s": own, "server_cpu_s": servers, "requests": asked,
        "foreign": foreign, "lost": faults.lost, "doubled": faults.doubled,
    }  # fmt: skip


def _owners(product: Product) -> dict[str, str]:
    ids = product.redis.zrange(OPEN, 0, -1)
    return {event_id: product.redis.hget(f"otto:scale:task:{event_id}", "owner") for event_id in ids}


def _adopted(bench: Bench, product: Product, pods: int, owners: dict[str, str], began: float) -> dict[str, float]:
    """When each of these was so, seconds after the exec."""
    times: dict[str, float] = {}
    deadline = began + 60 + pods * 0.01
    pause = threading.Event()
    while len(times) < 4:
        assert time.time() < deadline, f"not adopted, only {sorted(times)}: {product.controller.text[-2000:]}"
        pause.wait(0.003)
        now = time.time() - began
        if "threads" not in times and clocks.status(product.pid, "Threads") > pods:
            times["threads"] = now
        if "scripts" not in times and _scripts(product) >= pods:
            times["scripts"] = now
        if "tasks" not in times and all(_owners(product).get(each) not in (None, old) for each, old in owners.items()):
            times["tasks"] = now
        watches = [call.received for call in bench.lab.audit.look().asked if call.verb == "watch"]
        if "watch" not in times and watches:
            times["watch"] = watches[0] - began
    times["looks"] = _last_look(bench, began)
    return {**times, "all": max(times.values())}


def _scripts(product: Product) -> int:
    return int(product.redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


def _last_look(bench: Bench, began: float) -> float:
    """When the last request about a pod was answered, once no more have come for a while."""
    count = -1
    while len(bench.lab.audit.look().answered) > count:
        count = len(bench.lab.audit.answered)
        threading.Event().wait(QUIET_S)
    return max((call.answered - began for call in bench.lab.audit.answered if call.resource == "pods"), default=0.0)
