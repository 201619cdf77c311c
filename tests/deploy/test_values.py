"""Values from files and from the command line: each is checked before it becomes a part of a command or a path.

The table is tried on every variable that a script or the Makefile uses. A value is refused in a sentence, or it arrives
as it is; nothing in it is carried out, and nothing outside of the checkout changes. `make test` tries each value once
and each variable several times, and not each with each: the rest of the table is marked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark.structures import ParameterSet

from tests.deploy.checkout import ROOT, add_program, add_venv, calls, make_checkout, run, write_env

#: Each would leave a trace, `pwned`, if anything carried it out.
HOSTILE: Final[Mapping[str, str]] = {
    "quote": "o'brien",
    "double": 'a"b',
    "space": "a b",
    "substitution": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "make": "$(shell touch pwned)",
    "end": "x; touch pwned",
    "quoted end": "x'; touch pwned; echo '",
    "and": "x && touch pwned",
    "pipe": "x | touch pwned",
    "redirect": "x > pwned",
    "newline": "x\ntouch pwned",
    "parent": "ottoscaler-x/../..",
    "dots": "..",
    "root": "/",
    "dash": "-rf",
    "option": "--help",
    "unicode": "ottoscaler-\N{FULLWIDTH LATIN SMALL LETTER A}\N{RIGHT-TO-LEFT OVERRIDE}",
    "comment": "x # y",
    "glob": "*",
    "home": "~",
    "dollar": "$HOME$$HOME",
    "backslash": "a\\b",
    "long": "x" * 5000,
}
#: The variables of an env file that scripts use, and those of the command line.
IN_FILE: Final = ("KIND_CLUSTER_NAME", "NAMESPACE", "OTTO_AGENT_IMAGE", "REDIS_HOST", "REDIS_PORT", "RESULT_STREAM")
#: These two have a form that some of the values fit; they go into no command.
NEVER_FREE: Final = tuple(name for name in IN_FILE if name not in ("REDIS_HOST", "RESULT_STREAM"))
#: Variable -> a target that uses it.
GIVEN: Final = {
    "USER": "setup-user",
    "PORT": "setup-user",
    "KIND_NODE_IMAGE": "setup-user",
    "ENV_FILE": "clean",
    "FORCE": "clean",
    "ROLLOUT_S": "deploy",
    "PYTHON": "build",
    "VENV": "distclean",
}
#: Variable -> the field of the event. These may be any text: it arrives as it is, or the product refuses it.
FREE: Final = {"PODS": "pod_count", "TASK": "task_id", "TYPE": "type", "IMAGE": "image", "PROFILE": "profile"}
#: Where a value is no word of its own.
SAFE: Final = r"[A-Za-z0-9._:/@,+=-]+"
#: Docker, kind and kubectl that write each word down.
NOTED: Final = (
    'printf \'%s\\n\' "$(basename "$0")" "$@" >>calls; case "$*" in *State.Running*) echo true ;; esac; exit 0'
)


def table(values: Iterable[str], others: Iterable[str], one_of: int) -> list[ParameterSet]:
    """All pairs, of which those on one of so many diagonals are for `make test`: each value with one of the others."""
    return [
        pytest.param(value, other, marks=[] if (row + column) % one_of == 0 else [pytest.mark.full])
        for row, value in enumerate(values)
        for column, other in enumerate(others)
    ]


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A checkout two folders deep, with stand-ins, beside something that must stay."""
    folder = tmp_path / "home" / "work"
    folder.mkdir(parents=True)
    (tmp_path / "home" / "kept").write_text("mine", encoding="utf-8")
    checkout = make_checkout(folder / "checkout")
    (checkout / "bin" / "basename").symlink_to("/usr/bin/basename")
    for program in ("docker", "kind", "kubectl"):
        add_program(checkout, program, NOTED)
    add_venv(checkout)
    return checkout


def unharmed(checkout: Path) -> None:
    """Nothing was carried out, nothing beside the checkout is gone, no word of a command is hostile."""
    home = checkout.parents[1]
    assert not list(home.rglob("pwned"))
    assert (home / "kept").read_text(encoding="utf-8") == "mine"
    assert (checkout / "Makefile").is_file()
    assert (checkout / "deploy" / "dev.sh").is_file()


@pytest.mark.parametrize(("how", "target"), table(HOSTILE, ["clean", "deploy"], 2))
def test_the_values_of_an_env_file(ready: Path, target: str, how: str) -> None:
    """All are refused at once, each with file and name, before anything is done."""
    value = HOSTILE[how]
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    write_env(ready, "boa", *(f"{name}={quoted}" for name in IN_FILE))
    done = run(ready, "deploy/dev.sh", target)
    unharmed(ready)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert calls(ready) == []
    assert (ready / ".env.boa.local").exists()
    if how != "newline":  # that is a line of its own, which is no variable
        assert all(f".env.boa.local: {name}=" in done.stderr for name in NEVER_FREE)


@pytest.mark.parametrize(("how", "name"), table(HOSTILE, GIVEN, 12))
def test_a_value_of_the_command_line(ready: Path, how: str, name: str) -> None:
    """It is refused, or no command has more of it than it should."""
    value, target = HOSTILE[how], GIVEN[name]
    write_env(ready, "boa")
    who = ["USER=boa"] if target == "setup-user" and name != "USER" else []
    harmless(ready, value, "make", target, *who, f"{name}={value}")


@pytest.mark.parametrize(("how", "name"), table(["make", "quoted end", "parent"], GIVEN, 3))
def test_a_value_of_the_environment(ready: Path, how: str, name: str) -> None:
    """The same for what the shell has exported."""
    value, target = HOSTILE[how], GIVEN[name]
    write_env(ready, "boa")
    who = ["USER=boa"] if target == "setup-user" else []
    harmless(ready, value, "make", target, *who, environ={name: value})


def harmless(ready: Path, value: str, *command: str, environ: Mapping[str, str] | None = None) -> None:
    """Run a command, and look at all that it could have done with a value."""
    done = run(ready, *command, environ=environ)
    unharmed(ready)
    assert not [each for each in ("syntax error", "unexpected EOF", "Traceback") if each in done.stderr], done.stderr
    assert not [line for line in calls(ready) if value in line and not re.fullmatch(SAFE, value)]


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[] if n % len(FREE) == 0 else [pytest.mark.full]) for n in range(len(HOSTILE))]
)
def test_an_event_has_the_text_as_it_was_given(ready: Path, first: int) -> None:
    """One argument of `send` for each field; `send` alone decides what the controller would refuse."""
    values = list(HOSTILE.values())
    given = {name: values[(first + place) % len(values)] for place, name in enumerate(FREE)}
    write_env(ready, "boa")
    done = run(ready, "make", "test-event", *(f"{name}={value}" for name, value in given.items()))
    unharmed(ready)
    assert done.returncode == 0, done.stderr
    arguments = (ready / "python.args").read_text(encoding="utf-8")
    assert all(f"{field}={given[name]}\n" in arguments for name, field in FREE.items())


@pytest.mark.parametrize("how", ["quote", "substitution", "make", "newline"])
def test_a_command_is_one_line_for_the_workers_shell(ready: Path, how: str) -> None:
    """Nothing of it is carried out here."""
    value = HOSTILE[how]
    write_env(ready, "boa")
    done = run(ready, "make", "test-event", f"CMD={value}")
    unharmed(ready)
    assert done.returncode == 0, done.stderr
    command = json.dumps(["/bin/sh", "-c", value])
    assert f"command={command}\n" in (ready / "python.args").read_text(encoding="utf-8")


def test_what_send_refuses_fails_make(ready: Path) -> None:
    """Its exit code is the target's failure."""
    write_env(ready, "boa")
    assert run(ready, "make", "test-event", "PODS=lots", environ={"PYTHON_EXITS": "2"}).returncode != 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("a b", ["a", "b"]),
        ('"a b" \'c "d"\'', ["a b", 'c "d"']),
        ("a\\ b", ["a b"]),
        ("$(touch pwned) `touch pwned`", ["$(touch", "pwned)", "`touch", "pwned`"]),
        ("$(shell touch pwned)", ["$(shell", "touch", "pwned)"]),
        ("x; touch pwned && touch pwned", ["x;", "touch", "pwned", "&&", "touch", "pwned"]),
        ("* ~ $HOME > pwned", ["*", "~", "$HOME", ">", "pwned"]),
        ("'' -- -x", ["", "--", "-x"]),
    ],
)
@pytest.mark.parametrize("by", ["argument", pytest.param("environment", marks=pytest.mark.full)])
def test_args_are_words(ready: Path, by: str, text: str, words: list[str]) -> None:
    """Quotes count, and nothing is carried out."""
    given = [f"ARGS={text}"] if by == "argument" else []
    done = run(ready, "make", "demo", *given, environ={"ARGS": text} if by == "environment" else {})
    unharmed(ready)
    assert done.returncode == 0, done.stderr
    assert (ready / "python.args").read_text(encoding="utf-8").splitlines() == ["ottoscaler.py", "demo", *words]


def test_args_with_an_open_quote(ready: Path) -> None:
    """A sentence, and nothing is run."""
    done = run(ready, "make", "demo", "ARGS=don't")
    assert "ARGS" in done.stderr
    assert "No closing quotation" in done.stderr
    assert not (ready / "python.args").exists()


@pytest.mark.parametrize("target", ["distclean", "run"])
def test_a_folder_that_is_no_virtual_environment_stays(ready: Path, target: str) -> None:
    """Whatever VENV says."""
    done = run(ready, "make", target, "VENV=deploy")
    assert done.returncode != 0
    assert "this is no virtual environment" in done.stderr
    unharmed(ready)


def test_every_variable_of_the_makefile_is_in_the_table() -> None:
    """A new one has to be passed by the environment too, and tried here."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (given,) = re.findall(r"^GIVEN := (.*)$", text, re.MULTILINE)
    others = {"ARGS", "CMD", "SEED", "EXAMPLES", "KILLS", "ONLY", "QUICK", "RANDOM"}
    assert set(given.split()) == {*GIVEN, *FREE, *others}
    # PYTHON and VENV are checked as a whole, of QUICK, ONLY and RANDOM it counts only whether they are there
    recipes = "\n".join(line for line in text.splitlines() if line.startswith("\t"))
    assert not set(re.findall(r"\$[({]([A-Z_]+)[)}]", recipes)) & (
        {*given.split()} - {"VENV", "PYTHON", "QUICK", "ONLY", "RANDOM"}
    )


@pytest.mark.parametrize("command", ["shell", "check", "cluster", "login"])
def test_no_third_party_is_needed(ready: Path, command: str) -> None:
    """The Python that a shell finds has none: the virtual environment may not be there yet."""
    write_env(ready, "boa")
    done = run(ready, "python3", "-I", "-S", "deploy/environment.py", command, ".env.boa.local")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_shell_reads_an_env_file_as_python_does(ready: Path) -> None:
    """There is one reader: what it makes of quotes and of # is what the scripts and the controller get."""
    text = "a 'b' \"c\" # d"
    write_env(ready, "boa", "RESULT_STREAM='x#y'  # a comment", f"TASK_NOTE={json.dumps(text)}")
    done = run(ready, "python3", "-I", "-S", "deploy/environment.py", "shell", ".env.boa.local")
    assert "RESULT_STREAM='x#y'" in done.stdout.splitlines()


def test_what_the_shell_has_exported_does_not_count(ready: Path) -> None:
    """The targets of an environment work where its file says, and so do the commands that they start."""
    write_env(ready, "boa")
    other = {"REDIS_PORT": "7000", "NAMESPACE": "other", "KIND_CLUSTER_NAME": "other", "REDIS_PASSWORD": "x"}
    done = run(ready, "make", "test-event", environ=other)
    assert done.returncode == 0, done.stderr
    environ = (ready / "python.environ").read_text(encoding="utf-8").splitlines()
    assert not [line for line in environ if line.partition("=")[0] in other]
    assert "ENV_FILE=.env.boa.local" in environ
