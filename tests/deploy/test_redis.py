"""The Redis of the guide: TLS, least rights, sentinels; and a restart of it, which takes its memory of our scripts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ottoscaler.local.handle import LocalCluster
from tests.deploy.manifests import overlay, settings_of
from tests.deploy.secured_redis import SecuredRedis
from tests.e2e.controller import Controller
from tests.e2e.waiting import wait_for
from tests.readme import PRODUCTION, REFERENCE, commands

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

#: The guide's lines for an administrator of Redis, in their order.
LINES = [line for line in commands(PRODUCTION) if line.startswith("redis-cli ACL ")]


@contextmanager
def granted(folder: Path) -> Iterator[SecuredRedis]:
    """A server with the user that the guide makes."""
    made = SecuredRedis(folder)
    try:
        made.start()
        for line in LINES:
            made.run(line)
        yield made
    finally:
        made.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SecuredRedis]:
    """One that a test may restart."""
    with granted(tmp_path / "redis") as made:
        yield made


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRedis]:
    """One that is only asked about rights."""
    with granted(tmp_path_factory.mktemp("redis")) as made:
        yield made


@pytest.fixture
def start(server: SecuredRedis, tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    """Starts a controller with the settings of the production overlay, except for where Redis is."""
    cluster = LocalCluster(tmp_path / "cluster")
    made: list[Controller] = []

    def launch(*, ready: bool = True, **where: str) -> Controller:
        password = tmp_path / "password"
        password.write_text("secret\n", encoding="utf-8")
        kept = {key: value for key, value in settings_of(overlay("production")).items() if key not in _PLACE}
        files = {"REDIS_PASSWORD_FILE": str(password), "REDIS_CA_FILE": str(server.ca)}
        kube = {"KUBECONFIG": str(cluster.kubeconfig), "REDIS_CONSUMER": "one"}
        made.append(Controller(tmp_path, {**kept, **files, **kube, **where}))
        return made[-1].ready() if ready else made[-1]

    cluster.start()
    yield launch
    for each in made:
        each.close()
    cluster.close()


_PLACE = ("REDIS_HOST", "REDIS_PORT")


def outcome(client: Any, event_id: str) -> str:
    """How a task ended, empty as long as it has not."""
    found = [fields for _, fields in client.xrange("otto:scale:results") if fields["event_id"] == event_id]
    return next((str(fields["outcome"]) for fields in found if fields["kind"] != "worker"), "")


def carried_out(client: Any, **fields: str) -> str:
    """Send an event; returns how it ended."""
    event_id = str(client.xadd("otto:scale:events", fields))
    return wait_for(lambda: outcome(client, event_id), f"the result of {event_id}", 90)


@pytest.mark.parametrize("way", ["host", "sentinel"])
def test_the_least_rights_are_enough_through_a_restart(
    server: SecuredRedis, start: Callable[..., Controller], way: str
) -> None:
    """Nothing is refused before it or after it, when no script is known to the server any more."""
    where = {"REDIS_HOST": server.address, "REDIS_PORT": str(server.port)}
    if way == "sentinel":
        server.watch_over()
        where = {"REDIS_SENTINELS": f"{server.address}:{server.sentinel_port}", "REDIS_SENTINEL_MASTER": "mymaster"}
    start(**where)
    with server.client() as client:
        assert carried_out(client, type="scale_up", pod_count="2", supersedes="k") == "succeeded"
        assert client.acl_log() == []
    server.restart()
    with server.client() as client:
        assert carried_out(client, type="scale_up", pod_count="2") == "succeeded"
        assert carried_out(client, type="scale_down", task_id="nobody") == "succeeded"
        assert carried_out(client, type="neither") == "failed"
        assert client.acl_log() == []
        used = client.info("commandstats")
        assert {"cmdstat_script|load", "cmdstat_evalsha"} <= used.keys()
        assert not {"cmdstat_eval", "cmdstat_keys", "cmdstat_config|get"} & used.keys()


#: How long something is refused, seconds: longer than the workers need to end, and than a few retries.
REFUSED_S = 6.0


@contextmanager
def no_right_to_add(client: Any) -> Iterator[None]:
    """The user loses a right and gets it back."""
    client.execute_command("ACL", "SETUSER", "ottoscaler", "-xadd")
    yield
    client.execute_command("ACL", "SETUSER", "ottoscaler", "+xadd")


@contextmanager
def another_result_stream(client: Any) -> Iterator[None]:
    """A string is in its place, and is taken away again."""
    client.renamenx("otto:scale:results", "kept") if client.exists("otto:scale:results") else None
    client.set("otto:scale:results", "x")
    yield
    client.delete("otto:scale:results")
    client.rename("kept", "otto:scale:results") if client.exists("kept") else None


@contextmanager
def no_memory(client: Any) -> Iterator[None]:
    """The server takes no writes that need memory."""
    client.config_set("maxmemory", "1")
    yield
    client.config_set("maxmemory", "0")


@pytest.mark.parametrize("refused", [no_right_to_add, another_result_stream, no_memory])
def test_what_is_refused_for_a_while_is_neither_lost_nor_twice(
    server: SecuredRedis, start: Callable[..., Controller], refused: Callable[[Any], Any]
) -> None:
    """Workers that end meanwhile, and an invalid event: each has its results and its dead letter in the end, once."""
    start(REDIS_HOST=server.address, REDIS_PORT=str(server.port), OTTO_AGENT_COMMAND='["sleep", "2"]')
    with server.client() as client:
        task, running = client.xadd("otto:scale:events", {"type": "scale_up", "pod_count": "2"}), '"running"'
        shown = f"otto:scale:task:{task}"
        wait_for(lambda: running in (client.hget(shown, "worker:1") or ""), "a worker to run", 30)
        bad = ""
        with refused(client):
            if refused is not no_memory:  # then the producer is refused as well
                bad = client.xadd("otto:scale:events", {"type": "neither"})
            time.sleep(REFUSED_S)
        bad = bad or client.xadd("otto:scale:events", {"type": "neither"})
        assert wait_for(lambda: outcome(client, str(task)), "the task's result", 30) == "succeeded"
        assert wait_for(lambda: outcome(client, str(bad)), "the bad event's result", 30) == "failed"
        found = [(fields["kind"], fields["event_id"]) for _, fields in client.xrange("otto:scale:results")]
        assert sorted(found) == sorted([("worker", task)] * 2 + [("task", task), ("task", bad)])
        assert [fields["stream_id"] for _, fields in client.xrange("otto:scale:dead")] == [bad]


def test_a_key_of_another_type_is_named_at_the_start(server: SecuredRedis, start: Callable[..., Controller]) -> None:
    """In one sentence, and nothing is read before it is mended; then everything goes on by itself."""
    with server.client() as client:
        client.set("otto:scale:results", "x")
        client.execute_command("ACL", "SETUSER", "ottoscaler", "-zadd")
        controller = start(ready=False, REDIS_HOST=server.address, REDIS_PORT=str(server.port))
        controller.until_said("redis.refused")
        task = client.xadd("otto:scale:events", {"type": "scale_up"})
        said = [line["message"] for line in controller.said("redis.refused")]
        assert any("RESULT_STREAM" in line and "something else than a stream" in line for line in said), said
        assert any("may not run ZADD on the key otto:scale:open" in line for line in said), said
        assert not client.exists(f"otto:scale:task:{task}")
        client.delete("otto:scale:results")
        client.execute_command("ACL", "SETUSER", "ottoscaler", "+zadd")
        assert wait_for(lambda: outcome(client, str(task)), "the task's result", 60) == "succeeded"


@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "KEYS *",
        "CONFIG GET *",
        "EVAL 'return 1' 0",
        "GET otto:scale:task:x",
        "XADD other:stream * a b",
        "HGET other:hash a",
        "ACL LIST",
        "SCRIPT FLUSH",
        "SUBSCRIBE a",
        "SHUTDOWN",
    ],
)
def test_the_rights_are_not_more(asked: SecuredRedis, command: str) -> None:
    """What the controller never does is refused to its user."""
    (user,) = (line.split()[3] for line in LINES if " SETUSER " in line)
    answer = str(asked.run(f"redis-cli ACL DRYRUN {user} {command}"))
    assert "permission" in answer, answer


def test_the_guide_and_the_reference_make_the_same_user() -> None:
    """Letter for letter."""
    assert LINES[0] in commands(REFERENCE)
    assert LINES[1:] == ["redis-cli ACL SAVE"]
