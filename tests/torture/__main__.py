"""`make torture`, or `python -m tests.torture`: kill the controller KILLS times, with what is in flight, and see that
every event comes to its one end.

KILLS (100) is how many kills have to find work in flight; events, pods, kills of the servers and network faults go with
it. SEED gives the dice of an earlier run again; threads and servers keep their own time, so it is not the same run, but
much like it. KEEP=1 keeps the folder with all logs. `--only=denied,html` makes only these troubles, `--without=clock`
all others (see troubles.py); without `kills` the controllers live on, and the run takes 0.6 s for each kill that it
would have. Without `log-handler` logs are off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.torture import wiped
from tests.torture.crash_points import RARE, USUAL
from tests.torture.final_checks import RULES
from tests.torture.log_checks import RULES as LOG_RULES
from tests.torture.log_checks import account
from tests.torture.torture_run import Amount, TortureRun
from tests.torture.troubles import KINDS, Chosen, kinds_of

#: A run is given up after so many seconds for each kill.
LIMIT_S = 5.0
NOT_TRIED = "not tried, for there is work left"
#: Errors of a log that are our doing: rights and types were taken away.
OURS = frozenset({"redis.refused"})
#: So many violations of a rule are shown.
SHOWN = 12


def main(arguments: list[str]) -> int:
    """Run it; returns 0 if nothing was violated."""
    amount, seed = _amount(arguments), int(os.environ.get("SEED") or random.randrange(1 << 31))
    try:
        for program in ("redis-server", "etcd", "kube-apiserver"):
            require(program)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        print(f"torture: {error}\n0 passed, 1 failed")
        return 1
    print(f"torture: {amount.kills} kills, SEED={seed}: {', '.join(sorted(amount.chosen.kinds))}", flush=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no server is left behind
    directory = Path(tempfile.mkdtemp(prefix="torture-"))
    checks: list[tuple[str, list[str]]] = []
    with TortureRun(directory, amount, seed) as run:
        run.torture(60 + LIMIT_S * amount.kills, _print_report)
        settled = run.settle()
        history = run.history(run.producer.sent)
        checks += [(name, list(rule(history))) for name, rule in RULES]
        log_history = run.logs() if amount.logs else None
        checks += [(name, list(rule(log_history))) for name, rule in LOG_RULES if log_history]
        checks.append(("all comes to an end", [] if settled else ["there is work left, and no controller does it"]))
        checks.append(("no controller ends but by our hand", run.toll.faults))
        checks.append(("no controller finds a fault of its own", list(_own_faults(directory))))
        checks.append(("there was enough of everything", list(run.too_little())))
        _table(run)
        print(account(log_history) if log_history else "logs: off")
        checks.append(("a wiped Redis harms no worker that runs", list(wiped.rounds(run)) if settled else [NOT_TRIED]))
        seconds = run.seconds
    failed = _verdict(checks)
    if failed or os.environ.get("KEEP"):
        print(f"logs: {directory}")
    else:
        shutil.rmtree(directory)
    print(f"{len(checks) - failed} passed, {failed} failed in {seconds:.1f}s")
    return 1 if failed else 0


def _amount(arguments: list[str]) -> Amount:
    """How much of what, from the environment and the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--only", default="", metavar="KIND,...", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--without", default="", metavar="KIND,...", help="all but these")
    given, kills = parser.parse_args(arguments), int(os.environ.get("KILLS") or 100)
    try:
        return Amount(kills, Chosen(kills, kinds_of(given.only, given.without)))
    except ValueError as error:
        parser.error(str(error))


def _own_faults(directory: Path) -> Iterator[str]:
    """Lines of the controllers that report a defect: errors, and what is not JSON (warnings, tracebacks)."""
    for path in sorted(directory.glob("slot-*/controller-*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for line in lines:
            if not line.startswith("{"):
                yield f"{path.name}: {line.rstrip()[:200]}"
            elif line.endswith("\n") and _is_error(json.loads(line)):
                yield f"{path.parent.name}/{path.name}: {line.rstrip()[:600]}"


def _is_error(line: dict[str, str]) -> bool:
    return line["level"] in ("ERROR", "CRITICAL") and line["event"] not in OURS


def _print_report(run: TortureRun) -> None:
    figures = ", ".join(f"{count} {what}" for what, count, _ in run.figures())
    missing = [point for point in USUAL if not run.toll.points[point]]
    to_come = ", ".join(missing) if len(missing) <= SHOWN else len(missing)
    print(f"  {run.seconds:4.0f} s: {figures}; points to come: {to_come or 'none'}", flush=True)


def _table(run: TortureRun) -> None:
    print(f"\n{'':32}{'count':>8}{'wanted':>8}")
    for what, count, wanted in run.figures():
        print(f"{what:32}{count:8}{wanted:8}")
    toll = run.toll
    if "kills" not in run.amount.chosen.kinds:
        return
    for what, count in (("kills without work", toll.idle), ("stops in order", toll.stops)):
        print(f"{what:32}{count:8}{'-':>8}")
    print(f"{'died at random':32}{toll.at_random:8}{'-':>8}")
    for point in (*USUAL, *RARE):
        print(f"{'died at: ' + point:32}{toll.points[point]:8}{1 if point in USUAL else '-':>8}")


def _verdict(checks: list[tuple[str, list[str]]]) -> int:
    print()
    for name, faults in checks:
        print(f"{'ok    ' if not faults else 'FAILED'} {name}{f': {len(faults)}' if faults else ''}")
        for fault in faults[:SHOWN]:
            print(f"         {fault}")
    return sum(1 for _, faults in checks if faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
