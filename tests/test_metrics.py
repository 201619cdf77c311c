"""The figures: complete from the start, bounded whatever comes in."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ottoscaler.adapters.kube_answers import Verb
from ottoscaler.metrics import KUBE_VERBS, RETRY_TARGETS, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """All values, by name and labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_label_values_are_there_before_they_happen() -> None:
    """A rate over a counter is right from the first event on."""
    found = samples(Metrics())
    assert found["ottoscaler_workers_finished_total", "succeeded"] == 0
    assert found["ottoscaler_events_received_total", "scale_down"] == 0
    assert {key[2] for key in found if key[0] == "ottoscaler_retries_total"} == {*RETRY_TARGETS, "other"}


def test_each_verb_of_a_request_has_a_series() -> None:
    """None of them counts as other."""
    assert tuple(verb.value for verb in Verb) == KUBE_VERBS
    assert KUBE_VERBS == ("create", "get", "list", "list_events", "watch", "delete", "review")


def test_a_count_lands_where_it_belongs() -> None:
    """Label values are given in the order of the labels."""
    metrics = Metrics()
    metrics.retries.inc("redis", "throttled")
    assert samples(metrics)["ottoscaler_retries_total", "throttled", "redis"] == 1


def test_an_unknown_label_value_counts_as_other() -> None:
    """Text from outside does not make new series."""
    metrics = Metrics()
    before = len(samples(metrics))
    metrics.dead_letters.inc("what a producer wrote")
    assert samples(metrics)["ottoscaler_dead_letters_total", "other"] == 1
    assert len(samples(metrics)) == before


def test_two_controllers_do_not_add_up() -> None:
    """Each has a registry of its own."""
    one, other = Metrics(), Metrics()
    one.pods_created.inc()
    assert samples(other)["ottoscaler_pods_created_total",] == 0
