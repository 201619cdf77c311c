"""The contract suites of the ports, and what runs them on the fakes, the embedded servers and real ones."""

import pytest

# pytest does not collect the suites' own files; their assertions are to explain themselves all the same.
pytest.register_assert_rewrite(
    "tests.adapters.clusters",
    "tests.adapters.contract_cluster",
    "tests.adapters.contract_choices",
    "tests.adapters.contract_knowing",
    "tests.adapters.contract_owning",
    "tests.adapters.contract_results",
    "tests.adapters.contract_stream",
    "tests.adapters.contract_workers",
    "tests.adapters.streams",
)
