"""The API server's time of day, believed only while it goes on evenly."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

logger = logging.getLogger(__name__)

# What clocks of several API servers, and the seconds of a header, may differ by.
_TOLERANCE: Final = timedelta(seconds=60)
# A machine that slept, or a clock that was set right, is believed after this time.
_PROBATION_SECONDS: Final = 600.0


class SteadyClock:
    """A clock for what deletes: called, it returns the time of day. Thread-safe.

    `read`: the clock that it follows; `monotonic`: seconds of the process. While the clock that is followed has
    jumped, forth or back, the time goes on as before; the new one counts once it has gone on evenly for ten minutes.
    A clock that is wrong for a while deletes nothing.
    """

    def __init__(self, read: Callable[[], datetime], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._read, self._monotonic = read, monotonic
        self._lock = threading.Lock()
        # The last time that was believed, and when that was read.
        self._believed: tuple[datetime, float] | None = None
        # By how much the clock has jumped, and since when it has.
        self._jump: tuple[timedelta, float] | None = None

    def __call__(self) -> datetime:
        with self._lock:
            read, now = self._read(), self._monotonic()
            if self._believed is None:
                self._believed = read, now
                return read
            believed, read_at = self._believed
            expected = believed + timedelta(seconds=now - read_at)
            difference = read - expected
            if abs(difference) > _TOLERANCE:
                if self._jump is None or abs(difference - self._jump[0]) > _TOLERANCE:
                    self._jump = difference, now
                    logger.warning(
                        "the API server's clock has jumped by %.0f s; nothing is deleted by it for %.0f s",
                        difference.total_seconds(),
                        _PROBATION_SECONDS,
                    )
                if now - self._jump[1] < _PROBATION_SECONDS:
                    return expected
            self._believed, self._jump = (read, now), None
            return read
