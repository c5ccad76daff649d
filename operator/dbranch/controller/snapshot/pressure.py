"""Which copies of undone data make room where a project's pool is low: one at a time, the oldest first. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Final

from dbranch.api.branch import Branch
from dbranch.api.conditions import Reason
from dbranch.api.enums import SnapshotReason
from dbranch.api.expiry import parse_time
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot

# Whoever has just lost something by a slip has so long to notice it.
_MIN_AGE: Final = timedelta(hours=1)
_UNDO_REASONS: Final = frozenset({SnapshotReason.RESTORE, SnapshotReason.DELETION})


def is_low(project: Project) -> bool:
    """Return True if the project's pool, or the node's disk below it, is almost full, as its agent reports."""
    storage = project.node.storage
    return storage is not None and storage.reason == Reason.POOL_LOW and not project.deleting


def next_to_remove(
    snapshots: Iterable[Snapshot],
    branches: Iterable[Branch],
    named: Collection[str],
    now: datetime,
) -> Snapshot | None:
    """Return the copy that goes next; None if there is none, or one is going already.

    `snapshots`, `branches`: of the project; `named`: the names of snapshots that unfinished restores name. What was
    asked for, or is protected, never goes for this; nor what would free nothing.
    """
    copies = [snapshot for snapshot in snapshots if snapshot.reason in _UNDO_REASONS]
    if any(snapshot.deleting for snapshot in copies):
        return None
    used = {uid for branch in branches for uid in _uids_in_use(branch)}
    candidates = [
        (taken, snapshot.uid, snapshot)
        for snapshot in copies
        if snapshot.node.unique_bytes
        and not snapshot.protected
        and snapshot.uid not in used
        and snapshot.object_name not in named
        and (taken := parse_time(snapshot.node.snapshot_time)) is not None
        and now - taken >= _MIN_AGE
    ]
    return min(candidates)[2] if candidates else None


def _uids_in_use(branch: Branch) -> set[str | None]:
    """Return the UIDs of the snapshots that the branch is still to be made of, or that its restore needs."""
    uids: set[str | None] = set()
    if branch.node_name is not None and branch.node.snapshot_time is None:
        uids.add(branch.source_uid)
    if branch.restore:
        uids |= {branch.restore.source.uid, branch.restore.undo_uid}
    if branch.copy:
        uids.add(branch.copy.uid)
    return uids
