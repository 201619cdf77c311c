"""The documents tell the truth: commands are run, tables are compared with the code, and the Korean text is the same.

A new command in a document needs a line in COMMANDS that says how it is covered; an unknown one is a failure. The
controller that answers here was started by the README's own line, with its example of an environment file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

import pytest
import redis
import yaml

from ottoscaler.adapters.cluster import VERBS
from ottoscaler.cli.main import COMMANDS as SUBCOMMANDS
from ottoscaler.core import names
from ottoscaler.core.events import MAX_EVENT_BYTES, MAX_FIELDS, DeadReason, EventType, ScaleEvent
from ottoscaler.core.manifest import environment
from ottoscaler.core.verdicts import TABLE, Retry
from ottoscaler.local.guard import Guarded
from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from tests.e2e.test_devloop import COMMANDS as DEVELOPERS
from tests.fakes.wait import eventually
from tests.readme import (
    KOREAN,
    LONG_S,
    README,
    ROOT,
    Running,
    Table,
    codes,
    commands,
    fences,
    make_checkout,
    parts,
    table,
    variables,
    without_make,
)
from tests.rows import ROWS

contract = pytest.mark.contract

# -- how each command is covered

HERE: Final = "run here"
FIXTURE: Final = "run here, before all others"
#: Command -> HERE, FIXTURE, the line of .ci/run that runs it, or the test that does.
COMMANDS: Final = {
    "make demo": HERE,
    "make test": "stage test make test",
    ".venv/bin/python ottoscaler.py local": "tests/cli/test_local.py",
    ".venv/bin/python ottoscaler.py send type=scale_up pod_count=3 task_id=task-123 --wait": HERE,
    ".venv/bin/python ottoscaler.py status": HERE,
    ".venv/bin/python ottoscaler.py status --json": HERE,
    "ENV_FILE=ottoscaler.env make run": FIXTURE,
    ".venv/bin/python ottoscaler.py dead list": HERE,
    ".venv/bin/python ottoscaler.py dead show 1714557600000-0": HERE,
    ".venv/bin/python ottoscaler.py dead redrive 1714557600000-0 pod_count=3": HERE,
    ".venv/bin/python ottoscaler.py dead purge 1714557600000-0": HERE,
    "redis-cli ACL SETUSER ottoscaler on '>secret' resetkeys '~otto:scale:*' resetchannels -@all +@stream +@hash "
    "+@sortedset +exists +expire +evalsha +script\\|load +script\\|exists +time +info +ping "
    "+select +hello +client\\|unblock": FIXTURE,
    "redis-cli XADD otto:scale:events '*' type scale_up pod_count 3 task_id task-123": HERE,
    "redis-cli XADD otto:scale:events '*' type scale_down task_id task-123": HERE,
    "redis-cli XTRIM otto:scale:events MAXLEN 100000": HERE,
    "redis-cli XTRIM otto:scale:results MAXLEN 10000": HERE,
    "redis-cli XTRIM otto:scale:dead MAXLEN 1000": HERE,
    "redis-cli XREVRANGE otto:scale:results + - COUNT 10": HERE,
    "TEST_KUBECONFIG=kubeconfig make test-real": "stage contracts make test-real",
    "TEST_KUBECONFIG=kubeconfig make e2e": "stage e2e make e2e",
    **dict.fromkeys(DEVELOPERS, "tests/e2e/test_devloop.py"),
}
#: The id in the examples of `dead`.
DEAD_ID: Final = "1714557600000-0"
#: What stands in a cell where there is nothing.
NONE: Final = "\N{EN DASH}"
#: Defaults that depend on something are told in words.
SPOKEN: Final = {
    "REDIS_CONSUMER": "the host name",
    "INSTANCE": "the consumer group",
    "NAMESPACE": "the pod's own, else `default`",
    "OTTO_AGENT_COMMAND": "a shell line that prints its task and ends",
    "HTTP_ADDRESS": "`::` in a cluster, else `127.0.0.1`",
    "LOG_FORMAT": "`json` (`text` on a terminal)",
    "ENV_FILE": NONE,
}

VARIABLES: Final = variables()


def shown(value: object) -> str:
    """A default as the table shows it."""
    if value in (None, "", (), {}):
        return NONE
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


@pytest.mark.parametrize("name", [pytest.param(name, marks=contract(f"2.{name}"), id=name) for name in VARIABLES])
def test_a_default_is_told_as_it_is(name: str) -> None:
    """Or in words, where it depends on something."""
    told = {codes(row[0])[0]: row[1] for row in table("variable") if len(row) == 3}
    assert told[name] == SPOKEN.get(name, shown(VARIABLES[name]))


def test_no_variable_is_told_that_is_not_read() -> None:
    """Those without effect are named in prose only."""
    assert sorted(codes(row[0])[0] for row in table("variable")) == sorted(VARIABLES)


def test_the_example_of_an_environment_file_has_known_variables() -> None:
    """A misspelt one would have no effect, in silence."""
    (example,) = (text for kind, text in fences(README) if kind == "ini")
    assert {line.partition("=")[0] for line in example.splitlines()} <= VARIABLES.keys()


# -- tables against the code


def test_the_reasons_are_those_of_the_code() -> None:
    """With outcome, fault and who tries again."""
    budgets = {Retry.NEVER: NONE, Retry.WORKER: "`WORKER_RETRIES`", Retry.INFRA: "`INFRA_RETRIES`"}
    told = {codes(row[0])[0]: row[1:4] for row in table("reason")}
    assert told == {
        reason.value: [outcome.value, fault.value, budgets[retry]] for reason, (outcome, fault, retry) in TABLE.items()
    }


def test_the_reasons_of_dead_letters_are_those_of_the_code() -> None:
    """No more and no less."""
    assert [codes(row[0])[0] for row in table("`dead_reason`")] == [reason.value for reason in DeadReason]


def test_the_limits_are_those_of_the_code() -> None:
    """Size and number of fields."""
    assert f"{MAX_EVENT_BYTES // 1024} KiB and {MAX_FIELDS} fields per event" in README.read_text(encoding="utf-8")


def test_the_labels_are_those_of_the_code() -> None:
    """Besides managed-by, which is told before the table."""
    labels = [names.LABEL_INSTANCE, names.LABEL_EVENT, names.LABEL_WORKER, names.LABEL_ATTEMPT]
    assert [codes(row[0])[0] for row in table("label")] == labels


@contract("4.env")
def test_the_workers_environment_is_told_whole() -> None:
    """Every variable that a worker gets, apart from HOME."""
    event = ScaleEvent("e", "1-1", EventType.SCALE_UP, 1, traceparent="00-1", passed_on={"field": "x"})
    given = {variable["name"] for variable in environment(event, names.WorkerKey("0" * 10, 1, 1))} - {"HOME"}
    told = {name for row in table("environment variable") for name in codes(row[0])}
    assert {name.replace("<FIELD>", "FIELD") for name in told} == given


def test_the_rights_are_those_that_the_controller_asks_for() -> None:
    """Verbs on pods, a look at the namespace, and nothing more."""
    (text,) = (text for kind, text in fences(README) if kind == "yaml")
    role, binding = yaml.safe_load_all(text)
    look = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": list(VERBS)}, look]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_the_make_targets_are_told_as_make_help_tells_them() -> None:
    """Name and sentence."""
    found = re.findall(r"^([a-z0-9-]+):.*?## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {codes(row[0])[0]: row[1] for row in table("target")} == {f"make {name}": does for name, does in found}


def test_the_layout_names_what_is_there() -> None:
    """Files and packages."""
    for row in table("layer"):
        first, *others = codes(row[0])
        assert all((ROOT / path).exists() for path in [first, *(f"ottoscaler/{name}" for name in others)])


def test_what_is_not_there_yet_is_not_there() -> None:
    """No command of the list works."""
    (part,) = (part for part in parts(README) if part.heading == "Not there yet")
    assert not set(codes(part.text)) & SUBCOMMANDS.keys()


def test_the_named_log_events_are_in_the_code() -> None:
    """A name that is searched for has to be one that is said."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ottoscaler").rglob("*.py"))
    told = [name for row in table("event") for name in codes(row[0])]
    assert [name for name in told if f'"{name}"' not in code] == []


# -- commands


@pytest.mark.parametrize("path", [README, KOREAN], ids=lambda path: path.name)
def test_every_command_is_covered(path: Path) -> None:
    """And no line of the table is left over from a command that is gone."""
    assert set(commands(path)) == COMMANDS.keys()


@pytest.mark.parametrize("how", sorted(set(COMMANDS.values()) - {HERE, FIXTURE}))
def test_a_command_that_is_not_run_here_is_run_elsewhere(how: str) -> None:
    """By a line of CI, or by a test that is there."""
    assert (ROOT / how).is_file() or how in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The README's way from its users' rights to a controller that waits for events."""
    base = tmp_path_factory.mktemp("readme")
    checkout = make_checkout(base / "checkout")
    server, cluster = EmbeddedRedis(base / "redis"), LocalCluster(base / "cluster")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name in VARIABLES or name.startswith(("MAKE", "MFLAGS", "VENV", "ARGS", "OTTO_")):
                patch.delenv(name)
        patch.setenv("PYTHON", sys.executable)
        try:
            server.start()
            cluster.start()
            patch.setenv("REDIS_HOST", server.host)
            patch.setenv("REDIS_PORT", str(server.port))
            patch.setenv("HTTP_PORT", "0")  # the usual one may be taken here
            (checkout / "kubeconfig").write_text(cluster.kubeconfig.read_text(encoding="utf-8"), encoding="utf-8")
            with redis.Redis(host=server.host, port=server.port, decode_responses=True) as client:
                yield from _start(Running(checkout, dict(os.environ), base / "log", client))
        finally:
            cluster.close()
            server.close()


def _start(running: Running) -> Iterator[Running]:
    grant, start = (command for command in sorted(COMMANDS, reverse=True) if COMMANDS[command] == FIXTURE)
    running.run(grant)
    (example,) = (text for kind, text in fences(README) if kind == "ini")
    (running.checkout / "ottoscaler.env").write_text(example, encoding="utf-8")
    (running.checkout / "redis-password").write_text("secret\n", encoding="utf-8")
    line = f"cd {shlex.quote(str(running.checkout))} && {without_make(start)}"
    controller = Guarded(["/bin/sh", "-c", line], log=running.log)
    controller.start()
    try:
        eventually(lambda: "controller.started" in running.log.read_text(encoding="utf-8"), LONG_S, "the controller")
        yield running
    finally:
        controller.close()


@pytest.mark.parametrize("command", [command for command, how in COMMANDS.items() if how == HERE])
def test_a_command_does_what_it_says(running: Running, command: str) -> None:
    """At least it ends well, with something to read."""
    if DEAD_ID in command:
        _lay_out_dead_letter(running.client)
    assert running.run(command)


def _lay_out_dead_letter(client: redis.Redis) -> None:
    """The one that the examples are about. Ids only rise, so it has to be the first."""
    client.delete("otto:scale:dead")
    event = json.dumps({"type": "scale_up", "pod_count": "lots"})
    client.xadd("otto:scale:dead", {"group": "ottoscaler", "event": event}, id=DEAD_ID)


@contract("2.ENV_FILE")
@contract("1.run")
def test_the_controller_of_the_example_says_where_it_is(running: Running) -> None:
    """The environment wins over the file, which names another Redis; what only the file has counts."""
    (line,) = (line for line in running.lines() if line["event"] == "controller.starting")
    assert (
        f"Redis {running.environ['REDIS_HOST']}:{running.environ['REDIS_PORT']} (user ottoscaler)," in line["message"]
    )
    assert "(by KUBECONFIG=kubeconfig, context " in line["message"]
    assert "namespace default" in line["message"]
    assert line == running.lines()[0]


def test_the_options_of_local_are_told(running: Running) -> None:
    """Those of its help."""
    offered = re.findall(r"^  (--[a-z-]+)", running.run(".venv/bin/python ottoscaler.py local --help"), re.MULTILINE)
    assert [codes(row[0])[0].split()[0] for row in table("option of `local`")] == offered


def fields_of(kind: str) -> set[str]:
    """The names that the table gives to results of a kind."""
    return {name for row in table("field") if row[1] in ("all", kind) for name in codes(row[0])}


SENT: Final = "traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 reason=why job_id=7"


@pytest.fixture(scope="module")
def finished(running: Running) -> str:
    """The id of an event whose two workers have succeeded."""
    return running.run(f".venv/bin/python ottoscaler.py send type=scale_up pod_count=2 {SENT} --wait").split()[0]


@contract("5.exactly-once")
def test_a_workers_result_has_the_fields_of_the_table(running: Running, finished: str) -> None:
    """And those that were passed on, one of them under another name."""
    found = running.results(finished, "worker", 2)
    assert {fields["index"] for fields in found} == {"1", "2"}
    assert {frozenset(fields) for fields in found} == {frozenset(fields_of("worker") | {"event_reason", "job_id"})}
    assert {(fields["event_reason"], fields["reason"]) for fields in found} == {("why", "Completed")}


@contract("5.exactly-once")
@contract("5.task")
@contract("5.received_at")
@contract("5.pod_count")
@contract("5.succeeded")
@contract("5.failed")
@contract("5.cancelled")
def test_a_tasks_result_has_the_fields_of_the_table(running: Running, finished: str) -> None:
    """With the numbers of its workers."""
    (fields,) = running.results(finished, "task")
    assert fields.keys() == fields_of("task") | {"event_reason", "job_id"}
    assert (fields["outcome"], fields["reason"]) == ("succeeded", "Completed")
    assert [fields[name] for name in ("pod_count", "succeeded", "failed", "cancelled")] == ["2", "2", "0", "0"]


@contract("5.scale_down")
@contract("5.NothingToEnd")
def test_a_scale_down_has_the_fields_of_the_table(running: Running) -> None:
    """Here one without anybody to end."""
    event_id = running.run("redis-cli XADD otto:scale:events * type scale_down task_id nobody")
    (fields,) = running.results(event_id, "scale_down")
    assert fields.keys() == fields_of("scale_down") - {"traceparent"}
    assert (fields["outcome"], fields["reason"], fields["victims"]) == ("succeeded", "NothingToEnd", "[]")


def test_a_refused_event_has_a_task_result(running: Running) -> None:
    """As the README says of dead letters; nothing ran, so all is zero."""
    event_id = running.run("redis-cli XADD otto:scale:events * type scale_up pod_count lots")
    (fields,) = running.results(event_id, "task")
    assert (fields["outcome"], fields["reason"]) == ("failed", "Rejected")
    assert {fields[name] for name in ("pod_count", "succeeded", "failed", "cancelled")} == {"0"}


def shape(message: str) -> str:
    """A message without what differs from one event to the next."""
    return re.sub(r"[0-9]+", "N", re.sub(r"otto-agent-\w+-\d+", "POD", message))


FLOW: Final = [row.name[2:] for row in ROWS if row.name.startswith("6.") and row.name.count(".") == 2]


@pytest.mark.parametrize("event", [pytest.param(event, marks=contract(f"6.{event}"), id=event) for event in FLOW])
def test_a_line_of_the_main_flow_is_as_told(running: Running, event: str) -> None:
    """By its name and its message."""
    running.run(".venv/bin/python ottoscaler.py send type=scale_up pod_count=3 --wait")
    (told,) = (row[1].partition(", or: ")[0] for row in table("event") if event in codes(row[0]))
    eventually(
        lambda: any(shape(line["message"]) == shape(told) for line in running.lines() if line["event"] == event),
        what=told,
    )


@contract("6.fields")
def test_every_line_has_its_four_fields_first(running: Running) -> None:
    """In this order, whatever else there is."""
    assert {tuple(line)[:4] for line in running.lines()} == {("timestamp", "level", "event", "message")}


def test_the_rights_in_redis_are_enough(running: Running) -> None:
    """Nothing was refused to the user that the README makes, while events of all kinds were carried out."""
    running.results(running.run("redis-cli XADD otto:scale:events * type scale_up supersedes k"), "task")
    running.results(running.run("redis-cli XADD otto:scale:events * type scale_down pod_count 1"), "scale_down")
    running.results(running.run("redis-cli XADD otto:scale:events * type neither"), "task")
    assert running.client.acl_log() == []


# -- the Korean text


@pytest.mark.parametrize("number", range(max(len(parts(README)), len(parts(KOREAN)))))
def test_the_korean_text_has_the_same_part(number: int) -> None:
    """The same level, tables of the same shape, the same names in each row and each part."""
    english, korean = parts(README)[number], parts(KOREAN)[number]
    assert english.level == korean.level
    assert _spans(english.tables) == _spans(korean.tables)
    assert set(codes(english.text)) == set(codes(korean.text))


def test_the_korean_text_has_the_same_blocks() -> None:
    """Commands, examples and the diagram, letter for letter."""
    for english, korean in zip_longest(fences(README), fences(KOREAN)):
        assert english == korean


def _spans(tables: Sequence[Table]) -> list[list[list[list[str]]]]:
    return [[[sorted(codes(cell)) for cell in row] for row in each] for each in tables]


@pytest.mark.parametrize("path", [README, KOREAN], ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(path: Path) -> None:
    """Those inside the repository; there are no others."""
    links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []
