"""The agent's reconcilers behind one work queue: from a key to the reconciler of its kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from dbranch.agent.branch.reconciler import BranchReconciler
from dbranch.agent.branch.written import WrittenWatch
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.project.reconciler import ProjectReconciler
from dbranch.agent.restore.reconciler import RestoreReconciler
from dbranch.agent.snapshot.reconciler import SnapshotReconciler
from dbranch.agent.snapshot.watch import SnapshotRecords
from dbranch.agent.timing import BRANCH_RESYNC_SECONDS, BUSY_RETRY_SECONDS, PROJECT_RESYNC_SECONDS
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.errors import Busy
from dbranch.api.project import Project
from dbranch.kube.client import Cluster
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import DONE, Key, Result
from dbranch.runtime.workqueue import WorkQueue

logger = logging.getLogger(__name__)

# A reconcile may wait for a disk, or ten seconds for the CHECKPOINT of a source that hangs.
_WORKERS: Final = 32
_WORKERS_PER_NAMESPACE: Final = 24


class Dispatcher:
    """The reconcilers of one agent. `queue` calls those of projects, branches and snapshots."""

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        locks: KeyedLocks,
        warm_limits: WarmLimits,
        metrics: AgentMetrics,
    ) -> None:
        self.metrics, self._layout = metrics, layout
        self.snapshot_records = SnapshotRecords()
        self.written = WrittenWatch(cluster, layout, self.snapshot_records.last_transactions)
        # Called when a pool was retained: from now on it can be adopted.
        self.on_pool_retained: Callable[[], None] = lambda: None
        self.queue = WorkQueue(
            self.reconcile,
            BRANCH_RESYNC_SECONDS,
            workers=_WORKERS,
            workers_per_namespace=_WORKERS_PER_NAMESPACE,
        )
        self.warm = WarmReconciler(cluster, layout, context, warm_limits, metrics)
        self.projects = ProjectReconciler(
            cluster,
            layout,
            context,
            locks,
            self.warm.trigger,
            self._request_anew,
            self._report_retained,
            self._request_snapshots,
        )
        restores = RestoreReconciler(
            *(cluster, layout, context, self.warm, metrics, self.request_branch, self.request_snapshot)
        )
        self.branches = BranchReconciler(
            *(cluster, layout, context, locks, self.warm, metrics, self.request_branch),
            restores,
            self.request_snapshot,
        )
        self.snapshots = SnapshotReconciler(cluster, layout, context, locks)

    def request_project(self, namespace: str, name: str) -> None:
        """Request a reconcile of a DBProject."""
        self.queue.add(Key(names.PROJECT_KIND, namespace, name))

    def request_branch(self, namespace: str, name: str) -> None:
        """Request a reconcile of a DBBranch, by its object's name. Any thread may do so."""
        self.queue.add(Key(names.BRANCH_KIND, namespace, name))

    def request_snapshot(self, namespace: str, name: str) -> None:
        """Request a reconcile of a DBSnapshot. Any thread may do so."""
        self.queue.add(Key(names.SNAPSHOT_KIND, namespace, name))

    def _request_snapshots(self, project: Project) -> None:
        """Request a reconcile of those snapshots of a project that wait for its pool, or are missing in it."""
        for name, record in self.snapshot_records.of_project(project.namespace, project.name).items():
            if not record.at_rest or not is_subvolume(self._layout.branch(project.uid, record.uid)):
                self.request_snapshot(project.namespace, name)

    def _report_retained(self) -> None:
        self.on_pool_retained()

    def _request_anew(self, branch: Branch) -> None:
        """Request a reconcile of a branch that tries at once what had failed: its project has changed."""
        self.branches.forget_failures(branch)
        self.request_branch(branch.namespace, branch.object_name)

    def reconcile(self, key: Key, resync: bool) -> Result:
        """Reconcile the object. `resync`: no event has asked for it, so the trash of a project's pool is emptied."""
        try:
            if key.kind == names.BRANCH_KIND:
                return self.branches.reconcile(key.namespace, key.name)
            if key.kind == names.SNAPSHOT_KIND:
                return self.snapshots.reconcile(key.namespace, key.name)
            if resync:
                result = self.projects.collect_usage_and_trash(key.namespace, key.name)
            else:
                result = self.projects.reconcile(key.namespace, key.name)
        except Busy as error:
            logger.info("%s: %s", "/".join(key), error)
            return Result(BUSY_RETRY_SECONDS)
        return replace(result, requeue_after=PROJECT_RESYNC_SECONDS) if result == DONE else result

    def wait_idle(self, timeout: float) -> bool:
        """Block until no branch is reconciled or starting, `timeout` seconds at most; return True if none is."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.branches.wait_started(left)
            is_idle = self.queue.wait_idle(names.BRANCH_KIND, deadline - time.monotonic())
            if is_idle and self.branches.wait_started(0.0):
                return True
        return False
