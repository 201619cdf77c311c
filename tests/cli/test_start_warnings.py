"""What the start logs of a configuration that will not do what it seems to say."""

from __future__ import annotations

import pytest

from ottoscaler.cli.start_warnings import start_warnings
from ottoscaler.core.shares import EQUAL_SHARES, Share, Shares
from ottoscaler.settings import Settings

TENANTS = Shares(named={"a": Share(max_workers=1)})


def warned(shares: Shares = EQUAL_SHARES, **environ: str) -> set[str]:
    """The events of the lines, without the one that the machine decides."""
    settings = Settings.load(environ, "c1", None)
    return {event for event, _ in start_warnings(settings, shares)} - {"pids.advice"}


@pytest.mark.contract("2.TENANT_FIELD")
@pytest.mark.parametrize(
    ("shares", "field", "expected"),
    [
        (TENANTS, "", {"config.tenants_unused"}),
        (Shares(default=Share(weight=2)), "", {"config.tenants_unused"}),
        (TENANTS, "repository", set()),
        (EQUAL_SHARES, "", set()),
        (EQUAL_SHARES, "repository", set()),
    ],
)
def test_shares_without_a_field_that_names_the_tenant(shares: Shares, field: str, expected: set[str]) -> None:
    """The policy's tenants have no effect then."""
    assert warned(shares, TENANT_FIELD=field) == expected


def test_variables_that_are_unknown_or_have_no_effect_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each."""
    monkeypatch.setattr("ottoscaler.settings.UNSUPPORTED_VARIABLES", ("A_LATER_ONE",))
    assert warned(MAX_WORKER="3", A_LATER_ONE="x") == {"config.unknown", "config.not_yet"}
