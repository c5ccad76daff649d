"""Two threads: one watches all snapshots and keeps their records, one looks which of them have expired.

Who is concerned by a change is put into the work queue: the snapshot itself, branches that are made of it or wait for
it, a project whose deletion does. At a start only those are reconciled that are not at rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Reason
from dbranch.api.project import Project
from dbranch.controller import timing
from dbranch.controller.cache import Cache
from dbranch.controller.keys import key_of
from dbranch.controller.object_watch import ObjectWatch
from dbranch.controller.snapshot.plan import is_expired
from dbranch.controller.snapshot_records import SnapshotRecord, SnapshotRecords, record_of
from dbranch.kube.client import Cluster, Json
from dbranch.runtime.result import Key


def needs_reconcile(old: SnapshotRecord | None, new: SnapshotRecord) -> bool:
    """Return True if a snapshot has to be reconciled after a change from `old` (None: it was not known)."""
    if old is None or old.snapshot.uid != new.snapshot.uid:
        return not new.at_rest
    return old.version != new.version


def dependents_of(record: SnapshotRecord, is_gone: bool, cache: Cache) -> Iterator[Key]:
    """Yield the branches, restores and the project that wait for a snapshot which has changed, or is gone."""
    snapshot = record.snapshot
    for restore in cache.restores.unfinished():
        if (restore.namespace, restore.project) == (snapshot.namespace, snapshot.project):
            yield key_of(restore)
    for branch in cache.branches_of(snapshot.namespace, snapshot.project):
        is_made_of_it = branch.node_name is None and branch.source_snapshot == snapshot.object_name
        if is_made_of_it or (branch.deleting and branch.uid == snapshot.branch_uid):
            yield key_of(branch)
    project = cache.project(snapshot.namespace, snapshot.project)
    if is_gone and project and project.deleting:
        yield key_of(project)


class SnapshotWatch(ObjectWatch):
    """The watch of snapshots. `add`: puts a key into the work queue, from any thread.

    `cache`: returns the cache, None before the first event of another kind.
    """

    plural = names.SNAPSHOTS

    def __init__(
        self,
        cluster: Cluster,
        records: SnapshotRecords,
        add: Callable[[Key], None],
        cache: Callable[[], Cache | None],
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        super().__init__(cluster)
        self._records = records
        self._add, self._cache, self._clock = add, cache, clock or cluster.server_time

    def changed(self, body: Json) -> None:
        record = record_of(body)
        old = self._records.put(record)
        if needs_reconcile(old, record):
            self._add(key_of(record.snapshot))
        if old is None or old.version != record.version:
            self._request_dependents(record, is_gone=False)

    def removed(self, body: Json) -> None:
        record = record_of(body)
        remembered = self._records.forget(record.snapshot.namespace, record.snapshot.object_name)
        self._request_dependents(remembered or record, is_gone=True)

    def listed(self, keys: set[tuple[str, str]]) -> None:
        for record in self._records.keep_only(keys):
            self._request_dependents(record, is_gone=True)

    def _request_dependents(self, record: SnapshotRecord, is_gone: bool) -> None:
        if is_gone:
            # Its place under a limit is another's.
            for other in self._records.of_project(record.snapshot.namespace, record.snapshot.project):
                if other.ready is not None and other.ready.reason == Reason.LIMIT_EXCEEDED:
                    self._add(key_of(other.snapshot))
        cache = self._cache()
        for key in dependents_of(record, is_gone, cache) if cache else ():
            self._add(key)

    def run_expiry(self, beat: Callable[[], None]) -> None:
        """Look for ever which snapshots have expired."""
        while True:
            beat()
            time.sleep(timing.EXPIRY_POLL_SECONDS)
            self.request_expired()

    def request_expired(self) -> None:
        """Request the reconciles that delete those whose time has come, a few at a time."""
        expiring = [record for record in self._records.all() if record.snapshot.expiration_time]
        if not expiring:
            return
        now = self._clock()
        expired = [record for record in expiring if is_expired(record.snapshot, now)]
        expired.sort(key=lambda record: record.snapshot.expiration_time or "")
        for record in expired[: timing.MAX_EXPIRIES_AT_ONCE]:
            self._add(key_of(record.snapshot))


def concerned_by(
    change: Project | Branch | str, records: Iterable[SnapshotRecord], cache: Cache
) -> Iterator[Key]:
    """Yield the snapshots that may say something else after a change of a project, a branch or a node (its name)."""
    for record in records:
        snapshot = record.snapshot
        if isinstance(change, str):
            project = cache.project(snapshot.namespace, snapshot.project)
            node = snapshot.node_name or (project.node_name if project else None)
            if node != change:
                continue
            says_gone = record.ready is not None and record.ready.reason == Reason.NODE_GONE
            facts = cache.node(change)
            is_gone = not facts.exists and not facts.has_agent
            # The record of a deleted project says whether the pool is kept.
            says_kept = record.ready is not None and record.ready.done
            kept_differs = (
                bool(snapshot.origin_project_uid) and facts.agent_ready and facts.publishes_retained
            )
            kept_differs = kept_differs and says_kept != (snapshot.origin_project_uid in facts.retained)
            if not record.at_rest or says_gone != is_gone or kept_differs:
                yield key_of(record.snapshot)
        elif not record.at_rest and snapshot.namespace == change.namespace:
            is_of_it = (
                snapshot.project == change.name
                if isinstance(change, Project)
                else (snapshot.project, snapshot.branch) == (change.project, change.name)
            )
            if is_of_it:
                yield key_of(record.snapshot)
