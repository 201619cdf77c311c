"""Random events, and what has to hold for each: `make fuzz`, or `python -m tests.fuzz [COUNT [SEED]]`.

Every event is either refused with a printable reason, or gives pods that the API server takes. What makes a pod valid
is written down here once more, from the API's own rules, so that the manifest is not held against itself.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ottoscaler.core import events, manifest
from ottoscaler.core.events import BadEvent, ScaleEvent, content_digest, encode_original_fields, parse
from ottoscaler.core.fields import REQUEST_FIELDS
from ottoscaler.core.manifest import AttemptKey
from ottoscaler.settings import WorkerSettings

Fields = dict[bytes, bytes]

#: https://kubernetes.io/docs/concepts/overview/working-with-objects/annotations/: all of them together.
MAX_ANNOTATIONS: Final = 256 * 1024
#: What etcd takes of one object by default, with some room for what the server adds.
MAX_OBJECT: Final = 1_500_000
LONGEST_NAME: Final = "i" * 63
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUALIFIED: Final = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_ENV: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")

_KNOWN: Final = sorted(
    REQUEST_FIELDS | events.OVERRIDE_FIELDS | events.RESERVED_FIELDS | {"metadata", "reason", "repository"}
)
_IDS: Final = ["a", "A-1", "x" * 128, "x" * 129, "a:b/c.d_e", "-a", "", "a b", "1-1", "redrive:1-0", "ä", "a\n", "a\0"]
_TEXTS: Final = [
    "",
    "a",
    "$(HOME) $$",
    "\ufeff",
    "\u202e\u0000",
    "\x01\x1b[2J",
    "\U0001f600",
    "'\"\\",
    "é\u0301",
    "\x7f\x85",
]
_BYTES: Final = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\0", b"\xc0\x80"]
_COUNTS: Final = ["1", "3", "1000", "1001", "0", "-1", "1e3", "999999999", "9999999999", "٣", " 1", ""]


def random_event(rng: random.Random) -> Fields:
    """One event: mostly nearly right, for pure noise is refused at the first byte."""
    kind = rng.choice(["scale_up"] * 6 + ["scale_down"] * 2 + ["", "scale", "SCALE_UP"])
    fields: Fields = {b"type": kind.encode()} if rng.random() < 0.97 else {}
    for name in rng.sample(["task_id", "event_id", "supersedes", "concurrency_key"], rng.randint(0, 2)):
        fields[name.encode()] = (rng.choice(_IDS) if rng.random() < 0.3 else f"id-{rng.randint(0, 10**6)}").encode()
    if rng.random() < 0.6:
        fields[b"pod_count"] = (rng.choice(_COUNTS) if rng.random() < 0.3 else str(rng.randint(1, 5))).encode()
    for _ in range(rng.choice([0, 0, 1, 2, 5])):
        fields[_name(rng)] = _value(rng)
    if rng.random() < 0.1:
        fields[b"metadata"] = rng.choice([b"{}", b'{"a": [1]}', b"[]", b"{", b'{"a": NaN}', b'{"\\u0000": 1}'])
    if rng.random() < 0.05:
        fields[b"traceparent"] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0" + rng.choice(
            [b"1", b"", b"x"]
        )
    return {b"type": b"scale_up"} | huge(rng) if rng.random() < 0.002 else fields


def _name(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return f"f{rng.randint(0, 99)}".encode()
    if rng.random() < 0.5:
        return rng.choice(_KNOWN).encode()
    return rng.choice([rng.randbytes(rng.randint(0, 9)), b"a" * rng.choice([62, 63, 64]), b"A", b"a-b", b"a\n", b"1a"])


def _value(rng: random.Random) -> bytes:
    chance = rng.random()
    if chance < 0.6:
        return "".join(rng.choice(_TEXTS).replace("\0", "") for _ in range(rng.randint(0, 4))).encode()
    if chance < 0.7:
        return rng.choice(_TEXTS).encode() + rng.choice(_BYTES)
    if chance < 0.9:
        return "".join(chr(rng.choice([rng.randint(1, 0x7F), rng.randint(0x80, 0xD7FF)])) for _ in range(20)).encode()
    return rng.randbytes(rng.randint(0, 40))


def huge(rng: random.Random) -> Fields:
    """Fields at the limits of size and number, some below and some above: among them what grows on its way to a pod."""
    size = rng.choice([1000, 40_000, 65_000, 65_500, 70_000, 1_100_000])
    match rng.randint(0, 3):
        case 0:
            return {b"f%d" % number: b"x" for number in range(rng.choice([200, 249, 255, 256, 300]))}
        case 1:
            return {b"large": rng.choice([b"\x01", b"$", b'"', b"x", b"\x7f"]) * size}
        case 2:
            return {b"large": "\U0001f600".encode() * (size // 4)}
        case _:
            return {b"l%d" % number: b"\x02" * (size // 50) for number in range(50)}


def check(stream_id: str, fields: Fields) -> str:
    """What became of an event: `accepted`, or the reason for which it was refused. Raises AssertionError."""
    event = parse(stream_id, fields, 1000)
    assert len(content_digest(fields)) == 64
    kept = encode_original_fields(fields)
    assert isinstance(json.loads(kept), dict)
    assert len(kept) <= 10 * events.MAX_DEAD_EVENT_BYTES
    kept.encode()
    if isinstance(event, BadEvent):
        assert event.detail, fields
        assert event.detail.isprintable(), event
        assert len(event.detail) < 1000, event
        return event.reason
    assert events.decode(event.encode()) == event
    for body in bodies(event):
        found = list(faults(body))
        assert not found, (found, fields)
    return "accepted"


def bodies(event: ScaleEvent) -> Iterator[bytes]:
    """The first pod, and the one with the longest name, of a scale_up."""
    hash_ = manifest.event_hash(LONGEST_NAME, event.event_id)
    keys = [(1, 1), (event.pod_count, 999)] if event.type is events.EventType.SCALE_UP else []
    for index, attempt in keys:
        key = AttemptKey(hash_, index, attempt)
        where = {"instance": LONGEST_NAME, "namespace": "default"}
        yield manifest.build_pod(WorkerSettings(), event, key, event_json=event.encode(), **where)


def faults(body: bytes) -> Iterator[str]:
    """What the API server would refuse of a pod."""
    pod = json.loads(body)
    meta, (container,) = pod["metadata"], pod["spec"]["containers"]
    if len(body) > MAX_OBJECT:
        yield f"the object has {len(body)} bytes"
    if not _DNS_LABEL.fullmatch(meta["name"]):
        yield f"name {meta['name']!r}"
    for name, value in meta["labels"].items():
        if not _QUALIFIED.fullmatch(name) or not _LABEL.fullmatch(value):
            yield f"label {name}={value!r}"
    size = sum(len(name.encode()) + len(value.encode()) for name, value in meta["annotations"].items())
    if size > MAX_ANNOTATIONS or not all(map(_QUALIFIED.fullmatch, meta["annotations"])):
        yield f"annotations of {size} bytes"
    yield from _environment_faults(container["env"])


def _environment_faults(variables: list[Mapping[str, Any]]) -> Iterator[str]:
    counted = Counter(variable["name"] for variable in variables)
    for name, count in counted.items():
        if count > 1 or not _ENV.fullmatch(name):
            yield f"variable {name!r}, {count} times"
    for variable in variables:
        value = variable.get("value", "")
        # one string of a process's environment: MAX_ARG_STRLEN of Linux, 128 KiB; the kubelet makes $ of $$
        if "\0" in value or len(value.replace("$$", "$").encode()) + len(variable["name"]) + 2 > 128 * 1024:
            yield f"value of {variable['name']}"


def run(count: int, seed: int) -> Counter[str]:
    """So many random events; returns how many were accepted or refused for what. Raises AssertionError."""
    rng, total = random.Random(seed), Counter[str]()
    for number in range(count):
        total[check(f"1714557600000-{number}", random_event(rng))] += 1
    return total


def main(arguments: list[str]) -> int:
    """Run, and print the figures. Returns 0."""
    count, seed = int((arguments or ["1000000"])[0]), int((arguments[1:] or ["1"])[0])
    began = time.monotonic()
    total = run(count, seed)
    print(f"{count} events, seed {seed}, in {time.monotonic() - began:.0f} s: ", end="")
    print(", ".join(f"{number} {what}" for what, number in total.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
