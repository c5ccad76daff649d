"""The delays after failures."""

from __future__ import annotations

from dbranch.runtime.backoff import Backoff


def test_the_delay_doubles_up_to_the_limit() -> None:
    backoff, now, delays = Backoff(limit=300.0), 0.0, []
    for _ in range(8):
        delays.append(backoff.fail("x", 10.0, 1, now))
        now += delays[-1]
    assert delays == [10, 20, 40, 80, 160, 300, 300, 300]


def test_success_or_another_version_begins_anew() -> None:
    backoff = Backoff(limit=300.0)
    for now in (0.0, 2.0, 6.0):
        backoff.fail("x", 2.0, 1, now)
    assert backoff.remaining("x", 1, 6.0) == 8.0
    assert backoff.remaining("x", 2, 6.0) == 0.0 == backoff.remaining("y", 1, 6.0)
    assert backoff.fail("x", 2.0, 2, 6.0) == 2.0
    backoff.succeed("x")
    backoff.succeed("x")
    assert backoff.remaining("x", 2, 6.0) == 0.0
    assert backoff.fail("x", 2.0, 2, 6.0) == 2.0


def test_failures_that_events_start_meanwhile_do_not_count() -> None:
    backoff = Backoff(limit=300.0)
    assert [backoff.fail("x", 10.0, 1, now) for now in (0.0, 1.0, 9.0)] == [10.0, 9.0, 1.0]
    assert backoff.fail("x", 10.0, 1, 10.0) == 20.0
