"""Durations and moments as people type and read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from dbranch.api.errors import InvalidInput
from dbranch.api.expiry import NEVER
from dbranch.api.quantity import parse_seconds
from dbranch_cli.formatting import format_age

_DAYS: Final = re.compile(r"([0-9]+)([dw])")
_NOTHING: Final = re.compile(r"0+[smhdw]")
_HOURS: Final[Mapping[str, int]] = {"d": 24, "w": 7 * 24}


def parse_ttl(text: str, option: str = "--ttl") -> str:
    """Return a duration as the API takes it: days and weeks in hours. Raise InvalidInput if it is none.

    >>> parse_ttl("7d"), parse_ttl("1h30m"), parse_ttl("never")
    ('168h', '1h30m', 'Never')
    """
    if text.capitalize() == NEVER:
        return NEVER
    days = _DAYS.fullmatch(text)
    if days and int(days[1]):
        return f"{int(days[1]) * _HOURS[days[2]]}h"
    if not re.fullmatch(r"([0-9]{1,7}[hms]){1,3}", text) or parse_seconds(text) <= 0:
        raise InvalidInput(f'invalid {option} "{text}": write it as 90m, 12h, 7d or 2w, or Never')
    return text


def parse_period(text: str, label: str) -> timedelta:
    """Return a duration that ends. `label`: how it is called. Raise InvalidInput if it is none.

    >>> parse_period("2d", "DURATION")
    datetime.timedelta(days=2)
    """
    hours = parse_ttl(text, label)
    if hours == NEVER:
        raise InvalidInput(f'invalid {label} "{text}": write it as 90m, 12h, 7d or 2w')
    return timedelta(seconds=parse_seconds(hours))


def parse_moment(text: str, now: datetime) -> datetime:
    """Return the moment of `2h ago`, `in 3d`, or a time: RFC 3339, local without an offset. Raise InvalidInput.

    >>> parse_moment("2h ago", datetime(2030, 1, 2, tzinfo=UTC)).isoformat()
    '2030-01-01T22:00:00+00:00'
    >>> parse_moment("in 1w", datetime(2030, 1, 2, tzinfo=UTC)).isoformat()
    '2030-01-09T00:00:00+00:00'
    >>> parse_moment("0s ago", datetime(2030, 1, 2, tzinfo=UTC)).isoformat()
    '2030-01-02T00:00:00+00:00'
    """
    ago = text.removesuffix("ago").strip() if text.endswith("ago") else None
    ahead = text.removeprefix("in ").strip() if text.startswith("in ") else None
    try:
        if ago or ahead:
            text_of_period = ago or ahead or ""
            is_nothing = _NOTHING.fullmatch(text_of_period)
            period = timedelta() if is_nothing else parse_period(text_of_period, "time")
            return now - period if ago else now + period
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return moment if moment.tzinfo else moment.astimezone()
    except (InvalidInput, ValueError, OverflowError) as error:
        message = f'invalid time "{text}": write it as "2h ago", "in 3d" or 2030-01-31T13:40:00Z'
        raise InvalidInput(message) from error


def format_until(time: str | None, now: datetime | None = None) -> str:
    """Return the time until `time` (RFC 3339): `in 6d`, `now`; `-` for None."""
    if not time:
        return "-"
    now = now or datetime.now(UTC)
    left = datetime.fromisoformat(time.replace("Z", "+00:00")) - now
    if left <= timedelta(0):
        return "now"
    return f"in {format_age((now - left).isoformat(), now)}"


def format_moment(moment: datetime, now: datetime) -> str:
    """Return a moment in the time zone of `now`, for a sentence.

    >>> now = datetime(2030, 1, 13, 12, tzinfo=UTC)
    >>> [format_moment(now + timedelta(hours=hours), now) for hours in (2, 26, 50)]
    ['today 14:00', 'tomorrow 14:00', '2030-01-15 14:00']
    """
    local = moment.astimezone(now.tzinfo)
    days = (local.date() - now.date()).days
    day = {0: "today", 1: "tomorrow"}.get(days, f"{local:%Y-%m-%d}")
    return f"{day} {local:%H:%M}"
