"""One lock an object: its handlers, its timer and its watcher take turns."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class KeyedLocks:
    """Locks by (namespace, name); a key's lock is made at its first use."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: defaultdict[tuple[str, str], threading.RLock] = defaultdict(threading.RLock)

    @contextmanager
    def held(self, namespace: str, name: str) -> Iterator[None]:
        """Held by one thread at a time; the same thread may take it again."""
        with self._guard:
            lock = self._locks[namespace, name]
        with lock:
            yield
