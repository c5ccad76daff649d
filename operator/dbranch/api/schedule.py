"""The schedules of a branch, of its snapshots and of its refresh, as frozen dataclasses parsed from a DBBranch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from dbranch.api.enums import ScheduleState, WhenInUse
from dbranch.api.expiry import format_time, parse_time

DEFAULT_TIME_ZONE: Final = "Etc/UTC"
# A scheduled snapshot is not taken later than so long after its time.
SCHEDULE_DEADLINE: Final = timedelta(minutes=10)
# Of names that are made of the time of a run, in UTC: local time comes twice in autumn.
_MINUTE: Final = "%Y%m%d%H%M"


@dataclass(frozen=True)
class Schedule:
    """An entry of `spec.snapshots`, or `spec.refresh`. `cron`: five fields, of the clock of `time_zone`.

    `name` and `keep`, how many of its snapshots are kept: of snapshots only.
    """

    cron: str
    name: str = ""
    time_zone: str = DEFAULT_TIME_ZONE
    keep: int = 24
    state: ScheduleState = ScheduleState.ACTIVE
    when_in_use: WhenInUse = WhenInUse.REPLACE

    @property
    def active(self) -> bool:
        return self.state == ScheduleState.ACTIVE


@dataclass(frozen=True)
class Kept:
    """An entry of `status.snapshots.keep`: how many snapshots of a schedule are kept now.

    `next_count` takes its place at `next_time`: fewer are kept only after a grace.
    """

    name: str
    count: int
    next_count: int | None = None
    next_time: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as the API server stores it."""
        fields: dict[str, Any] = {"name": self.name, "count": self.count}
        if self.next_count is not None and self.next_time is not None:
            fields |= {"nextCount": self.next_count, "nextTime": format_time(self.next_time)}
        return fields


@dataclass(frozen=True)
class SnapshotsStatus:
    """`status.snapshots`. `last` and `next`: times of runs, as the schedules have them.

    `succeeded`: when the last scheduled snapshot was taken.
    """

    last: datetime | None = None
    succeeded: datetime | None = None
    next: datetime | None = None
    keep: tuple[Kept, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as the API server stores it."""
        times = {
            "lastScheduleTime": self.last,
            "lastSuccessfulTime": self.succeeded,
            "nextScheduleTime": self.next,
        }
        fields: dict[str, Any] = {key: format_time(time) for key, time in times.items() if time}
        return fields | ({"keep": [kept.as_dict() for kept in self.keep]} if self.keep else {})


def run_name(object_name: str, run: datetime, use: str = "") -> str:
    """Return the name of what the run of that minute makes: of a snapshot, with `use` `refresh` of a DBRestore.

    >>> run_name("shop-main", datetime(2030, 1, 31, 13, 40, tzinfo=UTC))
    'shop-main-203001311340'
    """
    return "-".join(filter(None, (object_name, use, run.astimezone(UTC).strftime(_MINUTE))))


def run_of(name: str) -> datetime | None:
    """Return the minute of the run that made the object of this name; None if none did.

    >>> run_of("shop-main-203001311340").isoformat()
    '2030-01-31T13:40:00+00:00'
    """
    text = name.rpartition("-")[2]
    if len(text) != len("203001311340") or not text.isdecimal():
        return None
    try:
        return datetime.strptime(text, _MINUTE).replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_schedules(raw: Any) -> tuple[Schedule, ...]:
    """Parse `spec.snapshots`."""
    return tuple(_parse(entry) for entry in raw or ())


def parse_refresh(raw: Any) -> Schedule | None:
    """Parse `spec.refresh`; None if there is none."""
    return _parse(raw) if raw else None


def _parse(raw: Mapping[str, Any]) -> Schedule:
    return Schedule(
        str(raw["schedule"]),
        str(raw.get("name", "")),
        str(raw.get("timeZone", Schedule.time_zone)),
        int(raw.get("keep", Schedule.keep)),
        ScheduleState(raw.get("state", Schedule.state)),
        WhenInUse(raw.get("whenInUse", Schedule.when_in_use)),
    )


def parse_snapshots_status(raw: Any) -> SnapshotsStatus:
    """Parse `status.snapshots`; what cannot be read is left out."""
    raw = raw or {}
    return SnapshotsStatus(
        parse_time(raw.get("lastScheduleTime")),
        parse_time(raw.get("lastSuccessfulTime")),
        parse_time(raw.get("nextScheduleTime")),
        tuple(
            Kept(
                str(entry["name"]),
                int(entry["count"]),
                entry.get("nextCount"),
                parse_time(entry.get("nextTime")),
            )
            for entry in raw.get("keep") or ()
        ),
    )
