"""Which environment a developer gets, and the message when something is missing; Docker is not needed for that."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.deploy.checkout import TEAM, add_program, run, write_env


def find(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Ask which developer is meant."""
    return run(checkout, "python3", "-I", "-S", "deploy/environment.py", "user", *words)


class TestNames:
    """USER and PORT."""

    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.full] if place > 1 else []) for place, name in enumerate(TEAM)]
    )
    def test_a_developer_has_one_name_and_port(self, checkout: Path, name: str) -> None:
        """By the Korean name, composed or not, and by the user name."""
        user, port = TEAM[name]
        for written in (name, unicodedata.normalize("NFD", name), user, user.upper()):
            assert find(checkout, written).stdout.split() == [user, str(port)]

    def test_another_client(self, checkout: Path) -> None:
        """With a port of their own."""
        assert find(checkout, "anna", "6390").stdout.split() == ["anna", "6390"]

    def test_another_process_with_a_port_that_is_in_use(self, checkout: Path) -> None:
        """By another environment of this checkout; its own it may keep."""
        (checkout / ".env.anna.local").write_text("REDIS_PORT=6390\n", encoding="utf-8")
        assert "that is the one in .env.anna.local" in find(checkout, "bert", "6390").stderr
        assert find(checkout, "anna", "6390").stdout.split() == ["anna", "6390"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "Which environment?"),
            (("bob",), "There is no developer 'bob'."),
            (("Ann A", "6390"), "There is no developer 'Ann A'."),
            (("an_na", "6390"), "There is no developer 'an_na'."),
            (("anna", "6381"), "that is minji's"),
            (("anna", "80"), "PORT is '80', expected a number from 1024 to 65535."),
            (("anna", "x"), "PORT is 'x', expected a number"),
            (("jinwoo", "6390"), "jinwoo's is 6379"),
        ],
    )
    def test_a_wrong_one_gets_a_sentence(self, checkout: Path, words: tuple[str, ...], said: str) -> None:
        """And no traceback."""
        answer = find(checkout, *(words or ("",)))
        assert answer.returncode == 1
        assert said in answer.stderr
        assert "Traceback" not in answer.stderr

    def test_without_a_name_the_list(self, checkout: Path) -> None:
        """Although every shell has a USER, and this one a PORT: they count only on the command line."""
        output = run(checkout, "make", "setup-user")
        assert output.returncode != 0
        assert all(name in output.stderr for name in TEAM)

    def test_make_and_script_are_the_same(self, checkout: Path) -> None:
        """Name and port go through."""
        by_make = run(checkout, "make", "setup-user", "USER=anna", "PORT=6381")
        by_script = run(checkout, "deploy/setup-user.sh", "anna", "6381")
        assert by_script.stderr.splitlines()[0] == by_make.stderr.splitlines()[0]
        assert "minji" in by_make.stderr


class TestMissing:
    """A clear sentence, before anything is made."""

    @pytest.mark.parametrize("missing", ["docker", "kind", "kubectl"])
    def test_a_program(self, checkout: Path, missing: str) -> None:
        """It is named, with where to get it."""
        for program in {"docker", "kind", "kubectl"} - {missing}:
            add_program(checkout, program, "exit 0")
        output = run(checkout, "make", "setup-user", "USER=한진우")
        assert output.returncode != 0
        assert f"{missing} is missing: install it" in output.stderr.replace("install Docker", "install it")
        assert not list(checkout.glob(".env.*"))

    def test_the_docker_daemon(self, checkout: Path) -> None:
        """The program alone is not enough."""
        for program in ("kind", "kubectl"):
            add_program(checkout, program, "exit 0")
        add_program(checkout, "docker", "exit 1")
        output = run(checkout, "deploy/setup-user.sh", "한진우")
        assert output.returncode == 1
        assert "No Docker daemon answers" in output.stderr


#: Docker with one container, redis-boa: RUNS, PORT and APPENDONLY say how it is. Every call is written down.
DOCKER = """
echo "$*" >>calls
case "$*" in
  *State.Running*) echo "$RUNS" ;;
  "port redis-boa"*) echo "0.0.0.0:$PUBLISHED" ;;
  "exec redis-boa redis-cli CONFIG GET appendonly") printf 'appendonly\\n%s\\n' "$APPENDONLY" ;;
esac
"""


class TestRedisOfOthers:
    """The container may be otto-handler's: whatever it is like, it is never replaced by a new one."""

    def output_of(
        self, checkout: Path, *, runs: str = "true", port: int = 6383, appendonly: str = "yes"
    ) -> tuple[str, str]:
        """What setting up says until there should be a cluster, and what it had Docker do."""
        add_program(checkout, "docker", DOCKER)
        add_program(checkout, "kind", "exit 1")
        add_program(checkout, "kubectl", "exit 0")
        environ = {"RUNS": runs, "PUBLISHED": str(port), "APPENDONLY": appendonly}
        done = run(checkout, "deploy/setup-user.sh", "김보아", environ=environ)
        calls = (checkout / "calls").read_text(encoding="utf-8")
        assert not {"run", "rm", "stop"} & {line.split()[0] for line in calls.splitlines()}
        return done.stdout + done.stderr, calls

    def test_one_that_runs(self, checkout: Path) -> None:
        """It is used."""
        answer, _ = self.output_of(checkout)
        assert "container redis-boa: there already, used as it is" in answer
        assert "append-only" not in answer

    def test_one_that_stopped(self, checkout: Path) -> None:
        """It is started, as after a restart of the machine."""
        answer, calls = self.output_of(checkout, runs="false")
        assert "container redis-boa: started" in answer
        assert "start redis-boa" in calls.splitlines()

    def test_one_at_another_port(self, checkout: Path) -> None:
        """Both ports are named, and nothing is made."""
        answer, _ = self.output_of(checkout, port=7000)
        assert "listens on 0.0.0.0:7000 instead of port 6383" in answer
        assert "Kind " not in answer

    def test_one_that_keeps_no_file(self, checkout: Path) -> None:
        """No other program would say it before data is lost."""
        answer, _ = self.output_of(checkout, appendonly="no")
        assert "container redis-boa keeps no append-only file" in answer


#: A Kind that cannot boot its first nodes in time: BOOTS says which of its calls succeeds.
KIND = """
case "$1" in
  create)
    echo "$*" >>made
    [ "$(grep -c . made)" = "$BOOTS" ] && exit 0
    echo "ERROR: failed to create cluster: $WHY" >&2
    exit 1
    ;;
esac
"""
SLOW = 'could not find a log line that matches "Reached target .*Multi-User System.*"'


class TestSlowCluster:
    """A node that boots too slowly is made once more; what fails for another reason is not."""

    @pytest.mark.parametrize(
        ("boots", "why", "tries", "is_made"),
        [(1, "", 1, True), (2, SLOW, 2, True), (3, SLOW, 2, False), (2, "no such image", 1, False)],
    )
    def test_tries(self, checkout: Path, boots: int, why: str, tries: int, is_made: bool) -> None:
        """How often Kind is called, and what the developer reads."""
        add_program(checkout, "docker", DOCKER)
        add_program(checkout, "kind", KIND)
        add_program(checkout, "kubectl", "exit 0")
        environ = {"RUNS": "true", "PUBLISHED": "6383", "APPENDONLY": "yes", "BOOTS": str(boots), "WHY": why}
        done = run(checkout, "deploy/setup-user.sh", "김보아", environ=environ)
        assert len((checkout / "made").read_text(encoding="utf-8").splitlines()) == tries
        assert ("could not be made" not in done.stderr) is is_made
        assert ("trying once more" in done.stdout) is (tries > 1)


class TestClean:
    """The shared Redis goes only when the caller asks for it."""

    @pytest.mark.parametrize(
        ("answer", "force", "gone"),
        [("yes\n", "", True), ("", "", False), ("", "1", True)],  # other answers: test_clean.py
    )
    def test_redis(self, checkout: Path, answer: str, force: str, gone: bool) -> None:
        """On a terminal it is asked about; without one, which is `answer` empty, it stays."""
        write_env(checkout, "boa")
        add_program(checkout, "docker", DOCKER)
        add_program(checkout, "kind", "exit 0")
        add_program(checkout, "kubectl", "exit 0")
        terminal, ours = pty.openpty()
        os.write(terminal, answer.encode())
        done = subprocess.run(
            ["make", "clean", *(["FORCE=1"] if force else [])],
            cwd=checkout, env={"PATH": f"{checkout}/bin", "RUNS": "true"}, capture_output=True, text=True,
            stdin=ours if answer else subprocess.DEVNULL, check=False, timeout=30,
        )  # fmt: skip
        os.close(terminal)
        os.close(ours)
        assert done.returncode == 0, done.stderr
        calls = (checkout / "calls").read_text(encoding="utf-8").splitlines()
        assert ("rm --force --volumes redis-boa" in calls) is gone
        assert ("redis-boa: kept" in done.stdout) is not gone
        assert not (checkout / ".env.boa.local").exists()


class TestEnvironments:
    """Which one is meant."""

    def test_none(self, checkout: Path) -> None:
        """How to make one."""
        output = run(checkout, "make", "build")
        assert "There is no environment yet: make setup-user USER=<name> makes one." in output.stderr
        assert output.returncode != 0

    def test_the_only_one(self, checkout: Path) -> None:
        """It is taken, and the missing program is the next thing said."""
        write_env(checkout, "jinwoo")
        assert "docker is missing" in run(checkout, "make", "build").stderr

    def test_several(self, checkout: Path) -> None:
        """They are listed."""
        for user in ("boa", "minji"):
            write_env(checkout, user)
        output = run(checkout, "make", "deploy").stderr
        assert "There are several environments" in output
        assert "ENV_FILE=.env.boa.local" in output
        assert "ENV_FILE=.env.minji.local" in output
        chosen = run(checkout, "make", "build", environ={"ENV_FILE": ".env.boa.local"})
        assert "docker is missing" in chosen.stderr

    @pytest.mark.parametrize("target", ["build", "deploy", "logs", "k8s-status", "redis-cli", "clean"])
    def test_every_target_asks_for_it(self, checkout: Path, target: str) -> None:
        """Those that need the virtual environment do it with the same script."""
        assert "There is no environment yet" in run(checkout, "make", target).stderr

    def test_a_file_that_is_not_there(self, checkout: Path) -> None:
        """It is named."""
        output = run(checkout, "make", "build", "ENV_FILE=.env.nobody.local").stderr
        assert "There is no file .env.nobody.local" in output

    def test_a_file_that_cannot_be_read(self, checkout: Path) -> None:
        """The fault is reported as the controller reports it."""
        (checkout / ".env.boa.local").write_text("NAMESPACE\n", encoding="utf-8")
        output = run(checkout, "make", "build")
        assert output.returncode != 0
        assert ".env.boa.local" in output.stderr
        assert "Traceback" not in output.stderr

    def test_a_file_of_another_kind(self, checkout: Path) -> None:
        """Without a cluster it is not one of ours."""
        (checkout / ".env.boa.local").write_text("REDIS_PORT=6383\n", encoding="utf-8")
        assert "expected ottoscaler-<name>" in run(checkout, "make", "build").stderr


def test_results_are_shown_a_line_each(checkout: Path) -> None:
    """The oldest first; a worker by its pod, a task by its name, and why it failed."""
    worker = {"kind": "worker", "outcome": "succeeded", "reason": "Completed", "message": "ok", "pod": "otto-agent-1"}
    task = {"kind": "task", "outcome": "failed", "reason": "Error", "message": "exit\ncode 3", "task_id": "t"}
    entries = [
        [str(n), [text for pair in {**each, "finished_at": "now"}.items() for text in pair]]
        for n, each in enumerate((task, worker))
    ]
    output = subprocess.run(
        [sys.executable, "-I", "-S", "deploy/environment.py", "results"],
        cwd=checkout, input=json.dumps(entries), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert [line.split()[1:] for line in output.splitlines()] == [
        ["worker", "succeeded", "Completed", "otto-agent-1"],
        ["task", "failed", "Error", "t:", "exit", "code", "3"],
    ]
