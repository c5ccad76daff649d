"""The time of day by the API server's clock: that of a node or of a user's machine may be wrong."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime


class ServerClock:
    """The API server's clock, as the header `Date` of its last answer has it (RFC 9110, 6.6.1). Thread-safe."""

    def __init__(self) -> None:
        # The header, and when it came by this process' clock, as `time.monotonic()` counts.
        self._date: tuple[str, float] | None = None

    @property
    def is_set(self) -> bool:
        """True once an answer has come."""
        return self._date is not None

    def set(self, date: str | None) -> None:
        """Take the header `Date` of an answer that has just come; None: it had none."""
        if date:
            self._date = date, time.monotonic()

    def now(self) -> datetime:
        """Return the time of day; before the first answer by this process' own clock."""
        if self._date is None:
            return datetime.now(UTC)
        date, came_at = self._date
        return parsedate_to_datetime(date) + timedelta(seconds=time.monotonic() - came_at)
