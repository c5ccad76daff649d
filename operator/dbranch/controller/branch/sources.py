"""Copies are bound to a source, and a source is let go of: never both at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from dbranch.runtime.locks import KeyedLocks

# The caches have heard of a deletion long before.
_REMEMBERED_SECONDS: Final = 600.0


class Sources:
    """The sources that have been let go of a short time ago: no branch may be bound to one any more. Thread-safe.

    A copy that is bound behind the deletion of its source could never be taken. There is one controller, so a lock in
    its process is enough; one that starts lists all branches before its first reconcile.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._locks = KeyedLocks()
        self._closed: dict[str, float] = {}

    @contextmanager
    def held(self, uid: str | None) -> Iterator[bool]:
        """Hold the source; yield True if it may be used (None: there is none)."""
        if uid is None:
            yield True
            return
        with self._locks.held("", uid):
            yield uid not in self._closed

    def close(self, uid: str) -> None:
        """Bind no branch to this source any more. Call it while the source is held."""
        now = self._clock()
        for other, closed_at in list(self._closed.items()):
            if now - closed_at > _REMEMBERED_SECONDS:
                self._closed.pop(other, None)
        self._closed[uid] = now
