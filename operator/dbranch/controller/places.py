"""The places of a namespace under a limit, strictly: the caches hear of a binding a moment after it is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.controller.limits import Limits, excess

Cached = Callable[[], Iterable[Project | Branch]]


class Places:
    """Who has been bound of late, so that no more are bound than a limit allows. Thread-safe.

    There is one controller, so the memory of its process is enough; one that starts lists all objects before its
    first reconcile. `counted`: the limit that says how many places a namespace has. `cached`, throughout: all such
    objects of the object's namespace, which are read only if there is a limit.
    """

    def __init__(self, limits: Limits, counted: str) -> None:
        self._limits, self._counted = limits, counted
        self._lock = threading.Lock()
        # By namespace, the UIDs of those whose binding the cache may not have yet.
        self._taken: dict[str, set[str]] = {}

    def is_excess(self, item: Project | Branch, cached: Cached) -> bool:
        """Return True if the object comes behind the limit. It is as it was read just now."""
        limit = self._limits.of(item.namespace).count(self._counted)
        if limit is None:
            return False
        return item.uid in excess((item, *(other for other in cached() if other.uid != item.uid)), limit)

    def take(self, item: Project | Branch, cached: Cached) -> bool:
        """Take a place for an object that is about to be bound; return False if there is none."""
        limit = self._limits.of(item.namespace).count(self._counted)
        if limit is None:
            return True
        with self._lock:
            others = tuple(cached())
            bound = {other.uid for other in others if other.node_name is not None}
            # Of the rest, the cache knows the binding, or that they are gone.
            taken = self._taken.get(item.namespace, set()) & {other.uid for other in others} - bound
            self._taken[item.namespace] = taken
            if len((bound | taken) - {item.uid}) >= limit:
                return False
            taken.add(item.uid)
            return True

    def release(self, item: Project | Branch) -> None:
        """Give back the place of an object that was not bound after all."""
        with self._lock:
            self._taken.get(item.namespace, set()).discard(item.uid)
