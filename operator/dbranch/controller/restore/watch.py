"""A thread that watches all restores and keeps what is known of them; who is concerned by a change is reconciled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.api.restore import Restore, parse_restore
from dbranch.controller.cache import Cache
from dbranch.controller.keys import key_of
from dbranch.controller.object_watch import ObjectWatch
from dbranch.controller.restore_records import RestoreRecords
from dbranch.kube.client import Cluster, Json
from dbranch.runtime.result import Key

# By which metrics count restores.
PHASES = ("Pending", "Running", "Complete", "Failed", "Rejected")


def is_at_rest(restore: Restore) -> bool:
    """Return True if it is a record, of which only an event can ask something."""
    waits = restore.ttl_after_finished is not None or names.CONTROLLER_FINALIZER in restore.finalizers
    return restore.finished and not restore.deleting and not waits


def needs_reconcile(old: Restore | None, new: Restore) -> bool:
    """Return True if a restore has to be reconciled after a change from `old` (None: it was not known)."""
    if old is None or old.uid != new.uid:
        return not is_at_rest(new)
    return _version(old) != _version(new)


def _version(restore: Restore) -> tuple[object, ...]:
    return restore.generation, restore.deleted, restore.finalizers, restore.phase


class RestoreWatch(ObjectWatch):
    """The watch of restores. `add`: puts a key into the work queue, from any thread.

    `cache`: returns the cache, None before the first event of another kind.
    """

    plural = names.RESTORES

    def __init__(
        self,
        cluster: Cluster,
        records: RestoreRecords,
        add: Callable[[Key], None],
        cache: Callable[[], Cache | None],
    ) -> None:
        super().__init__(cluster)
        self._records, self._add, self._cache = records, add, cache

    def changed(self, body: Json) -> None:
        restore = parse_restore(body)
        old = self._records.put(restore)
        if needs_reconcile(old, restore):
            self._add(key_of(restore))
        if restore.finished and (old is None or not old.finished):
            self._request_waiting(restore)

    def removed(self, body: Json) -> None:
        restore = parse_restore(body)
        self._records.forget(restore.namespace, restore.object_name)
        self._forgotten(restore)

    def listed(self, keys: set[tuple[str, str]]) -> None:
        for restore in self._records.keep_only(keys):
            self._forgotten(restore)

    def _forgotten(self, restore: Restore) -> None:
        """Request the reconciles of who waited for one that is gone: what it left behind, others, its project."""
        self._add(key_of(restore))
        self._request_waiting(restore)
        cache = self._cache()
        project = cache.project(restore.namespace, restore.project) if cache else None
        if project and project.deleting:
            self._add(key_of(project))

    def _request_waiting(self, restore: Restore) -> None:
        for other in self._records.of_branch(restore.namespace, restore.project, restore.branch):
            if not other.finished and other.uid != restore.uid:
                self._add(key_of(other))


def concerned_by(
    change: Project | Branch | str | tuple[str, str], records: RestoreRecords, cache: Cache
) -> Iterator[Key]:
    """Yield the restores that may go on after a change.

    `change`: a project, a branch, a node (its name), or a project by namespace and name whose proxies have changed.
    """
    if isinstance(change, Branch) and change.restore is not None:
        # Also one whose DBRestore is gone.
        yield Key(names.RESTORE_KIND, change.namespace, change.restore.name)
    for restore in records.unfinished():
        of_project = restore.namespace, restore.project
        if isinstance(change, str):
            project = cache.project(*of_project)
            is_concerned = project is not None and project.node_name == change
        elif isinstance(change, Project):
            is_concerned = of_project == (change.namespace, change.name)
        elif isinstance(change, Branch):
            is_branch = restore.branch == change.name or restore.source in (None, change.name)
            is_concerned = of_project == (change.namespace, change.project) and is_branch
        else:
            is_concerned = of_project == change
        if is_concerned:
            yield key_of(restore)
