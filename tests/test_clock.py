"""The process's two clocks: one that cannot be set, and one that is right as soon as it was set."""

from __future__ import annotations

import time

import pytest

from ottoscaler.clock import SystemClock


@pytest.mark.parametrize("off_s", [-4200.0, -1.0, 1.0, 4200.0])
def test_setting_the_wall_clock_changes_what_is_shown_and_nothing_that_is_measured(
    monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    """Forwards or backwards, after the start of the process."""
    clock, real = SystemClock(), time.time
    began, shown = clock.now(), clock.wall_time(clock.now())
    monkeypatch.setattr(time, "time", lambda: real() + off_s)
    assert 0 <= clock.now() - began < 60
    assert off_s <= clock.wall_time(clock.now()) - shown < off_s + 60
    assert clock.wall_time(began) == pytest.approx(shown + off_s, abs=1)


def test_a_clock_that_was_wrong_at_the_start_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What people read follows the machine's clock."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 4200)
    clock = SystemClock()
    monkeypatch.undo()
    assert clock.wall_time(clock.now()) == pytest.approx(time.time(), abs=1)
