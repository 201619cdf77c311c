"""The table: what was reached beside what is to be reached. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Report = Mapping[str, Any]
_CALLS_SLACK = 0.005
_LINES = "log lines lost, doubled, dropped or out of order"
_CALLS, _IDLE, _FAULTS = "API calls per pod", "live pods, idle", "leaked pods, refused creates, lost events"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `met` is None where nothing was measured, or small sizes say nothing about the goal."""

    figure: str
    reached: str
    goal: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.met is None:
            return "not judged" if self.reached else "not measured"
        return "met" if self.met else "MISSED"


def rows(report: Report) -> list[Row]:
    """All goals, in their order, with what this report says of them. The quick run is judged by its counts only."""
    found = [row for part in _PARTS for row in part(report)]
    if not report.get("conditions", {}).get("quick"):
        return found
    return [row if row.figure in (_CALLS, _IDLE, _LINES, _FAULTS) else replace(row, met=None) for row in found]


def _row(report: Report, needs: str, figure: str, goal: str, look: Callable[[Report], tuple[str, bool]]) -> Row:
    if any(name not in report for name in needs.split()):
        return Row(figure, "", goal, None)
    try:
        reached, met = look(report)
    except KeyError:  # the quick run has other sizes
        return Row(figure, "", goal, None)
    return Row(figure, reached, goal, met)


def _ratio(answer: Any) -> str:
    return f"{answer['median']:.2f} [{answer['low']:.2f}, {answer['high']:.2f}]"


def _speed(report: Report) -> Iterator[Row]:
    def bare(r: Report) -> tuple[str, bool]:
        p = r["pairs"]
        rates = p["pods_per_s"]
        return f"{_ratio(p['to_bare'])} ({rates['one event']:.0f} to {rates['bare']:.0f} pods/s)", _median(
            p, "to_bare"
        ) >= 0.90

    def lifted(r: Report) -> tuple[str, bool]:
        p = r["pairs"]
        return _ratio(p["to_polling_lifted"]), _median(p, "to_polling_lifted") >= 1.0

    def limited(r: Report) -> tuple[str, bool]:
        times = r["pairs"]["pods_per_s"]["one event"] / r["stock"]["limited_pods_per_s"]
        return f"{times:.0f} x", times >= 85

    def events(r: Report) -> tuple[str, bool]:
        p = r["pairs"]
        return f"{_ratio(p['events_time'])} x", _median(p, "events_time") <= 1.15

    def serial(r: Report) -> tuple[str, bool]:
        times = r["pairs"]["pods_per_s"]["events of one"] / r["stock"]["serial_events_per_s"]
        return f"{times:.0f} x", times >= 300

    many = "one event, whole lifecycle, 1 s run time"
    yield _row(report, "pairs", f"{many}: of the bare Go loop", ">= 0.90", bare)
    yield _row(report, "pairs", f"{many}: of polling, limits lifted", ">= 1.0", lifted)
    yield _row(report, "pairs stock", f"{many}: of polling, default limit", ">= 85 x", limited)
    yield _row(report, "pairs", "as many events x 1 pod: time of one event", "<= 1.15 x", events)
    yield _row(report, "pairs stock", "as many events x 1 pod: of polling", ">= 300 x", serial)


def _delay(report: Report) -> Iterator[Row]:
    def create(r: Report) -> tuple[str, bool]:
        p50, p99 = r["latency"]["p50_ms"], r["latency"]["p99_ms"]
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", p50 <= 3 and p99 <= 15

    def result(r: Report) -> tuple[str, bool]:
        p50, p99 = r["ends"]["to_result"]["p50_ms"], r["ends"]["to_result"]["p99_ms"]
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; {1000 / max(p50, 0.1):.0f} x", p50 <= 6 and p99 <= 30

    def delete(r: Report) -> tuple[str, bool]:
        p50, p99 = r["ends"]["to_delete"]["p50_ms"], r["ends"]["to_delete"]["p99_ms"]
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", True

    yield _row(report, "latency", "event -> create request, idle", "p50 <= 3 ms, p99 <= 15 ms", create)
    of_poll = "p50 <= 6 ms, p99 <= 30 ms; >= 150 x the mean of a 2 s poll"
    yield _row(report, "ends", "end of pod -> result recorded, 50 pods/s", of_poll, result)
    yield _row(report, "ends", "end of pod -> delete request, 50 pods/s", "(told)", delete)


def _load(report: Report) -> Iterator[Row]:
    def calls(r: Report) -> tuple[str, bool]:
        found = {name: each["per_pod"] for name, each in r["calls"].items()}
        reached = ", ".join(f"{each:.2f} at {name}" for name, each in found.items())
        return reached, all(each <= 2 + _CALLS_SLACK for each in found.values())

    def idle(r: Report) -> tuple[str, bool]:
        i = r["idle"]
        share, besides = f"{i['own_cores']:.2%} of a core", f"{i['pods']} pods, {i['watch_renewals']} watch renewals"
        met = i["requests"] == 0 and i["own_cores"] <= 0.005
        return f"{i['requests_per_s']:.2f} requests/s, {share} ({besides})", met

    def cpu(r: Report) -> tuple[str, bool]:
        own, ratio = r["pairs"]["own_cpu_per_1000"]["one event"], r["pairs"]["typed_cpu"]
        return f"{own:.2f} s, {_ratio(ratio)} x less", own <= 1.2 and ratio["median"] >= 6

    yield _row(report, "calls", _CALLS, "2.00 + O(1) per run at every run time", calls)
    yield _row(report, "idle", _IDLE, "0 requests/s, <= 0.5 % of a core", idle)
    yield _row(report, "pairs", "own CPU per 1,000 pods; to the naive typed client", "<= 1.2 s, >= 6 x less", cpu)


def _size(report: Report) -> Iterator[Row]:
    def memory(r: Report) -> tuple[str, bool]:
        rss = r["scaling"]["rss_mib"]
        slope = (rss["8000"] - rss["1000"]) * 1024 / 7000
        return f"{rss['1000']:.0f} MiB, {slope:.0f} KiB per further pod", rss["1000"] * 1.048576 <= 100 and slope <= 40

    def recovery(r: Report) -> tuple[str, bool]:
        found = {pods: each["seconds"]["all"] for pods, each in r["recovery"].items()}
        missing = [name for name in r["failures"] if name.startswith("recovery with ")]
        reached = ", ".join(
            [*(f"{pods} live {each:.2f} s" for pods, each in found.items()), *(f"{n}: never" for n in missing)]
        )
        return reached, not missing and found["1000"] <= 0.8 and found["10000"] <= 4

    def grown(r: Report) -> tuple[str, bool]:
        cpu = r["scaling"]["cpu_per_1000"]
        ratio = cpu["8000"] / cpu["1000"]
        doubling = ", ".join(f"{each:.2f}" for each in r["scaling"]["growth"].values())
        return f"{ratio:.2f} (each doubling: {doubling})", ratio <= 1.25

    def intake(r: Report) -> tuple[str, bool]:
        return f"{r['intake']['events_per_s']:.0f} events/s", r["intake"]["events_per_s"] >= 5000

    yield _row(report, "scaling", "RSS at 1,000 live", "<= 100 MB; <= 40 KiB per further live pod", memory)
    yield _row(
        report, "recovery failures", "recovery, exec -> all adopted", "1,000 live <= 0.8 s, 10,000 <= 4 s", recovery
    )
    yield _row(report, "scaling", "CPU per pod at 8,000 live over 1,000", "<= 1.25", grown)
    yield _row(report, "intake", "intake by one process", ">= 5,000 events/s", intake)


def _policy(report: Report) -> Iterator[Row]:
    def ratios(r: Report) -> tuple[str, bool]:
        seconds, cpu = r["policy"]["policy_seconds"], r["policy"]["policy_own_cpu_s"]
        return f"{_ratio(seconds)}, {_ratio(cpu)}", seconds["median"] <= 1.03 and cpu["median"] <= 1.03

    def decision(r: Report) -> tuple[str, bool]:
        return f"{r['policy']['decision_us']:.0f} us", r["policy"]["decision_us"] < 50

    yield _row(report, "policy", "20 rules and tenants: time and own CPU of none", "<= 1.03, <= 1.03", ratios)
    yield _row(report, "policy", "one decision of the policy on an event", "< 50 us", decision)


def _sight(report: Report) -> Iterator[Row]:
    def ratios(r: Report) -> tuple[str, bool]:
        found = [r["sight"][what] for what in ("own_cpu_s", "seconds", "reaction_s")]
        return ", ".join(map(_ratio, found)), all(each["median"] <= 1.03 for each in found)

    figure = "page, metrics, Events, traces: own CPU, time, reaction of none"
    yield _row(report, "sight", figure, "<= 1.03, <= 1.03, <= 1.03", ratios)


def _logs(report: Report) -> Iterator[Row]:
    """Absolute rates are those of a machine on which the bare loop does 180 pods a second."""

    def results(r: Report) -> tuple[str, bool]:
        ratios = {name: each["median"] for name, each in r["logs"]["results"]["ratios"].items()}
        modes = sorted({name.split("_")[0] for name in ratios})
        reached = ", ".join(f"{mode} {ratios[f'{mode}_p50_ms']:.2f} {ratios[f'{mode}_p99_ms']:.2f}" for mode in modes)
        return reached, all(each <= 1.2 for each in ratios.values())

    def leases(r: Report) -> tuple[str, bool]:
        oldest = r["logs"]["results"]["oldest_lease_s"]
        return ", ".join(f"{mode} {each:.1f} s" for mode, each in oldest.items()), max(oldest.values()) <= 7.5

    def rates(r: Report) -> tuple[str, bool]:
        flood, singles = r["logs"]["flood"]["per_cpu_s"], r["logs"]["singles"]["per_cpu_s"]
        scale = r["logs"]["bare_pods_per_s"] / 180
        reached = f"{flood:.0f}, single {singles:.0f} (bare loop: {r['logs']['bare_pods_per_s']:.0f} pods/s)"
        return reached, flood >= 50_000 * scale and singles >= 5000 * scale

    def quiet(r: Report) -> tuple[str, bool]:
        q = r["logs"]["quiet"]
        return f"{q['cores']:.2%} of a core, {q['rss_mib']:.0f} MiB", q["cores"] <= 0.01 and q["rss_mib"] <= 160

    def delay(r: Report) -> tuple[str, bool]:
        p50, p99 = r["logs"]["delay"]["p50_ms"], r["logs"]["delay"]["p99_ms"]
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms", p50 <= 20 and p99 <= 100

    def masking(r: Report) -> tuple[str, bool]:
        share = r["logs"]["mask_us"] * r["logs"]["flood"]["per_cpu_s"] / 1e6
        return f"{share:.1%}, {r['logs']['mask_us']:.2f} us a line", share <= 0.05

    def wrong(r: Report) -> tuple[str, bool]:
        return f"{r['logs']['wrong']} of {r['logs']['flood']['lines']}", not r["logs"]["wrong"]

    yield _row(report, "logs", "logs, 100 pods flood: end of pod -> result over none, p50 p99", "<= 1.2 each", results)
    yield _row(report, "logs", "the same: oldest lease", "<= 7.5 s", leases)
    yield _row(
        report, "logs", "log forwarder, lines per second of its CPU", ">= 50,000, single >= 5,000, scaled", rates
    )
    yield _row(report, "logs", "1,000 quiet follows", "<= 1 % of a core, <= 160 MiB", quiet)
    yield _row(report, "logs", "line -> log handler, idle", "p50 <= 20 ms, p99 <= 100 ms", delay)
    yield _row(report, "logs", "masking, of the forwarder's CPU", "<= 5 %", masking)
    yield _row(report, "logs", _LINES, "0", wrong)


def _faults(report: Report) -> Iterator[Row]:
    def zero(r: Report) -> tuple[str, bool]:
        answer = r["faults"]
        reached = f"{answer['leaked']}, {answer['refused']}, {answer['lost']} (results twice: {answer['doubled']})"
        return reached, not any(answer.values())

    yield _row(report, "faults", _FAULTS, "0, 0, 0", zero)


_PARTS = (_speed, _delay, _load, _size, _policy, _sight, _logs, _faults)


def _median(part: Any, name: str) -> float:
    return float(part[name]["median"])


def breaches(report: Report) -> list[str]:
    """What no machine excuses: counts that are wrong. Times are not looked at."""
    found = [f"{count} {name}" for name, count in report.get("faults", {}).items() if count]
    found += [f"{name} did not come to an end" for name in report.get("failures", ())]
    for name, answer in report.get("calls", {}).items():
        if answer["per_pod"] > 2 + _CALLS_SLACK:
            found.append(f"{answer['per_pod']:.2f} API calls per pod at a run time of {name}")
    for each in report.get("pairs", {}).get("rounds", ()):
        for name in ("one event", "events of one"):
            found += _of_run(name, each[name])
    if idle := report.get("idle"):
        found += [f"{idle['requests']} requests while nothing happened"] if idle["requests"] else []
    if wrong := report.get("logs", {}).get("wrong"):
        found.append(f"{wrong} log lines were lost, doubled, dropped or out of order")
    return found


def _of_run(name: str, run: Report) -> Iterator[str]:
    if not run["complete"]:
        yield f"{name}: not all pods were carried through"
    for verb, counter in (("create", "POST"), ("delete", "DELETE")):
        audited, counted = run["calls"].get(verb, 0), run["counted"].get(counter, 0)
        if audited != run["pods"]:
            yield f"{name}: {audited} {verb} requests for {run['pods']} pods"
        if audited != counted:
            yield f"{name}: the audit log has {audited} {verb} requests, the server's counter {counted}"


def table(report: Report) -> Iterator[str]:
    """The lines to print."""
    lines = [
        ("figure", "reached", "goal", "verdict"),
        *((r.figure, r.reached, r.goal, r.verdict) for r in rows(report)),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) + "  " + line[3]
