"""Restores in place: what is to be a branch's data is prepared beside it, and changes places with it in one step.

`.restore-<uid>` is what is to come; after the exchange it is what was, until it is the undo snapshot, or trash. It
has a marker before it has that name, so that it is whole. The generations say which of the two it is (`classify`).
"""

from __future__ import annotations

import os
from dataclasses import replace

from dbranch.agent.layout import MARKER, Layout, SubvolumeKind, SubvolumeName
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.syscalls import exchange
from dbranch.agent.volume import tenant
from dbranch.agent.volume.copies import copying, marker_of_copy, marker_of_own
from dbranch.agent.volume.effect import (
    check_unused,
    destroy,
    ensure_recorded,
    marker_of,
    mounted_pool,
    read_any_marker,
    rename_durably,
    rename_to_trash,
    sync,
    write_new_files,
)
from dbranch.agent.volume.marker import (
    UNDO_KEEP,
    Marker,
    RestoreRef,
    Role,
    SnapshotMarker,
)
from dbranch.agent.volume.observe import marker_at
from dbranch.agent.volume.restore_rules import RestoreVolume, Verdict, VolumeState, classify, judge
from dbranch.agent.volume.settings import Settings
from dbranch.agent.volume.snapshots import ensure_kept_as_snapshot
from dbranch.api import names
from dbranch.api.errors import Busy, StorageUnclear, Unsafe
from dbranch.runtime.logs import log_command


def observe_restore(layout: Layout, project_uid: str, branch_uid: str) -> RestoreVolume:
    """Read what there is beside the branch's data, also what was never whole. Reads only."""
    volume = _observe_whole(layout, project_uid, branch_uid)
    branch = layout.branch(project_uid, branch_uid)
    is_unfinished = is_subvolume(layout.new_snapshot(project_uid, branch_uid)) and is_subvolume(branch)
    if volume.state is VolumeState.ABSENT and is_unfinished:
        # A restore was cut off while it was copied. The branch itself is not made any more: it has its data.
        return classify(True, False, None, marker_at(branch))
    return volume


def _observe_whole(layout: Layout, project_uid: str, branch_uid: str) -> RestoreVolume:
    path, branch = layout.restore(project_uid, branch_uid), layout.branch(project_uid, branch_uid)
    if not is_subvolume(path):
        return RestoreVolume()
    has_marker = os.path.lexists(path / MARKER)
    return classify(True, has_marker, marker_at(path), marker_at(branch) if is_subvolume(branch) else None)


def ensure_restore_taken(
    layout: Layout,
    project_uid: str,
    branch_uid: str,
    source_uid: str,
    restore_ref: RestoreRef,
    settings: Settings,
    now: str,
) -> Marker:
    """Copy the source to `.restore-<branch_uid>`, with its settings files, durably; return its marker.

    No-op if it is there for this restore. Nothing is cleaned where a snapshot of this very branch comes back; any
    other copy is cleaned offline. `now`: RFC 3339. Raises as `copies.copying` does, Busy if the branch's former data,
    or what another restore prepared, has not gone yet, Unsafe if this restore was done, StorageUnclear if it cannot
    be said what is there.
    """
    mounted_pool(layout, project_uid)
    branch, path = layout.branch(project_uid, branch_uid), layout.restore(project_uid, branch_uid)
    current = marker_of(branch)
    if current.restore is not None and current.restore.uid == restore_ref.uid:
        raise Unsafe(f"restore {restore_ref.uid} of branch {branch_uid} was done; it is not done again")
    volume = _understood(layout, project_uid, branch_uid)
    if volume.restore_uid == restore_ref.uid:
        return marker_of(path)
    if volume.state is not VolumeState.ABSENT:
        raise Busy(f"{path} is of another restore and has not gone yet; it is tried again")
    with copying(layout, project_uid, source_uid, branch_uid) as copy:
        if copy.is_data_of(branch_uid):
            tenant.ensure_process_files_removed(copy.path)
            marker = marker_of_own(copy, project_uid, branch_uid, source_uid)
        else:
            tenant.ensure_cleaned_offline(copy.path)
            marker = marker_of_copy(copy, project_uid, branch_uid, source_uid, settings.names, now)
        marker = replace(
            marker,
            names=settings.names,
            role=settings.names.role,
            generation=current.generation + 1,
            restore=restore_ref,
            opened=False,
            # The root's present data still does the root's work.
            quiet=settings.names.role is Role.ROOT,
            # What was done once on request is not done again since the data is other data.
            alter_system_reset=current.alter_system_reset,
        )
        write_new_files(copy.path, marker, settings)
    return rename_durably(copy.path, path)


def ensure_exchanged(layout: Layout, project_uid: str, branch_uid: str, restore_uid: str) -> Marker:
    """Exchange the branch's data and what is prepared for this restore, durably; return the marker of the new data.

    No-op if that was done. Both Postgres may run, and go on with the data that they have. Raises Unsafe if nothing
    is prepared for this restore, StorageUnclear if it cannot be said what is there; then nothing has changed.
    """
    mounted_pool(layout, project_uid)
    branch, path = layout.branch(project_uid, branch_uid), layout.restore(project_uid, branch_uid)
    current = marker_of(branch)
    if current.restore is None or current.restore.uid != restore_uid:
        if _understood(layout, project_uid, branch_uid).restore_uid != restore_uid:
            raise Unsafe(
                f"nothing is prepared for restore {restore_uid} of branch {branch_uid}; it stays as it is"
            )
        log_command("mv", "--exchange", path, branch)
        exchange(path, branch)
    # Also after a call that was cut off behind the exchange: what is reported now must outlive a power cut.
    sync(branch.parent)
    return marker_of(branch)


def ensure_old_kept(
    layout: Layout, project_uid: str, branch_uid: str, snapshot: str, now: str, expiration_time: str = ""
) -> SnapshotMarker | None:
    """Make the data that a restore has replaced its undo snapshot; return that one's marker, None without old data.

    `snapshot`: the name of the DBSnapshot, whose UID the marker of the branch's data knows; `now`: RFC 3339, kept as
    `snapshotTime`; `expiration_time`: empty if it does not expire. Raises Busy while a Postgres uses the data, Unsafe
    if it is not to be kept.
    """
    restore_ref = _ensure_finishable(layout, project_uid, branch_uid)
    if restore_ref is None:
        return None
    if restore_ref.undo != UNDO_KEEP:
        raise Unsafe(
            f"restore {restore_ref.uid} of branch {branch_uid} keeps no old data; nothing is touched"
        )
    return ensure_kept_as_snapshot(
        layout,
        project_uid,
        SubvolumeName(branch_uid, SubvolumeKind.RESTORE),
        restore_ref.undo_uid,
        snapshot,
        now,
        expiration_time,
    )


def ensure_old_trashed(layout: Layout, project_uid: str, branch_uid: str) -> None:
    """Make the data that a restore has replaced trash, durably; no-op without old data.

    Raises Busy while a Postgres uses the data, Unsafe if it is to be kept.
    """
    restore_ref = _ensure_finishable(layout, project_uid, branch_uid)
    if restore_ref is None:
        return
    if restore_ref.undo == UNDO_KEEP:
        raise Unsafe(
            f"restore {restore_ref.uid} of branch {branch_uid} keeps the old data; nothing is touched"
        )
    rename_to_trash(layout.restore(project_uid, branch_uid), branch_uid)
    sync(layout.pool(project_uid))


def ensure_restore_destroyed(layout: Layout, project_uid: str, branch_uid: str) -> None:
    """Destroy what is prepared beside the branch's data, whole or not, durably; no-op if there is none.

    Raises Busy while it is bound or a Postgres holds its lock, Unsafe if it is the branch's former data,
    StorageUnclear if it cannot be said what it is.
    """
    mounted_pool(layout, project_uid)
    if _understood(layout, project_uid, branch_uid).state is VolumeState.OLD:
        raise Unsafe(f"what lies beside the data of branch {branch_uid} was its data; nothing is destroyed")
    path, new = layout.restore(project_uid, branch_uid), layout.new_snapshot(project_uid, branch_uid)
    unfinished = [each for each in (path, new) if is_subvolume(each)]
    if new in unfinished:
        # Without data of its own the branch itself is made there.
        marker_of(layout.branch(project_uid, branch_uid))
        read_any_marker(new)
    for each in unfinished:
        check_unused(each, layout)
    for each in unfinished:
        destroy(each)
    if unfinished:
        sync(layout.pool(project_uid))


def ensure_restore_finished(layout: Layout, project_uid: str, branch_uid: str, now: str) -> None:
    """Leave nothing beside the branch's data, where no restore is wanted any more: destroy, keep or trash it.

    For a branch that goes, or whose object has gone, with everything that it owns. `now`: RFC 3339. Raises Busy while
    a Postgres uses it, StorageUnclear if it cannot be said what it is; then nothing is touched.
    """
    volume = _checked(layout, project_uid, branch_uid, observe_restore(layout, project_uid, branch_uid))
    match judge(volume, None):
        case Verdict.DESTROY:
            ensure_restore_destroyed(layout, project_uid, branch_uid)
        case Verdict.FINISH_OLD if volume.restore_ref and volume.restore_ref.undo == UNDO_KEEP:
            branch = marker_of(layout.branch(project_uid, branch_uid)).names
            object_name = names.branch_object_name(branch.project, branch.branch)
            snapshot = names.undo_snapshot_name(object_name, volume.restore_ref.uid)
            ensure_old_kept(layout, project_uid, branch_uid, snapshot, now)
        case Verdict.FINISH_OLD:
            ensure_old_trashed(layout, project_uid, branch_uid)


def _ensure_finishable(layout: Layout, project_uid: str, branch_uid: str) -> RestoreRef | None:
    """Look at the old data; return the restore_ref of the restore that has replaced it, None without old data."""
    mounted_pool(layout, project_uid)
    volume = _understood(layout, project_uid, branch_uid)
    if volume.state is VolumeState.ABSENT:
        return None
    if volume.state is not VolumeState.OLD:
        raise Unsafe(f"what lies beside the data of branch {branch_uid} is still to come; nothing is touched")
    check_unused(layout.restore(project_uid, branch_uid), layout)
    # Nobody else does the root's work any more: its jobs run from the next start on.
    ensure_recorded(layout, project_uid, branch_uid, Marker.with_quiet_ended)
    return volume.restore_ref


def _understood(layout: Layout, project_uid: str, branch_uid: str) -> RestoreVolume:
    return _checked(layout, project_uid, branch_uid, _observe_whole(layout, project_uid, branch_uid))


def _checked(layout: Layout, project_uid: str, branch_uid: str, volume: RestoreVolume) -> RestoreVolume:
    if volume.state is VolumeState.UNCLEAR:
        name = layout.restore(project_uid, branch_uid).name
        raise StorageUnclear(
            f"subvolume {name}: {volume.problem}; nothing is touched; inspect it on the node"
        )
    return volume
