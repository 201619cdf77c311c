"""The figures: complete from the start, bounded whatever comes in, named and described as Prometheus wants them."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from random import Random
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from ottoscaler.adapters.kube_answers import Verb
from ottoscaler.adapters.web import WebRequest
from ottoscaler.cli.log_forwarding import LogForwarding
from ottoscaler.cli.pages import metrics_response
from ottoscaler.clock import SystemClock
from ottoscaler.core.log_figures import LineDrop, LogFigures, LogServer
from ottoscaler.core.verdicts import EndReason
from ottoscaler.flow.heartbeat import Heartbeat
from ottoscaler.flow.stop import StopSignal
from ottoscaler.metric_kinds import trace_exemplar
from ottoscaler.metrics import KUBE_VERBS, LOOPS, RETRY_TARGETS, Metrics
from ottoscaler.settings import Settings
from ottoscaler.stored import StreamLevels
from tests.metrics_reference import ENGLISH, GOLDEN, KOREAN, english, figures, golden_text, korean, meanings
from tests.readme import ROOT

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def text(metrics: Metrics) -> str:
    """All of them, in the plain format."""
    return metrics.render().decode()


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """All values, by name and label values, these in the order of the labels' names."""
    families = text_string_to_metric_families(text(metrics))
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_the_names_types_labels_and_series_are_those_of_the_golden_file() -> None:
    """`python -m tests.metrics_reference` writes it: a change of it is a change of what dashboards stand on."""
    assert GOLDEN.read_text(encoding="utf-8") == golden_text()


def test_the_documents_list_each_of_them() -> None:
    """In English with the meaning that Prometheus shows, in Korean with a translation of it."""
    assert ENGLISH.read_text(encoding="utf-8") == english()
    assert KOREAN.read_text(encoding="utf-8") == korean()
    translated = meanings(KOREAN)
    assert translated.keys() == meanings(ENGLISH).keys() == {each.name for each in figures()}
    for name, meaning in translated.items():
        assert re.search("[\uac00-\ud7a3]", meaning), name


def test_names_follow_the_conventions_of_prometheus() -> None:
    """A counter is `_total`; base units only; help is a sentence; no series that says when a counter was made."""
    for family in openmetrics_families(Metrics().render(openmetrics=True).decode()):
        if not family.name.startswith("ottoscaler_"):  # the process's own, by the library
            continue
        assert re.fullmatch(r"ottoscaler_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation[0].isupper() or family.documentation[0].isdigit(), family.name
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|millis|minutes|hours|percent|kb)(_|$)", family.name)
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            assert family.type != "counter" or sample.name == f"{family.name}_total"


def test_label_values_are_there_before_they_happen() -> None:
    """A rate over a counter is right from the first event on."""
    found = samples(Metrics())
    assert found["ottoscaler_workers_finished_total", "none", "succeeded", "Completed"] == 0
    assert found["ottoscaler_events_received_total", "accepted", "scale_down"] == 0
    assert {key[2] for key in found if key[0] == "ottoscaler_retries_total"} == {*RETRY_TARGETS, "other"}


def test_a_reason_has_one_outcome_and_one_fault() -> None:
    """Only the combinations that there are, not each with each."""
    finished = [key for key in samples(Metrics()) if key[0] == "ottoscaler_workers_finished_total"]
    assert len(finished) == len(EndReason) + 1
    assert Counter(key[3] for key in finished) == Counter([*EndReason, "other"])


def test_each_verb_of_a_request_has_a_series() -> None:
    """None of them counts as other. With this client only the command `logs` reads logs."""
    assert tuple(verb.value for verb in Verb if verb is not Verb.LOG) == KUBE_VERBS


def test_each_loop_has_a_series() -> None:
    """Those that the controller starts."""
    started = re.findall(r'_start_loop\("([^"]+)"', (ROOT / "ottoscaler/cli/run.py").read_text(encoding="utf-8"))
    parts: Any = dict.fromkeys(("cluster", "attempts"))
    settings = Settings.load({"LOG_HANDLER_ADDRESS": "handler:1"}, "host-1", None)
    forwarding = LogForwarding(
        settings, stop=StopSignal(), heartbeat=Heartbeat(SystemClock()), metrics=Metrics(), clock=SystemClock(), **parts
    )
    forwarding.begin(lambda name, _: started.append(name))
    assert sorted(started) == sorted(LOOPS)


def test_what_the_log_forwarder_says_is_added_up() -> None:
    """What it has counted is added, how it stands is replaced; without a forwarder nothing stands any more."""
    metrics = Metrics()
    metrics.add_log_figures(LogFigures(5, 80, {LineDrop.REFUSED: 2}, 1, {LogServer.HANDLER: 3}, 4, 6, 0.5, 9))
    metrics.add_log_figures(LogFigures(1, 10, {LineDrop.REFUSED: 1}, 0, {}, 3, 2, 0.25, 8))
    found = samples(metrics)
    prefix = "ottoscaler_log_"
    assert (found[f"{prefix}lines_forwarded_total",], found[f"{prefix}bytes_forwarded_total",]) == (6, 90)
    assert found[f"{prefix}lines_dropped_total", "refused"] == 3
    assert (found[f"{prefix}gaps_total",], found[f"{prefix}reconnects_total", "handler"]) == (1, 3)
    standing = [(f"{prefix}follows",), (f"{prefix}entries_unacknowledged",), (f"{prefix}lag_seconds",)]
    standing.append((f"{prefix}workers_waiting",))
    assert [found[key] for key in standing] == [3, 2, 0.25, 8]
    metrics.add_log_figures(LogFigures())
    found = samples(metrics)
    assert [found[key] for key in standing] == [0, 0, 0, 0]
    assert found[f"{prefix}lines_forwarded_total",] == 6


def test_a_count_lands_where_it_belongs() -> None:
    """Label values are given in the order of the labels."""
    metrics = Metrics()
    metrics.retries.inc("redis", "throttled")
    assert samples(metrics)["ottoscaler_retries_total", "throttled", "redis"] == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(0, "none"), (200, "2xx"), (201, "2xx"), (404, "404"), (418, "4xx"), (429, "429"), (503, "5xx"), (302, "other"),
     (700, "other")],
)  # fmt: skip
def test_a_request_counts_under_its_status(status: int, code: str) -> None:
    """Its class where it has no series of its own; of an unknown class as other."""
    metrics = Metrics()
    metrics.count_kube_request("delete", status, 0.2)
    found = samples(metrics)
    assert found["ottoscaler_kube_requests_total", code, "delete"] == 1
    assert found["ottoscaler_kube_request_seconds_count", "delete"] == 1
    assert found["ottoscaler_kube_request_seconds_bucket", "0.25", "delete"] == 1
    assert found["ottoscaler_kube_request_seconds_bucket", "0.1", "delete"] == 0


def test_an_unknown_label_value_counts_as_other() -> None:
    """Text from outside does not make new series."""
    metrics = Metrics()
    before = samples(metrics).keys()
    metrics.dead_letters.inc("what a producer wrote")
    metrics.workers_finished.inc("failed", "none", "Completed")  # no such combination
    metrics.redis_request_seconds.observe("nothing we know", 1)
    metrics.register_sources(workers=lambda: {"odd": 7, "running": 2})
    found = samples(metrics)
    assert found["ottoscaler_dead_letters_total", "other"] == 1
    assert found["ottoscaler_workers_finished_total", "other", "other", "other"] == 1
    assert found["ottoscaler_redis_request_seconds_count", "other"] == 1
    assert found["ottoscaler_workers", "running"] == 2
    assert found.keys() == before


def test_ten_thousand_random_counts_add_no_series() -> None:
    """Whatever text, status or kind comes in."""
    metrics, dice = Metrics(), Random(7)
    before = samples(metrics).keys()
    words = [*map(str, EndReason), "scale_up", "", "\N{SNOWMAN}", 'a"b\n', "x" * 300]
    for _ in range(10_000):
        word = dice.choice([*words, str(dice.random())])
        metrics.events_received.inc(word, dice.choice(words))
        metrics.dead_letters.inc(word)
        metrics.workers_finished.inc(word, dice.choice(words), dice.choice(words))
        metrics.worker_retries.inc(word)
        metrics.retries.inc(word, word)
        metrics.count_kube_request(word, dice.randrange(1000), dice.random())
        metrics.count_throttled(word, dice.random())
        metrics.redis_request_seconds.observe(word, dice.random())
    assert samples(metrics).keys() == before


def test_two_controllers_do_not_add_up() -> None:
    """Each has a registry of its own."""
    one, other = Metrics(), Metrics()
    one.pods_created.inc()
    assert samples(other)["ottoscaler_pods_created_total",] == 0


def test_what_could_not_be_read_is_not_shown_as_zero() -> None:
    """Nor as it was before."""
    metrics = Metrics()
    names = ("backlog_oldest_seconds", "result_entries", "dead_letter_entries")
    for levels, expected in ((None, math.nan), (StreamLevels(3, 2, 7.5, 10, 60.0, 4, 1), 0.0), (None, math.nan)):
        metrics.set_stream_levels(levels)
        found = samples(metrics)
        assert math.isnan(found["ottoscaler_backlog_events", "unread"]) == math.isnan(expected)
        for name in names:
            assert math.isnan(found[f"ottoscaler_{name}",]) == math.isnan(expected)
        if levels is not None:
            assert found["ottoscaler_backlog_events", "pending"] == 2
            assert found["ottoscaler_backlog_oldest_seconds",] == 7.5
            assert found["ottoscaler_result_oldest_seconds",] == 60
            assert found["ottoscaler_result_entries_unread",] == 4


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain;version=0.0.4", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain", OPENMETRICS),
        ("application/openmetrics-text;q=0,text/plain", PLAIN),
        ("application/openmetrics-text;version=9.9.9", PLAIN),
        ("application/openmetrics-text;version=abc", PLAIN),
    ],
)
def test_the_format_is_what_was_asked_for(accept: str, content_type: str) -> None:
    """In a version that we write; nothing that a client asks for fails."""
    response = metrics_response(Metrics(), WebRequest(headers={"accept": accept}))
    assert response.content_type == content_type
    assert response.body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


def test_an_exemplar_leads_to_the_trace() -> None:
    """In OpenMetrics; the plain format has no place for one."""
    metrics = Metrics()
    metrics.event_to_create_seconds.observe(3.0, trace_exemplar(PARENT))
    metrics.workers_finished.child("succeeded", "none", "Completed").inc(1, trace_exemplar(PARENT))
    families: dict[str, Any] = {
        family.name: family for family in openmetrics_families(metrics.render(openmetrics=True).decode())
    }
    for name in ("ottoscaler_event_to_create_seconds", "ottoscaler_workers_finished"):
        exemplars = [sample.exemplar for sample in families[name].samples if sample.exemplar]
        assert [exemplar.labels for exemplar in exemplars] == [{"trace_id": TRACE}]
    assert TRACE not in text(metrics)
    assert trace_exemplar("") is None


def test_counting_costs_microseconds() -> None:
    """All that is counted for one pod, in CPU time of this thread: far below what the pod itself costs (1.8 ms)."""
    metrics, rounds = Metrics(), 2000
    finished = metrics.workers_finished.child("succeeded", "none", "Completed")
    began = time.thread_time()
    for _ in range(rounds):
        for verb in ("create", "delete"):
            metrics.count_kube_request(verb, 200, 0.02)
        for _ in range(5):
            metrics.redis_request_seconds.observe("worker", 0.002)
        metrics.events_received.inc("scale_up", "accepted")
        metrics.pods_created.inc()
        metrics.pods_deleted.inc()
        metrics.event_to_create_seconds.observe(0.3)
        metrics.create_to_running_seconds.observe(2)
        metrics.run_seconds.observe(60)
        metrics.end_to_result_seconds.observe(0.02)
        finished.inc()
    each_us = (time.thread_time() - began) / rounds * 1e6
    print(f"{each_us:.1f} us of CPU for each pod")
    assert each_us < 150  # four times what it is on a slow machine
