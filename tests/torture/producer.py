"""The events: of one to five workers, with ids of their own or without; some are sent twice, some are bad, some end
others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

STREAM = "otto:scale:events"

Fields = dict[str, str]


@dataclass
class Sent:
    """One event. `event_id` is its own, or that of its entry."""

    event_id: str
    fields: Fields
    copies: int = 1

    @property
    def kind(self) -> str:
        """`scale_up`, `scale_down` or `bad`."""
        return self.fields["type"] if self.fields["pod_count"] != "0" else "bad"

    @property
    def pod_count(self) -> int:
        """Workers to start, or to end."""
        return int(self.fields["pod_count"])


@dataclass
class Producer:
    """Sends events to a Redis that is up. One thread."""

    redis: Any
    dice: random.Random
    sent: list[Sent] = field(default_factory=list)

    def send(self) -> None:
        """One more event, or one of the last again."""
        chance = self.dice.random()
        ups = [event for event in self.sent[-12:] if event.kind == "scale_up"]
        if chance < 0.08 and ups:
            self._again()
        elif chance < 0.20 and ups:
            self._add(self._scale_down(self.dice.choice(ups)))
        elif chance < 0.25:
            self._add({"type": "scale_up", "pod_count": "0", "task_id": f"bad-{len(self.sent)}"})
        else:
            self._add(self._scale_up())

    def _scale_up(self) -> Fields:
        number = len(self.sent)
        fields = {"type": "scale_up", "pod_count": str(self.dice.randint(1, 5)), "task_id": f"task-{number}"}
        if self.dice.random() < 0.06:
            fields["supersedes"] = f"key-{self.dice.randint(1, 2)}"
        return fields

    def _scale_down(self, target: Sent) -> Fields:
        fields = {"type": "scale_down", "pod_count": str(self.dice.randint(1, 3))}
        if self.dice.random() < 0.8:
            fields["task_id"] = target.fields["task_id"]
        if self.dice.random() < 0.3:
            fields["mode"] = "drain"
        return fields

    def _add(self, fields: Fields) -> None:
        if self.dice.random() < 0.6:
            fields = {**fields, "event_id": f"event-{len(self.sent)}"}
        entry_id = str(self.redis.xadd(STREAM, fields))
        self.sent.append(Sent(fields.get("event_id", entry_id), fields))

    def _again(self) -> None:
        """What a producer does that got no answer: the same event once more."""
        named = [event for event in self.sent[-12:] if "event_id" in event.fields and event.kind != "bad"]
        if named:
            event = self.dice.choice(named)
            self.redis.xadd(STREAM, event.fields)
            event.copies += 1
