"""The promises to the outside as a list of rows, and which tests hold each of them up: `make rows`.

A test names its row with `@pytest.mark.contract("<section>.<row>")`. The suite is only collected, not run: that the
tests pass is for `make test` and its sisters to say; here it shows which promise has no test. A row that waits for
a part of the program that is not there says so.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Final

import pytest

from tests.promises import HEADING, PROMISES, promised, unmatched

ROOT: Final = Path(__file__).resolve().parent.parent
SECTIONS: Final = {
    "1": "Starting it",
    "2": "Environment",
    "3": "An event",
    "4": "A worker pod",
    "5": "Results",
    "6": "Log lines",
    "7": "Log handler",
    "8": HEADING,
}
#: So many tests of a row are named.
NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One promise. `later` names what it waits for; empty: it holds now."""

    name: str
    promise: str
    later: str = ""


def _rows(section: str, promises: Mapping[str, str], later: str = "") -> Iterator[Row]:
    return (Row(f"{section}.{name}", promise, later) for name, promise in promises.items())


def _words(text: str) -> list[str]:
    return text.split()


_STARTING: Final = {
    "run": "the controller; faults in the configuration are reported together",
    "exit-codes": "run ends with 0 after SIGTERM or SIGINT, 1 when a part failed for good, 2 for bad configuration",
    "local": "the whole system on this machine",
    "plan": "the pods that an event would make, with the source and the rule of each field",
    "demo": "local with a fixed set of events and a table; 0 only if each ended as it should",
    "send": "XADD one event, print its id; --wait follows it to the end",
    "status": "tasks, workers by state, backlog, dead letters; reads Redis only",
    "explain": "why an event is where it is, by a code of a fixed list, what happens next and when; reads Redis only",
    "doctor": "checks Redis, Kubernetes, log handler, trace collector, policy and clocks; 1 if something is broken",
    "logs": "the workers' output, from the cluster",
    "dead": "list, show, redrive and purge dead letters",
    "agent": "worker side: runs a command, streams its output",
    "handler": "a reference log handler",
}
_STARTING_LATER: Final = {}
_VARIABLES: Final = _words(
    """
    REDIS_HOST REDIS_PORT REDIS_DB REDIS_USERNAME REDIS_PASSWORD REDIS_PASSWORD_FILE REDIS_SENTINELS
    REDIS_SENTINEL_MASTER REDIS_TLS REDIS_CA_FILE REDIS_STREAM REDIS_CONSUMER_GROUP REDIS_CONSUMER REDIS_BLOCK_MS
    RESULT_STREAM DEAD_LETTER_STREAM KEY_PREFIX RESULT_MAXLEN EVENTS_KEEP TASK_TTL_S INSTANCE NAMESPACE KUBECONFIG
    OTTO_AGENT_IMAGE POLICY_FILE TENANT_FIELD
    IMAGE_PULL_POLICY WORKER_IMAGE_PULL_SECRET OTTO_AGENT_COMMAND WORKER_SERVICE_ACCOUNT WORKER_RUN_AS_USER
    WORKER_CPU_REQUEST WORKER_CPU_LIMIT WORKER_MEMORY_REQUEST WORKER_MEMORY_LIMIT WORKER_NODE_SELECTOR
    WORKER_TOLERATIONS MAX_WORKERS MAX_PENDING READ_AHEAD ADMIT_MAX MAX_PODS_PER_EVENT WORKER_DEADLINE_S
    PENDING_TIMEOUT_S IMAGE_PULL_GRACE_S
    TERMINATION_GRACE_S INFRA_RETRIES WORKER_RETRIES KEEP_FAILED_S KEEP_FAILED_MAX
    LEASE_S SHUTDOWN_GRACE_S KUBE_INFLIGHT KUBE_QPS KUBE_BURST KUBERNETES_EVENTS
    LOG_HANDLER_ADDRESS LOG_HANDLER_CA_FILE LOG_HANDLER_CERT_FILE LOG_HANDLER_KEY_FILE LOG_HANDLER_TOKEN_FILE
    LOG_HANDLER_PLAINTEXT WORKER_LOGS LOG_DRAIN_S OTEL_EXPORTER_OTLP_ENDPOINT
    OTEL_EXPORTER_OTLP_HEADERS
    HTTP_PORT HTTP_ADDRESS HTTP_TOKEN_FILE LOG_LEVEL LOG_FORMAT
"""
)
_ENVIRONMENT: Final = {
    "environment": "every variable is read, with its default; no other is",
    "ENV_FILE": "a file of KEY=VALUE lines; the real environment wins",
    "cluster": "a queue belongs to one cluster and namespace; a replica that sees another ends with exit code 2",
    "probes": "/livez, /readyz, /metrics, / at HTTP_PORT",
    "redis": "Redis 7.0, append-only file, noeviction: the start says so when it is not",
} | dict.fromkeys(_VARIABLES, "is read, with its default")
_VARIABLES_LATER: Final[dict[str, str]] = {}
_EVENT: Final = {
    "type": "scale_up or scale_down; required",
    "pod_count": "how many workers to start or end",
    "task_id": "name of the task; without it a scale_down ends the youngest workers of the group",
    "mode": "kill, or drain: only workers that have not started",
    "event_id": "the same id with the same content is one event; with other content a dead letter Conflict",
    "concurrency_key": "at most so many tasks of a key run at once, in the order of the stream",
    "concurrency_limit": "where limits differ the smallest holds",
    "supersedes": "workers of older events of that key that have not started are cancelled",
    "traceparent": "W3C trace context, to workers and results",
    "passed-on": "all other fields reach workers and results unchanged",
    "overrides": "what the policy does not allow is refused, with field, value and rule; what was accepted stays",
    "deadline_s": "longest run of one attempt, for the workers of one event",
    "priority": "the highest first; what waits becomes more urgent",
    "retries": "further attempts after the worker's own failures, for the workers of one event",
    "not_after": "a worker that has not started by then is expired, by the clock of Redis, and never started late",
    "limits": "sizes and forms; what breaks a rule creates nothing",
    "dead-letter": "its fields, each once; a task result Rejected where an event id could be read",
    "redrive": "a dead letter is sent again, changed as asked, once",
}
_OVERRIDES: Final = _words("image command args env cpu memory profile keep_failed_s")
_POD: Final = {
    "name": "a function of instance, event id, index and attempt; an attempt's name is used once",
    "labels": "who runs it, which event, worker and attempt",
    "annotations": "event id, task id, digest, and the event, enough to take it up again",
    "env": "OTTO_... and TRACEPARENT; a field that would hide one of ours is refused",
    "OTTO_OUTPUT": "a file; what the worker writes there, or the end of a failed worker's log, comes back",
    "container": "only the container agent decides the outcome; no other keeps the pod for longer than the grace",
    "security": "restricted profile, no token, limits, restartPolicy Never, not to be evicted for scaling",
}
_RESULT: Final = {
    "exactly-once": "one entry per worker, one per task after its last worker, one per scale_down",
    "kind": "worker, task or scale_down",
    "event_id": "of which event",
    "task_id": "of which task",
    "outcome": "succeeded, failed, cancelled, expired or lost",
    "reason": "the stable code",
    "message": "the sentence that goes with it",
    "finished_at": "RFC 3339, milliseconds",
    "fault": "where the cause lies, and so which side has to act",
    "exit_code": "the program's",
    "pod": "the pod's name",
    "pod_uid": "the pod's UID",
    "node": "where it ran",
    "attempt": "which one",
    "index": "which worker",
    "created_at": "when the pod was created",
    "scheduled_at": "when it got its node",
    "started_at": "when the program began",
    "output": "what the worker wrote into OTTO_OUTPUT, up to 4 KiB",
    "task": "outcome and reason of a task, from those of its workers",
    "pod_count": "how many workers it was about",
    "succeeded": "how many did",
    "failed": "how many did",
    "cancelled": "how many were",
    "received_at": "when the event was accepted",
    "scale_down": "succeeded, also when there was nothing to end",
    "victims": "pod names, a JSON list",
    "survivors": "pod names, a JSON list",
    "state": "the task hash while it runs, and TASK_TTL_S after",
    "open": "the sorted set of unfinished event ids",
    "deletion": "a finished pod is deleted only after its result is stored; a Succeeded seen in between wins",
    "why": "why a task stands where it stands, by a code of a fixed list, since when, and what comes next",
    "waiting": "quota, back-pressure of the API and a gated pod are waiting, not failing",
}
_REASONS: Final = _words(
    """
    Completed Error OOMKilled DeadlineExceeded InvalidImage ImagePull ConfigError Rejected NameConflict
    CommandNotFound ServiceNotReady
    ImagePullTransient Evicted Preempted NodeLost PodLost StartError PendingTimeout Unschedulable PodDeleted ScaledDown
    Superseded NotAfter Poison NothingToEnd
"""
)
_LOG: Final = {
    "fields": "one JSON object per line: timestamp, level, event, message, and the ids where they apply",
    "secrets": "no secret ever; event text only inside single string fields",
    "quiet": "nothing at INFO per poll",
    "event.received": "Received scaling event: scale_up (PodCount: 3)",
    "worker.created": "Creating worker pod: otto-agent-XXX-1",
    "task.monitoring": "Monitoring pod completion",
    "worker.finished": "how a worker ended",
    "task.finished": "All 3 workers completed successfully / 2 of 3 workers completed",
    "worker.deleted": "Cleaning up pod: ...",
}
_HANDLER: Final = {
    "StreamLogs": "the workers' lines, with sequence numbers and an end",
    "RegisterWorker": "a session, and the handler's limits",
}

ROWS: Final[tuple[Row, ...]] = (
    *_rows("1", _STARTING),
    *(Row(f"1.{name}", promise, f"the command {name}") for name, promise in _STARTING_LATER.items()),
    *_rows("2", _ENVIRONMENT),
    *(Row(f"2.{name}", "is read, with its default", part) for name, part in _VARIABLES_LATER.items()),
    *_rows("3", _EVENT),
    *_rows("3", dict.fromkeys(_OVERRIDES, "overrides the configuration for one event, if the policy allows it")),
    *_rows("4", _POD),
    *_rows("5", _RESULT),
    *_rows("5", dict.fromkeys(_REASONS, "this reason, with its outcome, its fault and who tries again")),
    *_rows("6", _LOG),
    *_rows("7", _HANDLER, "the log handler"),
    *(Row(f"8.{each.name}", each.beginning) for each in PROMISES),
)
#: Another spelling of a row, in tests that are older than this list.
ALIASES: Final = {"2 environment": "2.environment"}


@dataclass(slots=True)
class Coverage:
    """Which tests name which row. One thread; also a pytest plugin that fills itself."""

    tests: dict[str, list[str]] = field(default_factory=dict)
    """Name in a marker -> node ids, in the order of collection."""
    gone: list[str] = field(default_factory=list)
    """Tests that tests/promises.py names, and that are not in their file."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what every collected test says of itself, and what the list of promises says of it."""
        functions: dict[str, list[str]] = {}
        for item in session.items:
            for mark in item.iter_markers("contract"):
                name = str(mark.args[0])
                self.tests.setdefault(ALIASES.get(name, name), []).append(item.nodeid)
            path, _, rest = item.nodeid.partition("::")
            functions.setdefault(f"{path}::{rest.partition('[')[0].rpartition('::')[2]}", []).append(item.nodeid)
        files = {function.partition("::")[0] for function in functions}
        for promise in PROMISES:
            for test in promise.tests:
                if test in functions:
                    self.tests.setdefault(f"8.{promise.name}", []).extend(functions[test])
                elif test.partition("::")[0] in files or not (ROOT / test.partition("::")[0]).is_file():
                    self.gone.append(f"8.{promise.name}: {test}")

    def unknown(self) -> list[str]:
        """Names in markers that are no rows."""
        return sorted(self.tests.keys() - {row.name for row in ROWS})

    def missing(self) -> list[Row]:
        """Rows that hold now, and that no test names."""
        return [row for row in ROWS if not row.later and row.name not in self.tests]


def collect(paths: Sequence[str]) -> Coverage:
    """Collect the tests of these paths, whatever their markers are. Raises RuntimeError with pytest's own words."""
    coverage, said = Coverage(), StringIO()
    options = ["--collect-only", "-qq", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:randomly"]
    with redirect_stdout(said):
        code = pytest.main([*options, *paths], plugins=[coverage])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(said.getvalue())
    return coverage


def report(coverage: Coverage) -> Iterator[str]:
    """The table, line by line: per row how many tests and the first of them; then what is left for later."""
    for section, title in SECTIONS.items():
        rows = [row for row in ROWS if row.name.startswith(f"{section}.") and not row.later]
        if rows:
            yield f"\n{section}. {title}"
        for row in rows:
            tests = coverage.tests.get(row.name, [])
            yield f"  {row.name:<28} {len(tests) or 'NONE':>5}  {', '.join(_functions(tests)) or row.promise}"
    yield "\nLeft for later"
    for row in ROWS:
        if row.later:
            tests = coverage.tests.get(row.name, [])
            hint = f" (has {len(tests)} tests: does it hold now?)" if tests else ""
            yield f"  {row.name:<34} waits for {row.later}{hint}"


def _functions(tests: Iterable[str]) -> list[str]:
    counted = Counter(test.partition("[")[0].rpartition("::")[2] for test in tests)
    names = [name for name, _ in zip(counted, range(NAMED), strict=False)]
    return [*names, f"and {len(counted) - NAMED} more"] if len(counted) > NAMED else names


def main(paths: Sequence[str]) -> int:
    """Print the table. Returns 0; 1 if a promise or a line of a guarantee has no test, or a marker names no promise."""
    try:
        coverage = collect(paths or [str(ROOT / "tests")])
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(*report(coverage), sep="\n", flush=True)
    now = [row for row in ROWS if not row.later]
    missing, unknown = coverage.missing(), coverage.unknown()
    faults = unmatched(promised(), PROMISES)
    print(f"\n{len(now) - len(missing)} of {len(now)} rows have tests; {len(ROWS) - len(now)} are left for later.")
    for row in missing:
        print(f"no test: {row.name}: {row.promise}", file=sys.stderr)
    for name in unknown:
        print(f"no such row: {name}, in {', '.join(_functions(coverage.tests[name]))}", file=sys.stderr)
    for test in coverage.gone:
        print(f"no such test: {test}", file=sys.stderr)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if missing or unknown or coverage.gone or faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
