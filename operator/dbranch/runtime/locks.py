"""One lock an object, so that its handlers, timers and watchers take turns, also across processes."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dbranch.runtime.file_lock import held_temporary

# After this time a reconcile gives way to that of another process, and is retried.
_OTHER_PROCESS_TIMEOUT_SECONDS = 60.0


class KeyedLocks:
    """Locks by (namespace, name), which exist while somebody holds them or waits for them. Reentrant.

    With a `directory` (which must exist) a lock is held against other processes, too: an agent whose pod was
    abandoned may still be running when its successor starts.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._guard = threading.Lock()
        self._locks: defaultdict[tuple[str, str], threading.RLock] = defaultdict(threading.RLock)
        # How many hold a lock or wait for it (one that nobody needs is forgotten), and how often its holder took it.
        self._users: Counter[tuple[str, str]] = Counter()
        self._depth: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def held(self, namespace: str, name: str) -> Iterator[None]:
        """Hold the object's lock; the same thread may take it again. Raises Busy if another process holds it."""
        key = namespace, name
        with self._guard:
            lock = self._locks[key]
            self._users[key] += 1
        try:
            with lock:
                is_outermost = self._depth[key] == 0
                with self._held_across_processes(key) if is_outermost else nullcontext():
                    self._depth[key] += 1
                    try:
                        yield
                    finally:
                        self._depth[key] -= 1
        finally:
            with self._guard:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._locks[key], self._users[key]
                    self._depth.pop(key, None)

    def __len__(self) -> int:
        """Return how many locks are held or waited for."""
        return len(self._locks)

    @contextmanager
    def _held_across_processes(self, key: tuple[str, str]) -> Iterator[None]:
        if self._directory is None:
            yield
            return
        filename = hashlib.sha256("/".join(key).encode()).hexdigest()[:32]
        with held_temporary(self._directory / filename, _OTHER_PROCESS_TIMEOUT_SECONDS):
            yield
