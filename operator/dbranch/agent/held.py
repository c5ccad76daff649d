"""Deletions that something on the node holds up: when they are tried again, and when that is reported."""

from __future__ import annotations

import time

from dbranch.agent.timing import (
    BUSY_RETRY_SECONDS,
    HELD_DELETION_LONGEST_RETRY_SECONDS,
    HELD_DELETION_REPORT_SECONDS,
)
from dbranch.runtime.backoff import Backoff


class HeldDeletions:
    """The objects that are being deleted and could not be, by UID. What holds one for a moment is not reported."""

    def __init__(self) -> None:
        self._backoff = Backoff(HELD_DELETION_LONGEST_RETRY_SECONDS)
        self._since: dict[str, float] = {}

    def hold(self, uid: str) -> tuple[float, bool]:
        """Record that a deletion is held up; return the seconds until the next try, and whether to report it."""
        now = time.monotonic()
        since = self._since.setdefault(uid, now)
        delay = self._backoff.fail(uid, BUSY_RETRY_SECONDS, None, now)
        return delay, now - since >= HELD_DELETION_REPORT_SECONDS

    def forget(self, uid: str) -> None:
        """Forget an object whose deletion goes on."""
        self._since.pop(uid, None)
        self._backoff.succeed(uid)
