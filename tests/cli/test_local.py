"""`local`: the whole system for a person at two terminals, and the parts of it that demo shares."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pytest
import redis

from ottoscaler.cli.main import main
from ottoscaler.cli.system import LocalSystem
from ottoscaler.errors import LocalSystemError
from tests.cli.conftest import LONG_S, child
from tests.cli.processes import below, controller, left, using
from tests.conftest import require
from tests.fakes.wait import eventually

pytestmark = pytest.mark.contract("1.local")


def introduction(out: IO[str] | None) -> list[str]:
    """The lines before the controller's log, without the space around them."""
    assert out is not None
    lines = [out.readline()]
    while not lines[-1].startswith("Ctrl-C"):
        assert lines[-1] != "", lines
        lines.append(out.readline())
    return [line.strip() for line in lines]


@pytest.fixture
def plain(names: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the keys of the other tests."""
    for name in names:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("plain")
def test_a_printed_line_sends_an_event_and_sigterm_stops_everything(tmp_path: Path) -> None:
    """The line is run as it is printed; afterwards no process is left, and the data is."""
    with child("local", "--data-dir", str(tmp_path)) as local:
        line = next(line for line in introduction(local.stdout) if "pod_count=3" in line)
        sent = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, timeout=LONG_S)
        assert (sent.returncode, sent.stdout.splitlines()[-1]) == (0, "All 3 workers succeeded"), sent.stderr
        family = below(local.pid)
        local.terminate()
        out, err = local.communicate(timeout=LONG_S)
    assert (local.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "Stopped."
    assert "worker.created" in out
    assert left(family) == []
    assert any((tmp_path / "redis").iterdir())


@pytest.mark.full
@pytest.mark.usefixtures("plain")
def test_a_printed_line_shows_the_logs_of_the_workers(tmp_path: Path) -> None:
    """As it is printed, but for `--follow`: the workers do not end."""
    command = '["/bin/sh", "-c", "echo hello; exec sleep 600"]'
    with child("local", "--data-dir", str(tmp_path), OTTO_AGENT_COMMAND=command) as local:
        lines = introduction(local.stdout)
        send = next(line for line in lines if "pod_count=3" in line).replace(" --wait", "")
        logs = next(line for line in lines if " logs " in line)
        assert logs.endswith("logs task-123 --follow")
        subprocess.run(send, shell=True, capture_output=True, check=True, timeout=LONG_S)

        def shown() -> list[str]:
            line = logs.removesuffix(" --follow")
            return subprocess.run(
                line, shell=True, capture_output=True, text=True, check=False, timeout=LONG_S
            ).stdout.splitlines()

        eventually(lambda: [line.split()[-1] for line in shown()] == ["hello"] * 3, LONG_S, "the lines")
        local.terminate()
        local.communicate(timeout=LONG_S)
    assert local.returncode == 0


@pytest.mark.full
@pytest.mark.usefixtures("plain")
def test_a_controller_that_dies_ends_it(tmp_path: Path) -> None:
    """It says so, stops the rest, and the exit code is 1."""
    with child("local", "--data-dir", str(tmp_path)) as local:
        introduction(local.stdout)
        os.kill(eventually(lambda: controller(local.pid), LONG_S, "the controller"), signal.SIGKILL)
        _, err = local.communicate(timeout=LONG_S)
    assert local.returncode == 1
    assert err == "The controller ended by itself with exit code 137; its last lines say why.\n"
    assert using(str(tmp_path)) == []


@pytest.mark.full
def test_an_external_redis_is_used_as_the_environment_says(names: Mapping[str, str], client: redis.Redis) -> None:
    """The controller makes its group there, and the temporary directory goes away at the end."""
    with child("local", "--external-redis") as local:
        lines = introduction(local.stdout)
        assert lines[0].split() == ["Redis", f"{names['REDIS_HOST']}:{names['REDIS_PORT']}"]
        eventually(lambda: client.exists(names["REDIS_STREAM"]), LONG_S, "the controller's group")
        local.send_signal(signal.SIGINT)
        assert local.wait(LONG_S) == 0
    (kubeconfig,) = {line.split()[0].partition("=")[2] for line in lines if line.startswith("KUBECONFIG=")}
    assert not Path(kubeconfig).parents[1].exists()


@pytest.mark.real
def test_a_redis_server_on_the_path_can_be_used(tmp_path: Path) -> None:
    """Instead of the embedded one."""
    program = require("redis-server")
    with child("local", "--redis-server", "auto", "--data-dir", str(tmp_path)) as local:
        introduction(local.stdout)
        assert [words for words in below(local.pid).values() if words.startswith(program)]
        local.terminate()
        assert local.wait(LONG_S) == 0


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    "arguments", [["--redis-server", "no-such-program"], ["--external-redis", "--redis-server", "auto"], ["now"]]
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    """Before anything is started."""
    assert main(["local", *arguments]) == 2


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSystem]:
    """The servers without a controller, in an environment that names another Redis."""
    file = tmp_path_factory.mktemp("env") / "env"
    file.write_text("REDIS_TLS=true\n")
    given = {"REDIS_HOST": "elsewhere", "REDIS_PASSWORD": "s3cret!", "ENV_FILE": str(file), "KUBECONFIG": "/nowhere"}
    with LocalSystem(tmp_path_factory.mktemp("system"), given) as started:
        yield started


def test_the_servers_are_found_whatever_the_environment_says(system: LocalSystem) -> None:
    """Our Redis has neither password nor TLS; the cluster's kubeconfig replaces the person's."""
    found = system.settings
    assert (found.redis.host, found.redis.password, found.redis.tls) == ("127.0.0.1", None, False)
    assert Path(system.environ["KUBECONFIG"]).is_file()
    assert found.kube.namespace == "default"


def test_a_line_to_copy_says_what_another_terminal_would_have_wrong(system: LocalSystem) -> None:
    """No more than that; and never a secret."""
    port = system.settings.redis.port
    assert system.shell_prefix() == f"REDIS_PASSWORD= REDIS_TLS= REDIS_HOST=127.0.0.1 REDIS_PORT={port}"


def test_two_systems_do_not_share_a_data_directory(system: LocalSystem) -> None:
    """Two servers would write to one append-only file."""
    again = LocalSystem(system.kubeconfig.parents[1], {})
    with pytest.raises(LocalSystemError, match="is in use by another local system"):
        again.start()


def test_a_data_directory_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    """A sentence, not a traceback."""
    (tmp_path / "redis").write_text("a file")
    with pytest.raises(LocalSystemError, match="cannot be used"):
        LocalSystem(tmp_path, {}).start()


def test_what_was_started_is_stopped_when_the_next_part_fails(tmp_path: Path) -> None:
    """A cluster that does not come up leaves no Redis behind."""
    shutil.copytree(tmp_path, tmp_path / "cluster" / "kubeconfig")
    with pytest.raises(OSError, match="kubeconfig"):
        LocalSystem(tmp_path, {}).start()
    assert using(str(tmp_path)) == []
