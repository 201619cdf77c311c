"""The output of a worker: what the kubelet found, made safe for Redis and for terminals; and no verdict from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottoscaler.core.output import CUT, MAX_BYTES, output
from ottoscaler.core.pod_timeline import finished_pod_verdict
from ottoscaler.core.results import worker_result
from tests.core.builders import NOW, event, raw_pod, seen, terminated, with_others


@pytest.mark.contract("5.output")
@pytest.mark.parametrize(
    ("message", "containers", "expected"),
    [
        ("", 1, ""),
        ("42\n", 1, "42\n"),
        ("a\tb\r\n", 1, "a\tb\r\n"),
        ("한글 😀 \u2028", 1, "한글 😀 \u2028"),
        ("\x1b[31mred\x1b[0m\0\x7f\x9b", 1, "\ufffd[31mred\ufffd[0m\ufffd\ufffd\ufffd"),
        ("not utf-8: \ufffd", 1, "not utf-8: \ufffd"),
        ("\ud800", 1, "\ufffd"),
        ("x" * 4095, 1, "x" * 4095),
        ("x" * 4096, 1, CUT + "x" * 4096),  # the kubelet may have cut it: it does not say so
        ("x" * 4096, 3, CUT + "x" * 4096),
        ("x" * 3072, 4, CUT + "x" * 3072),
        ("x" * 3071, 4, "x" * 3071),
        ("a" + "\1" * 1366, 1, CUT + "\ufffd" * 1365),  # it grows, and the end is kept
        ("é" * 2050, 1, CUT + "é" * 2048),
        ("é" * 2048 + "x", 1, CUT + "é" * 2047 + "x"),
    ],
)
def test_an_output_is_text_of_a_bounded_size(message: str, containers: int, expected: str) -> None:
    """Whatever the worker wrote. The end is kept, and a mark stands where something may be missing."""
    assert output(message, containers) == expected


@given(st.text(st.characters(), max_size=6000), st.integers(0, 20))
def test_any_message_becomes_a_safe_one(message: str, containers: int) -> None:
    """UTF-8 of a bounded size, without control characters but tab and line ends."""
    text = output(message, containers)
    assert len(text.encode()) <= len(CUT) + MAX_BYTES
    assert not any((ord(each) < 32 and each not in "\t\n\r") or 127 <= ord(each) < 160 for each in text)
    assert bool(text) == bool(message)


@pytest.mark.contract("5.output")
@pytest.mark.parametrize("code", [0, 7])
def test_the_result_has_what_agent_wrote(code: int) -> None:
    """Not what another container did, wherever it stands."""
    other = {"name": "aaa", "image": "i", "state": terminated(0, message="of another")}
    phase = "Failed" if code else "Succeeded"
    raw = with_others(raw_pod(phase, state=terminated(code, message="mine")), other, first=True)
    pod, end = seen(raw), finished_pod_verdict(seen(raw))
    assert end is not None
    assert worker_result(event(), 1, 1, end, pod, NOW)["output"] == "mine"


def test_the_runtimes_own_words_are_no_output() -> None:
    """A container that could not be started has written nothing: its message is the runtime's."""
    pod = seen(raw_pod("Failed", state=terminated(128, "StartError", message='exec: "x": not found')))
    assert (pod.output, pod.start_error) == ("", 'exec: "x": not found')


@pytest.mark.contract("4.OTTO_OUTPUT")
@pytest.mark.parametrize("code", [0, 1, 126, 127, 128, 137])
@pytest.mark.parametrize(
    "message",
    [
        "OOMKilled", "Evicted: The node was low on resource: memory", "DeadlineExceeded", "Preempted",
        'unable to start container process: exec: "x": executable file not found in $PATH', "Back-off pulling image",
        '{"reason": "Completed", "exitCode": 0}',
    ],
)  # fmt: skip
def test_no_output_changes_the_verdict(code: int, message: str) -> None:
    """The worker writes it: it could blame the platform, or call a failure a success."""
    phase = "Failed" if code else "Succeeded"
    plain, loud = (seen(raw_pod(phase, state=terminated(code, message=text))) for text in ("", message))
    assert finished_pod_verdict(loud) == finished_pod_verdict(plain)
    assert loud.output == message
