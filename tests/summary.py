"""The last line of `make test`: what all suites together have come to.

    python -m tests.summary FOLDER SECONDS SUITE...

Each suite writes FOLDER/SUITE.xml in the form of JUnit. A suite without one, or with no test in it, counts as failed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree


def summary(folder: Path, seconds: int, suites: Sequence[str]) -> str:
    """One line: how many tests passed, failed and were skipped and why, and which suites report no test."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    silent = []
    for suite in suites:
        try:
            cases = list(ElementTree.parse(folder / f"{suite}.xml").iter("testcase"))
        except (OSError, ElementTree.ParseError):
            cases = []
        silent += [] if cases else [suite]
        for case in cases:
            skipped = case.find("skipped")
            failed = case.find("failure") is not None or case.find("error") is not None
            counts["failed" if failed else "passed" if skipped is None else "skipped"] += 1
            if skipped is not None and not failed:
                reasons[skipped.get("message", "").removeprefix("Skipped: ")] += 1
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    parts = [f"{counts['passed']} passed", f"{counts['failed'] + len(silent)} failed"]
    parts.append(f"{counts['skipped']} skipped{f' ({why})' if why else ''}")
    parts += [f"no report of {', '.join(silent)}"] if silent else []
    return f"make test: {', '.join(parts)}, in {seconds} s"


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
