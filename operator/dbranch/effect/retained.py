"""Pools that outlive their project: the record beside the image, and a new project that takes one over."""

from __future__ import annotations

from dbranch.effect.command import log_as_typed
from dbranch.effect.image import sync_directory
from dbranch.effect.lock import held
from dbranch.effect.subvolume import read_marker, write_settings
from dbranch.errors import PoolLost
from dbranch.linux.btrfs import is_subvolume, superblock_uuid
from dbranch.linux.calls import rename_new, syncfs
from dbranch.linux.files import write_whole
from dbranch.linux.mounts import mounts_at
from dbranch.plan.layout import MARKER, Layout
from dbranch.plan.retained import Retained, render_retained
from dbranch.plan.settings_files import Marker, Settings, render_marker


def ensure_recorded(layout: Layout, project_uid: str, namespace: str, project: str) -> None:
    """The pool's record is on disk: whose it was. Without an image there is nothing to record."""
    uuid = superblock_uuid(layout.image(project_uid)) if layout.image(project_uid).exists() else None
    if uuid is None:
        return
    record = Retained(project_uid, uuid, namespace, project)
    write_whole(layout.record(project_uid), render_retained(record), mode=0o600)
    sync_directory(layout.pools)


def ensure_taken_over(layout: Layout, record: Retained, new_uid: str) -> None:
    """The retained image has the new project's name."""
    with held(layout.attach_lock, seconds=60):
        old, new = layout.image(record.project_uid), layout.image(new_uid)
        if old.exists():
            log_as_typed("mv", "--no-clobber", old, new)
            rename_new(old, new)
            sync_directory(layout.pools)


def ensure_forgotten(layout: Layout, old_uid: str) -> None:
    """The record of a pool that another project has now, gone."""
    record = layout.record(old_uid)
    if record.exists():
        log_as_typed("rm", record)
        record.unlink()
        sync_directory(layout.pools)


def ensure_branch_taken_over(
    layout: Layout, project_uid: str, old_uid: str, branch_uid: str, settings: Settings
) -> Marker:
    """The retained subvolume `old_uid` is the branch `branch_uid` of the project that took the pool over."""
    old, new = layout.branch(project_uid, old_uid), layout.branch(project_uid, branch_uid)
    if not mounts_at(layout.pool(project_uid)):
        raise PoolLost(f"pool {layout.pool(project_uid)} is not mounted; nothing is taken over")
    for path in (old, new):
        marker = read_marker(path) if is_subvolume(path) else None
        if marker is not None:
            # The name on disk comes last: until then the old one is found, and this is done again.
            given = marker.given_to(project_uid, branch_uid, settings.whose)
            write_settings(path, given, settings)
            write_whole(path / MARKER, render_marker(given))
            break
    if old.exists():
        log_as_typed("mv", "--no-clobber", old, new)
        rename_new(old, new)
        syncfs(new.parent)
    marker = read_marker(new)
    if marker is None:
        raise PoolLost(f"retained branch {old_uid} has no marker that can be read; nothing is touched")
    return marker
