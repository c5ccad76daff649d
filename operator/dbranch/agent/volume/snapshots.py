"""Snapshots of branches as read-only subvolumes: taken atomically, and adopted by another DBSnapshot. Never cleaned.

The name of a snapshot on disk is the UID of its DBSnapshot, as a branch's is that of its DBBranch; the marker says
which of the two it is. The order is marker, sync, read-only flag, name, sync: a subvolume with that name is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from dbranch.agent.layout import MARKER, Layout
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.files import opened_directory, write_atomically
from dbranch.agent.linux.syscalls import rename_new
from dbranch.agent.volume import tenant
from dbranch.agent.volume.effect import destroy, mounted_pool, read_any_marker, sync
from dbranch.agent.volume.marker import (
    FROM_BRANCH,
    BranchNames,
    Marker,
    Origin,
    SnapshotMarker,
    render_snapshot_marker,
)
from dbranch.agent.volume.quotas import create_subvolume
from dbranch.api.errors import DataLost, StorageUnclear
from dbranch.runtime.logs import log_command


def ensure_snapshot_taken(
    layout: Layout,
    project_uid: str,
    branch_uid: str,
    snapshot_uid: str,
    branch: BranchNames,
    snapshot: str,
    now: str,
) -> SnapshotMarker:
    """Take the snapshot of a branch, durable; return its marker. No-op if it exists.

    `snapshot`: the name of its DBSnapshot; `now`: RFC 3339, kept as `snapshotTime`. Raises SourceUnsafe (with the
    path) if the branch holds data outside its subvolume, DataLost if its subvolume is missing.
    """
    mounted_pool(layout, project_uid)
    source, path = layout.branch(project_uid, branch_uid), layout.branch(project_uid, snapshot_uid)
    if path.exists():
        return snapshot_marker_of(path)
    new = layout.new_snapshot(project_uid, snapshot_uid)
    read_any_marker(new)
    destroy(new)
    if not btrfs.is_subvolume(source):
        raise DataLost(f"branch {branch_uid} has no subvolume at {source}; no snapshot is taken")
    create_subvolume(new, source)
    try:
        # From the snapshot itself: the marker beside it may be newer than the data. It goes first: a snapshot that
        # is cut off here must never pass for a branch.
        data = read_any_marker(new)
        if not isinstance(data, Marker):
            raise DataLost(f"branch {branch_uid} has no marker that can be read; no snapshot is taken")
        (new / MARKER).unlink()
        tenant.check_self_contained(new, source)
        data = replace(
            data,
            project_uid=project_uid,
            owner_uid=snapshot_uid,
            names=branch,
            origin=Origin(FROM_BRANCH, branch_uid, now),
            snapshot_time=now,
        )
        _write_marker(new, SnapshotMarker(data, snapshot))
        return _finish(new, path)
    except Exception:
        destroy(new)
        raise


def ensure_snapshot_adopted(
    layout: Layout, project_uid: str, old_uid: str, snapshot_uid: str, branch: BranchNames, snapshot: str
) -> SnapshotMarker:
    """Make the retained snapshot `old_uid` of an adopted pool that of another DBSnapshot; return its marker.

    Raises DataLost if neither has a marker that can be read.
    """
    pool = mounted_pool(layout, project_uid)
    path = layout.branch(project_uid, snapshot_uid)
    if path.exists():
        return snapshot_marker_of(path)
    old = layout.branch(project_uid, old_uid)
    marker = snapshot_marker_of(old)
    data = replace(marker.data, project_uid=project_uid, owner_uid=snapshot_uid, names=branch)
    # The rename comes last: until then the old name is found, and this is done again.
    if data != marker.data or marker.snapshot != snapshot:
        with opened_directory(pool) as directory:
            log_command("btrfs", "property", "set", old, "ro", "false")
            btrfs.ensure_writable_at(directory, old.name)
        _write_marker(old, SnapshotMarker(data, snapshot))
    return _finish(old, path)


def snapshot_marker_of(path: Path) -> SnapshotMarker:
    """Read the marker of a snapshot that exists; raise DataLost, or StorageUnclear if it is a branch's."""
    marker = read_any_marker(path) if btrfs.is_subvolume(path) else None
    if isinstance(marker, Marker):
        raise StorageUnclear(f"subvolume {path.name} is a branch by its marker; nothing is touched")
    if marker is None:
        raise DataLost(f"snapshot {path} has no marker that can be read; nothing is touched")
    return marker


def retained_snapshot(
    markers: Mapping[str, SnapshotMarker], previous_uids: Collection[str], snapshot: str, snapshot_uid: str
) -> str | None:
    """Return the UID under which an adopted pool holds the data of this snapshot, the newest if several do, or None.

    `previous_uids`: of the projects whose pool it was before. `snapshot`: the name of the DBSnapshot, `snapshot_uid`
    its UID. `markers`: of the pool's snapshots, by the UID of the DBSnapshot that had the data.
    """
    newest: tuple[str, str] | None = None
    for uid, marker in markers.items():
        if marker.data.owner_uid == snapshot_uid and uid != snapshot_uid:
            # Its marker is rewritten before its name: an adoption was cut off between the two.
            return uid
        if marker.data.project_uid in previous_uids and marker.snapshot == snapshot:
            newest = max(newest or ("", ""), (marker.data.snapshot_time, uid))
    return newest[1] if newest else None


def _write_marker(subvolume: Path, marker: SnapshotMarker) -> None:
    write_atomically(subvolume / MARKER, render_snapshot_marker(marker), durable=False)
    sync(subvolume)


def _finish(subvolume: Path, path: Path) -> SnapshotMarker:
    """Make a subvolume with a marker read-only, then the snapshot, durably; return its marker."""
    log_command("btrfs", "property", "set", subvolume, "ro", "true")
    btrfs.set_read_only(subvolume)
    log_command("mv", "--no-clobber", subvolume, path)
    rename_new(subvolume, path)
    sync(path.parent)
    return snapshot_marker_of(path)
