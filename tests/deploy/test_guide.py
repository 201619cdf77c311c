"""The guide for production is right: a test runs its lines, and its figures and ports are those of the manifests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ottoscaler.settings import Settings
from tests.deploy.manifests import only, overlay
from tests.e2e.test_production import COMMANDS
from tests.readme import PRODUCTION, ROOT, commands, fences, korean, parts, variables


@pytest.mark.parametrize("path", [PRODUCTION, korean(PRODUCTION)], ids=lambda path: path.name)
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


def test_the_ports_are_those_of_the_network_policies() -> None:
    """What the controller may reach, and from where it may be reached."""
    (rows,) = (table for part in parts(PRODUCTION) for table in part.tables if len(table[0]) == 3)
    (row,) = (row for row in rows if row[0] == "network of the controller")
    policies = yaml.safe_load_all((ROOT / "deploy" / "base" / "network.yaml").read_text(encoding="utf-8"))
    (spec,) = (policy["spec"] for policy in policies if policy["metadata"]["name"] == "ottoscaler")
    ports = {port["port"] for rule in (*spec["egress"], *spec["ingress"]) for port in rule["ports"]}
    assert {int(port) for port in re.findall(r"[0-9]+", row[1])} == ports


@pytest.mark.real
@pytest.mark.parametrize("path", [PRODUCTION, korean(PRODUCTION)], ids=lambda path: path.name)
def test_the_figures_are_those_of_the_manifests(path: Path) -> None:
    """Quota, limits and the time for a stop."""
    (limits,) = (table for part in parts(path) for table in part.tables if len(table[0]) == 3)
    found = [[int(figure) for figure in re.findall(r"\d+", row[1])] for row in limits[2:5]]
    objects = overlay("production")
    quota = only(objects, "ResourceQuota")["spec"]["hard"]
    (each,) = only(objects, "LimitRange")["spec"]["limits"]
    grace = only(objects, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    most = [each["max"]["cpu"], each["max"]["memory"], each["default"]["ephemeral-storage"]]
    meant = [[quota[name] for name in ("pods", "requests.cpu", "requests.memory")], most]
    assert found[:2] == [[int(str(figure).removesuffix("Gi")) for figure in row] for row in meant]
    assert sorted(found[2]) == [5, grace]
