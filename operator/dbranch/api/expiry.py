"""When branches and snapshots go by themselves: durations, moments, the grace, and what the specs ask for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from dbranch.api.errors import InvalidInput
from dbranch.api.quantity import parse_seconds

if TYPE_CHECKING:
    from dbranch.api.branch import Branch

# The value of a ttl of what does not expire.
NEVER: Final = "Never"
# What is new, shorter or no longer blocked takes effect after this time, or after the ttl if that is shorter.
EXPIRATION_GRACE: Final = timedelta(hours=24)


def parse_ttl(text: str | None) -> timedelta | None:
    """Parse a `ttl`, as in `168h`. None for None and Never, and for what cannot be read: that deletes nothing.

    >>> parse_ttl("1h30m"), parse_ttl("Never"), parse_ttl("soon")
    (datetime.timedelta(seconds=5400), None, None)
    """
    if text is None or text == NEVER:
        return None
    try:
        return timedelta(seconds=parse_seconds(text))
    except (InvalidInput, OverflowError):
        return None


def parse_time(text: str | None) -> datetime | None:
    """Parse an RFC 3339 timestamp; one without an offset is UTC. None for None, and for what cannot be read.

    >>> parse_time("2030-01-31T13:40:00+01:00"), parse_time("soon")
    (datetime.datetime(2030, 1, 31, 12, 40, tzinfo=datetime.timezone.utc), None)
    """
    try:
        moment = datetime.fromisoformat(text.upper()) if text else None
        if moment is None:
            return None
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def format_time(moment: datetime) -> str:
    """Return the RFC 3339 timestamp of a moment, in UTC and whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def with_grace(
    computed: datetime, in_force: datetime | None, ttl: timedelta, now: datetime
) -> tuple[datetime, bool]:
    """Return when something goes, and whether that is new or earlier than it was.

    `computed`: as the spec says now; `in_force`: as it was said before, None if it was not to go. What is later
    counts at once. What is new or earlier takes effect in no less than EXPIRATION_GRACE, or the ttl, from now on; a
    grace that was given once does not move on.
    """
    if in_force is not None and computed >= in_force:
        return computed, False
    graced = max(computed, now + min(EXPIRATION_GRACE, ttl))
    if in_force is not None and graced >= in_force:
        return in_force, False
    return graced, True


@dataclass(frozen=True)
class Deadline:
    """When a branch is to go by what the specs say. `ttl`: how long after its creation; `field`: which of them."""

    time: datetime
    ttl: timedelta
    field: str


# Values of Deadline.field.
FIELD_TTL: Final = "spec.ttl"
FIELD_EXPIRATION_TIME: Final = "spec.expirationTime"
FIELD_DEFAULT: Final = "spec.branchDefaults.ttl"
FIELD_CAP: Final = "spec.branchPolicy.maxTTL"


def asked_deadline(branch: Branch) -> Deadline | None:
    """Return when a branch is to go by its own spec and the default that it was born with; None: never.

    `spec.expirationTime` counts in place of a ttl. The root has no default.
    """
    created = parse_time(branch.created)
    if created is None:
        return None
    moment = parse_time(branch.expires)
    if moment is not None:
        # A moment that was past at the creation says nothing about how long the branch was to live.
        ttl = moment - created if moment > created else EXPIRATION_GRACE
        return Deadline(moment, ttl, FIELD_EXPIRATION_TIME)
    field, text = (FIELD_TTL, branch.ttl) if branch.ttl is not None else (FIELD_DEFAULT, branch.default_ttl)
    ttl_or_none = parse_ttl(text)
    return Deadline(created + ttl_or_none, ttl_or_none, field) if ttl_or_none else None


def deadline_of(branch: Branch, max_ttl: str | None) -> Deadline | None:
    """Return when a branch is to go; None: never. `max_ttl`: the project's, which caps all but the root."""
    asked, created, longest = asked_deadline(branch), parse_time(branch.created), parse_ttl(max_ttl)
    if created is None or longest is None or branch.is_root:
        return asked
    capped = Deadline(created + longest, longest, FIELD_CAP)
    return capped if asked is None or capped.time < asked.time else asked
