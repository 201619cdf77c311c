"""Which fields of an event have a meaning of their own, and which of the others may name its tenant."""

from __future__ import annotations

import pytest

from ottoscaler.core.fields import CHOOSING_FIELDS, OVERRIDE_FIELDS, REQUEST_FIELDS, RESERVED_FIELDS, is_tenant_field

pytestmark = pytest.mark.contract("2.TENANT_FIELD")

#: The tables of the contract, section 3, written down again.
REQUEST = (
    "type pod_count target_replicas task_id mode event_id supersedes traceparent concurrency_key concurrency_limit"
)
OVERRIDES = "image command args env cpu memory profile deadline_s retries priority not_after keep_failed_s"
RESERVED = "worker_index worker_count attempt task_key pod_name namespace output"


def test_the_fields_are_those_of_the_contract() -> None:
    """A new one is a promise to users."""
    assert set(REQUEST.split()) == REQUEST_FIELDS
    assert set(OVERRIDES.split()) == OVERRIDE_FIELDS
    assert set(RESERVED.split()) == RESERVED_FIELDS
    assert CHOOSING_FIELDS == REQUEST_FIELDS | OVERRIDE_FIELDS


@pytest.mark.parametrize("name", [*REQUEST.split(), *OVERRIDES.split(), *RESERVED.split(), "metadata"])
def test_a_field_with_a_meaning_names_no_tenant(name: str) -> None:
    """It would be two things at once."""
    assert not is_tenant_field(name)


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("team", True), ("repository", True), ("a", True), ("a" * 63, True), ("a_1", True), ("a" * 64, False),
        ("", False), ("Team", False), ("1a", False), ("a-b", False), ("a\n", False),
    ],
)  # fmt: skip
def test_a_tenant_field_is_one_that_is_passed_on(name: str, may: bool) -> None:
    """With a name that a field may have."""
    assert is_tenant_field(name) is may
