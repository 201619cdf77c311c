"""README's section "Guarantees" and deploy/GUARANTEES.md, line by line, and the tests that hold each line up.

A line is a row of a table, a point of a list or a sentence; one with a link only leads elsewhere, and is none. Each has
an entry here, which begins with the words with which the line begins, in the order of the texts: a line without an
entry, and an entry without a line, are failures of `make rows` and of `make test`. A test may name its line with
`@pytest.mark.contract("8.<name>")` as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
HEADING: Final = "Guarantees"


@dataclass(frozen=True, slots=True)
class Promise:
    """One line. `tests` are file::function, as pytest collects them, without class and parameters."""

    name: str
    beginning: str
    tests: tuple[str, ...]


def promised() -> str:
    """All text that promises: the section of README, and the page that goes on from there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {HEADING}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    return section + (ROOT / "deploy" / "GUARANTEES.md").read_text(encoding="utf-8")


def lines(text: str) -> list[str]:
    """The lines of a text: rows of tables without their head, points of lists, sentences. Headings are none."""
    found: list[str] = []
    for block in re.split(r"\n{2,}", text.strip()):
        if block.startswith("|"):
            found += [line.strip("| ") for line in block.splitlines()[2:]]
        elif block.startswith("- "):
            found += [" ".join(point.split()) for point in re.split(r"^- ", block, flags=re.MULTILINE)[1:]]
        elif not block.startswith("#"):
            found += re.split(r"(?<=[.]) (?=[A-Z`])", " ".join(block.split()))
    return [line for line in found if "](" not in line]


def unmatched(text: str, promises: tuple[Promise, ...]) -> list[str]:
    """What is wrong with the mapping: each line of the text needs one entry, and each entry one line."""
    there, faults = lines(text), []
    for line in there:
        names = [each.name for each in promises if line.startswith(each.beginning)]
        if len(names) != 1:
            faults.append(f"the line has {len(names) or 'no'} entries in tests/promises.py: {line}")
    for each in promises:
        if not any(line.startswith(each.beginning) for line in there):
            faults.append(f"no line begins as 8.{each.name} says: {each.beginning}")
    return faults


_FLOW: Final = "tests/flow"
_E2E: Final = "tests/e2e"
_ADAPTERS: Final = "tests/adapters"

PROMISES: Final = (
    Promise(
        "acknowledged",
        "An event that Redis has acknowledged is carried out",
        (
            "tests/simulation/test_simulation.py::test_nothing_is_lost_and_nothing_done_twice",
            f"{_FLOW}/test_intake.py::test_what_breaks_a_rule_is_buried",
        ),
    ),
    Promise(
        "exactly-once",
        "Whatever is killed, restarted or cut off, it leads to exactly one result",
        (
            f"{_FLOW}/test_system.py::test_a_death_between_any_two_steps_leaves_one_result",
            "tests/simulation/test_simulation.py::test_nothing_is_lost_and_nothing_done_twice",
            f"{_E2E}/test_scale_down_death.py::test_it_is_reported_once",
        ),
    ),
    Promise(
        "result-before-delete",
        "A finished pod is deleted only after its result",
        (
            f"{_FLOW}/test_worker.py::test_each_step_is_stored_before_the_next",
            f"{_FLOW}/test_worker.py::test_a_pod_that_finishes_before_our_delete_arrives_is_recorded_first",
        ),
    ),
    Promise(
        "running-pods",
        "A running pod is ended by a scale_down",
        (
            f"{_FLOW}/test_reconciler.py::test_a_running_pod_of_an_unknown_event_is_not_deleted",
            f"{_E2E}/test_scale_down_death.py::test_no_other_running_pod_was_deleted",
            f"{_FLOW}/test_worker_ends.py::test_after_five_failures_it_is_a_result",
        ),
    ),
    Promise(
        "not-once",
        "Ottoscaler does not promise that a program runs only once.",
        (f"{_FLOW}/test_worker.py::test_the_platforms_failure_is_tried_again_under_a_new_name",),
    ),
    Promise(
        "task-key",
        "Work that must not be done twice uses `OTTO_TASK_KEY`",
        ("tests/core/test_manifest.py::test_a_worker_knows_its_identity",),
    ),
    Promise(
        "trimmed",
        "`otto:scale:results` is trimmed at about `RESULT_MAXLEN` entries",
        (f"{_ADAPTERS}/test_stream_fake.py::test_goes_to_a_bounded_stream",),
    ),
    Promise(
        "order",
        "The workers of a task finish in any order.",
        ("tests/simulation/test_simulation.py::test_nothing_is_lost_and_nothing_done_twice",),
    ),
    Promise(
        "killed",
        "the controller is killed",
        (
            f"{_E2E}/test_restart.py::test_the_same_pods_go_on",
            f"{_E2E}/test_replicas.py::test_within_the_lease_and_two_seconds",
            f"{_FLOW}/test_lease.py::test_a_new_boot_of_the_same_consumer_takes_its_own_at_once",
        ),
    ),
    Promise(
        "stopped",
        "the controller is stopped or rolled out",
        (
            f"{_E2E}/test_replicas.py::test_it_is_handed_over_at_once_and_counts_as_no_failure",
            f"{_FLOW}/test_lease.py::test_a_clean_end_hands_over_at_once",
        ),
    ),
    Promise(
        "sleeper",
        "a replica sleeps longer than",
        (
            f"{_E2E}/test_replicas.py::test_it_drops_what_it_had",
            f"{_FLOW}/test_lease.py::test_what_was_taken_from_us_is_let_go",
        ),
    ),
    Promise(
        "redis-away",
        "Redis is away or restarts",
        (
            f"{_E2E}/test_restart.py::test_restarted",
            f"{_FLOW}/test_worker.py::test_redis_away_holds_no_thread_and_loses_no_result",
            f"{_FLOW}/test_lease.py::test_nothing_is_taken_over_right_after_an_outage",
        ),
    ),
    Promise(
        "redis-refuses",
        "Redis is read-only, full, loading, or refuses our user",
        (f"{_E2E}/test_refusals.py::test_refusals", "tests/test_logs.py::test_ever_less_often"),
    ),
    Promise(
        "all-or-nothing",
        "one of our keys has another type for a while",
        (
            f"{_ADAPTERS}/test_atomic.py::test_all_or_nothing",
            "tests/deploy/test_redis.py::test_what_is_refused_for_a_while_is_neither_lost_nor_twice",
        ),
    ),
    Promise(
        "key-deaths",
        "a controller with tasks of a concurrency key dies",
        (
            f"{_FLOW}/test_key_waits.py::test_at_any_write_lose_nothing",
            f"{_FLOW}/test_key_waits.py::test_over_two_replicas_and_twenty_events",
            f"{_ADAPTERS}/test_stream_redis.py::test_by_leases_that_run_out",
        ),
    ),
    Promise(
        "wiped",
        "Redis is wiped (FLUSHALL)",
        (
            f"{_E2E}/test_servers.py::test_wiped_under_a_live_owner",
            f"{_FLOW}/test_wiped.py::test_what_was_recorded_counts_and_is_not_published_again",
        ),
    ),
    Promise(
        "api-away",
        "the API server is away or restarts",
        (
            f"{_E2E}/test_restart.py::test_away",
            f"{_FLOW}/test_worker.py::test_what_becomes_of_a_pod_in_an_outage_is_not_missed",
        ),
    ),
    Promise(
        "lost-answer",
        "the network loses a reply",
        (
            f"{_E2E}/test_network.py::test_of_a_record",
            f"{_FLOW}/test_worker.py::test_a_lost_answer_is_followed_by_a_look",
            f"{_FLOW}/test_worker.py::test_a_lost_request_is_intended_again_and_then_repeated",
        ),
    ),
    Promise(
        "quota",
        "a quota is full, the API server says 429",
        (
            f"{_FLOW}/test_worker.py::test_quota_is_waited_for_without_a_thread",
            f"{_FLOW}/test_worker.py::test_what_the_server_asks_for_is_waited",
            f"{_E2E}/test_overload.py::test_what_is_freed_is_used_soon",
        ),
    ),
    Promise(
        "admission",
        "another writer changes the quota at the same moment",
        (
            f"{_FLOW}/test_worker.py::test_while_admission_fails_why_has_its_words",
            f"{_ADAPTERS}/test_kube_answers.py::test_a_call_waits_as_long_as_the_server_may_take",
            f"{_ADAPTERS}/test_kube_answers.py::test_what_a_status_means",
            f"{_E2E}/test_admission.py::test_a_quota_with_two_writers_uses_up_no_attempt",
            f"{_E2E}/test_admission.py::test_a_slow_webhook_is_waited_for",
            f"{_E2E}/test_admission.py::test_a_failing_webhook_is_waited_for_and_says_why",
        ),
    ),
    Promise(
        "credentials",
        "the kubeconfig's credential plugin fails",
        (
            f"{_ADAPTERS}/test_kube_access.py::test_that_fails_once_is_called_again",
            f"{_ADAPTERS}/test_kube_access.py::test_is_called_once_at_an_expiry_however_many_threads_need_it",
            f"{_ADAPTERS}/test_kube_access.py::test_the_command_ends_with_exit_code_2",
        ),
    ),
    Promise(
        "labels",
        "an admission webhook, or a person, changes the labels",
        (
            "tests/core/test_lifecycle_termination.py::test_a_pod_with_changed_labels_is_ended_and_rejected",
            f"{_FLOW}/test_worker.py::test_it_is_ended_by_its_uid_and_rejected",
            f"{_FLOW}/test_worker.py::test_what_we_do_not_need_may_change",
            f"{_E2E}/test_admission.py::test_a_label_that_we_need_is_changed",
        ),
    ),
    Promise(
        "finalizer",
        "a finalizer keeps a victim of a scale_down",
        (f"{_FLOW}/test_control.py::test_a_finalizer_that_keeps_a_finished_victim_is_named",),
    ),
    Promise(
        "restored",
        "etcd is restored from a backup",
        (
            f"{_FLOW}/test_registry.py::test_it_is_the_truth_after_a_restore",
            f"{_FLOW}/test_registry.py::test_a_pod_that_was_gone_is_back_after_a_restore",
            f"{_E2E}/test_etcd.py::test_a_restore_in_mid_task",
        ),
    ),
    Promise(
        "other-cluster",
        "a controller is pointed at another cluster or namespace",
        (
            "tests/cli/test_cluster_identity.py::test_a_replica_of_another_cluster_refuses_to_start",
            "tests/cli/test_cluster_identity.py::test_another_namespace_is_another_queue_too",
        ),
    ),
    Promise(
        "proxy",
        "a proxy answers instead of the API server",
        (
            f"{_ADAPTERS}/test_kube_answers.py::test_is_unclear",
            f"{_ADAPTERS}/test_kube_answers.py::test_is_no_success",
        ),
    ),
    Promise(
        "node", "a node dies", ("tests/core/test_verdicts.py::test_a_container_of_unknown_status_went_with_its_node",)
    ),
    Promise(
        "evicted",
        "a pod is evicted, or gives way",
        (f"{_E2E}/test_verdicts.py::test_preempted", f"{_E2E}/test_verdicts.py::test_evicted"),
    ),
    Promise(
        "sidecars",
        "a webhook adds containers that fail",
        (
            f"{_FLOW}/test_outlived.py::test_the_pod_is_ended_after_the_grace",
            f"{_E2E}/test_agent_decides.py::test_the_result_is_the_agents",
        ),
    ),
    Promise(
        "unknown-reasons",
        "a node, the scheduler or a controller of the cluster gives a reason",
        (
            "tests/core/test_verdicts.py::test_a_reason_that_we_do_not_know_is_the_platforms",
            f"{_E2E}/test_agent_decides.py::test_a_disruption_for_a_reason_of_a_later_time",
            f"{_E2E}/test_agent_decides.py::test_a_pod_that_the_kubelet_refuses",
        ),
    ),
    Promise(
        "gates",
        "a pod is held by a scheduling gate",
        (
            f"{_FLOW}/test_outlived.py::test_no_clock_runs_and_why_names_the_gate",
            f"{_E2E}/test_agent_decides.py::test_a_gate",
        ),
    ),
    Promise(
        "clocks",
        "a clock is wrong or is set",
        (
            "tests/core/test_pod_timeline.py::test_no_worker_is_ended_early",
            "tests/core/test_pod_timeline.py::test_no_worker_is_kept_without_end",
            "tests/core/test_pod_timeline.py::test_a_deadline_that_came_too_early_is_the_nodes_fault",
            f"{_FLOW}/test_clocks.py::test_a_worker_has_its_time",
            "tests/test_clock.py::test_setting_the_wall_clock_changes_what_is_shown_and_nothing_that_is_measured",
        ),
    ),
    Promise(
        "pod-deleted",
        "a person or another program deletes a pod",
        (
            f"{_FLOW}/test_worker_ends.py::test_a_deleted_pod_is_pod_deleted",
            f"{_E2E}/test_verdicts.py::test_the_pod_was_deleted_from_outside",
        ),
    ),
    Promise(
        "two-scale-downs",
        "several scale_downs are sent at once",
        (
            f"{_FLOW}/test_scale_down_waits.py::test_two_scale_downs_on_two_replicas_end_as_many_as_both_asked_for",
            f"{_FLOW}/test_scale_down_waits.py::test_why_names_the_older_event_that_has_to_choose_first",
            f"{_ADAPTERS}/test_choices_interleaved.py::test_as_many_end_as_were_asked_for_and_there_were",
        ),
    ),
    Promise(
        "drained-and-started",
        "a worker starts while it is drained or superseded",
        (
            "tests/core/test_lifecycle_cancel.py::test_a_drained_worker_that_had_started_all_the_same_ends_as_it_does",
            "tests/core/test_lifecycle_cancel.py::test_a_drained_worker_that_ends_in_our_deletion_is_cancelled",
        ),
    ),
    Promise(
        "held-pod",
        "a pod cannot be deleted",
        (
            f"{_FLOW}/test_scale_down_waits.py::test_the_lane_does_not_wait_for_the_cluster",
            f"{_FLOW}/test_reconciler.py::test_one_pod_that_cannot_be_deleted_is_no_other_pods_trouble",
        ),
    ),
    Promise(
        "poison",
        "the controller's own code fails on an event",
        (
            f"{_FLOW}/test_worker_ends.py::test_after_five_failures_it_is_a_result",
            f"{_FLOW}/test_poison.py::test_a_worker_that_fails_makes_its_event_a_dead_letter",
            f"{_ADAPTERS}/test_stream_fake.py::test_needs_ten_tries",
        ),
    ),
    Promise(
        "deaths",
        "controllers die repeatedly",
        (
            f"{_E2E}/test_deadly.py::test_one_that_kills_when_it_is_recorded_is_poison",
            f"{_ADAPTERS}/test_stream_fake.py::test_is_no_task_that_only_runs",
            f"{_ADAPTERS}/test_stream_fake.py::test_is_no_task_of_a_process_that_died_over_what_it_read",
            "tests/deploy/test_large.py::test_a_task_that_only_runs_is_not_to_blame",
        ),
    ),
    Promise(
        "large",
        "a producer sends entries of any size",
        (
            f"{_ADAPTERS}/test_stream_fake.py::test_come_one_by_one_and_only_in_part",
            "tests/deploy/test_large.py::test_entries_that_are_too_large_are_dead_letters_and_end_nothing_else",
        ),
    ),
    Promise(
        "not-once-when",
        "A program may run again, or twice at the same time, in these cases:",
        (f"{_FLOW}/test_worker.py::test_the_platforms_failure_is_tried_again_under_a_new_name",),
    ),
    Promise(
        "again-attempt",
        "There is a new attempt, after a failure of the platform or of the worker",
        (
            f"{_FLOW}/test_worker.py::test_the_platforms_failures_are_counted",
            f"{_E2E}/test_verdicts.py::test_tried_again",
        ),
    ),
    Promise(
        "again-paused",
        "A controller was paused between storing an attempt and creating its pod",
        (f"{_E2E}/test_replicas.py::test_in_the_middle_of_creates",),
    ),
    Promise(
        "late-create",
        "The network delivered a create request late",
        (f"{_FLOW}/test_scale_down_waits.py::test_an_attempt_without_a_pod_is_made_again_under_its_name",),
    ),
    Promise(
        "again-lost-answer",
        "The reply to a create request was lost, and the pod was deleted",
        ("tests/core/test_lifecycle.py::test_an_unclear_create_that_made_nothing_is_intended_again",),
    ),
    Promise(
        "again-kubernetes",
        "Kubernetes started it twice",
        ("tests/core/test_manifest.py::test_a_worker_knows_its_identity",),
    ),
    Promise("again-redis", "Redis has lost data.", (f"{_E2E}/test_servers.py::test_wiped_after_its_owner_died",)),
    Promise(
        "redis-keeps",
        "Data in Redis is as safe as Redis keeps it",
        (f"{_E2E}/test_start.py::test_one_that_forgets",),
    ),
    Promise("fsync", "With `appendfsync everysec` a crash", (f"{_E2E}/test_servers.py::test_killed",)),
    Promise(
        "flush-loses",
        "FLUSHALL during the work loses the events that were not",
        (
            f"{_E2E}/test_servers.py::test_stream_or_group_removed",
            f"{_E2E}/test_servers.py::test_wiped_under_a_live_owner",
        ),
    ),
    Promise(
        "flush-living",
        "A controller that is alive stores its open tasks again",
        (
            f"{_FLOW}/test_wiped.py::test_what_was_recorded_counts_and_is_not_published_again",
            f"{_FLOW}/test_wiped.py::test_a_worker_that_ends_before_its_task_is_restored_is_published_then",
        ),
    ),
    Promise(
        "flush-dead",
        "If the controller of a task died as well",
        (
            f"{_FLOW}/test_reconciler.py::test_an_unknown_event_is_taken_up_from_its_pods_after_a_lease",
            f"{_E2E}/test_servers.py::test_wiped_after_its_owner_died",
        ),
    ),
    Promise(
        "flush-keys",
        "Until a controller has stored the tasks of a",
        (
            f"{_FLOW}/test_key_waits.py::test_goes_on_where_redis_was_wiped",
            f"{_ADAPTERS}/test_stream_redis.py::test_are_restored_with_the_tasks",
        ),
    ),
    Promise(
        "memory",
        "An `event_id` is known for `TASK_TTL_S`",
        (
            f"{_ADAPTERS}/test_stream_fake.py::test_a_finished_event_sent_again_is_known",
            f"{_ADAPTERS}/test_stream_fake.py::test_an_entry_older_than_the_memory_is_never_run",
            f"{_ADAPTERS}/test_stream_fake.py::test_closes_the_task",
        ),
    ),
)
