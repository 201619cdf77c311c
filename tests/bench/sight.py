"""What it costs to be looked at: everything that shows what the controller does, on and off."""

from __future__ import annotations

import http.client
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.adapters.otlp_receiver import Receiver, receiver
from tests.bench.product import Product
from tests.bench.ratios import estimate
from tests.bench.runs import BESIDES_S, PER_POD_S, Bench, Run
from tests.bench.scenarios import reactions
from tests.e2e.waiting import wait_for

#: How often the metrics are scraped, seconds: three times as often as Prometheus does in its own examples.
SCRAPE_EVERY_S: Final = 5.0
#: How long the traces of the last results may take to be sent, seconds. Both sides are measured for this much longer.
_LAST_S: Final = 2.0
_FIGURES: Final = ("own_cpu_s", "seconds", "reaction_s")


@dataclass(slots=True)
class SightRun(Run):
    """A run, and what looked at it."""

    reaction_s: float = 0.0
    """From XADD's return to the create request, one event at a time: the median."""
    spans: int = 0
    scrapes: int = 0
    page_bytes: int = 0


def sight(bench: Bench) -> dict[str, Any]:
    """One viewer of the page, metrics scraped, Kubernetes Events and traces: all on, and all off, in pairs."""
    pods, alone = bench.pick((1000, 60), (100, 10))
    systems: dict[str, Callable[[], Run]] = {
        "off": lambda: _run(bench, pods, alone, on=False),
        "on": lambda: _run(bench, pods, alone, on=True),
    }
    rounds, unclean = bench.paired(systems)
    found = {
        what: estimate([getattr(each["on"], what) / max(1e-9, getattr(each["off"], what)) for each in rounds])
        for what in _FIGURES
    }
    median = {
        name: {what: statistics.median(getattr(each[name], what) for each in rounds) for what in _FIGURES}
        for name in systems
    }
    per_s = {name: pods / each["seconds"] for name, each in median.items()}
    cpu = {name: each["own_cpu_s"] / pods * 1000 for name, each in median.items()}
    bench.say(
        f"everything on, of off: CPU {found['own_cpu_s']} ({cpu['on']:.2f} to {cpu['off']:.2f} s per 1,000 pods), time"
        f" {found['seconds']} ({per_s['on']:.0f} to {per_s['off']:.0f} events/s), reaction {found['reaction_s']}"
    )
    return {
        "pods": pods, "rounds": len(rounds), "unclean": unclean, "cpu_per_1000": cpu, "events_per_s": per_s, **found,
    }  # fmt: skip


def _run(bench: Bench, pods: int, alone: int, *, on: bool) -> SightRun:
    """First events one at a time, then so many at once."""
    run = SightRun(pods)
    assert bench.lab.node is not None
    with _sink(on) as sink:
        settings = {"KUBERNETES_EVENTS": "true" if on else "false"}
        if sink is not None:
            settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = sink.endpoint
        with Product(bench.lab, dict(settings)) as product, _onlookers(product, run, on):
            bench.lab.node.run(0.05)
            run.reaction_s = statistics.median(reactions(bench, product, alone))
            run.complete = product.until_done(BESIDES_S)
            bench.lab.node.run(1.0)
            with bench.measured(run, product.pid):
                began = min(product.send(1) for _ in range(pods))
                run.complete &= product.until_done(BESIDES_S + pods * PER_POD_S)
                threading.Event().wait(_LAST_S)
            bench.timed(run, began)
            run.faults = product.faults()
        if sink is not None:
            run.spans = len({span.span_id for span in sink.spans()})
            # a root, a worker and its phases for each event: with less, not everything was on
            assert run.spans >= 7 * (pods + alone), f"{run.spans} spans of {pods + alone} events"
    bench.faults.add(run.faults)
    return run


@contextmanager
def _sink(on: bool) -> Iterator[Receiver | None]:
    if not on:
        yield None
        return
    with receiver() as opened:
        yield opened


@contextmanager
def _onlookers(product: Product, run: SightRun, on: bool) -> Iterator[None]:
    """A viewer of the page, and a scraper, as long as the block runs."""
    if not on:
        yield
        return
    stop, threads = threading.Event(), list[threading.Thread]()
    for look in (_view, _scrape):
        threads.append(threading.Thread(target=look, args=(product.http_port, run, stop), daemon=True))
        threads[-1].start()
    try:
        wait_for(lambda: run.page_bytes and run.scrapes, "the first look", 20)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def _view(port: int, run: SightRun, stop: threading.Event) -> None:
    """A browser, which takes all that it is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/stream", headers={"Accept": "text/event-stream"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    while not stop.is_set() and (data := answer.read1(1 << 20)):
        run.page_bytes += len(data)
    connection.close()


def _scrape(port: int, run: SightRun, stop: threading.Event) -> None:
    """A Prometheus server: one connection that it keeps, and a compressed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    while True:
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        run.scrapes += 1
        if stop.wait(SCRAPE_EVERY_S):
            break
    connection.close()
