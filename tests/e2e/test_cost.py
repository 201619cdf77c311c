"""What an event costs: time until its pod is asked for, and requests to the API server."""

from __future__ import annotations

import statistics

import pytest

from tests.e2e.recorder import Recorder
from tests.e2e.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

_EVENTS = 20
_ROUNDS = 3
#: From XADD to the create request, with nothing else to do, seconds.
_PROMPT_S = 0.010


def test_an_event_is_taken_up_at_once(system: System) -> None:
    """The median of twenty events on an idle controller. Other tests share the machine: one of three rounds will do."""
    controller, medians = system.start(), list[float]()
    while not medians or (min(medians) >= _PROMPT_S and len(medians) < _ROUNDS):
        for number in range(1, _EVENTS + 1):
            event_id = system.send(type="scale_up")
            controller.until_said("worker.created", event_id=event_id)
            if number % 5 == 0:  # so that no more than a few share the machine with the next ones
                system.finished(event_id)
        taken = [float(line["since_event_s"]) for line in controller.said("worker.created")[-_EVENTS:]]
        medians.append(statistics.median(taken))
    assert min(medians) < _PROMPT_S, medians


def test_requests_for_each_pod(system: System, recorder: Recorder) -> None:
    """One create and one delete; everything else is reported by the watch."""
    system.start(KUBECONFIG=str(recorder.kubeconfig))
    before = recorder.counts()
    sent = [system.send(type="scale_up", pod_count=3, script="sleep 1") for _ in range(4)]
    for event_id in sent:
        assert system.finished(event_id)["succeeded"] == "3"
        system.no_pods(event_id)
    after = recorder.counts()
    used = {verb: count - before.get(verb, 0) for verb, count in after.items() if verb not in ("list", "watch")}
    assert {verb: count for verb, count in used.items() if count} == {"create": 12, "delete": 12}


def test_requests_while_nothing_happens(system: System, recorder: Recorder) -> None:
    """One list and one watch; no polling."""
    controller = system.start(KUBECONFIG=str(recorder.kubeconfig))
    event_id = system.send(type="scale_up", script="sleep 6")
    system.finished(event_id)
    controller.until_said("worker.deleted")
    counts = recorder.counts()
    assert (counts["list"], counts["watch"]) == (1, 1)
