"""Subvolumes of a mounted pool: their files are written and rewritten, they become branches and trash.

How their data comes to be is in `origins/`, one file each.

The success of a btrfs command is not durable. So everything is created under a temporary name, the marker last,
and the filesystem synced; then it is renamed in one step, and the filesystem synced again; only then may the status
say that it exists.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dbranch.agent.layout import (
    LOCK,
    MARKER,
    PG_HBA,
    PG_IDENT,
    POSTGRESQL_CONF,
    Layout,
    SubvolumeKind,
    SubvolumeName,
)
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.files import empty_directory, opened_directory, write_atomically
from dbranch.agent.linux.mounts import mounts_at, read_mounts
from dbranch.agent.linux.syscalls import openat2, rename_new, rename_new_at, syncfs
from dbranch.agent.timing import TRASH_TIMEOUT_SECONDS
from dbranch.agent.volume.brake import observe_brake
from dbranch.agent.volume.marker import Marker, NewerMarker, SnapshotMarker, render_marker
from dbranch.agent.volume.observe import list_subvolumes, marker_at
from dbranch.agent.volume.settings import Settings, render_files, render_hba
from dbranch.api.errors import Busy, DataLost, InvalidInput, StorageUnclear, Unsafe
from dbranch.runtime.file_lock import held_temporary, is_unlocked
from dbranch.runtime.logs import log_command


def mounted_pool(layout: Layout, project_uid: str) -> Path:
    """Return where the project's pool is mounted; raise Busy if it is not."""
    point = layout.pool(project_uid)
    if not mounts_at(point):
        raise Busy(f"pool {point} is not mounted; it is tried again")
    return point


def sync(path: Path) -> None:
    """Write everything of the filesystem at `path` to disk."""
    log_command("sync", "--file-system", path)
    syncfs(path)


def read_marker(subvolume: Path) -> Marker | None:
    """Read a branch's marker in a subvolume; None if it has none that can be read, or holds a snapshot.

    Raises StorageUnclear if a newer release wrote it: only that release knows what the subvolume is.
    """
    marker = read_any_marker(subvolume)
    return None if isinstance(marker, SnapshotMarker) else marker


def read_any_marker(subvolume: Path) -> Marker | SnapshotMarker | None:
    """Read the marker of a subvolume, as `read_marker`, whoever owns it."""
    marker = marker_at(subvolume)
    if isinstance(marker, NewerMarker):
        raise StorageUnclear(
            f"subvolume {subvolume.name} was written by a newer release of dbranch ({marker}); "
            "nothing is touched; upgrade the agent of this node"
        )
    return marker


def marker_of(branch: Path) -> Marker:
    """Read the marker of a branch that exists; raise DataLost if it has none that can be read."""
    marker = read_marker(branch)
    if marker is None:
        raise DataLost(
            f"branch {branch} has no marker that can be read; nothing is touched; inspect it on the node"
        )
    return marker


def write_new_files(subvolume: Path, marker: Marker, settings: Settings) -> None:
    """Write the files of a subvolume before its rename to a branch, with one sync for all of them."""
    write_atomically(subvolume / LOCK, "", durable=False)
    write_settings(subvolume, marker, settings, durable=False)
    write_atomically(subvolume / MARKER, render_marker(marker), durable=False)
    sync(subvolume)


def write_settings(subvolume: Path, marker: Marker, settings: Settings, durable: bool = True) -> bool:
    """Write the settings files from `settings` and `marker`, to disk if `durable`. Returns True if one changed."""
    changed = False
    for name, text in render_files(settings, marker).items():
        if _text_of(subvolume / name) != text:
            write_atomically(subvolume / name, text, durable=durable)
            changed = True
    return changed


def rename_durably(subvolume: Path, path: Path) -> Marker:
    """Give a subvolume with a branch's marker its name, durably, in one step; return its marker."""
    log_command("mv", "--no-clobber", subvolume, path)
    rename_new(subvolume, path)
    sync(path.parent)
    return marker_of(path)


def ensure_settings(layout: Layout, project_uid: str, branch_uid: str, settings: Settings) -> bool:
    """Write the branch's settings files. Returns True if one changed (then Postgres has to reload them).

    The pg_hba.conf of a branch that is not opened yet stays as it is: only `ensure_hba_open` opens it.
    """
    branch = _branch_on_mounted_pool(layout, project_uid, branch_uid)
    outdated = _outdated_files(branch, marker_of(branch), _braked(layout, branch_uid, settings))
    for name, text in outdated.items():
        write_atomically(branch / name, text)
    return bool(outdated)


def settings_outdated(layout: Layout, project_uid: str, branch_uid: str, settings: Settings) -> bool:
    """True if `ensure_settings` would write a file of the branch, or would reject the settings."""
    branch = layout.branch(project_uid, branch_uid)
    try:
        return bool(_outdated_files(branch, marker_of(branch), _braked(layout, branch_uid, settings)))
    except InvalidInput:
        return True


def _braked(layout: Layout, branch_uid: str, settings: Settings) -> Settings:
    """Return the settings as the branch's brake makes them: it is no part of the spec."""
    return replace(settings, read_only=True) if observe_brake(layout, branch_uid) else settings


def _outdated_files(branch: Path, marker: Marker, settings: Settings) -> dict[str, str]:
    """Return `{name: text}` of the settings files that differ from what they should be."""
    return {
        name: text
        for name, text in render_files(settings, marker).items()
        if (name != PG_HBA or marker.opened) and _text_of(branch / name) != text
    }


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def settings_written_at(layout: Layout, project_uid: str, branch_uid: str) -> float:
    """Return when a settings file that Postgres reloads was written last, as `time.time()` counts."""
    branch = layout.branch(project_uid, branch_uid)
    return max((branch / name).stat().st_mtime for name in (POSTGRESQL_CONF, PG_HBA, PG_IDENT))


def ensure_hba_open(layout: Layout, project_uid: str, branch_uid: str) -> None:
    """Write the pg_hba.conf that admits users. Postgres has to reload it."""
    _write_hba(_branch_on_mounted_pool(layout, project_uid, branch_uid), is_open=True)


def ensure_hba_closed(layout: Layout, project_uid: str, branch_uid: str) -> None:
    """Write the pg_hba.conf that admits only the agent. Postgres has to reload it; sessions go on."""
    _write_hba(_branch_on_mounted_pool(layout, project_uid, branch_uid), is_open=False)


def _write_hba(branch: Path, is_open: bool) -> None:
    text = render_hba(marker_of(branch).superuser, is_open)
    if _text_of(branch / PG_HBA) != text:
        # A bind writes the settings files before Postgres reads them, so a power cut may take this one.
        write_atomically(branch / PG_HBA, text, durable=False)


def is_hba_closed(layout: Layout, project_uid: str, branch_uid: str, marker: Marker) -> bool:
    """Return True if the branch's pg_hba.conf admits the agent alone."""
    return _text_of(layout.branch(project_uid, branch_uid) / PG_HBA) == render_hba(
        marker.superuser, is_open=False
    )


def ensure_recorded(
    layout: Layout, project_uid: str, branch_uid: str, change: Callable[[Marker], Marker]
) -> Marker:
    """Write the branch's marker as `change` returns it, durably, if that differs; return it."""
    branch = _branch_on_mounted_pool(layout, project_uid, branch_uid)
    current = marker_of(branch)
    changed = change(current)
    if changed != current:
        write_atomically(branch / MARKER, render_marker(changed))
    return changed


def _branch_on_mounted_pool(layout: Layout, project_uid: str, branch_uid: str) -> Path:
    mounted_pool(layout, project_uid)
    return layout.branch(project_uid, branch_uid)


def check_unused(subvolume: Path, layout: Layout) -> None:
    """Raise Busy while the subvolume is bind-mounted into a slot of this node or a Postgres holds its lock.

    The bind is what counts: no tenant can undo it, and no unmount succeeds while a process uses it. The lock is
    asked only besides: every program that a Postgres starts inherits it, and can let it go.
    """
    devices = {mount.device for mount in mounts_at(subvolume.parent)}
    for mount in read_mounts():
        if mount.device in devices and mount.root == f"/{subvolume.name}":
            raise Busy(f"subvolume {subvolume} is in use at {mount.point}; it is tried again")
    if not is_unlocked(subvolume / LOCK):
        raise Busy(f"a Postgres still holds {subvolume / LOCK}; it is tried again")


def ensure_trashed(layout: Layout, project_uid: str, owner_uid: str) -> None:
    """Rename everything that this UID owns in the pool to trash, durably; no-op if it owns nothing.

    Raises Busy while any of it is bind-mounted into a slot or a Postgres holds its lock, StorageUnclear if a newer
    release wrote any of it; then nothing is renamed. A subvolume of a kind that only a newer release knows stays.
    """
    pool = mounted_pool(layout, project_uid)
    owned = [
        pool / str(name)
        for name in list_subvolumes(pool)
        if name.owner_uid == owner_uid and name.is_understood and name.kind != SubvolumeKind.TRASH
    ]
    for path in owned:
        read_marker(path)
        check_unused(path, layout)
    for path in owned:
        rename_to_trash(path, owner_uid)
    sync(pool)


def rename_to_trash(path: Path, owner_uid: str) -> None:
    """Rename a subvolume at the top of a pool to trash of this owner. The caller syncs."""
    trashed = path.with_name(str(_new_trash_name(owner_uid)))
    log_command("mv", "--no-clobber", path, trashed)
    rename_new(path, trashed)


def ensure_temporaries_destroyed(layout: Layout, project_uid: str, owner_uid: str) -> None:
    """Destroy the subvolumes in which a branch with this UID was being made and never came to be.

    Raises Busy while one is in use, StorageUnclear if a newer release wrote one.
    """
    pool = mounted_pool(layout, project_uid)
    for name in list(list_subvolumes(pool)):
        if name.owner_uid == owner_uid and name.kind in (SubvolumeKind.NEW, SubvolumeKind.INIT):
            read_marker(pool / str(name))
            check_unused(pool / str(name), layout)
            destroy(pool / str(name))
    sync(pool)


def _new_trash_name(owner_uid: str) -> SubvolumeName:
    # Random, so that no counter is needed; the rename never replaces an existing name.
    return SubvolumeName(owner_uid, SubvolumeKind.TRASH, secrets.token_hex(8))


def ensure_trash_emptied(layout: Layout, project_uid: str) -> None:
    """Destroy all trash of the pool, nested subvolumes first. btrfs reclaims the space afterwards.

    One caller at a time: the trash of many branches that are deleted together is everybody's. Raises Busy if others
    take longer than TRASH_TIMEOUT_SECONDS.
    """
    pool = mounted_pool(layout, project_uid)
    with held_temporary(layout.trash_lock(project_uid), TRASH_TIMEOUT_SECONDS):
        for name in list(list_subvolumes(pool)):
            if name.kind == SubvolumeKind.TRASH:
                destroy(pool / str(name))


def destroy(path: Path) -> None:
    """Destroy a subvolume at the top of a pool, and those that its tenant nested in it; no-op if it is missing.

    Nested ones become trash of the same owner first: they may nest to any depth, and after a crash the next call of
    `ensure_trash_emptied` destroys them. Raises Unsafe if `path` is no subvolume that dbranch created.
    """
    name = SubvolumeName.parse(path.name)
    if not btrfs.is_subvolume(path) or name is None:
        if os.path.lexists(path):
            raise Unsafe(f"{path} is no subvolume of dbranch; it is left alone; inspect it on the node")
        return
    pending = [path]
    while pending:
        top = pending.pop()
        with opened_directory(top.parent) as pool:
            # Nothing can be moved out of a read-only subvolume.
            btrfs.ensure_writable_at(pool, top.name)
            pending += _trash_nested(top, pool, name.owner_uid)
        log_command("btrfs", "subvolume", "delete", top)
        btrfs.destroy_subvolume(top)


def _trash_nested(top: Path, pool: int, owner_uid: str) -> list[Path]:
    """Move the subvolumes directly nested in `top` into the open directory of the pool, as trash; their new paths."""
    too_deep = False
    try:
        nested = btrfs.nested_subvolumes(top)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        nested, too_deep = (), True
    if not nested and not too_deep:
        return []
    trashed: list[Path] = []
    with opened_directory(top) as inside:

        def trash_subvolume(directory: int, name: str) -> bool:
            if not btrfs.is_subvolume_at(directory, name):
                return False
            new = top.with_name(str(_new_trash_name(owner_uid)))
            btrfs.ensure_writable_at(directory, name)
            log_command("mv", "--no-clobber", top / "…" / name, new)
            rename_new_at(directory, name, pool, new.name)
            trashed.append(new)
            return True

        # The path inside is the tenant's: by descriptors, so that a link cannot make root move another's.
        for path in map(Path, nested):
            parent = openat2(inside, str(path.parent), os.O_RDONLY | os.O_DIRECTORY)
            try:
                trash_subvolume(parent, path.name)
            finally:
                os.close(parent)
        if too_deep:
            empty_directory(inside, trash_subvolume)
    return trashed
