"""Says once that every object that was there at the start has been visited."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

logger = logging.getLogger(__name__)

Key = tuple[str, str]


class InitialSync:
    """Objects by (namespace, name). Visits may come before `begin`; what is made later does not count."""

    def __init__(self, what: str) -> None:
        self._what, self._began = what, time.monotonic()
        self._guard = threading.Lock()
        self._seen: set[Key] = set()
        self._left: set[Key] | None = None
        self._count = 0

    def begin(self, there: Iterable[Key]) -> None:
        """These are there; only the first call counts."""
        with self._guard:
            if self._left is None:
                every = set(there)
                self._count, self._left = len(every), every - self._seen
                self._seen.clear()
                self._tell_if_over()

    def visited(self, namespace: str, name: str) -> None:
        """A visit went to its end, or the object is gone."""
        key = namespace, name
        with self._guard:
            if self._left is None:
                self._seen.add(key)
            elif key in self._left:
                self._left.discard(key)
                self._tell_if_over()

    def _tell_if_over(self) -> None:
        if self._count and not self._left:
            passed = time.monotonic() - self._began
            logger.info("all %d %s visited %.1f s after the start", self._count, self._what, passed)
