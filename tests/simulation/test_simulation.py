"""The simulation: a few examples, always the same ones; `make simulate` plays others, and more."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import Simulation, SimulationWithLogs

#: With a seed of its own it is `make simulate`: it takes its time, and shows the shortest failure that it finds.
AT_LENGTH = "SIMULATE_SEED" in os.environ
EXAMPLES = int(os.environ.get("SIMULATE_EXAMPLES", 60))
SEED = int(os.environ.get("SIMULATE_SEED", 1))
#: Rules in one example: most faults need a dozen, and its end costs as much as so many.
STEPS = 40


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The program has nothing to say here that the audit does not say better."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.contract("5.exactly-once")
@pytest.mark.timeout(0 if AT_LENGTH else 300)
def test_nothing_is_lost_and_nothing_done_twice() -> None:
    """Whatever dies when, and whatever the network does."""
    _play(Simulation, EXAMPLES)


@pytest.mark.contract("2.LOG_DRAIN_S")
@pytest.mark.timeout(0 if AT_LENGTH else 300)
def test_logs_hold_up_no_result_and_no_pod() -> None:
    """A pod waits for its log, its result does not; and neither does another worker."""
    _play(SimulationWithLogs, EXAMPLES // 2)


def _play(machine: type[Simulation], examples: int) -> None:
    played = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        phases=(Phase.generate, Phase.shrink) if AT_LENGTH else (Phase.generate,),
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(SEED)(machine), settings=played)
    except BaseException as error:
        error.add_note(f"Again: make simulate SEED={SEED} EXAMPLES={EXAMPLES}")
        raise
