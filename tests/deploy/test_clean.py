"""`make clean`: the one question comes first, work of a developer's hands is kept, and kubectl keeps a context."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.deploy.checkout import add_program, calls, mode, run, write_env

full = pytest.mark.full

#: Docker with the container redis-boa while the file `redis` is there.
DOCKER = """
echo "docker $*" >>calls
case "$*" in
  "container inspect"*) [ -e redis ] ;;
  "rm --force"*) rm -f redis ;;
esac
"""
KIND = """
echo "kind $*" >>calls
case "$*" in
  "get clusters") [ ! -e cluster ] || cat cluster ;;
  "delete cluster"*) rm -f cluster ;;
esac
"""
#: kubectl with the contexts of the file `contexts`; the current one is in `current`.
KUBECTL = """
echo "kubectl $*" >>calls
case "$*" in
  "config current-context") cat current ;;
  "config use-context"*) grep -Fx "$3" contexts && echo "$3" >current ;;
  "config get-contexts"*) cat contexts ;;
esac
"""


@pytest.fixture
def ready(checkout: Path) -> Path:
    """An environment that is all there."""
    for name, script in {"docker": DOCKER, "kind": KIND, "kubectl": KUBECTL}.items():
        add_program(checkout, name, script)
    (checkout / "redis").touch()
    (checkout / "cluster").write_text("ottoscaler-boa\n", encoding="utf-8")
    (checkout / "current").write_text("kind-ottoscaler-boa\n", encoding="utf-8")
    (checkout / "contexts").write_text("work\nhome\n", encoding="utf-8")
    write_env(checkout, "boa")
    return checkout


class TestRedis:
    """The shared one goes only on a clear yes."""

    @pytest.mark.parametrize(
        ("terminal", "answer", "gone"),
        [
            pytest.param(terminal, answer, gone, marks=[] if quick else [full], id=f"{where}-{answer}")
            for answer, gone, *quickly in [
                ("yes\n", True, "terminal", "pipe"),
                ("yes", True),
                ("y\n", False, "terminal"),
                ("no\n", False),
                ("YES\n", False),
                ("\n", False, "terminal"),
                ("", False, "pipe"),
            ]
            for where, terminal in (("terminal", True), ("pipe", False))
            for quick in [where in quickly]
        ],
    )
    def test_the_answer(self, ready: Path, terminal: bool, answer: str, gone: bool) -> None:
        """On a terminal and through a pipe alike."""
        if terminal:
            ours, theirs = pty.openpty()
            os.write(ours, answer.encode() if answer.endswith("\n") else answer.encode() + b"\n")
            done = subprocess.run(
                ["make", "clean"], cwd=ready, env={"PATH": f"{ready}/bin"}, capture_output=True, text=True,
                stdin=theirs, check=False, timeout=30,
            )  # fmt: skip
            os.close(ours)
            os.close(theirs)
        else:
            done = run(ready, "make", "clean", stdin=answer)
        assert done.returncode == 0, done.stderr
        assert (not (ready / "redis").exists()) is gone
        assert ("redis-boa: kept" in done.stdout) is not gone

    def test_a_pipe_that_says_nothing(self, ready: Path) -> None:
        """It is not waited for."""
        ours, theirs = os.pipe()
        done = subprocess.run(
            ["make", "clean"], cwd=ready, env={"PATH": f"{ready}/bin"}, capture_output=True, text=True,
            stdin=ours, check=False, timeout=30,
        )  # fmt: skip
        os.close(ours)
        os.close(theirs)
        assert done.returncode == 0, done.stderr
        assert "redis-boa: kept" in done.stdout

    def test_it_is_asked_before_anything_is_gone(self, ready: Path) -> None:
        """Ctrl-C at the question loses nothing."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            ["make", "clean"], cwd=ready, env={"PATH": f"{ready}/bin"}, stdin=theirs, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            asked = os.read(process.stderr.fileno(), 1000)
            os.killpg(process.pid, 2)
            process.communicate(timeout=20)
        os.close(ours)
        os.close(theirs)
        assert b"Remove the container redis-boa" in asked
        assert not [line for line in calls(ready) if "delete" in line or " rm " in line]
        assert (ready / ".env.boa.local").exists()

    @pytest.mark.parametrize(
        "words",
        [
            pytest.param((), marks=full),
            ("USER=boa",),
            pytest.param(("USER=김보아",), marks=full),
            ("ENV_FILE=.env.boa.local",),
        ],
        ids=" ".join,
    )
    def test_afterwards_it_can_still_be_removed(self, ready: Path, words: tuple[str, ...]) -> None:
        """The env file is gone then."""
        assert "make clean USER=boa FORCE=1" in run(ready, "make", "clean").stdout
        assert not (ready / ".env.boa.local").exists()
        done = run(ready, "make", "clean", "FORCE=1", *words)
        assert done.returncode == 0, done.stderr
        assert not (ready / "redis").exists()
        assert run(ready, "make", "clean").returncode != 0  # nothing is left

    def test_a_kept_redis_and_another_environment(self, ready: Path) -> None:
        """FORCE=1 is not taken for the other one: that would be gone for the price of a slip."""
        run(ready, "make", "clean")
        write_env(ready, "minji")
        done = run(ready, "make", "clean", "FORCE=1")
        assert done.returncode != 0
        assert "ENV_FILE=.env.boa.local" in done.stderr
        assert "ENV_FILE=.env.minji.local" in done.stderr
        assert (ready / ".env.minji.local").exists()

    def test_two_names_for_what_to_clean(self, ready: Path) -> None:
        """They have to be one."""
        done = run(ready, "make", "clean", "USER=minji", environ={"ENV_FILE": ".env.boa.local"})
        assert done.returncode != 0
        assert "leave one of them out" in done.stderr
        assert (ready / ".env.boa.local").exists()

    def test_a_file_with_another_cluster(self, ready: Path) -> None:
        """The name on the command line does not lead into another developer's environment."""
        path = write_env(ready, "boa")
        path.write_text(
            path.read_text(encoding="utf-8").replace("ottoscaler-boa", "ottoscaler-minji"), encoding="utf-8"
        )
        done = run(ready, "make", "clean", "USER=boa")
        assert done.returncode != 0
        assert "the file of another environment" in done.stderr
        assert not [line for line in calls(ready) if "delete" in line]


class TestEnvFile:
    """It goes only if it was not edited."""

    def test_as_it_was_made(self, ready: Path) -> None:
        """Nothing is left."""
        run(ready, "make", "clean")
        assert not list(ready.glob(".env*"))

    def test_an_edited_one(self, ready: Path) -> None:
        """It is kept under another name, each time, for its owner only; it is no environment any more."""
        kept = [".env.boa.local.edited", ".env.boa.local.edited2"]
        for name in kept:
            path = write_env(ready, "boa", f"INSTANCE={name}")
            path.chmod(0o644)
            done = run(ready, "make", "clean")
            assert f"it is {name} now" in done.stdout, done.stderr
        assert sorted(each.name for each in ready.glob(".env*")) == kept
        for name in kept:
            assert f"INSTANCE={name}" in (ready / name).read_text(encoding="utf-8")
            assert mode(ready / name) == "600"


class TestContext:
    """Kind takes the current context with it."""

    def test_the_one_before_is_current_again(self, ready: Path) -> None:
        """As setup-user has noted it."""
        (ready / ".cache" / "deploy" / "boa").mkdir(parents=True)
        (ready / ".cache" / "deploy" / "boa" / "context").write_text("home\n", encoding="utf-8")
        done = run(ready, "make", "clean")
        assert (ready / "current").read_text(encoding="utf-8") == "home\n"
        assert "uses the context home again" in done.stdout

    def test_another_environment(self, ready: Path) -> None:
        """The only one that is left, where none was noted."""
        (ready / "contexts").write_text("work\nkind-ottoscaler-minji\n", encoding="utf-8")
        run(ready, "make", "clean")
        assert (ready / "current").read_text(encoding="utf-8") == "kind-ottoscaler-minji\n"

    def test_none_is_chosen_in_the_dark(self, ready: Path) -> None:
        """It might be that of the production; how to choose is said."""
        done = run(ready, "make", "clean")
        assert "kubectl config use-context <name>" in done.stdout
        assert not [line for line in calls(ready) if "use-context" in line]

    def test_one_that_was_not_ours_stays(self, ready: Path) -> None:
        """Whatever was noted."""
        (ready / "current").write_text("work\n", encoding="utf-8")
        (ready / ".cache" / "deploy" / "boa").mkdir(parents=True)
        (ready / ".cache" / "deploy" / "boa" / "context").write_text("home\n", encoding="utf-8")
        run(ready, "make", "clean")
        assert (ready / "current").read_text(encoding="utf-8") == "work\n"
