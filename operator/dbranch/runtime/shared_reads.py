"""One read of the API server for all who ask for it while another such read runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dbranch.kube.client import Cluster, Json
from dbranch.runtime.locks import KeyedLocks


@dataclass
class _Read:
    """A read that has not begun, and how many wait for it."""

    answer: Future[Any] = field(default_factory=Future)
    askers: int = 0


class SharedReads:
    """Reads objects uncached: in a burst many reconciles ask for the same project at once. Thread-safe.

    An answer is never older than the question: who asks while a read runs shares the next one, which begins when that
    ends. Who asks alone waits for nobody. The answers are shared, so nobody may change them.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._guard, self._turns = cluster, threading.Lock(), KeyedLocks()
        # By what is read.
        self._next: dict[str, _Read] = {}

    def get(self, path: str) -> Json | None:
        """Return the object, or None if it does not exist. Raises what Cluster.get raises."""
        body: Json | None = self._read(path, lambda: self._cluster.get(path))
        return body

    def find(self, path: str, fields: str) -> list[Json]:
        """Return the objects of a collection with these fields. Raises what Cluster.find raises."""
        bodies: list[Json] = self._read(f"{path}?{fields}", lambda: self._cluster.find(path, fields=fields))
        return bodies

    def _read(self, key: str, ask: Callable[[], Any]) -> Any:
        with self._guard:
            read = self._next.setdefault(key, _Read())
            read.askers += 1
            is_first = read.askers == 1
        if not is_first:
            return read.answer.result()
        with self._turns.held("", key):
            with self._guard:
                # From now on it is too late to share it.
                del self._next[key]
            try:
                read.answer.set_result(ask())
            except BaseException as error:
                read.answer.set_exception(error)
                raise
        return read.answer.result()

    def waiting(self, key: str) -> int:
        """Return how many wait for a read that has not begun, of a path or, of a collection, `path?fields`."""
        with self._guard:
            read = self._next.get(key)
            return read.askers if read else 0
