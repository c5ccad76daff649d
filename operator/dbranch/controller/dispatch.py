"""From a key in the work queue to the reconciler of its kind."""

from __future__ import annotations

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.controller import timing
from dbranch.controller.branch.reconciler import BranchReconciler
from dbranch.controller.cache import Cache
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.reconciler import ProjectReconciler
from dbranch.controller.restore.reconciler import RestoreReconciler
from dbranch.controller.snapshot.reconciler import SnapshotReconciler
from dbranch.runtime.initial_sync import InitialSync
from dbranch.runtime.result import Key, Result


class Dispatcher:
    """Calls the reconcilers. `cache` is set by the first event, before which the work queue has no key."""

    def __init__(
        self,
        projects: ProjectReconciler,
        branches: BranchReconciler,
        snapshots: SnapshotReconciler,
        restores: RestoreReconciler,
        owned: OwnedObjects,
        initial_sync: InitialSync,
    ) -> None:
        self._projects, self._branches, self._snapshots = projects, branches, snapshots
        self._restores = restores
        self._owned, self._initial_sync = owned, initial_sync
        self.cache: Cache | None = None

    def reconcile(self, key: Key, resync: bool) -> Result:
        """Reconcile the object. `resync`: no event has asked for it, so what is remembered is read anew."""
        if self.cache is None:
            # Only snapshots and restores come before the first event of another kind.
            return Result(timing.CACHE_EMPTY_RETRY_SECONDS)
        if key.kind == names.SNAPSHOT_KIND:
            return self._snapshots.reconcile(key.namespace, key.name, self.cache)
        if key.kind == names.RESTORE_KIND:
            return self._restores.reconcile(key.namespace, key.name, self.cache)
        if key.kind == names.PROJECT_KIND:
            return self._projects.reconcile(key.namespace, key.name, self.cache, resync)
        result = self._branches.reconcile(key.namespace, key.name, self.cache, resync)
        self._initial_sync.mark_reconciled(key.namespace, key.name)
        return result

    def all_branches(self) -> list[Branch]:
        """Return all branches, as the cache has them; none before the first event."""
        return self.cache.all_branches() if self.cache else []

    def forget(self, item: Project | Branch) -> None:
        """Forget what is remembered of an object that is gone."""
        self._owned.forget_owner(item.uid)
        if isinstance(item, Project):
            self._projects.forget(item)
            self._branches.forget_project(item.uid)

    def report_failure(self, key: Key, error: Exception) -> None:
        """Report a reconcile that failed in a condition of the object."""
        if key.kind == names.SNAPSHOT_KIND:
            self._snapshots.report_failure(key.namespace, key.name, error)
        elif key.kind == names.RESTORE_KIND:
            self._restores.report_failure(key.namespace, key.name, error)
        elif self.cache is not None:
            reconciler = self._projects if key.kind == names.PROJECT_KIND else self._branches
            reconciler.report_failure(key.namespace, key.name, self.cache, error)
