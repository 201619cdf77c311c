"""deploy/monitoring: what is made of its rules, and what is read out of its dashboard.

`python -m tests.monitoring` writes deploy/monitoring/prometheusrule.yaml.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
MONITORING: Final = ROOT / "deploy" / "monitoring"
RULES: Final = MONITORING / "rules.yaml"
OPERATOR_RULE: Final = MONITORING / "prometheusrule.yaml"
DASHBOARD: Final = MONITORING / "dashboard.json"

Json = dict[str, Any]


def groups() -> list[Json]:
    """The groups of rules."""
    return list(yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"])


def alerts() -> list[Json]:
    """All alerts."""
    return [rule for group in groups() for rule in group["rules"] if "alert" in rule]


def operator_rule_text() -> str:
    """The object for the Prometheus operator as it has to be: the rules as they stand, moved to the right."""
    text = RULES.read_text(encoding="utf-8")
    rules = text[text.index("groups:") :]
    head = (
        "# Written from rules.yaml by `python -m tests.monitoring`.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: ottoscaler\nspec:\n"
    )
    return head + "".join(f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True))


def panels() -> list[Json]:
    """The panels of the dashboard that show something, those in rows too."""
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    every = [panel for each in found for panel in (each, *each.get("panels", ()))]
    return [panel for panel in every if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Title and query of each target of the dashboard."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


if __name__ == "__main__":
    OPERATOR_RULE.write_text(operator_rule_text(), encoding="utf-8")
