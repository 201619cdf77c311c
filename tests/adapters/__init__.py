"""The contract suites of the ports, and what runs them on the fakes, the embedded servers and real ones."""

import pytest

# pytest does not collect the suites' own files; their assertions are to explain themselves all the same.
pytest.register_assert_rewrite(
    "tests.adapters.clusters",
    "tests.adapters.contract_attempts",
    "tests.adapters.contract_cluster",
    "tests.adapters.contract_event_log",
    "tests.adapters.contract_leases",
    "tests.adapters.contract_scale_downs",
    "tests.adapters.streams",
)
