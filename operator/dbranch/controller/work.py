"""The work queue behind the events: which objects are reconciled after one, and the cache that they read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from dbranch.api.branch import Branch
from dbranch.api.expiry import format_time
from dbranch.api.project import Project
from dbranch.controller.cache import Cache
from dbranch.controller.dispatch import Dispatcher
from dbranch.controller.indices import cache_of
from dbranch.controller.keys import key_of
from dbranch.controller.limits import Limits
from dbranch.controller.restore.watch import concerned_by as restores_concerned_by
from dbranch.controller.restore_records import RestoreRecords
from dbranch.controller.snapshot.watch import concerned_by
from dbranch.controller.snapshot_records import SnapshotRecords
from dbranch.controller.stale import Change, NodeChange, outdated_columns, stale
from dbranch.runtime.result import Key
from dbranch.runtime.workqueue import WorkQueue


class Work:
    """The work queue, and the cache that its reconciles read."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        resync_seconds: float,
        limits: Limits,
        snapshots: SnapshotRecords,
        restores: RestoreRecords,
        clock: Callable[[], datetime],
    ) -> None:
        self._dispatcher, self._limits, self._snapshots = dispatcher, limits, snapshots
        self._restores = restores
        self._clock = clock
        self.queue = WorkQueue(dispatcher.reconcile, resync_seconds, dispatcher.report_failure)
        self._changes: list[Change] = []
        # Those that are reconciled in a moment.
        self._delayed: set[Key] = set()

    def request(self, item: Project | Branch, kwargs: Mapping[str, Any]) -> None:
        """Reconcile the object itself."""
        self._dispatcher.cache = cache_of(kwargs, self._snapshots, self._restores)
        self.queue.add(key_of(item))

    def follow(self, kwargs: Mapping[str, Any], change: Change) -> None:
        """Reconcile who would report something else after the change, for all events that come together."""
        self._dispatcher.cache = cache_of(kwargs, self._snapshots, self._restores)
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._enqueue_stale, self._dispatcher.cache)
        self._changes.append(change)

    def forget(self, item: Project | Branch) -> None:
        """Reconcile an object no more that is gone, and forget what is remembered of it."""
        self.queue.forget(key_of(item))
        self._dispatcher.forget(item)

    def _enqueue_stale(self, cache: Cache) -> None:
        changes, self._changes = self._changes, []
        for key in stale(changes, cache, self._limits, format_time(self._clock())):
            self.queue.add(key)
        for key, seconds in outdated_columns(changes, cache).items():
            if key not in self._delayed:
                self._delayed.add(key)
                asyncio.get_running_loop().call_later(seconds, self._enqueue_delayed, key)
        records = self._snapshots.all()
        for change in changes:
            for key in restores_concerned_by(_changed(change), self._restores, cache):
                self.queue.add(key)
        for change in changes if records else ():
            item = change.node if isinstance(change, NodeChange) else change
            if isinstance(item, Project | Branch | str):
                for key in concerned_by(item, records, cache):
                    self.queue.add(key)

    def _enqueue_delayed(self, key: Key) -> None:
        self._delayed.discard(key)
        self.queue.add(key)


def _changed(change: Change) -> Project | Branch | str | tuple[str, str]:
    """Return a change as the restores' part knows it."""
    if isinstance(change, NodeChange):
        return change.node
    return change if isinstance(change, Project | Branch) else (change.namespace, change.project)
