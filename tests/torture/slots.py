"""Places for controllers: each is started, killed and started again, under the same name or another."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.controller import Controller
from tests.torture import crashing_controller
from tests.torture.crash_points import RARE, STOPPING, USUAL, WIPED

#: A controller lives so long at most, seconds: mostly it dies before, at a point.
LIFE_S = 6.0
#: A stop in order takes at most SHUTDOWN_GRACE_S; the rest is for a loaded machine.
STOP_S = 30.0
ARMED_AT_ONCE = 8
#: This share of lives ends at any moment, and not at a point.
AT_RANDOM = 0.3
POINTS = (*USUAL, *RARE)


@dataclass
class Toll:
    """Where controllers died, and how often. One thread."""

    repetitions: int
    points: Counter[str] = field(default_factory=Counter)
    at_random: int = 0
    idle: int = 0
    stops: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Kills that found work in flight."""
        return self.at_random + sum(self.points[point] for point in POINTS)

    def missing(self) -> list[str]:
        """Points that have not had their repetitions."""
        return [point for point in POINTS if self.points[point] < self.repetitions]


class Slot:
    """One place. One thread."""

    def __init__(
        self, number: int, directory: Path, environ: Mapping[str, str], dice: random.Random, toll: Toll,
        in_flight: Callable[[], bool], *, mortal: bool = True,
    ) -> None:  # fmt: skip
        """`in_flight` says whether there is work that a kill can hurt. Without `mortal` no controller is killed."""
        self._mortal = mortal
        self._number = number
        self._directory = directory
        directory.mkdir(parents=True)
        self._environ = environ
        self._dice = dice
        self._toll = toll
        self._in_flight = in_flight
        self._name = f"otto-{number}"
        self._renamed = 0
        self._controller: Controller | None = None
        self._note = directory / "point"
        self._clock = directory / "clock"
        self._start_at = 0.0
        self._end_at: float | None = None
        self._stop_by: float | None = None
        self._armed: list[str] = []

    def tick(self, *, spared: bool) -> None:
        """Start it, or end it, if it is time; see how it ended by itself. One that is spared is left alone for now."""
        now = time.monotonic()
        if self._controller is None:
            if now >= self._start_at:
                self.start([] if spared else self._arms())
        elif (code := self._controller.process.poll()) is not None:
            self._ended(code)
        elif self._stop_by is not None:
            if now > self._stop_by:
                self._toll.faults.append(f"{self._name} does not stop: {self._controller.text[-2000:]}")
                self._kill()
        elif self._end_at is None:
            if "controller.started" in self._controller.text:  # before that it does not even know a SIGTERM
                self._end_at = now + self._dice.uniform(0, LIFE_S)
        elif now >= self._end_at and not spared and self._mortal:
            self._end(now)

    def watch(self) -> None:
        """Only see whether it ended by itself."""
        if self._controller is not None and (code := self._controller.process.poll()) is not None:
            self._ended(code)

    def close(self) -> None:
        """End it; idempotent."""
        if self._controller is not None and self._controller.process.poll() is None:
            self._controller.kill()
        self._controller = None

    def shift(self, seconds: int) -> None:
        """The wall clock of its controllers is wrong by this much."""
        self._clock.write_text(str(seconds), encoding="utf-8")

    def start(self, armed: Sequence[str]) -> None:
        """Start a controller that dies at the first of these points."""
        self._note.unlink(missing_ok=True)
        visits = [f"{point}:{self._visits(point)}" for point in armed]
        command = ["-m", crashing_controller.__name__, str(self._note), str(self._clock), *visits]
        self._armed = list(armed)
        self._controller = Controller(self._directory, {**self._environ, "REDIS_CONSUMER": self._name}, command)
        self._stop_by = None
        self._end_at = None

    def _visits(self, point: str) -> int:
        """First where it comes at once, for not all come often; then later in a life, too."""
        return self._dice.randint(1, 3) if self._toll.points[point] and point not in (*RARE, *STOPPING, *WIPED) else 1

    def _arms(self) -> list[str]:
        missing = self._toll.missing()
        if self._dice.random() < AT_RANDOM or not missing or not self._mortal:
            return []
        mixed = self._dice.sample(missing, len(missing))
        return sorted(mixed, key=lambda point: self._toll.points[point])[:ARMED_AT_ONCE]

    def _end(self, now: float) -> None:
        assert self._controller is not None
        if set(self._armed) & set(STOPPING) or self._dice.random() < 0.1:
            self._controller.process.send_signal(signal.SIGTERM)
            self._stop_by = now + STOP_S
        elif self._in_flight():
            self._kill()
            self._toll.at_random += 1

    def _kill(self) -> None:
        assert self._controller is not None
        self._controller.kill()
        self._gone()

    def _ended(self, code: int) -> None:
        assert self._controller is not None
        point = self._note.read_text(encoding="utf-8") if self._note.exists() else ""
        if code == -signal.SIGKILL and point:
            if point in WIPED or self._in_flight():
                self._toll.points[point] += 1
            else:
                self._toll.idle += 1
        elif code == 0 and self._stop_by is not None:
            self._toll.stops += 1
        else:
            self._toll.faults.append(f"{self._name} ended with code {code}: {self._controller.text[-2000:]}")
        self._gone()

    def _gone(self) -> None:
        """The next one comes at once or a little later, as the same consumer or as another."""
        self._controller = None
        self._start_at = time.monotonic() + self._dice.choice((0.0, 0.0, self._dice.uniform(0.2, 2.0)))
        if self._dice.random() < 0.3:
            self._renamed += 1
            self._name = f"otto-{self._number}-{self._renamed}"
