"""How many projects' proxies are replaced at once: a new release would replace all of them together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from dbranch.controller.timing import MAX_PROXY_ROLLOUTS, PROXY_ROLLOUT_SECONDS
from dbranch.runtime.result import Key


def is_rolled_out(deployment: Mapping[str, Any] | None) -> bool:
    """Return True if every pod of the Deployment is of its present template, and available; also if it is gone."""
    if deployment is None:
        return True
    status, replicas = deployment.get("status") or {}, (deployment.get("spec") or {}).get("replicas", 1)
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return False
    counts = [status.get(count, 0) for count in ("replicas", "updatedReplicas", "availableReplicas")]
    return counts == [replicas] * 3


class Rollouts:
    """The projects whose proxies are being replaced, and those that wait for their turn. Thread-safe.

    A rollout that does not end (the new image cannot be pulled, say) keeps the others waiting for a limited time: the
    old proxies serve meanwhile. `on_free` is called with a project that waits, when there is room.
    """

    def __init__(
        self,
        limit: int = MAX_PROXY_ROLLOUTS,
        seconds: float = PROXY_ROLLOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._guard = threading.Lock()
        # When each began, and who waits, in that order.
        self._running: dict[Key, float] = {}
        self._waiting: dict[Key, None] = {}
        self.on_free: Callable[[Key], None] = lambda key: None

    def begin(self, key: Key) -> bool:
        """Return True if the project's proxies may be replaced now; else it waits for `on_free`."""
        with self._guard:
            self._drop_overdue()
            if key in self._running or len(self._running) < self._limit:
                self._running.setdefault(key, self._clock())
                self._waiting.pop(key, None)
                return True
            self._waiting[key] = None
            return False

    def is_running(self, key: Key) -> bool:
        """Return True if the project's proxies are being replaced."""
        with self._guard:
            self._drop_overdue()
            return key in self._running

    def is_waiting(self, key: Key) -> bool:
        """Return True if the project waits for its turn."""
        with self._guard:
            return key in self._waiting

    def end(self, key: Key) -> None:
        """Record that the project's proxies are replaced, or gone."""
        with self._guard:
            self._running.pop(key, None)
            self._waiting.pop(key, None)
            free = list(self._waiting)[: max(0, self._limit - len(self._running))]
        for waiting in free:
            self.on_free(waiting)

    def _drop_overdue(self) -> None:
        now = self._clock()
        for key in [key for key, began in self._running.items() if now - began > self._seconds]:
            del self._running[key]
