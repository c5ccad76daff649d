"""Snapshots of branches as read-only subvolumes: taken atomically, or what a branch's data becomes. Never cleaned.

The name of a snapshot on disk is the UID of its DBSnapshot, as a branch's is that of its DBBranch; the marker says
which of the two it is. The order is marker, sync, read-only flag, name, sync: a subvolume with that name is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from dbranch.agent.layout import MARKER, Layout, SubvolumeName
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.files import opened_directory, write_atomically
from dbranch.agent.linux.syscalls import rename_new
from dbranch.agent.volume.copies import copying, marker_of_snapshot
from dbranch.agent.volume.effect import check_unused, mounted_pool, read_any_marker, sync
from dbranch.agent.volume.marker import BranchNames, Marker, SnapshotMarker, render_snapshot_marker
from dbranch.api.errors import DataLost, StorageUnclear, Unsafe
from dbranch.runtime.logs import log_command


def ensure_snapshot_taken(
    layout: Layout,
    project_uid: str,
    branch_uid: str,
    snapshot_uid: str,
    branch: BranchNames,
    snapshot: str,
    now: str,
    expiration_time: str = "",
) -> SnapshotMarker:
    """Take the snapshot of a branch, durable; return its marker. No-op if it exists.

    `snapshot`: the name of its DBSnapshot; `now`: RFC 3339, kept as `snapshotTime`; `expiration_time`: empty if it
    does not expire. Raises as `copies.copying` does.
    """
    mounted_pool(layout, project_uid)
    path = layout.branch(project_uid, snapshot_uid)
    if path.exists():
        return snapshot_marker_of(path)
    with copying(layout, project_uid, branch_uid, snapshot_uid) as copy:
        if isinstance(copy.of_source, SnapshotMarker):
            raise DataLost(f"subvolume {branch_uid} is a snapshot by its marker; no snapshot is taken of it")
        data = replace(copy.data, project_uid=project_uid, names=branch)
        _write_marker(
            copy.path, marker_of_snapshot(data, snapshot_uid, branch_uid, snapshot, now, expiration_time)
        )
        return _finish(copy.path, path)


def ensure_kept_as_snapshot(
    layout: Layout,
    project_uid: str,
    name: SubvolumeName,
    snapshot_uid: str,
    snapshot: str,
    now: str,
    expiration_time: str = "",
) -> SnapshotMarker:
    """Make a subvolume with a branch's data a snapshot, read-only, durably; return its marker. No-op if it is one.

    `name`: of the subvolume, whose owner is the branch: its data, or the data that a restore has replaced.
    `snapshot`: the name of the DBSnapshot with the UID `snapshot_uid`; `now`: RFC 3339, kept as `snapshotTime`;
    `expiration_time`: empty if it does not expire. Raises Busy while a Postgres uses it, DataLost if there is neither
    the subvolume nor the snapshot or its marker cannot be read, Unsafe if a restore of the branch's data is not
    finished (`restores.ensure_restore_finished`), StorageUnclear if a newer release wrote the data.
    """
    mounted_pool(layout, project_uid)
    old, path = layout.subvolume(project_uid, name), layout.branch(project_uid, snapshot_uid)
    if path.exists():
        if old.exists():
            raise StorageUnclear(
                f"both {old.name} and {path.name} are to be one snapshot; nothing is touched"
            )
        return snapshot_marker_of(path)
    if name.is_data and layout.restore(project_uid, name.owner_uid).exists():
        # Only the marker of the branch's data says what becomes of that.
        raise Unsafe(f"a restore of branch {name.owner_uid} is not finished; its data stays as it is")
    marker = read_any_marker(old) if btrfs.is_subvolume(old) else None
    if marker is None:
        raise DataLost(f"{old} has no marker that can be read; it becomes no snapshot; nothing is touched")
    check_unused(old, layout)
    # The marker comes first: from then on this passes for no branch. A call that is cut off behind it goes on here.
    if isinstance(marker, Marker):
        marker = marker_of_snapshot(marker, snapshot_uid, name.owner_uid, snapshot, now, expiration_time)
        _write_marker(old, marker)
    if marker.data.owner_uid != snapshot_uid:
        raise StorageUnclear(f"subvolume {old.name} is another snapshot by its marker; nothing is touched")
    return _finish(old, path)


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
