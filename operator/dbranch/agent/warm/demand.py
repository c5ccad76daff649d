"""When branches asked for slots, by class: what the number of warm slots is decided by."""

from __future__ import annotations

import math
import threading
from collections import defaultdict, deque
from collections.abc import Collection
from functools import partial
from typing import Final

# Of each class. More than this say nothing more of how large a burst is.
_REMEMBERED_USES: Final = 1024


class Demand:
    """The times at which branches got a slot of each class, in seconds of one clock. Thread-safe.

    A branch that found no warm slot counts like one that did. It is forgotten when the process ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used_at: defaultdict[str, deque[float]] = defaultdict(partial(deque, maxlen=_REMEMBERED_USES))
        self._last_use = -math.inf

    def record(self, class_hash: str, now: float) -> None:
        """Record that a branch got a slot of the class."""
        with self._lock:
            self._used_at[class_hash].append(now)
            self._last_use = now

    def quiet_seconds(self, now: float) -> float:
        """Return how long ago a branch got a slot last."""
        return now - self._last_use

    def ages(self, classes: Collection[str], now: float, longest: float) -> dict[str, list[float]]:
        """Return by class hash how long ago the uses were; forget other classes, and those older than `longest`."""
        with self._lock:
            for class_hash in [key for key in self._used_at if key not in classes]:
                del self._used_at[class_hash]
            for times in self._used_at.values():
                # The last use stays: it says which class was used last.
                while len(times) > 1 and now - times[0] > longest:
                    times.popleft()
            return {key: [now - used for used in times] for key, times in self._used_at.items() if times}
