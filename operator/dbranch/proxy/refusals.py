"""Log lines of connections that did not become sessions: anybody can cause them, so their number is bounded."""

from __future__ import annotations

import logging
from typing import Any, Final

from dbranch.api.conditions import printable

MAX_LINES_PER_SECOND: Final = 100
# The longest value of a field that a client chooses.
MAX_FIELD_CHARACTERS: Final = 128


class RefusalLog:
    """Logs at most one line a second for each address, and MAX_LINES_PER_SECOND for all.

    The next line has the number of those that were left out since the last one, as `left_out`.
    """

    def __init__(self) -> None:
        self._second = 0
        self._logged_addresses: set[str] = set()
        self._left_out = 0

    def log(
        self, logger: logging.Logger, message: str, address: str, now: float, fields: dict[str, Any]
    ) -> None:
        """Log `message` with `fields`, for a client at `address`, at loop time `now`, within the limits."""
        if int(now) != self._second:
            self._second = int(now)
            self._logged_addresses.clear()
        if address in self._logged_addresses or len(self._logged_addresses) >= MAX_LINES_PER_SECOND:
            self._left_out += 1
            return
        self._logged_addresses.add(address)
        if self._left_out:
            fields = {**fields, "left_out": self._left_out}
            self._left_out = 0
        logger.info(message, extra={"fields": fields})


def clip_field(text: str) -> str:
    r"""Return a text that a client has chosen, cut to MAX_FIELD_CHARACTERS, and printable.

    >>> clip_field("psql\x1b[2J")
    'psql\\x1b[2J'
    """
    if len(text) > MAX_FIELD_CHARACTERS:
        text = text[:MAX_FIELD_CHARACTERS] + "…"
    return printable(text)
