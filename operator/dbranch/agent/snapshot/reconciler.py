"""Reconcile a snapshot on its node: observe, plan, apply, report; and its removal. Each may be cut off."""

from __future__ import annotations

import logging
from typing import Any, Final

from dbranch.agent.checkpoint import checkpoint_source
from dbranch.agent.context import NodeContext
from dbranch.agent.held import HeldDeletions
from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import transactions_of
from dbranch.agent.node_status import patch_node
from dbranch.agent.pool.effect import ensure_pool, ensure_pool_down
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.postgres import session
from dbranch.agent.snapshot.observe import failed_finding, observe_snapshot
from dbranch.agent.snapshot.plan import (
    AdoptSnapshot,
    SnapshotPlan,
    TakeSnapshot,
    plan_snapshot,
    subject_of,
)
from dbranch.agent.status import held_deletion_finding, size_fields
from dbranch.agent.timing import (
    BUSY_RETRY_SECONDS,
    FINALIZER_REMOVED_CHECK_SECONDS,
    MEASURE_SECONDS,
    QUICK_MEASURE_SECONDS,
    SNAPSHOT_COPY_POLL_SECONDS,
    SNAPSHOT_FAILED_RETRY_SECONDS,
    STORAGE_UNCLEAR_RETRY_SECONDS,
)
from dbranch.agent.volume.effect import ensure_trash_emptied, ensure_trashed
from dbranch.agent.volume.marker import BranchNames, SnapshotMarker
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.agent.volume.snapshots import ensure_snapshot_adopted, ensure_snapshot_taken
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import NO_PROGRESS_REASONS
from dbranch.api.enums import SnapshotReason
from dbranch.api.errors import ApiError, Busy, ClusterUnreachable, StorageUnclear
from dbranch.api.project import Project, parse_project
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.kube.client import Cluster, object_path, path_of, project_path, snapshot_path
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import AT_REST, GONE, Result

logger = logging.getLogger(__name__)

# A branch may have the same name; the two do not wait for each other.
_LOCK_PREFIX: Final = "snapshot/"


class SnapshotReconciler:
    """Reconciles snapshots. All writes of a snapshot's `status.node` come from here."""

    def __init__(self, cluster: Cluster, layout: Layout, context: NodeContext, locks: KeyedLocks) -> None:
        self._cluster, self._layout, self._context, self._locks = cluster, layout, context, locks
        self._held = HeldDeletions()

    def reconcile(self, namespace: str, name: str) -> Result:
        """Reconcile a snapshot; remove it if it is being deleted, and then the agent's finalizer."""
        with self._locks.held(namespace, _LOCK_PREFIX + name):
            body = self._cluster.get(snapshot_path(namespace, name))
            snapshot = parse_snapshot(body) if body else None
            if snapshot is None or snapshot.node_name != self._context.node:
                return GONE
            project = self._read_project(snapshot)
            if snapshot.deleting:
                return self._remove(project, snapshot)
            if project is None or project.deleting:
                return AT_REST
            return self._reconcile(project, snapshot)

    def _read_project(self, snapshot: Snapshot) -> Project | None:
        """Return the snapshot's project; None if it is gone or not scheduled to this node."""
        body = self._cluster.get(project_path(snapshot.namespace, snapshot.project))
        project = parse_project(body) if body else None
        return project if project and project.node_name == self._context.node else None

    def _reconcile(self, project: Project, snapshot: Snapshot) -> Result:
        try:
            facts = observe_snapshot(self._cluster, self._layout, self._context, project, snapshot)
            plan = plan_snapshot(project, snapshot, facts)
            marker = facts.marker if isinstance(facts.marker, SnapshotMarker) else None
            marker = self._apply(project, snapshot, plan) or marker
        except (ApiError, ClusterUnreachable, Busy):
            # Neither says anything about the snapshot.
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the snapshot's status says it
            log_error(logger, error, f"snapshot {snapshot.namespace}/{snapshot.object_name}")
            finding = failed_finding(snapshot, error)
            patch_node(self._cluster, snapshot, {"storage": finding.as_dict()})
            return Result(SNAPSHOT_FAILED_RETRY_SECONDS, unfinished=True)
        return self._report(project, snapshot, plan, marker)

    def _apply(self, project: Project, snapshot: Snapshot, plan: SnapshotPlan) -> SnapshotMarker | None:
        """Apply the action, if there is one; return the marker of the snapshot that it made."""
        layout, branch = self._layout, BranchNames(project.namespace, project.name, snapshot.branch)
        match plan.action:
            case TakeSnapshot(branch_uid, checkpoint):
                if checkpoint:
                    with session.shared_connections():
                        checkpoint_source(layout, project.uid, branch_uid, project.postgres.database)
                return ensure_snapshot_taken(
                    layout,
                    project.uid,
                    branch_uid,
                    snapshot.uid,
                    branch,
                    snapshot.object_name,
                    now_rfc3339(),
                    snapshot.expiration_at(self._cluster.server_time()),
                )
            case AdoptSnapshot(old_uid):
                return ensure_snapshot_adopted(
                    layout, project.uid, old_uid, snapshot.uid, branch, snapshot.object_name
                )
        return None

    def _report(
        self, project: Project, snapshot: Snapshot, plan: SnapshotPlan, marker: SnapshotMarker | None
    ) -> Result:
        """Write the status, with the sizes if they are measured soon; return when to reconcile again."""
        node: dict[str, Any] = {"storage": plan.storage.as_dict()} if plan.storage else {}
        must_measure = marker is not None and snapshot.node.unique_bytes is None
        if marker:
            node |= {"snapshotTime": marker.data.snapshot_time, "postgresVersion": str(marker.data.major)}
            node |= self._transaction(project, snapshot)
            node |= {"generation": marker.data.generation}
        sizes = self._measure(project, snapshot, QUICK_MEASURE_SECONDS) if must_measure else {}
        patch_node(self._cluster, snapshot, node | sizes)
        if must_measure and not sizes:
            # Nobody waits for them.
            sizes = self._measure(project, snapshot, MEASURE_SECONDS)
            body = self._cluster.get(object_path(snapshot)) if sizes else None
            if body and body["metadata"]["uid"] == snapshot.uid:
                patch_node(self._cluster, parse_snapshot(body), sizes)
        if plan.retry_after is not None:
            return Result(plan.retry_after, unfinished=True)
        return AT_REST

    def _transaction(self, project: Project, snapshot: Snapshot) -> dict[str, Any]:
        """Return by which transaction of the filesystem a scheduled snapshot was taken."""
        if snapshot.reason != SnapshotReason.SCHEDULE:
            return {}
        return {"transaction": transactions_of(self._layout.branch(project.uid, snapshot.uid)).created}

    def _measure(self, project: Project, snapshot: Snapshot, seconds: float) -> dict[str, Any]:
        """Return the fields with the sizes; {} if they are not known within so many seconds."""
        try:
            measured = observe_sizes(self._layout, project.uid, snapshot.uid, seconds)
        except OSError as error:
            logger.info("snapshot %s/%s: not measured: %s", snapshot.namespace, snapshot.object_name, error)
            return {}
        if measured is None:
            return {}
        return size_fields("logical", measured.logical_bytes) | size_fields("unique", measured.unique_bytes)

    def _remove(self, project: Project | None, snapshot: Snapshot) -> Result:
        """Remove the data; once nothing is left, the finalizer."""
        if names.AGENT_FINALIZER not in snapshot.finalizers:
            return GONE
        # A project that is being deleted deletes its pool, or retains it as it is.
        if project is not None and not project.deleting:
            copy = self._copy_of(snapshot) if project.running else None
            if copy:
                logger.info(
                    "snapshot %s/%s: branch %s is being made of it",
                    *(snapshot.namespace, snapshot.object_name, copy.name),
                )
                return Result(SNAPSHOT_COPY_POLL_SECONDS)
            try:
                self._delete_data(project, snapshot)
            except Busy as error:
                return self._hold(snapshot, error)
            except StorageUnclear as error:
                finding = failed_finding(snapshot, error)
                patch_node(self._cluster, snapshot, {"storage": finding.as_dict()})
                return Result(STORAGE_UNCLEAR_RETRY_SECONDS)
        self._held.forget(snapshot.uid)
        remove_finalizer(self._cluster, object_path(snapshot), snapshot.uid, names.AGENT_FINALIZER)
        return Result(FINALIZER_REMOVED_CHECK_SECONDS)

    def _copy_of(self, snapshot: Snapshot) -> Branch | None:
        """Return a branch that is bound to the snapshot and whose copy is still to be taken, if there is one."""
        path = path_of(names.API_VERSION, names.BRANCHES, snapshot.namespace)
        for body in self._cluster.find(path, fields=f"status.nodeName={self._context.node}"):
            branch = parse_branch(body)
            storage = branch.node.storage
            is_done = branch.node.snapshot_time is not None or branch.deleting
            waits = not is_done and not (storage and storage.reason in NO_PROGRESS_REASONS)
            if branch.source_uid == snapshot.uid and waits:
                return branch
        return None

    def _delete_data(self, project: Project, snapshot: Snapshot) -> None:
        """Remove the snapshot's subvolume. Raises StorageUnclear if a newer release wrote the data."""
        if project.node.pool_uuid is None:
            return
        pool = observe_pool(self._layout, project.uid)
        if not pool.image_exists:
            return
        if pool.mounted and pool.read_only:
            raise Busy(f"pool {self._layout.pool(project.uid)} is read-only; it is tried again")
        if not pool.mounted:
            ensure_pool(self._layout, project.uid, 0, project.node.pool_uuid, project.node.machine_id)
        ensure_trashed(self._layout, project.uid, snapshot.uid)
        ensure_trash_emptied(self._layout, project.uid)
        if not pool.mounted:
            ensure_pool_down(self._layout, project.uid)

    def _hold(self, snapshot: Snapshot, error: Busy) -> Result:
        """Report what holds the deletion up, if it does so for long; return when to try again."""
        logger.info("snapshot %s/%s: %s", snapshot.namespace, snapshot.object_name, error)
        delay, is_reported = self._held.hold(snapshot.uid)
        if is_reported:
            finding = held_deletion_finding(error, subject_of(snapshot))
            patch_node(self._cluster, snapshot, {"deletion": finding.as_dict()})
        return Result(max(delay, BUSY_RETRY_SECONDS))
