"""The choice of victims: what a scale_down asks for, what it gets, and what it has to wait for.

A choice is made once, in Redis, in one step with the marks of its victims, and in the order of the stream. So a worker
is the victim of one choice, and what one replica believes about the workers may be old without harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ottoscaler.core.termination import Termination


@dataclass(frozen=True, slots=True)
class Victim:
    """One worker that a scale_down chose: event, index and, where one was seen, the name of its pod."""

    event_id: str
    index: int
    pod: str = ""


@dataclass(frozen=True, slots=True)
class VictimRequest:
    """What a scale_down, or an event that supersedes others, asks for: at most `count` victims (0: all) out of the
    `candidates`, in this order of preference. Each victim gets the mark `termination`. `spared_pods` are the pods of
    the workers that it may not end.
    """

    termination: Termination
    candidates: Sequence[Victim]
    count: int = 0
    spared_pods: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class VictimSelection:
    """The stored choice of a scale_down: its victims, and the pods of the workers that stay."""

    victims: Sequence[Victim]
    survivors: Sequence[str]


@dataclass(frozen=True, slots=True)
class BlockingEvent:
    """An older event that has to come first: the id of an entry that is unread or not accepted yet; or, with its
    `owner`, the id of an accepted event that has its own victims still to choose.
    """

    blocking_id: str
    owner: str = ""
