"""The texts of a branch's schedules, from the API server's JSON. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dbranch.api.expiry import parse_time
from dbranch.api.schedule import (
    DEFAULT_TIME_ZONE,
    Schedule,
    parse_refresh,
    parse_schedules,
    parse_snapshots_status,
)
from dbranch_cli.formatting import format_age, format_fields, format_table
from dbranch_cli.objects import source_of

Json = Mapping[str, Any]


def schedule_block(body: Json, now: datetime | None = None) -> str:
    """Return the text of `dbranch schedule BRANCH`: its schedules, the last run and the next."""
    now = now or datetime.now(UTC)
    spec, status = body["spec"], body.get("status") or {}
    snapshots, refresh = parse_schedules(spec.get("snapshots")), parse_refresh(spec.get("refresh"))
    rows = [["snapshots", s.name, s.cron, s.time_zone, f"{s.keep}", s.state.value] for s in snapshots]
    if refresh:
        rows.append(["refresh", "-", refresh.cron, refresh.time_zone, "-", refresh.state.value])
    parts = [format_table(["MAKES", "NAME", "SCHEDULE", "TIME ZONE", "KEEP", "STATE"], rows)]
    pairs: list[tuple[str, str]] = []
    if snapshots:
        runs = parse_snapshots_status(status.get("snapshots"))
        pairs += [("Last snapshot", _ago(runs.succeeded, now)), ("Next snapshot", _next(runs.next, now))]
        pairs += [
            ("Keep", f"{kept.count} of {kept.name} until {_text(kept.next_time)}, then {kept.next_count}")
            for kept in runs.keep
            if kept.next_time
        ]
    if refresh:
        times = status.get("refresh") or {}
        pairs += [
            ("Last refresh", _ago(parse_time(times.get("lastScheduleTime")), now)),
            ("Next refresh", _text(parse_time(times.get("nextScheduleTime")))),
        ]
    return "\n".join([*parts, "", format_fields(pairs)])


def refresh_line(body: Json) -> str | None:
    """Return what `show` says at the top of a branch that is refreshed; None if it is not, or that is paused.

    >>> spec = {"source": "main", "refresh": {"schedule": "0 3 * * *"}}
    >>> refresh_line({"metadata": {"name": "shop-x"}, "spec": spec})
    'refreshed 03:00 daily from main: changes here do not last'
    """
    refresh = parse_refresh(body["spec"].get("refresh"))
    if refresh is None or not refresh.active:
        return None
    source = source_of(body) or "its upstream"
    return f"refreshed {when_text(refresh)} from {source}: changes here do not last"


def when_text(schedule: Schedule) -> str:
    """Return when a schedule's runs are, in words.

    >>> when_text(Schedule("0 3 * * *")), when_text(Schedule("*/5 1 * * *", time_zone="Europe/Berlin"))
    ('03:00 daily', 'by "*/5 1 * * *" Europe/Berlin')
    """
    daily = re.fullmatch(r"(\d{1,2}) (\d{1,2}) \* \* \*", schedule.cron)
    text = f"{int(daily[2]):02}:{int(daily[1]):02} daily" if daily else f'by "{schedule.cron}"'
    return text if schedule.time_zone == DEFAULT_TIME_ZONE else f"{text} {schedule.time_zone}"


def _text(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC") if moment else "-"


def _ago(moment: datetime | None, now: datetime) -> str:
    return f"{_text(moment)} ({format_age(moment.isoformat(), now)} ago)" if moment else "-"


def _next(moment: datetime | None, now: datetime) -> str:
    """Return when the next snapshot is taken. A time that has passed: nothing was written since the last one."""
    if moment is not None and (now - moment).total_seconds() > 1800:
        return "at the next run after something is written"
    return _text(moment)
