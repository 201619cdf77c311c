"""Logs of containers that run: the emulator's node and a real kubelet serve them alike."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.local.kube import Object, Space, eventually

#: Without a registry the image has to be there; the emulator runs the command alone.
HERE = {"imagePullPolicy": "IfNotPresent", "image": "busybox:latest"}
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d) ")


def run(space: Space, script: str, name: str = "one") -> Object:
    """A pod that runs a script, when it runs or has run."""
    space.make(name, ["sh", "-c", script], container=HERE)
    return space.wait_phase(name, "Running", "Succeeded", "Failed")


def finish(space: Space, script: str, name: str = "one") -> None:
    """A pod that has run a script, and its log is whole."""
    space.make(name, ["sh", "-c", script], container=HERE)
    space.wait_phase(name, "Succeeded", "Failed")


def stamps(text: str) -> list[str]:
    """The time of each line, without the space."""
    return [line.partition(" ")[0] for line in text.splitlines()]


def test_a_followed_log_comes_whole_and_ends_with_its_container(space: Space) -> None:
    """What was written before, what is written while it is read, and a last line without its end."""
    run(space, "echo one; sleep 2; echo two; printf three")
    answer = space.log("one", follow="true", timestamps="true")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert all(STAMP.match(line) for line in lines), lines
    assert [line.partition(" ")[2] for line in lines] == ["one", "two", "three"]


def test_since_is_a_whole_second(space: Space) -> None:
    """The lines of that second come again, those before it do not."""
    finish(space, "echo old; sleep 2; for i in 1 2 3; do echo $i; done")
    *_, newest = stamps(space.log("one", timestamps="true").text)
    second = [each for each in stamps(space.log("one", timestamps="true").text) if each[:19] == newest[:19]]
    for since in (newest, f"{newest[:19]}Z" if newest.endswith("Z") else f"{newest[:19]}{newest[-6:]}"):
        assert stamps(space.log("one", timestamps="true", sinceTime=since).text) == second
    assert space.log("one", sinceTime="2999-01-01T00:00:00Z").text == ""


@pytest.mark.parametrize(
    ("query", "text"),
    [({}, "one\ntwo\nthree\n"), ({"tailLines": 2}, "two\nthree\n"), ({"limitBytes": 5}, "one\nt")],
    ids=["all", "last-lines", "first-bytes"],
)
def test_a_finished_log_can_be_cut(space: Space, query: dict[str, Any], text: str) -> None:
    """The container need not be named in a pod of one."""
    finish(space, "echo one; echo two; echo three")
    assert space.log("one", **query).text == text
    assert space.log("one", container="main", **query).text == text


def test_bytes_come_as_they_were_written(space: Space) -> None:
    """No newline is added to a long line, and nothing is decoded."""
    finish(space, "head -c 40000 /dev/zero | tr '\\0' x; echo; printf '\\303\\251\\n'")
    assert space.log("one").text == "x" * 40_000 + "\né\n"
    assert space.log("one", timestamps="true").text.count("Z ") <= 2


def test_a_container_that_waits_has_no_log_yet(space: Space) -> None:
    """400, with the reason why it waits; a container that the pod does not have is another 400."""
    space.make("one", ["true"], container={"image": "busybox:!"})

    def reason() -> str:
        answer = space.log("one")
        waits = answer.status == 400 and "waiting to start" in answer.body["message"]
        return str(answer.body["reason"]) if waits else ""

    assert eventually(reason, 30) == "BadRequest"
    answer = space.log("one", container="other")
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")
    assert "container other is not valid for pod one" in answer.body["message"]


def test_the_log_goes_with_the_pod(space: Space) -> None:
    """It is there as long as the finished pod is, and then not found."""
    finish(space, "echo one; exit 3")
    assert space.log("one").text == "one\n"
    space.delete("one", gracePeriodSeconds=0)
    space.wait_gone("one")
    answer = space.log("one", follow="true")
    assert (answer.status, answer.body["reason"], answer.body["details"]["name"]) == (404, "NotFound", "one")
