"""`RANDOM=100 SEED=7 make mutants`: so many single-place mutants of core, flow and adapters, the same for the same
seed.

Each is tried in a copy of the checkout against the tests that run its line. Those in equivalent.txt are not counted.
Most are noticed in a fork of a process that has imported everything; only the others need a process of their own.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import NoReturn

from tests.mutants.chart import SUITES, Chart, chart
from tests.mutants.forks import Forks
from tests.mutants.lua_places import lua_places
from tests.mutants.places import Place, python_places
from tests.mutants.scratch import ROOT, environment, scratch

LAYERS = ("core", "flow", "adapters")
#: Percent of the mutants that have to be noticed.
WANTED = 97.0
#: Tests of the first round, in which most mutants end.
FIRST = 40
#: A round hangs, which a person would notice, if it takes so many seconds, and so many times as long as usual.
ROUND_S = 60.0
ROUND_TIMES = 6.0
NO_TESTS = 5
EQUIVALENT = Path(__file__).parent / "equivalent.txt"
_stamps = count(int(time.time()) - 10_000_000)
_running: set[int] = set()
"""The process groups of the tests that run now."""


@cache
def source_of(path: str) -> bytes:
    """A file as it was first read: it may be edited while mutants are tried."""
    return (ROOT / path).read_bytes()


@dataclass(frozen=True)
class Copy:
    """A copy of the checkout, and the process that has its tests ready."""

    folder: Path
    forks: Forks


@dataclass(frozen=True)
class Tried:
    """One mutant and what came of it."""

    place: Place
    verdict: str
    by: str
    seconds: float


def places() -> list[Place]:
    """Everything that can be broken, in the order of files."""
    found: list[Place] = []
    for layer in LAYERS:
        for path in sorted((ROOT / "ottoscaler" / layer).iterdir()):
            name = str(path.relative_to(ROOT))
            if path.suffix == ".py":
                found += python_places(name, source_of(name))
            elif path.suffix == ".lua":
                found += lua_places(name, source_of(name))
    return found


def drawn(among: Sequence[Place], amount: int, seed: int) -> list[Place]:
    """So many places: of each kind of change about as many, and of each file in proportion to what is in it."""
    dice = random.Random(seed)
    kinds = sorted({place.kind for place in among})
    piles = {kind: dice.sample(pile, len(pile)) for kind in kinds if (pile := [p for p in among if p.kind == kind])}
    chosen: list[Place] = []
    while len(chosen) < amount and any(piles.values()):
        for kind in kinds:
            if piles[kind] and len(chosen) < amount and is_a_change(place := piles[kind].pop()):
                chosen.append(place)
    return chosen


def is_a_change(place: Place) -> bool:
    """Not what is no Python, or the same Python as before."""
    source = source_of(place.path)
    if not place.path.endswith(".py"):
        return True
    with suppress(SyntaxError):
        return ast.dump(ast.parse(place.broken(source))) != ast.dump(ast.parse(source))
    return False


def change(place: Place) -> tuple[str, str]:
    """The lines before and after, without their indentation: so a mutant is named in equivalent.txt."""
    source = source_of(place.path)
    start = source.rfind(b"\n", 0, place.start) + 1
    end = source.find(b"\n", place.end)
    before, after = source[start:end], source[start : place.start] + place.text.encode() + source[place.end : end]
    return _line(before), _line(after)


def equivalents(text: str) -> dict[tuple[str, str, str], str]:
    """What the file lists: blocks of four lines (path, before, after, why). Raises ValueError for another block."""
    found = {}
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in body.strip().split("\n\n"):
        lines = [line.strip() for line in block.strip().splitlines()]
        if lines and lines != [""]:
            path, before, after, why = lines
            found[path, before.removeprefix("- "), after.removeprefix("+ ")] = why
    return found


def stale(listed: Iterable[tuple[str, str, str]], among: Sequence[Place]) -> list[str]:
    """What is listed and cannot happen any more: the code has changed since."""
    known = {(place.path, *change(place)) for place in among}
    return [f"{path}: {before}" for path, before, after in listed if (path, before, after) not in known]


def run(amount: int, seed: int, within: Sequence[str] = (), suites: Sequence[str] = SUITES) -> int:
    """Try them, and report; returns 0 if enough were noticed. `within`: only files with one of these in their
    paths; `suites`: only against these tests.
    """
    began, jobs = time.monotonic(), int(os.environ.get("JOBS") or 2 * (os.cpu_count() or 1))
    known = equivalents(EQUIVALENT.read_text(encoding="utf-8"))
    every = places()
    for line in stale(known, every):
        print(f"  {EQUIVALENT.name} lists what cannot happen any more: {line}", flush=True)
    chosen = drawn([one for one in every if not within or any(word in one.path for word in within)], amount, seed)
    same = [place for place in chosen if (place.path, *change(place)) in known]
    print(f"mutants: {len(chosen)} at random, SEED={seed}, {len(same)} of them equivalent", flush=True)
    signal.signal(signal.SIGTERM, _terminate)
    charted = chart(suites)
    print(f"  {time.monotonic() - began:4.0f} s: known which of {len(charted.tests)} tests runs which line", flush=True)
    tried = _try_all([place for place in chosen if place not in same], charted, suites, jobs, began)
    missed = [one for one in tried if one.verdict == "missed"]
    for one in sorted(missed, key=lambda one: (one.place.path, one.place.line)):
        print(f"\nNOT NOTICED: {one.place.path}:{one.place.line} ({one.place.kind})\n{_diff(one.place)}")
    share = 100.0 * (len(tried) - len(missed)) / max(1, len(tried))
    hung = sum(1 for one in tried if one.verdict == "hung")
    print(f"\n{len(tried) - len(missed)} of {len(tried)} noticed ({share:.1f} %, wanted {WANTED:.0f} %),", end=" ")
    print(f"{hung} of them by hanging; {len(same)} equivalent ones left out; {time.monotonic() - began:.0f} s")
    print(f"{len(tried) - len(missed)} passed, {len(missed)} failed")
    return 0 if tried and share >= WANTED else 1


def _try_all(chosen: Sequence[Place], charted: Chart, suites: Sequence[str], jobs: int, began: float) -> list[Tried]:
    with ExitStack() as opened:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for _ in range(jobs):
            folder = opened.enter_context(scratch())
            forks = Forks(folder, suites)
            opened.callback(forks.close)
            opened.callback(_running.discard, forks.process.pid)
            _running.add(forks.process.pid)
            copies.put(Copy(folder, forks))
        pool = ThreadPoolExecutor(jobs)
        opened.callback(pool.shutdown, cancel_futures=True)

        def one(place: Place) -> Tried:
            copied = copies.get()
            try:
                tried = _try(place, copied, charted)
            finally:
                copies.put(copied)
            what = f"{tried.verdict} {place.path}:{place.line} ({place.kind}) {tried.by}"
            print(f"  {time.monotonic() - began:4.0f} s: {what} {tried.seconds:.1f} s", flush=True)
            if tried.verdict == "missed":
                print(
                    "".join(f"          {sign} {line}\n" for sign, line in zip("-+", change(place), strict=True)),
                    end="",
                )
            return tried

        return list(pool.map(one, chosen))


def _try(place: Place, copied: Copy, charted: Chart) -> Tried:
    """First in a fork; on fresh imports only what cannot be put in there, or is run by an import."""
    copied.forks.wait_ready()
    began, path = time.monotonic(), copied.folder / place.path
    source, tests = source_of(place.path), charted.of(place)
    rounds = [some for some in (tests[:FIRST], tests[FIRST:]) if some]
    _write(path, place.broken(source))
    try:
        verdict, by = "missed", ""
        for some in rounds:
            if verdict == "missed":
                verdict, by = copied.forks.verdict(place, source, charted.longest(some), _bound_s(charted, some))
        afresh = verdict == "unfit" or (verdict == "missed" and charted.is_imported(place))
        for some in rounds if afresh else ():
            verdict, by = _round(copied.folder, charted.longest(some), _bound_s(charted, some))
            if verdict != "missed":
                break
        return Tried(place, verdict, by or f"by {len(tests)} tests", time.monotonic() - began)
    finally:
        _write(path, source)


def _bound_s(charted: Chart, tests: Sequence[str]) -> float:
    return ROUND_S + ROUND_TIMES * charted.seconds(tests)


def _write(path: Path, source: bytes) -> None:
    """With a time of its own: Python would take a compiled file for this one if time and size were the same."""
    path.write_bytes(source)
    stamp = next(_stamps)
    os.utime(path, (stamp, stamp))


def _round(folder: Path, longest: Mapping[str, float], bound_s: float) -> tuple[str, str]:
    """Run these tests on what is in the folder: `noticed`, `hung` or `missed`, and by which test."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps(longest), encoding="utf-8")
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "tests.mutants.observer", "-m", "not e2e",
        "-rfE", "--tb=no", "-o", "cache_dir=cache", *sorted({test.partition("::")[0] for test in longest}),
    ]  # fmt: skip
    added = {"OTTO_MUTANT_PLAN": str(plan)}
    with (folder / "output").open("wb+") as output:
        tests = subprocess.Popen(
            command, cwd=folder, env={**environment(folder), **added}, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        _running.add(tests.pid)
        try:
            code = tests.wait(bound_s)
        except subprocess.TimeoutExpired:
            return "hung", ""
        finally:
            _kill(tests.pid)  # itself, if it hangs, and servers that it has left
            tests.wait()
            _running.discard(tests.pid)
        output.seek(0)
        answer = output.read().decode(errors="replace")
    if code in (0, NO_TESTS):
        return "missed", ""
    failed = [line for line in answer.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return "noticed", failed[0].split(" - ")[0] if failed else f"exit code {code}"


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _terminate(number: int, _frame: object) -> NoReturn:
    """End the tests that run: they are in sessions of their own, so nothing else would end them."""
    for group in list(_running):
        _kill(group)
    sys.exit(128 + number)


def _line(text: bytes) -> str:
    return " ".join(text.decode().split())


def _diff(place: Place) -> str:
    source = source_of(place.path)
    before, after = source.decode().splitlines(), place.broken(source).decode().splitlines()
    return "\n".join(difflib.unified_diff(before, after, place.path, place.path, lineterm="", n=1))
