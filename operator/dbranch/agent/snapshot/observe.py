"""Read what is true of a snapshot on its node: its pool, its subvolume, its branch's data. Reads only."""

from __future__ import annotations

import errno
from datetime import datetime

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.machine import observe_machine
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.pool.record import PoolRecord
from dbranch.agent.pool.records import read_record
from dbranch.agent.pool.space import Space
from dbranch.agent.snapshot.plan import SnapshotFacts, subject_of
from dbranch.agent.status import error_message, failed_storage_finding
from dbranch.agent.timing import SNAPSHOT_RECORD_GRACE_SECONDS
from dbranch.agent.volume.copies import check_source
from dbranch.agent.volume.observe import observe_snapshot_marker, observe_subvolumes
from dbranch.agent.volume.restores import observe_restore
from dbranch.agent.volume.snapshots import retained_snapshot
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import SnapshotReason
from dbranch.api.errors import DataLost, DbranchError
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot
from dbranch.kube.client import Cluster, branch_path
from dbranch.runtime.clock import seconds_since


def observe_snapshot(
    cluster: Cluster, layout: Layout, context: NodeContext, project: Project, snapshot: Snapshot
) -> SnapshotFacts:
    """Return the facts of a snapshot."""
    pool, machine = observe_pool(layout, project.uid), observe_machine(layout)
    marker = observe_snapshot_marker(layout, project.uid, snapshot.uid)
    is_up = pool.mounted and not pool.read_only
    retained_uid: str | None = None
    source_problem: Finding | None = None
    awaited = False
    if marker is None and is_up and not snapshot.node.snapshot_time:
        if project.adopt:
            record = read_record(layout, project.uid)
            previous = record.lineage if isinstance(record, PoolRecord) else ()
            markers = observe_subvolumes(layout, project.uid).snapshots
            retained_uid = retained_snapshot(
                markers, {project.adopt, *previous}, snapshot.object_name, snapshot.uid
            )
        if retained_uid is None and snapshot.is_record:
            awaited = _is_awaited(cluster, layout, project, snapshot)
            if not awaited:
                # It may have come between the look at the disk and the one at the branch, which has gone with that.
                marker = observe_snapshot_marker(layout, project.uid, snapshot.uid)
        elif retained_uid is None and snapshot.branch_uid:
            source_problem = _source_problem(layout, project, snapshot, snapshot.branch_uid)
    return SnapshotFacts(
        is_up,
        Space(
            pool.total_bytes,
            pool.free_bytes,
            machine.host_total_bytes,
            machine.host_free_bytes,
            context.eviction.of(machine.host_total_bytes),
        ),
        marker,
        retained_uid,
        source_problem,
        awaited,
        _seconds_late(cluster, snapshot),
    )


def _seconds_late(cluster: Cluster, snapshot: Snapshot) -> float | None:
    """Return the seconds since the time for which the snapshot was scheduled, by the API server's clock."""
    if not snapshot.origin_time:
        return None
    try:
        scheduled = datetime.fromisoformat(snapshot.origin_time)
        return (cluster.server_time() - scheduled).total_seconds()
    except (ValueError, TypeError):
        return None


def _is_awaited(cluster: Cluster, layout: Layout, project: Project, snapshot: Snapshot) -> bool:
    """Return True if a restore or the deletion of its branch is still to leave the snapshot's data."""
    if snapshot.branch_uid is None:
        return False
    body = cluster.get(
        branch_path(snapshot.namespace, names.branch_object_name(project.name, snapshot.branch))
    )
    branch = parse_branch(body) if body else None
    if branch is not None and branch.uid != snapshot.branch_uid:
        branch = None
    if snapshot.reason == SnapshotReason.DELETION:
        return branch is not None and branch.deleting
    if snapshot.reason != SnapshotReason.RESTORE:
        return False
    if branch and branch.restore and branch.restore.undo_uid == snapshot.uid:
        return True
    if seconds_since(snapshot.created) < SNAPSHOT_RECORD_GRACE_SECONDS:
        return True
    return observe_restore(layout, project.uid, snapshot.branch_uid).undo_uid == snapshot.uid


def _source_problem(layout: Layout, project: Project, snapshot: Snapshot, branch_uid: str) -> Finding | None:
    """Return why the branch cannot be copied, if that can be seen without a snapshot."""
    try:
        check_source(layout, project.uid, branch_uid)
    except (DbranchError, OSError) as error:
        return failed_finding(snapshot, error)
    return None


def failed_finding(snapshot: Snapshot, error: Exception) -> Finding:
    """Return the finding of a snapshot that could not be taken."""
    subject = subject_of(snapshot)
    if isinstance(error, DataLost):
        text = f"{subject}: branch {snapshot.branch} has no data on node {snapshot.node_name} (any more)"
        return Finding(Reason.BRANCH_NOT_FOUND, f"{text}; nothing is taken; delete the snapshot")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Finding(Reason.POOL_FULL, error_message(error, subject))
    return failed_storage_finding(error, subject)
