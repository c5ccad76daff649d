"""Remove a branch that is being deleted from its node: pods, slots, data."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout, SubvolumeName
from dbranch.agent.pool.effect import ensure_pool, ensure_pool_down
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.observe import observe_both_slots, observe_pods
from dbranch.agent.status import failed_storage_finding
from dbranch.agent.timing import (
    BRANCH_POD_DELETION_POLL_SECONDS,
    NO_CHECKPOINT_GRACE_SECONDS,
    RELEASE_POLL_SECONDS,
    STORAGE_UNCLEAR_RETRY_SECONDS,
)
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.brake import ensure_brake
from dbranch.agent.volume.restores import ensure_restore_finished
from dbranch.agent.volume.snapshots import ensure_kept_as_snapshot
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.api.branch import Branch, DeletionCopy
from dbranch.api.conditions import Finding
from dbranch.api.errors import DataLost, StorageUnclear
from dbranch.api.expiry import format_time
from dbranch.api.project import parse_project
from dbranch.api.snapshot import parse_snapshot
from dbranch.kube.client import Cluster, project_path, snapshot_path
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.result import Result

logger = logging.getLogger(__name__)


class BranchRemoval:
    """Removes branches that are being deleted."""

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        warm: WarmReconciler,
        request_snapshot: Callable[[str, str], None] = lambda namespace, name: None,
    ) -> None:
        """`request_snapshot`: requests the reconcile of a DBSnapshot that has got a branch's data."""
        self._cluster, self._layout, self._context, self._warm = cluster, layout, context, warm
        self._request_snapshot = request_snapshot

    def remove(self, branch: Branch) -> tuple[Result, Finding | None]:
        """Remove what can be removed now; return no delay once nothing is left, and a finding about what stays."""
        if not branch.is_released:
            return Result(RELEASE_POLL_SECONDS), None
        namespace = self._context.namespace
        existing = observe_pods(self._cluster, namespace, f"{names.LABEL_BRANCH_UID}={branch.uid}")
        for pod in existing:
            if not pod.terminating:
                # What is kept gets its whole shutdown: a crash recovery would empty its unlogged tables.
                grace = None if branch.copy or self._is_pool_kept(branch) else NO_CHECKPOINT_GRACE_SECONDS
                pods.delete_pod(self._cluster, namespace, pod, grace)
        if existing:
            # Its pods' events end the wait; that of many that are deleted together is long.
            first, longest = BRANCH_POD_DELETION_POLL_SECONDS, RELEASE_POLL_SECONDS
            return Result(first, unfinished=True, longest=longest), None
        try:
            self._delete_data(branch)
        except StorageUnclear as error:
            # Wait for a newer agent: data with a marker that this one does not understand is not deleted.
            logger.warning("branch %s/%s: %s", branch.namespace, branch.object_name, error)
            finding = failed_storage_finding(error, f"branch {branch.name}")
            return Result(STORAGE_UNCLEAR_RETRY_SECONDS), finding
        ensure_brake(self._layout, branch.uid, None)
        self._warm.trigger()
        return Result(), None

    def _is_pool_kept(self, branch: Branch) -> bool:
        """Return True if the branch's project is being deleted, and its data is kept as a whole."""
        body = self._cluster.get(project_path(branch.namespace, branch.project))
        project = parse_project(body) if body else None
        return project is not None and project.deleting and (project.keeps_pool or bool(project.kept_until))

    def _delete_data(self, branch: Branch) -> None:
        """Remove the branch's slots and its subvolume. Raises StorageUnclear if a newer release wrote the data."""
        # Also the slot in its status, which may have been created and never bound, and that of a restore.
        own_slots, restore_slots = observe_both_slots(self._layout, branch.uid, branch.node.slot)
        for name in (*own_slots, *restore_slots):
            slot.ensure_slot_removed(self._layout, name)
        body = self._cluster.get(project_path(branch.namespace, branch.project))
        project = parse_project(body) if body else None
        # A project that is being deleted deletes its pool, or retains it as it is.
        if project is None or project.deleting or project.node.pool_uuid is None:
            return
        pool = observe_pool(self._layout, project.uid)
        if not pool.image_exists:
            return
        if not pool.mounted:
            node = project.node
            ensure_pool(self._layout, project.uid, 0, node.pool_uuid, node.machine_id)
        # The former data of a restore becomes its undo snapshot, which outlives the branch.
        ensure_restore_finished(self._layout, project.uid, branch.uid, now_rfc3339())
        if branch.copy:
            self._keep_data(branch, project.uid, branch.copy)
        subvolume.ensure_trashed(self._layout, project.uid, branch.uid)
        subvolume.ensure_trash_emptied(self._layout, project.uid)
        if not pool.mounted:
            ensure_pool_down(self._layout, project.uid)

    def _keep_data(self, branch: Branch, project_uid: str, copy: DeletionCopy) -> None:
        """Make the branch's data the DBSnapshot's, if that still exists: one that was deleted meanwhile gets none."""
        body = self._cluster.get(snapshot_path(branch.namespace, copy.name))
        snapshot = parse_snapshot(body) if body else None
        if snapshot is None or snapshot.uid != copy.uid or snapshot.deleting:
            logger.info("branch %s/%s: snapshot %s is gone", branch.namespace, branch.object_name, copy.name)
            return
        now = self._cluster.server_time()
        name, taken_at = SubvolumeName(branch.uid), format_time(now)
        expires = format_time(now + snapshot.lifetime) if snapshot.lifetime and not snapshot.protected else ""
        try:
            ensure_kept_as_snapshot(
                self._layout, project_uid, name, copy.uid, snapshot.object_name, taken_at, expires
            )
        except DataLost as error:
            # The snapshot reports that its data will not come.
            logger.warning("branch %s/%s: %s", branch.namespace, branch.object_name, error)
            return
        self._request_snapshot(branch.namespace, snapshot.object_name)
