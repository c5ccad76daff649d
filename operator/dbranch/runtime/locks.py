"""One lock an object: its handlers, its timer and its watcher take turns, also with those of another process."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from dbranch.runtime.file_lock import held_temporary

# Seconds after which a visit gives way to the other process' one, and comes again.
_PATIENCE = 60.0


class KeyedLocks:
    """Locks by (namespace, name); a key's lock is made at its first use.

    With a `directory` (which is there) the lock is held against other processes as well: an agent that was
    given up may still be in the middle of its work when the next one comes.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._guard = threading.Lock()
        self._locks: defaultdict[tuple[str, str], threading.RLock] = defaultdict(threading.RLock)
        self._depth: defaultdict[tuple[str, str], int] = defaultdict(int)

    @contextmanager
    def held(self, namespace: str, name: str) -> Iterator[None]:
        """Held by one thread at a time; the same thread may take it again. Busy where another process keeps it."""
        key = namespace, name
        with self._guard:
            lock = self._locks[key]
        with lock:
            first = self._depth[key] == 0
            with self._alone(key) if first else nullcontext():
                self._depth[key] += 1
                try:
                    yield
                finally:
                    self._depth[key] -= 1

    @contextmanager
    def _alone(self, key: tuple[str, str]) -> Iterator[None]:
        if self._directory is None:
            yield
            return
        word = hashlib.sha256("/".join(key).encode()).hexdigest()[:32]
        with held_temporary(self._directory / word, _PATIENCE):
            yield
