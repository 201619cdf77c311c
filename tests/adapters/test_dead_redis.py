"""Bad events against a real Redis and the real intake: each ends once, and none stops the others.

The random ones are 10,000 against the installed redis-server in CI (OTTO_CI=1), fewer elsewhere.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from typing import Any, cast

import pytest

from ottoscaler.core.events import BadEvent, content_digest
from ottoscaler.errors import RedisUnavailable
from ottoscaler.flow.inbox import ScaleDownInbox
from ottoscaler.flow.intake import Intake
from ottoscaler.ports import OpenTask, RedisPorts, Victim
from tests import fuzz
from tests.adapters.redis_admin import RedisAdmin, Server
from tests.adapters.streams import StreamFactory, accept, opened, receive, send
from tests.adapters.test_stream_redis import admin, server, stream_factory
from tests.flow.conftest import Lines, log
from tests.flow.simulated_controller import SimulatedController

__all__ = ["admin", "log", "server", "stream_factory"]

pytestmark = pytest.mark.contract("3.dead-letter")
#: Read but not accepted when the stream is trimmed; and too old.
LOST = 5


class Reading:
    """A real stream and the real intake; all other parts are a controller's. One thread."""

    def __init__(self, controller: SimulatedController, stream: RedisPorts) -> None:
        self.stream = stream
        self.metrics = controller.metrics
        self.inbox = ScaleDownInbox()
        self.intake = Intake(
            event_log=stream, ledger=controller.ledger, inbox=self.inbox, retries=controller.retries,
            metrics=controller.metrics,
            max_pods=controller.settings.flow.max_pods_per_event,
        )  # fmt: skip

    def all(self) -> None:
        """Read and absorb until nothing is left."""
        self.intake.accept_pending_entries(self.stream.claim_pending(own=True, min_idle_s=0))
        while entries := self.stream.read_now(100):
            self.intake.accept_entries(entries)

    def counted(self, name: str, label: str = "") -> float:
        """The sum of a figure over all series, or those with this label."""
        lines = self.metrics.render().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{") and label in line)


@pytest.mark.timeout(400)
def test_each_random_event_ends_once(
    request: pytest.FixtureRequest, server: Server, admin: RedisAdmin, stream: RedisPorts, log: Lines
) -> None:
    """As an open task with valid pods, as the duplicate of one, or as one dead letter with reason and detail. What
    is counted and reported is what is there.
    """
    count = 10_000 if request.node.get_closest_marker("real") and os.environ.get("OTTO_CI") == "1" else 1500
    sent = [admin.add({"type": "scale_up"}, f"1-{number}") for number in range(1, LOST + 1)]
    with SimulatedController() as controller, server.client() as client:
        reading = Reading(controller, stream)
        reading.all()  # too old
        lost = [send(admin) for _ in range(LOST)]
        stream.read_now(LOST)
        admin.trim()
        fields = _send_random(server, admin, count)
        reading.all()
        letters = Counter(letter["stream_id"] for letter in admin.dead_letters())
        accepted = {entry: event_id for event_id in admin.open_ids() if (entry := admin.task(event_id)["sid"])}
        for stream_id, each in fields.items():
            _ended_once(stream_id, each, letters, accepted, admin)
        assert [letters[name] for name in sent + lost] == [1] * 2 * LOST
        assert len(letters) + len(accepted) <= count + 2 * LOST
        assert admin.pending_count() == 0
        assert reading.counted("ottoscaler_dead_letters_total") == len(letters)
        assert reading.counted("ottoscaler_events_received_total", 'outcome="accepted"') == len(accepted)
        assert reading.counted("ottoscaler_events_received_total", 'outcome="dead"') == len(letters)
        assert client.exists(admin.stream)
    assert (len(log.of("event.dead")), len(log.of("event.received"))) == (len(letters), len(accepted))
    assert log.of("event.poison") == []
    reasons = Counter(letter["dead_reason"] for letter in admin.dead_letters())
    assert (reasons["TooOld"], reasons["Trimmed"], reasons["Poison"]) == (LOST, LOST, 0)
    assert {"Invalid", "Unsupported", "Conflict"} <= reasons.keys()
    assert reasons["TooLarge"] or count < 10_000
    print(f"{count} events: {len(accepted)} accepted, {dict(reasons)}")


def _send_random(server: Server, admin: RedisAdmin, count: int) -> dict[str, fuzz.Fields]:
    """By entry's id; Redis takes no entry without a field."""
    rng = random.Random(count)
    chosen = [fields for fields in (fuzz.random_event(rng) for _ in range(count * 2)) if fields][:count]
    with server.client() as client:
        pipe = client.pipeline(transaction=False)
        for fields in chosen:
            pipe.xadd(admin.stream, cast("Any", fields))
        return dict(zip(pipe.execute(), chosen, strict=True))


def _ended_once(
    stream_id: str, fields: fuzz.Fields, letters: Counter[str], accepted: dict[str, str], admin: RedisAdmin
) -> None:
    if letters[stream_id]:
        assert letters[stream_id] == 1, fields
        assert stream_id not in accepted, fields
    elif stream_id in accepted:
        assert fuzz.check(stream_id, fields) == "accepted"
    else:  # the same event was there before, accepted or refused
        assert admin.task(fields[b"event_id"].decode())["digest"] == content_digest(fields)


# -- keys of a wrong type


def test_an_event_with_a_key_of_a_wrong_type_is_a_dead_letter(
    server: Server, admin: RedisAdmin, stream: RedisPorts
) -> None:
    """Good or bad, it does not keep those beside it from being accepted; what is there is not touched."""
    with SimulatedController() as controller, server.client() as client:
        client.set(f"{admin.prefix}task:odd", "x")
        client.rpush(f"{admin.prefix}task:bad", "x")
        send(admin, event_id="a")
        odd = send(admin, event_id="odd")
        bad = send(admin, event_id="bad", pod_count="0")
        send(admin, event_id="b")
        reading = Reading(controller, stream)
        reading.all()
        assert admin.open_ids() == {"a", "b"}
        answers = {letter["stream_id"]: letter["dead_reason"] for letter in admin.dead_letters()}
        assert answers == {odd: "Conflict", bad: "Invalid"}
        details = {letter["stream_id"]: letter["dead_detail"] for letter in admin.dead_letters()}
        assert details[odd] == f"the key {admin.prefix}task:odd holds something else than a task"
        assert (admin.results(), client.get(f"{admin.prefix}task:odd")) == ([], "x")


def test_a_task_with_an_overwritten_key_is_a_dead_letter_and_hides_no_other(
    server: Server, admin: RedisAdmin, stream: RedisPorts, other: RedisPorts
) -> None:
    """Renewed, released, looked at: the others are as ever; at the next take-over it is a dead letter, once.
    It stays open: when the key is back, the task goes on.
    """
    gone, task = opened(stream, admin, event_id="gone"), opened(stream, admin, event_id="e-1")
    with server.client() as client:
        client.rename(f"{admin.prefix}task:gone", f"{admin.prefix}kept")
        client.set(f"{admin.prefix}task:gone", "x")
    owners = {"gone": gone.owner, "e-1": task.owner}
    renewal = stream.renew(owners)
    assert (dict(renewal.lost), set(renewal.cancel_counts)) == ({"gone": ""}, {"e-1"})
    assert [view.event.event_id for view in stream.open_scale_ups()] == ["e-1"]
    assert stream.known_tasks(["gone", "e-1"]).keys() == {"e-1"}
    (nothing, something) = stream.stored_workers([Victim("gone", 1), Victim("e-1", 1)])
    assert (nothing, something is None) == (None, False)
    stream.release(owners)
    for event_id in ("gone", "e-1"):
        admin.expire_lease(event_id)
    answers = [other.take_over(event_id, same_consumer=False) for event_id in ("gone", "gone", "e-1")]
    assert isinstance(answers[0], BadEvent)
    assert (answers[0].reason, answers[1], isinstance(answers[2], OpenTask)) == ("Poison", None, True)
    assert [letter["event_id"] for letter in admin.dead_letters()] == ["gone"]
    assert admin.open_ids() == {"gone", "e-1"}
    with server.client() as client:
        client.rename(f"{admin.prefix}kept", f"{admin.prefix}task:gone")
    assert isinstance(other.take_over("gone", same_consumer=False), OpenTask)


@pytest.mark.contract("5.Poison")
@pytest.mark.parametrize("broken", ["event", "received_at", "doom:1", "common", "pod_count"])
def test_a_task_that_cannot_be_read_ends_and_hides_no_other(
    server: Server, admin: RedisAdmin, stream: RedisPorts, broken: str
) -> None:
    """Its hash is damaged: it is a dead letter after ten tries, and closed after twenty."""
    opened(stream, admin, event_id="bad", pod_count="2")
    opened(stream, admin, event_id="good")
    with server.client() as client:
        client.hset(f"{admin.prefix}task:bad", broken, "{")
    assert "good" in {view.event.event_id for view in stream.open_scale_ups()}
    assert "good" in stream.known_tasks(["bad", "good"])
    for _ in range(25):
        if "bad" in admin.open_ids():
            admin.expire_lease("bad")
            _take_if_readable(stream)
    assert admin.open_ids() == {"good"}
    assert [letter["dead_reason"] for letter in admin.dead_letters()] == ["Poison"]
    assert admin.task("bad")["state"] == "finished"


def test_the_mark_of_poison_stays_as_long_as_its_task(
    server: Server, admin: RedisAdmin, stream: RedisPorts, other: RedisPorts
) -> None:
    """The marks of dead letters end after TASK_TTL_S; a task that no replica can end stays open longer, and has one."""
    opened(stream, admin, event_id="e-1")
    for _ in range(12):
        admin.expire_lease("e-1")
        other.take_over("e-1", same_consumer=False)
    assert len(admin.dead_letters()) == 1
    with server.client() as client:
        assert client.delete(f"{admin.prefix}buried") == 1
    admin.expire_lease("e-1")
    assert isinstance(other.take_over("e-1", same_consumer=False), OpenTask)
    assert len(admin.dead_letters()) == 1


def _take_if_readable(stream: RedisPorts) -> None:
    try:
        stream.take_over("bad", same_consumer=False)
    except (ValueError, KeyError):  # what the lease thread contains
        return


def test_a_stream_that_is_none_is_named_and_waited_for(
    server: Server, admin: RedisAdmin, stream_factory: StreamFactory
) -> None:
    """A string is in its place: the error says so, and the stream is good again when the string is gone."""
    made = stream_factory("c1")
    with server.client() as client:
        client.set(admin.stream, "x")
        for call in (made.ensure_group, lambda: made.read(1), lambda: made.claim_pending(own=True, min_idle_s=0)):
            with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
                call()
        client.delete(admin.stream)
    made.ensure_group()
    send(admin)
    assert isinstance(accept(made, receive(made)), OpenTask)


def test_the_dead_letter_of_an_event_above_1_mib_is_cut(admin: RedisAdmin, stream: RedisPorts) -> None:
    """And marked; the one of a smaller event is whole, whatever its bytes."""
    with SimulatedController() as controller:
        admin.add({"type": "scale_up", "raw": b"\xff\x00", "large": b"x" * (1024 * 1024)})
        admin.add({"type": "scale_up", "raw": b"\xff\x00", "nul": b"\0"})
        Reading(controller, stream).all()
    cut, whole = (json.loads(letter["event"]) for letter in admin.dead_letters())
    assert cut == {"cut": True, "fields": {"type": "scale_up", "raw": {"base64": "/wA="}}}
    assert whole == {"type": "scale_up", "raw": {"base64": "/wA="}, "nul": "\0"}
