"""Which test runs which line, and how long it takes: measured once, by running the fast suites with coverage."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from coverage import CoverageData

from tests.mutants.places import Place
from tests.mutants.scratch import ROOT, environment, files, scratch

#: Suites that run beside each other. What these leave unnoticed counts as unnoticed.
SUITES = (
    "tests/flow",
    "tests/adapters",
    "tests/core tests/simulation",
    "tests/cli/test_status_reader.py tests/cli/test_dead.py",
    "tests/cli/test_doctor.py tests/cli/test_explain.py",
    "tests/cli/test_http_token.py tests/cli/test_status_page.py tests/test_settings.py tests/test_schemas.py",
    "tests/test_metrics.py tests/test_logs.py tests/test_log_forwarder_messages.py tests/test_log_schema.py",
    "tests/test_documents.py",
    "tests/forwarder",
    "real:" + " ".join(f"tests/adapters/test_redis_{name}.py" for name in ("client", "cluster", "sentinel")),
)
#: Of the servers that a suite is run on, the embedded ones: a mutant is no better known for failing on three. What
#: there is only with real servers, a cluster and sentinels, needs them.
_CHOSEN = {False: "not e2e and not real", True: "not e2e and real"}
TESTS_FAILED = 1
#: A suite that takes longer than this, seconds, is broken; and so is a test, which coverage and the other suites slow
#: down.
LIMIT_S = 1800
TEST_LIMIT_S = 300


@dataclass(frozen=True)
class Chart:
    """`lines` holds for each file and line the numbers of tests; `tests` their ids; `took` their seconds; `imported`
    the lines of each file that an import runs.
    """

    tests: Sequence[str]
    took: Sequence[float]
    lines: dict[str, dict[int, list[int]]]
    imported: dict[str, set[int]]

    def of(self, place: Place) -> list[str]:
        """The tests that run a place, the likeliest to notice first.

        What runs at import only (constants, defaults), and Lua, is noticed by whatever runs anything of the file; Lua
        also by the tests that cut a function out of its text.
        """
        path = "ottoscaler/adapters/scripts.py" if place.path.endswith(".lua") else place.path
        known = self.lines.get(path, {})
        lines = range(place.line, place.end_line + 1) if path == place.path else ()
        found = {number for line in lines for number in known.get(line, ())}
        found = found or {number for numbers in known.values() for number in numbers}
        if place.path.endswith(".lua"):
            found |= {number for number, test in enumerate(self.tests) if "/test_lua_" in test}
        return sorted((self.tests[number] for number in found), key=lambda test: self._rank(place, test))

    def is_imported(self, place: Place) -> bool:
        """Whether an import runs it: what that computed, a change of the code that is there does not change."""
        return not self.imported.get(place.path, set()).isdisjoint(range(place.line, place.end_line + 1))

    def longest(self, tests: Sequence[str]) -> dict[str, float]:
        """How long each may take, seconds: far longer than it did."""
        took = dict(zip(self.tests, self.took, strict=True))
        return {test: 12 + 6 * took[test] for test in tests}

    def seconds(self, tests: Sequence[str]) -> float:
        """How long these take together."""
        return sum(self._seconds(test) for test in tests)

    def _rank(self, place: Place, test: str) -> tuple[bool, bool, float]:
        module, layer = Path(place.path).stem, Path(place.path).parent.name
        return module not in test.partition("::")[0], f"tests/{layer}/" not in test, self._seconds(test)

    def _seconds(self, test: str) -> float:
        return self.took[self._numbers[test]]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {test: number for number, test in enumerate(self.tests)}


def chart(suites: Sequence[str] = SUITES) -> Chart:
    """From the cache, if nothing has changed since. Raises RuntimeError if the tests cannot be run at all."""
    name = hashlib.sha256(" ".join(suites).encode()).hexdigest()[:8]
    cached = ROOT / ".cache" / "mutants" / f"chart-{name}-{_digest()}.json"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        for old in cached.parent.glob(f"chart-{name}-*.json"):
            old.unlink()
        cached.write_text(json.dumps(_measured(suites)), encoding="utf-8")
    stored = json.loads(cached.read_text(encoding="utf-8"))
    lines = {path: {int(line): tests for line, tests in known.items()} for path, known in stored["lines"].items()}
    imported = {path: set(known) for path, known in stored["imported"].items()}
    return Chart(stored["tests"], stored["took"], lines, imported)


def _digest() -> str:
    """Of all that tests may depend on: patches, and what is known of mutants, are of no account to them."""
    seen = hashlib.sha256()
    for path in sorted(path for path in files() if not path.startswith("tests/mutants/") or path.endswith(".py")):
        seen.update(path.encode() + b"\0" + (ROOT / path).read_bytes())
    return seen.hexdigest()[:20]


def _measured(suites: Sequence[str]) -> dict[str, object]:
    with scratch() as folder, ThreadPoolExecutor(1 + (os.cpu_count() or 1)) as pool:
        parts = list(pool.map(lambda suite: _suite(folder, suite), suites))
        took = {test: seconds for part in parts for test, seconds in part.items()}
        tests = sorted(took)
        numbers = {test: number for number, test in enumerate(tests)}
        lines: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        imported: dict[str, set[int]] = defaultdict(set)
        for data in folder.glob("coverage-*"):
            for path, line, test in _runs(folder, data):
                if not test:
                    imported[path].add(line)
                elif test in numbers:
                    lines[path][line].add(numbers[test])
    return {
        "tests": tests,
        "took": [took[test] for test in tests],
        "lines": {path: {line: sorted(found) for line, found in known.items()} for path, known in lines.items()},
        "imported": {path: sorted(known) for path, known in imported.items()},
    }


def _suite(folder: Path, suite: str) -> dict[str, float]:
    real, paths = suite.startswith("real:"), suite.removeprefix("real:").split()
    name = hashlib.sha256(suite.encode()).hexdigest()[:8]
    times = folder / f"times-{name}.json"
    added = {"COVERAGE_FILE": str(folder / f"coverage-{name}"), "OTTO_MUTANT_TIMES": str(times)}
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "tests.mutants.observer", "-m", _CHOSEN[real],
        "-o", f"cache_dir={folder}/cache-{name}", "-o", f"timeout={TEST_LIMIT_S}",
        "--cov", "--cov-report=", "--cov-context=test", *paths,
    ]  # fmt: skip
    run = subprocess.run(
        command, cwd=folder, env={**environment(folder), **added}, capture_output=True, timeout=LIMIT_S, check=False
    )
    if run.returncode not in (0, TESTS_FAILED) or not times.exists():
        raise RuntimeError(f"{suite} cannot be run:\n{run.stdout.decode()[-3000:]}{run.stderr.decode()[-500:]}")
    answer = json.loads(times.read_text(encoding="utf-8"))
    for test in answer["red"]:
        print(f"  RED without any mutant, and so not counted on: {test}", flush=True)
    return dict(answer["took"])


def _runs(folder: Path, data: Path) -> Iterator[tuple[str, int, str]]:
    """Path, line and test: each line that a test has run; without a test each that an import has run."""
    known = CoverageData(str(data))
    known.read()
    for path in known.measured_files():
        for line, contexts in known.contexts_by_lineno(path).items():
            for context in contexts:
                if "|" in context or not context:
                    yield os.path.relpath(path, folder), line, context.rpartition("|")[0]
