"""The guide for production tells the truth: its lines are run, its figures are right, the Korean is the same."""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path

import pytest

from ottoscaler.settings import Settings
from tests.deploy.manifests import only, overlay
from tests.e2e.test_production import COMMANDS
from tests.readme import (
    KOREAN,
    PRODUCTION,
    PRODUCTION_KOREAN,
    README,
    Table,
    codes,
    commands,
    fences,
    parts,
    variables,
)


@pytest.mark.parametrize("path", [PRODUCTION, PRODUCTION_KOREAN], ids=lambda path: path.name)
def test_every_line_is_run(path: Path) -> None:
    """By the test that carries the guide out; and nothing is left over there."""
    assert set(commands(path)) == set(COMMANDS)


def test_the_examples_of_settings_are_good() -> None:
    """Their variables are known, and say what they should; files apart."""
    for text in (text for kind, text in fences(PRODUCTION) if kind == "ini"):
        given = dict(line.split("=", 1) for line in text.splitlines())
        assert given.keys() <= variables().keys()
        given.pop("REDIS_CA_FILE", None)
        Settings.load(given, "pod-1", "namespace-1")


@pytest.mark.parametrize("number", range(len(parts(PRODUCTION))))
def test_the_korean_text_has_the_same_part(number: int) -> None:
    """The same level, and the same names in each row and each part."""
    english, korean = parts(PRODUCTION)[number], parts(PRODUCTION_KOREAN)[number]
    assert english.level == korean.level
    assert set(codes(english.text)) == set(codes(korean.text))
    for one, other in zip_longest(english.tables, korean.tables, fillvalue=[]):
        assert _names(one) == _names(other)


def _names(table: Table) -> list[list[list[str]]]:
    return [[sorted(codes(cell)) for cell in row] for row in table]


def test_the_korean_text_has_the_same_blocks() -> None:
    """Letter for letter."""
    assert fences(PRODUCTION) == fences(PRODUCTION_KOREAN)
    assert len(parts(PRODUCTION)) == len(parts(PRODUCTION_KOREAN))


@pytest.mark.parametrize("path", [PRODUCTION, PRODUCTION_KOREAN], ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    """Those inside the repository; there are no others."""
    links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []


def test_the_readme_leads_here() -> None:
    """Each to the text in its own language."""
    assert "(deploy/PRODUCTION.md)" in README.read_text(encoding="utf-8")
    assert "(PRODUCTION.ko.md)" in KOREAN.read_text(encoding="utf-8")


@pytest.mark.real
@pytest.mark.parametrize("path", [PRODUCTION, PRODUCTION_KOREAN], ids=lambda path: path.name)
def test_the_figures_are_those_of_the_manifests(path: Path) -> None:
    """Quota, limits and the time for a stop."""
    (limits,) = (table for part in parts(path) for table in part.tables if len(table[0]) == 3)
    told = [[int(figure) for figure in re.findall(r"\d+", row[1])] for row in limits[2:5]]
    objects = overlay("production")
    quota = only(objects, "ResourceQuota")["spec"]["hard"]
    (each,) = only(objects, "LimitRange")["spec"]["limits"]
    grace = only(objects, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    most = [each["max"]["cpu"], each["max"]["memory"], each["default"]["ephemeral-storage"]]
    meant = [[quota[name] for name in ("pods", "requests.cpu", "requests.memory")], most]
    assert told[:2] == [[int(str(figure).removesuffix("Gi")) for figure in row] for row in meant]
    assert sorted(told[2]) == [5, grace]
