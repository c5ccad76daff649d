"""Times of schedules: which are valid, and what a change of the clock does to them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.api.errors import InvalidInput
from dbranch.api.schedule import Schedule
from dbranch.controller.cron import check_schedule, is_valid, last_run, next_run, shortest_interval

BERLIN = "Europe/Berlin"
ZONES = ("Etc/UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")
CRONS = (
    "0 * * * *",
    "*/15 * * * *",
    "0 3 * * *",
    "30 2 * * *",
    "30 1,2 * * *",
    "5 */6 * * *",
    "15 2 * * SUN",
)


def runs(cron: str, zone: str, start: str, end: str) -> list[str]:
    """Return the times of a schedule between two moments, in UTC."""
    times, moment, until = [], datetime.fromisoformat(start), datetime.fromisoformat(end)
    while (following := next_run([Schedule(cron, time_zone=zone)], moment)) and following <= until:
        times.append(following.strftime("%dT%H:%M"))
        moment = following
    return times


@pytest.mark.parametrize(
    ("cron", "zone", "part"),
    [
        ("61 * * * *", "Etc/UTC", "bad minute"),
        ("0 24 * * *", "Etc/UTC", "bad hour"),
        ("0 0 31 2 *", "Etc/UTC", "bad day-of-month"),
        ("0 0 * * MOO", "Etc/UTC", "bad day-of-week"),
        ("* * */20 * 1L", "Etc/UTC", "50 years"),
        ("0 0 * * 1L/2", "Etc/UTC", "bad day-of-week"),
        ("0 0 L,1/2 * *", "Etc/UTC", ""),
        ("* * * * * *", "Etc/UTC", "five fields"),
        ("@daily", "Etc/UTC", "five fields"),
        ("0 * * * *", "Mars/Olympus", "no time zone Mars/Olympus"),
        ("0 * * * *", "Europe", "no time zone"),
        ("0 * * * *", "../etc/passwd", "no time zone"),
        ("0 * * * *", "Etc/UTC\0", "no time zone"),
    ],
)
def test_what_only_the_library_sees(cron: str, zone: str, part: str) -> None:
    schedule = Schedule(cron, time_zone=zone)
    if not part:
        assert is_valid(schedule)
        return
    with pytest.raises(InvalidInput, match=part):
        check_schedule(schedule)
    assert not is_valid(schedule) and next_run([schedule], datetime.now(UTC)) is None
    assert last_run(schedule, datetime.now(UTC)) is None and shortest_interval([schedule]) is None


def test_a_night_in_which_the_clock_is_put_forward() -> None:
    day = ("2026-03-29T00:00:00+00:00", "2026-03-29T03:30:00+00:00")
    # At 01:00 UTC it becomes three o'clock. What was to run at half past two runs right behind.
    assert runs("30 2 * * *", BERLIN, *day) == ["29T01:00"]
    assert runs("0 3 * * *", BERLIN, *day) == ["29T01:00"]
    assert runs("0 * * * *", BERLIN, *day) == ["29T01:00", "29T02:00", "29T03:00"]


def test_a_night_in_which_the_clock_is_put_back() -> None:
    night = ("2026-10-24T23:30:00+00:00", "2026-10-25T03:30:00+00:00")
    # From 00:00 to 02:00 UTC it is twice between two and three o'clock.
    assert runs("30 2 * * *", BERLIN, *night) == ["25T00:30"]
    assert runs("0 * * * *", BERLIN, *night) == ["25T00:00", "25T01:00", "25T02:00", "25T03:00"]
    # In the second of the two hours it is over.
    second = datetime.fromisoformat("2026-10-25T01:10:00+00:00")
    half_past = Schedule("30 2 * * *", time_zone=BERLIN)
    assert next_run([half_past], second) == datetime.fromisoformat("2026-10-26T01:30:00+00:00")
    assert last_run(half_past, second) == datetime.fromisoformat("2026-10-25T00:30:00+00:00")


def test_the_shortest_time_between_two_runs() -> None:
    assert shortest_interval([Schedule("0 * * * *"), Schedule("0 3 * * *")]) == timedelta(hours=1)
    assert shortest_interval([Schedule("0 9-17 * * 1-5")]) == timedelta(hours=1)
    assert shortest_interval([]) is None


moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)
# Around the nights in which clocks change.
nights = st.builds(
    lambda day, seconds: datetime.fromisoformat(f"{day}T00:00:00+00:00") + timedelta(seconds=seconds),
    st.sampled_from(["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-10-03", "2026-04-04"]),
    st.integers(-6 * 3600, 30 * 3600),
)


@given(st.sampled_from(CRONS), st.sampled_from(ZONES), moments | nights)
def test_forwards_and_backwards_it_is_the_same_times(cron: str, zone: str, moment: datetime) -> None:
    """Croniter 6 fails here: in Lord Howe, whose clock is changed by half an hour."""
    schedule = Schedule(cron, time_zone=zone)
    following, previous = next_run([schedule], moment), last_run(schedule, moment)
    assert following and previous and previous <= moment < following
    assert next_run([schedule], previous) == following
    assert last_run(schedule, following) == following
    assert last_run(schedule, following - timedelta(seconds=1)) == previous
    assert ZoneInfo(zone) and following - previous <= timedelta(days=9)
