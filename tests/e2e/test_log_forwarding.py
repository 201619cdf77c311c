"""Logs of workers from a real kubelet: every line once and in order, whatever ends in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.processes import below
from tests.e2e.system import System
from tests.e2e.waiting import wait_for
from tests.forwarder.processes import HandlerProcess, handler

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180), pytest.mark.contract("2.LOG_HANDLER_ADDRESS")]

FORWARDER = "ottoscaler.forwarder.process"
#: Lines of a worker; every thousandth waits a moment, so that it lasts for some seconds.
LINES = 20_000
SCRIPT = f"i=0; while [ $i -lt {LINES} ]; do seq $((i+1)) $((i+1000)); i=$((i+1000)); sleep 0.2; done"


def texts(opened: HandlerProcess, pod: str) -> list[str]:
    """The lines of a pod, by sequence, none twice."""
    entries = sorted(opened.entries(pod), key=lambda entry: entry["sequence"])
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["message"] for entry in entries if entry["level"] == "INFO" and "end" not in entry]


def test_each_line_arrives_once_while_forwarder_and_controller_are_killed(system: System, tmp_path: Path) -> None:
    """The forwarder is killed after a part of the log, and the controller after a further one."""
    (tmp_path / "store").mkdir()
    with handler(tmp_path / "store") as opened:
        logs = {"LOG_HANDLER_ADDRESS": f"127.0.0.1:{opened.port}", "LEASE_S": "3", "TERMINATION_GRACE_S": "60"}
        controller = system.start(**logs)
        event_id = system.send(type="scale_up", script=SCRIPT)
        (forwarder,) = [pid for pid, words in below(controller.pid).items() if FORWARDER in words]
        pod = controller.until_said("worker.created")["pod"]
        wait_for(lambda: len(opened.entries(pod)) > 2000, "a part of the log", 60)
        os.kill(forwarder, signal.SIGKILL)
        seen = len(opened.entries(pod))
        wait_for(lambda: len(opened.entries(pod)) > seen + 2000, "a further part", 60)
        controller.kill()
        system.start(**logs)
        assert system.verdict(event_id)["outcome"] == "succeeded"
        wait_for(lambda: any("end" in entry for entry in opened.entries(pod)), "the end of the log", 60)
        assert texts(opened, pod) == [str(number) for number in range(1, LINES + 1)]
        (end,) = [entry["end"] for entry in opened.entries(pod) if "end" in entry]
        assert (end["lines"], end["dropped"], end["gaps"]) == (LINES, 0, 0)
        wait_for(lambda: not system.pods_of(event_id), "the pod to go", 30)


#: Both outputs at full speed: the output, the number of the line, and random bytes, none of which is a newline. The
#: image's sed takes a NUL for the end of a line, too.
FLOOD = (
    "flood() { tr '\\n\\r\\000' '---' < /dev/urandom | fold -b -w 30 | head -n 50000 | cat -n | sed \"s/^/$1/\"; }; "
)
FLOOD += "flood o & flood e >&2 & wait"


@pytest.mark.timeout(420)
def test_a_flood_on_both_outputs_with_random_bytes_arrives_whole(system: System, tmp_path: Path) -> None:
    """100,000 lines as fast as the container's runtime takes them: all are received, none is dropped, and each output
    keeps its order.
    """
    (tmp_path / "store").mkdir()
    with handler(tmp_path / "store") as opened:
        controller = system.start(LOG_HANDLER_ADDRESS=f"127.0.0.1:{opened.port}", LOG_DRAIN_S="300")
        event_id = system.send(type="scale_up", script=FLOOD)
        pod = controller.until_said("worker.created")["pod"]
        assert system.verdict(event_id)["outcome"] == "succeeded"
        wait_for(lambda: any("end" in entry for entry in opened.entries(pod)), "the end of the log", 240)
        (end,) = [entry["end"] for entry in opened.entries(pod) if "end" in entry]
        found = texts(opened, pod)
        numbers = {output: [int(text[1:].split("\t")[0]) for text in found if text[0] == output] for output in "oe"}
        # which lines are missing shows where they were lost: at a boundary of seconds, or at the end of an output
        missing = {output: sorted(set(range(1, 50_001)) - set(numbers[output])) for output in "oe"}
        assert missing == {"o": [], "e": []}
        assert (end["lines"], end["dropped"], end["gaps"], len(found)) == (100_000, 0, 0, 100_000)
        assert numbers == {output: list(range(1, 50_001)) for output in "oe"}
        assert sum("raw" in entry for entry in opened.entries(pod)) > 90_000
