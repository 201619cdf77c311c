"""The golden file of the metrics, and the tables in the documents that are made of it.

`python -m tests.metrics_reference` writes deploy/monitoring/metrics.txt, the table in deploy/METRICS.md, and in
deploy/METRICS.ko.md all columns but the meanings, which a person translates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ottoscaler.metrics import Metrics

ROOT: Final = Path(__file__).resolve().parents[1]
GOLDEN: Final = ROOT / "deploy" / "monitoring" / "metrics.txt"
ENGLISH: Final = ROOT / "deploy" / "METRICS.md"
KOREAN: Final = ROOT / "deploy" / "METRICS.ko.md"
PREFIX: Final = "ottoscaler_"
_ROW: Final = re.compile(r"^\| `(ottoscaler_\w+)` \|.*\| (.*) \|$", re.MULTILINE)
_TABLE: Final = re.compile(r"(?<=\n)\| [^\n]*\n\|---\|---\|---\|---\|---\|\n(?:\|[^\n]*\n)*")
_VARIABLE: Final = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
_MISSING: Final = "?"


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric as Prometheus sees it: `series` is the greatest number that it can have."""

    name: str
    type: str
    labels: tuple[str, ...]
    series: int
    meaning: str

    @property
    def row(self) -> str:
        """Its line of a table."""
        return f"| `{self.name}` | {self.type} | {self._labels} | {self.series} |"

    @property
    def _labels(self) -> str:
        return ", ".join(f"`{label}`" for label in self.labels) or "\N{EN DASH}"


def figures() -> Iterator[Figure]:
    """All metrics of our own, by name. Those of the process itself have the names that every program uses."""
    families = text_string_to_metric_families(Metrics().render(openmetrics=True).decode())
    for family in sorted(families, key=lambda each: each.name):
        if family.name.startswith(PREFIX):
            labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield Figure(name, family.type, tuple(labels), len(family.samples), family.documentation)


def golden_text() -> str:
    """The golden file as it has to be."""
    head = "# name type labels series: written by `python -m tests.metrics_reference`\n"
    lines = [f"{each.name} {each.type} {','.join(each.labels) or '-'} {each.series}\n" for each in figures()]
    return head + "".join(lines)


def meanings(path: Path) -> dict[str, str]:
    """The last column of the table in a document, by the metric's name."""
    return dict(_ROW.findall(path.read_text(encoding="utf-8")))


def with_table(path: Path, texts: dict[str, str]) -> str:
    """A document with its table as it has to be; its meanings are `texts`."""
    found = path.read_text(encoding="utf-8")
    head = _TABLE.search(found)
    if head is None:
        raise ValueError(f"{path} has no table with five columns")
    rows = [f"{each.row} {texts.get(each.name, _MISSING)} |\n" for each in figures()]
    titles = head.group().splitlines(keepends=True)[:2]
    return found[: head.start()] + "".join([*titles, *rows]) + found[head.end() :]


def english() -> str:
    """deploy/METRICS.md as it has to be: the meanings are those that Prometheus shows."""
    return with_table(ENGLISH, {each.name: _VARIABLE.sub(r"`\g<0>`", each.meaning) for each in figures()})


def korean() -> str:
    """The Korean one: each metric has its line, and its meaning is what stands there."""
    return with_table(KOREAN, meanings(KOREAN))


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden_text(), encoding="utf-8")
    for _path, _text in ((ENGLISH, english), (KOREAN, korean)):
        if _path.exists():
            _path.write_text(_text(), encoding="utf-8")
