"""The events: of one to five workers, with ids of their own or without; some are sent twice, some are bad, some end
others, some have a concurrency key, and a few are larger than any controller should fetch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

STREAM = "otto:scale:events"
TASK_PREFIX = "otto:scale:task:"
#: What an oversized entry carries, bytes.
OVERSIZED: Final = 12_000_000
#: The concurrency keys, and how many tasks of each may run at once.
KEYS: Final = {"one": 1, "two": 2}

Fields = dict[str, Any]


@dataclass
class Sent:
    """One event. `event_id` is its own, or that of its entry."""

    event_id: str
    fields: Fields
    copies: int = 1
    entry_id: str = ""
    bad: bool = False
    """It has to become a dead letter."""
    answered: bool = True
    """It has to have a closing result, too: not if its id cannot be read, or is another event's."""

    @property
    def kind(self) -> str:
        """`scale_up`, `scale_down` or `bad`."""
        return "bad" if self.bad else str(self.fields["type"])

    @property
    def concurrency_key(self) -> str:
        """Empty for an event without one."""
        return str(self.fields.get("concurrency_key", ""))

    @property
    def pod_count(self) -> int:
        """Workers to start, or to end."""
        return int(self.fields["pod_count"])


@dataclass
class Producer:
    """Sends events to a Redis that is up. One thread."""

    redis: Any
    dice: random.Random
    invalid: bool = True
    """Also events that are no good."""
    sent: list[Sent] = field(default_factory=list)

    def send(self) -> None:
        """One more event, or one of the last again."""
        chance = self.dice.random()
        ups = [event for event in self.sent[-12:] if event.kind == "scale_up"]
        if chance < 0.08 and ups:
            self._again()
        elif chance < 0.20 and ups:
            self._add(self._scale_down(self.dice.choice(ups)))
        elif chance < 0.32 and self.invalid:
            self._bad()
        elif chance < 0.37:
            self._send_keyed()
        else:
            self._add(self._scale_up())

    def send_oversized(self) -> None:
        """An entry that no controller should read as a whole."""
        fields = {"type": "scale_up", "pod_count": "1", "task_id": "large", "reason": "x" * OVERSIZED}
        entry_id = str(self.redis.xadd(STREAM, fields))
        kept = {**fields, "reason": f"({OVERSIZED} bytes)"}
        self.sent.append(Sent(entry_id, kept, entry_id=entry_id, bad=True, answered=False))

    @property
    def keyed(self) -> int:
        """Events so far with a concurrency key."""
        return sum(1 for event in self.sent if event.concurrency_key)

    @property
    def bad(self) -> int:
        """Events so far that are no good."""
        return sum(1 for event in self.sent if event.bad)

    def _scale_up(self) -> Fields:
        number = len(self.sent)
        fields = {"type": "scale_up", "pod_count": str(self.dice.randint(1, 5)), "task_id": f"task-{number}"}
        if self.dice.random() < 0.12:
            fields["supersedes"] = f"key-{self.dice.randint(1, 2)}"
        return fields

    def _send_keyed(self) -> None:
        """Two tasks of one worker with the same concurrency key, so that there is one to wait: they take turns, and
        must not fill the run with waiting.
        """
        key, limit = self.dice.choice(sorted(KEYS.items()))
        for _ in range(2):
            fields = {"type": "scale_up", "pod_count": "1", "task_id": f"task-{len(self.sent)}"}
            self._add({**fields, "concurrency_key": key, "concurrency_limit": str(limit)})

    def _scale_down(self, target: Sent) -> Fields:
        fields = {"type": "scale_down", "pod_count": str(self.dice.randint(1, 3))}
        if self.dice.random() < 0.8:
            fields["task_id"] = target.fields["task_id"]
        if self.dice.random() < 0.3:
            fields["mode"] = "drain"
        return fields

    def _bad(self) -> None:
        """One of the ways in which an event can be no good."""
        good = {"type": "scale_up", "pod_count": "1", "task_id": f"bad-{len(self.sent)}"}
        deep = 9000
        named = [
            event
            for event in self.sent[-12:]
            if "event_id" in event.fields and event.kind == "scale_up"
            # of two with one id the one that is accepted first counts: after a death that may be the later one
            if self.redis.exists(f"{TASK_PREFIX}{event.event_id}")
        ]
        ways: list[Fields] = [
            {**good, "pod_count": "0"},
            {**good, "pod_count": "1000000"},
            {**good, "type": "scale_sideways"},
            {**good, "metadata": "[1"},
            {**good, "metadata": '{"a":' * deep + "1" + "}" * deep},
            {**good, "event_id": "no good!"},
            {**good, "reason": b"\xff\xfe"},
            {**good, "reason": "x" * 70_000},
            *({**good, "event_id": event.event_id, "reason": "other"} for event in named[:1]),
        ]
        fields = self.dice.choice(ways)
        named_id = fields.get("event_id", "")
        entry_id = str(self.redis.xadd(STREAM, fields))
        self.sent.append(Sent(entry_id, fields, entry_id=entry_id, bad=True, answered=not named_id))

    def _add(self, fields: Fields) -> None:
        if self.dice.random() < 0.6:
            fields = {**fields, "event_id": f"event-{len(self.sent)}"}
        entry_id = str(self.redis.xadd(STREAM, fields))
        self.sent.append(Sent(str(fields.get("event_id", entry_id)), fields, entry_id=entry_id))

    def _again(self) -> None:
        """What a producer does that got no answer: the same event once more."""
        named = [event for event in self.sent[-12:] if "event_id" in event.fields and event.kind != "bad"]
        if named:
            event = self.dice.choice(named)
            self.redis.xadd(STREAM, event.fields)
            event.copies += 1
