"""`make bench`: start the servers, run the scenarios, print the table, write JSON and plots.

Exit code 1 where counts are wrong (QUICK) or nothing could be measured in CI; times never fail it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bench import goals, log_load, policies, recovery, scenarios, sight
from tests.bench.lab import Lab
from tests.bench.runs import FOREIGN, Bench
from tests.conftest import require

SCENARIOS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "pairs": scenarios.pairs,
    "latency": scenarios.latency,
    "ends": scenarios.ends,
    "calls": scenarios.calls,
    "idle": scenarios.idle,
    "intake": scenarios.intake,
    "recovery": recovery.recovery,
    "stock": scenarios.stock,
    "scaling": scenarios.scaling,
    "sizes": scenarios.sizes,
    "policy": policies.policy,
    "sight": sight.sight,
    "logs": log_load.logs,
}
#: Their counts are those of the other scenarios, and their times take time.
NOT_QUICK = {"stock", "sizes", "scaling", "policy", "sight"}
WARM = 3000


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    asked = _asked(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended, too
    try:
        report = _measured(asked)
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        print(f"make bench: nothing was measured: {missing}", flush=True)
        return 1 if os.environ.get("OTTO_CI") == "1" else 0
    target = asked.out / ("quick.json" if asked.quick else "bench.json")
    target.write_text(json.dumps(report, indent=1, default=_plain), encoding="utf-8")
    report = json.loads(target.read_text(encoding="utf-8"))
    print(*("", *goals.table(report)), sep="\n")
    _print_conditions(report)
    print(f"All figures: {target}")
    _plot(report, asked)
    breaches = goals.breaches(report)
    for breach in breaches:
        print(f"make bench: {breach}", file=sys.stderr)
    return 1 if breaches else 0


def _asked(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute: counts, not times")
    parser.add_argument("--only", default="", help=f"some of {','.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of pairs (7, quick 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within a round")
    parser.add_argument("--budget", type=float, default=2100, help="seconds after which nothing new is begun")
    parser.add_argument("--warm", type=int, default=0, help=f"pods of the warm-up ({WARM}, quick 300)")
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"), help="folder for JSON and plots")
    parser.add_argument("--publish", type=Path, help="a folder that gets the plots too, as deploy/bench")
    parser.add_argument("--keep", action="store_true", help="keep the logs of the servers")
    asked = parser.parse_args(arguments)
    unknown = set(filter(None, asked.only.split(","))) - SCENARIOS.keys()
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return asked


def _measured(asked: argparse.Namespace) -> dict[str, Any]:
    for program in ("redis-server", "etcd", "kube-apiserver"):
        require(program)
    programs = _built(asked.out)
    directory = Path(tempfile.mkdtemp(prefix="otto-bench-"))
    lab = Lab(directory / "lab", programs)
    rounds = asked.rounds or (1 if asked.quick else 7)
    bench = Bench(lab, quick=asked.quick, rounds=rounds, seed=asked.seed, budget_s=asked.budget)
    report: dict[str, Any] = {"conditions": _conditions(asked)}
    only = set(filter(None, asked.only.split(","))) or (SCENARIOS.keys() - (NOT_QUICK if asked.quick else set()))
    try:
        lab.open()
        bench.say("servers are up")
        bench.warm_up(asked.warm or bench.pick(WARM, 300))
        for name, scenario in SCENARIOS.items():
            if name in only:
                _carry_out(bench, name, scenario, report)
    finally:
        lab.close()
        print(f"logs: {directory}") if asked.keep else shutil.rmtree(directory)
    report["faults"], report["failures"] = asdict(bench.faults), bench.failures
    report["conditions"]["left out"] = bench.left_out
    return report


def _built(folder: Path) -> Path:
    """The node and the loops, compiled: from the standard library alone, so nothing is fetched."""
    source, target = Path(__file__).parent / "fakenode", (folder / "fakenode").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    command = [require("go"), "build", "-o", str(target), "."]
    subprocess.run(command, cwd=source, check=True, env={**os.environ, **settings})
    return target


def _carry_out(bench: Bench, name: str, scenario: Callable[[Bench], dict[str, Any]], report: dict[str, Any]) -> None:
    bench.say(f"-- {name}: {(scenario.__doc__ or '').splitlines()[0]}")
    if (answer := bench.attempt(name, partial(scenario, bench))) is not None:
        report[name] = answer


def _conditions(asked: argparse.Namespace) -> dict[str, Any]:
    etcd = subprocess.run([require("etcd"), "--version"], capture_output=True, text=True, check=False).stdout
    kube = subprocess.run([require("kube-apiserver"), "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "quick": asked.quick,
        "seed": asked.seed,
        "cores": os.cpu_count(),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "etcd": etcd.split("\n", 1)[0],
        "kube-apiserver": kube.strip(),
        "load at the start": os.getloadavg()[0],
    }


def _print_conditions(report: dict[str, Any]) -> None:
    answer = report["conditions"]
    print(f"\n{answer['cores']} cores, {answer['kube-apiserver']}, {answer['etcd']}, Python {answer['python']}")
    if unclean := report.get("pairs", {}).get("unclean"):
        rounds = len(report["pairs"]["rounds"])
        print(f"{unclean} of {rounds} rounds are not clean: others took more than 10 % of the machine")
    for name, why in report["failures"].items():
        print(f"{name} did not come to an end: {why[:300]}")
    for name, share in _foreign(report):
        if share > FOREIGN:
            print(f"{name}: others took {share:.0%} of the machine meanwhile, so its times are not clean")
    if answer["left out"]:
        print(f"left out, for the time was used up: {', '.join(answer['left out'])}")


def _foreign(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Scenarios with more foreign load than may be."""
    for name in ("latency", "ends", "idle", "intake"):
        if name in report:
            yield name, float(report[name]["foreign"])
    parted = {"recovery": report.get("recovery", {}), "scaling": report.get("scaling", {}).get("runs", {})}
    for name, parts in parted.items():
        yield from ((f"{name} {pods}", float(each["foreign"])) for pods, each in parts.items())


def _plot(report: dict[str, Any], asked: argparse.Namespace) -> None:
    try:
        from tests.bench import plots
    except ImportError as error:
        print(f"no plots: {error}")
        return
    drawn = plots.draw(report, asked.out)
    if asked.publish:
        asked.publish.mkdir(parents=True, exist_ok=True)
        for path in drawn:
            shutil.copy(path, asked.publish / path.name)
    print(
        f"plots: {', '.join(path.name for path in drawn) or 'none, nothing to draw'}, in {asked.publish or asked.out}"
    )


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
