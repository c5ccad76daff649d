"""A clock that jumps is believed only after it has gone on evenly for a while."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dbranch.runtime.steady_clock import SteadyClock

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class _World:
    """A clock with an error, and the seconds of the process."""

    def __init__(self) -> None:
        self.seconds, self.error = 0.0, timedelta(0)
        self.clock = SteadyClock(lambda: self.right + self.error, lambda: self.seconds)

    @property
    def right(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def after(self, seconds: float) -> datetime:
        self.seconds += seconds
        return self.clock()


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 400 * 24 * HOUR, -400 * 24 * HOUR])
def test_a_jump_that_is_taken_back_is_never_seen(jump: timedelta) -> None:
    world = _World()
    assert world.clock() == START and world.after(5) == world.right
    world.error = jump
    for _ in range(20):
        assert world.after(29) == world.right
    world.error = timedelta(0)
    assert world.after(5) == world.right
    # Nor the next one: its time begins anew.
    world.error = jump
    assert world.after(100) == world.right


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_a_jump_that_stays_counts_after_ten_minutes(jump: timedelta) -> None:
    world = _World()
    world.clock()
    world.error = jump
    assert world.after(1) == world.right and world.after(599) == world.right
    assert world.after(2) == world.right + jump and world.after(5) == world.right + jump


def test_a_clock_that_jumps_about_is_not_believed() -> None:
    world = _World()
    world.clock()
    for number in range(100):
        world.error = number * HOUR
        assert world.after(300) == world.right


def test_small_differences_are_followed() -> None:
    world = _World()
    world.clock()
    for number in range(100):
        world.error = timedelta(seconds=number * 50)
        assert world.after(5) == world.right + world.error
