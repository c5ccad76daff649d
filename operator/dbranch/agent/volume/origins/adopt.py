"""Branches of an adopted pool: a retained subvolume becomes the branch of another project."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from dbranch.agent.layout import MARKER, Layout
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.files import write_atomically
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.linux.syscalls import rename_new, syncfs
from dbranch.agent.volume.effect import read_marker, write_settings
from dbranch.agent.volume.marker import Marker, NewerMarker, render_marker
from dbranch.agent.volume.restores import ensure_restore_finished
from dbranch.agent.volume.settings import Settings
from dbranch.api.errors import PoolLost, StorageUnclear
from dbranch.runtime.logs import log_command

logger = logging.getLogger(__name__)


def ensure_branch_adopted(
    layout: Layout, project_uid: str, old_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """Make the retained subvolume of branch `old_uid` the branch `branch_uid`; return its marker.

    What a restore left beside it is finished before: it becomes a snapshot or goes. `now`: RFC 3339. Raises PoolLost
    if the pool is not mounted or the subvolume has no marker that can be read.
    """
    old, new = layout.branch(project_uid, old_uid), layout.branch(project_uid, branch_uid)
    if not mounts_at(layout.pool(project_uid)):
        raise PoolLost(f"pool {layout.pool(project_uid)} is not mounted; nothing is adopted")
    try:
        ensure_restore_finished(layout, project_uid, old_uid, now)
    except StorageUnclear as error:
        # It stays under the UID of then, as an orphan.
        logger.warning("branch %s is adopted without what lies beside its data: %s", old_uid, error)
    for path in (old, new):
        marker = read_marker(path) if is_subvolume(path) else None
        if marker is not None:
            # The rename comes last: until then the old name is found, and this is done again.
            reassigned = marker.reassigned_to(project_uid, branch_uid, settings.names)
            write_settings(path, reassigned, settings)
            write_atomically(path / MARKER, render_marker(reassigned))
            break
    if old.exists():
        log_command("mv", "--no-clobber", old, new)
        rename_new(old, new)
        syncfs(new.parent)
    marker = read_marker(new)
    if marker is None:
        raise PoolLost(f"retained branch {old_uid} has no marker that can be read; nothing is touched")
    return marker


def retained_branch(
    markers: Mapping[str, Marker | NewerMarker | None],
    previous_uids: Collection[str],
    branch: str,
    branch_uid: str,
) -> str | None:
    """Return the UID under which an adopted pool holds the data of this branch, the newest if several do, or None.

    The newest is that of the highest generation, and among these the one that was made last.
    `previous_uids`: of the projects whose pool it was before. `branch` is the branch's name, `branch_uid` its
    DBBranch's. `markers` are the pool's, by the UID of the branch that had the data.
    """
    newest: tuple[int, str, str] | None = None
    for uid, marker in markers.items():
        if not isinstance(marker, Marker) or uid == branch_uid:
            continue
        if marker.owner_uid == branch_uid:
            # Its marker is rewritten before its name: an adoption was cut off between the two.
            return uid
        if marker.project_uid in previous_uids and marker.names.branch == branch:
            newest = max(newest or (0, "", ""), (marker.generation, marker.snapshot_time, uid))
    return newest[2] if newest else None
