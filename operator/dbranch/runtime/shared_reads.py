"""One read of an object for all who ask for it while another read of it runs."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from dbranch.kube.client import Cluster, Json
from dbranch.runtime.locks import KeyedLocks


@dataclass
class _Read:
    """A read that has not begun, and how many wait for it."""

    answer: Future[Json | None] = field(default_factory=Future)
    askers: int = 0


class SharedReads:
    """Reads objects uncached: in a burst many reconciles ask for the same project at once. Thread-safe.

    An answer is never older than the question: who asks while a read runs shares the next one, which begins when that
    ends. Who asks alone waits for nobody. The answers are shared, so nobody may change them.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._guard, self._turns = cluster, threading.Lock(), KeyedLocks()
        # By path.
        self._next: dict[str, _Read] = {}

    def get(self, path: str) -> Json | None:
        """Return the object, or None if it does not exist. Raises what Cluster.get raises."""
        with self._guard:
            read = self._next.setdefault(path, _Read())
            read.askers += 1
            is_first = read.askers == 1
        if not is_first:
            return read.answer.result()
        with self._turns.held("", path):
            with self._guard:
                # From now on it is too late to share it.
                del self._next[path]
            try:
                read.answer.set_result(self._cluster.get(path))
            except BaseException as error:
                read.answer.set_exception(error)
                raise
        return read.answer.result()

    def waiting(self, path: str) -> int:
        """Return how many wait for a read of the object that has not begun."""
        with self._guard:
            read = self._next.get(path)
            return read.askers if read else 0
