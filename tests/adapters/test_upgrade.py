"""Task hashes that earlier releases wrote: what they say is read as it was meant."""

from __future__ import annotations

import pytest

from ottoscaler.adapters.tasks import decode_workers, worker_json


@pytest.mark.parametrize(
    ("attempt", "note", "seen"),
    [
        ("1:0", worker_json("running", 1, "p"), True),
        ("2:1", worker_json("pending", 2, "p"), True),
        ("2:1", worker_json("running", 1, "p"), False),
        ("1:0", worker_json("creating", 1, "p"), False),
        ("1:0", worker_json("waiting", 1, ""), False),
        ("1:0", "what somebody else has written", False),
        ("1:0", None, False),
        ("1:0:s", worker_json("creating", 1, "p"), True),
    ],
)
def test_an_attempt_whose_pod_is_noted_was_seen(attempt: str, note: str | None, seen: bool) -> None:
    """Releases before the flag noted nothing else. Taken for unseen, an attempt that ended would be run once more."""
    fields = {b"attempt:1": attempt.encode()} | ({} if note is None else {b"worker:1": note.encode()})
    assert decode_workers(fields)[1].seen is seen


def test_several_drains_were_one() -> None:
    """The field had one name, and has a list of them by now."""
    assert decode_workers({b"attempt:1": b"1:0", b"spared:1": b"d-1"})[1].spared == ("d-1",)
