"""Logs once that every object that existed at the start has been reconciled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

logger = logging.getLogger(__name__)

Key = tuple[str, str]


class InitialSync:
    """The objects, by (namespace, name), that existed at the start and have not been reconciled yet.

    Reconciles may be marked before `begin`; objects that are created later do not count. Thread-safe.
    """

    def __init__(self, plural: str) -> None:
        self._plural, self._started = plural, time.monotonic()
        self._lock = threading.Lock()
        self._reconciled_early: set[Key] = set()
        self._remaining: set[Key] | None = None
        self._count = 0

    def begin(self, existing: Iterable[Key]) -> None:
        """Set the objects that exist at the start; only the first call counts."""
        with self._lock:
            if self._remaining is None:
                keys = set(existing)
                self._count, self._remaining = len(keys), keys - self._reconciled_early
                self._reconciled_early.clear()
                self._log_if_complete()

    def mark_reconciled(self, namespace: str, name: str) -> None:
        """Mark an object whose reconcile returned, or that is gone."""
        key = namespace, name
        with self._lock:
            if self._remaining is None:
                self._reconciled_early.add(key)
            elif key in self._remaining:
                self._remaining.discard(key)
                self._log_if_complete()

    def _log_if_complete(self) -> None:
        if self._count and not self._remaining:
            seconds = time.monotonic() - self._started
            logger.info("all %d %s reconciled %.1f s after the start", self._count, self._plural, seconds)
