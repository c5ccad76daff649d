"""Heartbeats of loops: one that ends or does not come round fails the liveness probe."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dbranch.runtime.heartbeats import Heartbeats


class Looping:
    """A loop and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heartbeats = Heartbeats(lambda: self.now)

    def loop(self, beat: Callable[[], None]) -> None:
        assert self.heartbeats.trouble() is None
        self.now += 599.0
        assert self.heartbeats.trouble() is None
        beat()
        self.now += 599.0
        assert self.heartbeats.trouble() is None
        self.now += 2.0
        assert self.heartbeats.trouble() == "the loop of housekeeping has not come round for 601 s"
        beat()
        assert self.heartbeats.trouble() is None


def test_a_loop_that_does_not_come_round_is_trouble_until_it_does() -> None:
    loops = Looping()
    assert loops.heartbeats.trouble() is None
    loops.heartbeats.run("housekeeping", loops.loop)
    assert loops.heartbeats.trouble() == "the loop of housekeeping has ended"


def test_a_loop_that_an_exception_ends_is_trouble_at_once() -> None:
    heartbeats = Heartbeats()
    with pytest.raises(ZeroDivisionError):
        heartbeats.run("warm slots", lambda beat: [][1 // 0])
    assert heartbeats.trouble() == "the loop of warm slots has ended"


def test_each_loop_is_looked_at_by_itself() -> None:
    now = 0.0
    heartbeats = Heartbeats(lambda: now)

    def outer(beat: Callable[[], None]) -> None:
        def inner(beat_inner: Callable[[], None]) -> None:
            nonlocal now
            now = 700.0
            beat_inner()
            assert heartbeats.trouble() == "the loop of outer has not come round for 700 s"

        heartbeats.run("inner", inner)

    heartbeats.run("outer", outer)
