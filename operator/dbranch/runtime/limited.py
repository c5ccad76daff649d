"""Memory of a process that cannot grow for ever: what it holds can be read again, or matters only for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LimitedDict(MutableMapping[K, V]):
    """A dict of at most `limit` entries; the one that was written longest ago makes room. Thread-safe.

    >>> memory: LimitedDict[str, int] = LimitedDict(2)
    >>> memory.update(a=1, b=2)
    >>> memory["a"] = 3
    >>> memory["c"] = 4
    >>> dict(memory)
    {'a': 3, 'c': 4}
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._lock = limit, threading.Lock()
        self._entries: dict[K, V] = {}

    def __getitem__(self, key: K) -> V:
        return self._entries[key]

    def __setitem__(self, key: K, value: V) -> None:
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = value
            if len(self._entries) > self._limit:
                del self._entries[next(iter(self._entries))]

    def __delitem__(self, key: K) -> None:
        with self._lock:
            del self._entries[key]

    def __iter__(self) -> Iterator[K]:
        with self._lock:
            return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
