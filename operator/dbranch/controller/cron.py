"""The times of a schedule: five fields of cron, by the clock of a time zone. Pure.

By cronsim, which does as Debian's cron where a clock is changed: what is to run at an hour that is left out runs
right behind it, and what is to run at an hour that comes twice runs once; `*` in the minutes or hours follows the
time that has really passed. (croniter's `get_prev` and `get_next` disagree where a change is not of a whole hour:
issue 258 there.) Time zones are those of the package tzdata: the image has no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

from dbranch.api.errors import InvalidInput
from dbranch.api.schedule import Schedule

_FIELDS: Final = 5
_SECOND: Final = timedelta(seconds=1)
# From here on the shortest time between two runs is looked for, among so many runs.
_SAMPLE_START: Final = datetime(2024, 1, 1, tzinfo=UTC)
_SAMPLE_RUNS: Final = 100
_MAX_REMEMBERED: Final = 2000


def check_schedule(schedule: Schedule) -> None:
    """Raise InvalidInput, which says what is wrong, if the schedule has no times."""
    try:
        zone = ZoneInfo(schedule.time_zone)
    except Exception as error:
        # A directory of the package, a file in it that is none, a name with "..": each raises something else.
        raise InvalidInput(f"there is no time zone {schedule.time_zone}") from error
    if len(schedule.cron.split()) != _FIELDS:
        raise InvalidInput(f'"{schedule.cron}" has not the five fields of cron')
    try:
        next(CronSim(schedule.cron, _SAMPLE_START.astimezone(zone)))
    except StopIteration as error:
        raise InvalidInput(f'"{schedule.cron}" has no time within 50 years') from error
    except Exception as error:
        # CronSimError mostly, but it has asserts, too.
        detail = str(error)[:1].lower() + str(error)[1:] if str(error) else "it cannot be read"
        raise InvalidInput(f'"{schedule.cron}": {detail}') from error


def is_valid(schedule: Schedule) -> bool:
    """Return True if the schedule has times."""
    return _is_valid(schedule.cron, schedule.time_zone)


def next_run(schedules: Iterable[Schedule], after: datetime) -> datetime | None:
    """Return the first time of the schedules after that moment, in UTC; None if none has times."""
    times = [_next(s.cron, s.time_zone, after) for s in schedules if is_valid(s)]
    return min((time for time in times if time), default=None)


def last_run(schedule: Schedule, until: datetime) -> datetime | None:
    """Return the last time of the schedule that is not after that moment, in UTC; None if it has no times."""
    return _last(schedule.cron, schedule.time_zone, until) if is_valid(schedule) else None


def shortest_interval(schedules: Iterable[Schedule]) -> timedelta | None:
    """Return the shortest time between two runs of one of the schedules; None if none has times."""
    intervals = [_interval(s.cron, s.time_zone) for s in schedules if is_valid(s)]
    return min((interval for interval in intervals if interval), default=None)


@lru_cache(_MAX_REMEMBERED)
def _is_valid(cron: str, zone: str) -> bool:
    try:
        check_schedule(Schedule(cron, time_zone=zone))
    except InvalidInput:
        return False
    return True


def _next(cron: str, zone: str, after: datetime) -> datetime | None:
    # In the second of two hours with the same name cronsim returns what was in the first, which is over.
    times = (time.astimezone(UTC) for time in CronSim(cron, after.astimezone(ZoneInfo(zone))))
    return next((time for time in times if time > after), None)


def _last(cron: str, zone: str, until: datetime) -> datetime | None:
    start = (until.replace(microsecond=0) + _SECOND).astimezone(ZoneInfo(zone))
    times = (time.astimezone(UTC) for time in CronSim(cron, start, reverse=True))
    last = next((time for time in times if time <= until), None)
    # And backwards it leaves that one out.
    while last is not None and (next_run := _next(cron, zone, last)) is not None and next_run <= until:
        last = next_run
    return last


@lru_cache(_MAX_REMEMBERED)
def _interval(cron: str, zone: str) -> timedelta | None:
    runs = islice(CronSim(cron, _SAMPLE_START.astimezone(ZoneInfo(zone))), _SAMPLE_RUNS)
    times = [time.astimezone(UTC) for time in runs]
    return min((end - start for start, end in pairwise(times)), default=None)
