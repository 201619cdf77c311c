"""The commands and examples of README and the other documents work: a test runs each of them.

A new command in a document needs a line in COMMANDS that says how it is covered; an unknown one is a failure. The
controller that answers here was started by the document's own line, with its example of an environment file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

import pytest
import redis

from ottoscaler.local.guard import GuardedProcess
from ottoscaler.local.handle import LocalCluster
from ottoscaler.local.redis import EmbeddedRedis
from tests.conftest import require
from tests.e2e.test_devloop import COMMANDS as DEVELOPERS
from tests.e2e.test_production import COMMANDS as PRODUCTION_COMMANDS
from tests.fakes.wait import eventually
from tests.readme import (
    DOCUMENTS,
    LONG_S,
    README,
    REFERENCE,
    ROOT,
    TESTS,
    Running,
    codes,
    commands,
    fences,
    make_checkout,
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
    "make test": "steady test test failed_in_test",
    "make local": "tests/cli/test_local.py",
    ".venv/bin/python ottoscaler.py send type=scale_up pod_count=3 task_id=task-123 --wait": HERE,
    ".venv/bin/python ottoscaler.py status": HERE,
    ".venv/bin/python ottoscaler.py status --json": HERE,
    "ENV_FILE=ottoscaler.env make run": FIXTURE,
    ".venv/bin/python ottoscaler.py plan pod_count=2 deadline_s=600": HERE,
    "ENV_FILE=ottoscaler.env .venv/bin/python ottoscaler.py doctor": HERE,
    "ENV_FILE=ottoscaler.env .venv/bin/python ottoscaler.py doctor --service-account ottoscaler": (
        "tests/cli/test_doctor_real.py"
    ),
    ".venv/bin/python ottoscaler.py logs task-123 --follow": "tests/cli/test_logs.py",
    "ENV_FILE=ottoscaler.env .venv/bin/python ottoscaler.py explain task-123": HERE,
    ".venv/bin/python ottoscaler.py dead list": HERE,
    ".venv/bin/python ottoscaler.py dead show 1714557600000-0": HERE,
    ".venv/bin/python ottoscaler.py dead redrive 1714557600000-0 pod_count=3": HERE,
    ".venv/bin/python ottoscaler.py dead purge 1714557600000-0": HERE,
    "redis-cli ACL SETUSER ottoscaler on '>secret' resetkeys '~otto:scale:*' resetchannels -@all +@stream +@hash "
    "+@sortedset +exists +expire +evalsha +script\\|load +script\\|exists +time +info +ping "
    "+select +hello +client\\|unblock": FIXTURE,
    "redis-cli XADD otto:scale:events '*' type scale_up pod_count 3 task_id task-123": HERE,
    "redis-cli XADD otto:scale:events '*' type scale_down task_id task-123": HERE,
    "redis-cli XADD otto:scale:events '*' type scale_up profile node20 command '[\"npm\", \"test\"]' "
    """env '{"CI": "true"}'""": HERE,
    "redis-cli XADD otto:scale:events '*' type scale_up task_id release-41 concurrency_key deploy-prod": HERE,
    "redis-cli XADD otto:scale:events '*' type scale_up task_id release-42 concurrency_key deploy-prod": HERE,
    "redis-cli XTRIM otto:scale:events MAXLEN 100000": HERE,
    "redis-cli XTRIM otto:scale:results MAXLEN 10000": HERE,
    "redis-cli XTRIM otto:scale:dead MAXLEN 1000": HERE,
    "redis-cli XREVRANGE otto:scale:results + - COUNT 10": HERE,
    "TEST_KUBECONFIG=kubeconfig make test-real": "steady contracts test-real last_failed test-real",
    "TEST_KUBECONFIG=kubeconfig make e2e": "steady e2e e2e last_failed e2e",
    **dict.fromkeys(DEVELOPERS, "tests/e2e/test_devloop.py"),
    **dict.fromkeys(PRODUCTION_COMMANDS[1:], "tests/e2e/test_production.py"),
    ".venv/bin/python -m pip install --require-hashes -r ottoscaler/forwarder/requirements.txt": "tests/test_proto.py",
    ".venv/bin/python -m pip install --require-hashes -r ottoscaler/adapters/traces-requirements.txt": (
        "tests/cli/test_tracing.py"
    ),
    ".venv/bin/python ottoscaler.py handler": "tests/forwarder/test_handler.py",
    "LOG_HANDLER_ADDRESS=127.0.0.1:50051 .venv/bin/python ottoscaler.py agent -- seq 3": (
        "tests/forwarder/test_agent.py"
    ),
    "docker build --file deploy/agent/Dockerfile --build-arg BASE=python:3.13-slim --tag my-worker .": (
        "tests/deploy/test_agent_image.py"
    ),
    ".venv/bin/python -m pytest -q tests/core/test_events.py -k metadata": "tests/test_readme.py",
    "cd deploy/otto-handler && npm install --no-package-lock && npm run build && npm start": (
        "tests/forwarder/test_otto_handler.py"
    ),
}
#: The id in the examples of `dead`.
DEAD_ID: Final = "1714557600000-0"
#: The command with an example that is about a task.
EXPLAINED: Final = "explain task-123"

VARIABLES: Final = variables()

# -- commands


def test_every_command_is_covered() -> None:
    """And no line of the table is left over from a command that is gone."""
    assert {command for path in DOCUMENTS for command in commands(path)} == COMMANDS.keys()


@pytest.mark.full
def test_the_example_of_the_page_on_tests_runs() -> None:
    """As it is printed, with this Python."""
    (line,) = commands(TESTS)
    command = [sys.executable, *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stdout


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
    (example,) = (text for kind, text in fences(REFERENCE) if kind == "ini")
    (running.checkout / "ottoscaler.env").write_text(example, encoding="utf-8")
    (running.checkout / "redis-password").write_text("secret\n", encoding="utf-8")
    line = f"cd {shlex.quote(str(running.checkout))} && {without_make(start)}"
    controller = GuardedProcess(["/bin/sh", "-c", line], log=running.log)
    controller.start()
    try:
        eventually(lambda: "controller.started" in running.log.read_text(encoding="utf-8"), LONG_S, "the controller")
        yield running
    finally:
        controller.close()


@pytest.fixture(scope="module")
def demo(running: Running) -> str:
    """What the demo prints: it is run once."""
    return running.run("make demo")


@pytest.mark.full
@pytest.mark.parametrize("command", [command for command, how in COMMANDS.items() if how == HERE])
def test_a_command_does_what_it_says(running: Running, demo: str, command: str) -> None:
    """At least it ends well, with something to read."""
    if DEAD_ID in command:
        _lay_out_dead_letter(running.client)
    if EXPLAINED in command:
        _lay_out_task(running.client)
    assert demo if command == "make demo" else running.run(command)


def _lay_out_dead_letter(client: redis.Redis) -> None:
    """The one that the examples are about. Ids only rise, so it has to be the first."""
    event = json.dumps({"type": "scale_up", "pod_count": "lots"})
    with client.pipeline() as both:  # in one step: the controller may write a dead letter of its own in between
        both.delete("otto:scale:dead")
        both.xadd("otto:scale:dead", {"group": "ottoscaler", "event": event}, id=DEAD_ID)
        both.execute()


def _lay_out_task(client: redis.Redis) -> None:
    """The one that the example is about; it is accepted once, however often it is sent."""
    client.xadd("otto:scale:events", {"type": "scale_up", "task_id": "task-123", "event_id": "explained"})
    eventually(lambda: client.exists("otto:scale:task:explained"), LONG_S, "the event to be accepted")


def squeezed(line: str) -> str:
    """A line of the demo without its padding, its measured times and the names that differ from run to run."""
    plain = re.sub(r"otto-agent-[0-9a-f]{10}", "otto-agent-N", " ".join(line.split()))
    return re.sub(r"[0-9.]+ s\b", "N s", plain)


@pytest.mark.full
def test_the_output_of_the_demo_is_the_real_one(demo: str) -> None:
    """Each line that README shows, apart from the width of the columns."""
    printed = {squeezed(line) for line in demo.splitlines()}
    (shown,) = (text for kind, text in fences(README) if kind == "text" and "Completed" in text)
    lines = [squeezed(line) for line in shown.splitlines() if "\N{BOX DRAWINGS LIGHT HORIZONTAL}" not in line]
    assert [line for line in lines if line not in printed] == []


# -- consumers

#: As much of ioredis as the example uses, for machines without it.
IOREDIS: Final = """
const net = require("net");
const parse = (text, at) => {
  const end = text.indexOf("\\r\\n", at);
  if (end < 0) return null;
  const [kind, head, next] = [text[at], text.slice(at + 1, end), end + 2];
  if (kind === "-") return [new Error(head), next];
  if (kind === "+" || kind === ":") return [head, next];
  const size = Number(head);
  if (size < 0) return [null, next];
  if (kind === "$") return text.length < next + size + 2 ? null : [text.slice(next, next + size), next + size + 2];
  let [list, place] = [[], next];
  for (let n = 0; n < size; n++) {
    const item = parse(text, place);
    if (!item) return null;
    list.push(item[0]);
    place = item[1];
  }
  return [list, place];
};
module.exports = class {
  constructor(url) {
    [this.socket, this.text, this.waiting] = [net.connect(Number(new URL(url).port), "127.0.0.1"), "", []];
    this.socket.on("data", (data) => {
      this.text += data;
      for (let item; (item = parse(this.text, 0)); this.text = this.text.slice(item[1])) {
        const { resolve, reject } = this.waiting.shift();
        if (item[0] instanceof Error) reject(item[0]);
        else resolve(item[0]);
      }
    });
    for (const name of ["xgroup", "xreadgroup", "xack"]) this[name] = (...words) => this.call(name, ...words);
  }
  call(...words) {
    const bulk = (word) => `$${`${word}`.length}\\r\\n${word}\\r\\n`;
    this.socket.write(`*${words.length}\\r\\n${words.map(bulk).join("")}`);
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }
};
"""
EXAMPLES: Final = {kind: text for kind, text in fences(README) if kind in ("python", "js")}


@pytest.mark.parametrize(
    "language", [pytest.param(name, marks=[pytest.mark.real] if name == "js" else []) for name in EXAMPLES]
)
def test_a_consumer_handles_each_result_once(tmp_path: Path, language: str) -> None:
    """Results from before it started, results that come while it runs, repeated ones, and those of a killed run."""
    if language == "js":
        require("node")
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    try:
        with redis.Redis(port=server.port, decode_responses=True) as client:
            _add_result(client, "before", "1")
            assert _consumed(language, tmp_path, server, client, lambda: _add_result(client, "while", "2")) == {
                "before worker 1 succeeded Completed",
                "while worker 2 succeeded Completed",
            }
            _add_result(client, "killed", "3")
            client.xreadgroup("billing", "billing-1", {"otto:scale:results": ">"}, count=1)  # and then it was killed
            again = _consumed(language, tmp_path, server, client, lambda: _add_result(client, "after", "4"))
            assert again == {"killed worker 3 succeeded Completed", "after worker 4 succeeded Completed"}
    finally:
        server.close()


def _add_result(client: redis.Redis, event_id: str, index: str) -> None:
    """The same result twice, as after a FLUSHALL."""
    fields = {"event_id": event_id, "kind": "worker", "index": index, "outcome": "succeeded", "reason": "Completed"}
    for _ in range(2):
        client.xadd("otto:scale:results", dict(fields))


def _consumed(
    language: str, folder: Path, server: EmbeddedRedis, client: redis.Redis, more: Callable[[], object]
) -> set[str]:
    """What README's example printed, each line once, until it had acknowledged all results."""
    port = f"port={server.port}, decode_responses=True"
    text = EXAMPLES[language].replace("decode_responses=True", port)
    (folder / "consumer").write_text(text, encoding="utf-8")
    (folder / "node_modules").mkdir(exist_ok=True)
    (folder / "node_modules" / "ioredis.js").write_text(IOREDIS, encoding="utf-8")
    command = {"python": [sys.executable, "consumer"], "js": ["node", "consumer"]}[language]
    environ = os.environ | {"REDIS_URL": f"redis://127.0.0.1:{server.port}"}
    with (folder / "printed").open("w") as printed:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=printed, stderr=printed)
        try:
            eventually(lambda: _all_acknowledged(client), LONG_S, "the first results")
            more()
            eventually(lambda: _all_acknowledged(client), LONG_S, "the results that came while it ran")
        finally:
            process.kill()
            process.wait()
    lines = (folder / "printed").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines))
    return set(lines)


def _all_acknowledged(client: redis.Redis) -> bool:
    """Whether the example's group has read every result and acknowledged it."""
    try:
        (group,) = cast("list[dict[str, object]]", client.xinfo_groups("otto:scale:results"))
    except ValueError:
        return False
    return (group["pending"], group["lag"]) == (0, 0)


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


def test_the_options_of_local_are_printed(running: Running) -> None:
    """Those of its help."""
    offered = re.findall(r"^  (--[a-z-]+)", running.run(".venv/bin/python ottoscaler.py local --help"), re.MULTILINE)
    assert [codes(row[0])[0].split()[0] for row in table("option of `local`")] == offered


def fields_of(kind: str) -> set[str]:
    """The names that the table gives to results of a kind."""
    return {name for row in table("field") if row[1] in ("all", kind) for name in codes(row[0])}


SENT: Final = "traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 reason=why job_id=7"


@pytest.fixture(scope="module")
def finished(running: Running) -> str:
    """The id of an event with two workers that have succeeded."""
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
    """Here one with no worker to end."""
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


@pytest.fixture(scope="module")
def three_workers(running: Running) -> None:
    """An event of three workers was carried out."""
    running.run(".venv/bin/python ottoscaler.py send type=scale_up pod_count=3 --wait")


@pytest.mark.usefixtures("three_workers")
@pytest.mark.parametrize("event", [pytest.param(event, marks=contract(f"6.{event}"), id=event) for event in FLOW])
def test_a_line_of_the_main_flow_is_as_promised(running: Running, event: str) -> None:
    """By its name and its message."""
    (answer,) = (row[1].partition(", or: ")[0] for row in table("event") if event in codes(row[0]))
    eventually(
        lambda: any(shape(line["message"]) == shape(answer) for line in running.lines() if line["event"] == event),
        what=answer,
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
