"""Subvolumes of a mounted pool: created by initdb, as snapshots of others, their files rewritten, and destroyed.

The success of a btrfs command is not durable. So everything is created under a temporary name, the marker last,
and the filesystem synced; then it is renamed in one step, and the filesystem synced again; only then may the status
say that it exists.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from dbranch.agent.layout import (
    INITDB_DONE,
    LOCK,
    MARKER,
    PG_HBA,
    PG_IDENT,
    PGDATA,
    PORT,
    POSTGRESQL_CONF,
    Layout,
    SubvolumeKind,
    SubvolumeName,
)
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.files import empty_directory, opened_directory, read_beneath, write_atomically
from dbranch.agent.linux.mounts import mounts_at, read_mounts
from dbranch.agent.linux.syscalls import openat2, rename_new, rename_new_at, syncfs
from dbranch.agent.volume import tenant
from dbranch.agent.volume.marker import FROM_BRANCH, FROM_INITDB, Marker, NewerMarker, Origin, render_marker
from dbranch.agent.volume.observe import list_subvolumes, marker_at
from dbranch.agent.volume.settings import (
    Settings,
    max_prepared_in,
    render_hba,
    render_ident,
    render_postgresql_conf,
)
from dbranch.api.errors import Busy, DataLost, StorageUnclear, Unsafe
from dbranch.runtime.file_lock import is_unlocked
from dbranch.runtime.logs import log_command


def _mounted_pool(layout: Layout, project_uid: str) -> Path:
    point = layout.pool(project_uid)
    if not mounts_at(point):
        raise Busy(f"pool {point} is not mounted; it is tried again")
    return point


def _sync(path: Path) -> None:
    log_command("sync", "--file-system", path)
    syncfs(path)


def read_marker(subvolume: Path) -> Marker | None:
    """Read the marker of a subvolume; None if it has none that can be read.

    Raises StorageUnclear if a newer release wrote it: only that release knows what the subvolume is.
    """
    marker = marker_at(subvolume)
    if isinstance(marker, NewerMarker):
        raise StorageUnclear(
            f"subvolume {subvolume.name} was written by a newer release of dbranch ({marker}); "
            "nothing is touched; upgrade the agent of this node"
        )
    return marker


def ensure_initdb_area(layout: Layout, project_uid: str, branch_uid: str, owner: int) -> None:
    """Create an empty subvolume for `initdb.sh`, its `pgdata` owned by the user ID `owner`.

    One from an earlier attempt is destroyed: call it only while no pod of that attempt exists, and not again once
    the new pod was created (bind it with `slot.ensure_initdb_bound`). Never touches a branch.
    """
    _mounted_pool(layout, project_uid)
    area = layout.initdb_area(project_uid, branch_uid)
    read_marker(area)
    _check_unused(area, layout)
    destroy(area)
    log_command("btrfs", "subvolume", "create", area)
    btrfs.create_subvolume(area)
    area.chmod(0o755)
    tenant.make_pgdata(area, owner)
    _sync(area)


def ensure_initdb_promoted(
    layout: Layout, project_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """Make the result of `initdb.sh` the root branch; return its marker. No-op if that was done already.

    `now`: RFC 3339. Raises Busy before the script is done, Unsafe if it left no database.
    """
    _mounted_pool(layout, project_uid)
    area, branch = layout.initdb_area(project_uid, branch_uid), layout.branch(project_uid, branch_uid)
    if branch.exists():
        return _marker_of(branch)
    marker = read_marker(area)
    with opened_directory(area, PGDATA) as pgdata:
        done = read_beneath(pgdata, INITDB_DONE)
    if done is None:
        if marker is None:
            raise Busy(f"initdb in {area} is not done; it is tried again")
    else:
        major = tenant.major_of(area)
        if major is None:
            raise Unsafe(f"initdb left no PG_VERSION in {area}; nothing is used; check spec.postgres.image")
        marker = Marker(
            project_uid,
            branch_uid,
            settings.names.role,
            Origin(FROM_INITDB, None, now),
            now,
            major,
            cleaned=True,
            names=settings.names,
        )
        _write_files(area, marker, settings)
        tenant.remove_beneath(area, INITDB_DONE)
    return _rename_to_branch(area, branch)


def ensure_snapshot(
    layout: Layout, project_uid: str, source_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """Create the branch as a snapshot of its source, cleaned offline, durable; return its marker.

    No-op if the branch exists. `now`: RFC 3339, kept as `snapshotTime`. Raises SourceUnsafe (with the path) if the
    source holds data outside its subvolume, DataLost if the source's subvolume is missing.
    """
    _mounted_pool(layout, project_uid)
    source, branch = layout.branch(project_uid, source_uid), layout.branch(project_uid, branch_uid)
    if branch.exists():
        return _marker_of(branch)
    snapshot = layout.new_snapshot(project_uid, branch_uid)
    read_marker(snapshot)
    destroy(snapshot)
    source_marker = read_marker(source) if btrfs.is_subvolume(source) else None
    if source_marker is None:
        raise DataLost(
            f"source {source_uid} has no subvolume with a marker at {source}; no branch is created"
        )
    log_command("btrfs", "subvolume", "snapshot", source, snapshot)
    btrfs.create_snapshot(source, snapshot)
    try:
        # The source's marker goes first: a snapshot that is cut off here must never pass for a branch.
        (snapshot / MARKER).unlink()
        tenant.check_self_contained(snapshot, source)
        tenant.ensure_cleaned_offline(snapshot)
        floor = max(
            source_marker.prepared_floor,
            max_prepared_in((snapshot / POSTGRESQL_CONF).read_text()),
            tenant.max_prepared_by_alter_system(snapshot),
        )
        marker = Marker(
            project_uid,
            branch_uid,
            settings.names.role,
            Origin(FROM_BRANCH, source_uid, now),
            now,
            source_marker.major,
            cleaned=False,
            prepared_floor=floor,
            password=source_marker.password,
            names=settings.names,
        )
        _write_files(snapshot, marker, settings)
    except Exception:
        destroy(snapshot)
        raise
    return _rename_to_branch(snapshot, branch)


def _marker_of(branch: Path) -> Marker:
    marker = read_marker(branch)
    if marker is None:
        raise DataLost(
            f"branch {branch} has no marker that can be read; nothing is touched; inspect it on the node"
        )
    return marker


def _write_files(subvolume: Path, marker: Marker, settings: Settings) -> None:
    """Write the files of a subvolume before its rename to a branch, with one sync for all of them."""
    write_atomically(subvolume / LOCK, "", durable=False)
    write_settings(subvolume, marker, settings, durable=False)
    write_atomically(subvolume / MARKER, render_marker(marker), durable=False)
    _sync(subvolume)


def write_settings(subvolume: Path, marker: Marker, settings: Settings, durable: bool = True) -> bool:
    """Write the settings files from `settings` and `marker`, to disk if `durable`. Returns True if one changed."""
    texts = {
        PORT: f"{settings.port}\n",
        POSTGRESQL_CONF: render_postgresql_conf(settings, marker.role, marker.prepared_floor),
        PG_HBA: render_hba(settings.user, marker.cleaned),
        PG_IDENT: render_ident(settings.user),
    }
    changed = False
    for name, text in texts.items():
        path = subvolume / name
        if not path.exists() or path.read_text() != text:
            write_atomically(path, text, durable=durable)
            changed = True
    return changed


def _rename_to_branch(subvolume: Path, branch: Path) -> Marker:
    log_command("mv", "--no-clobber", subvolume, branch)
    rename_new(subvolume, branch)
    _sync(branch.parent)
    return _marker_of(branch)


def ensure_settings(layout: Layout, project_uid: str, branch_uid: str, settings: Settings) -> bool:
    """Write the branch's settings files. Returns True if one changed (then Postgres has to reload them)."""
    branch = _branch_on_mounted_pool(layout, project_uid, branch_uid)
    return write_settings(branch, _marker_of(branch), settings)


def ensure_opened(layout: Layout, project_uid: str, branch_uid: str, user: str) -> None:
    """Record in the marker that the branch is cleaned, then write the pg_hba.conf that admits users.

    Postgres has to reload it.
    """
    branch = _branch_on_mounted_pool(layout, project_uid, branch_uid)
    marker = _marker_of(branch)
    if not marker.cleaned:
        write_atomically(branch / MARKER, render_marker(marker.with_cleaned()))
    text = render_hba(user, is_open=True)
    if (branch / PG_HBA).read_text() != text:
        write_atomically(branch / PG_HBA, text)


def ensure_password_version(layout: Layout, project_uid: str, branch_uid: str, version: str) -> None:
    """Record in the marker which version of the owner's password the branch has."""
    branch = _branch_on_mounted_pool(layout, project_uid, branch_uid)
    marker = _marker_of(branch)
    if marker.password != version:
        write_atomically(branch / MARKER, render_marker(marker.with_password_version(version)))


def _branch_on_mounted_pool(layout: Layout, project_uid: str, branch_uid: str) -> Path:
    _mounted_pool(layout, project_uid)
    return layout.branch(project_uid, branch_uid)


def _check_unused(subvolume: Path, layout: Layout) -> None:
    """Raise Busy while the subvolume is bind-mounted into a slot of this node or a Postgres holds its lock."""
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
    pool = _mounted_pool(layout, project_uid)
    owned = [
        pool / str(name)
        for name in list_subvolumes(pool)
        if name.owner_uid == owner_uid and name.is_understood and name.kind != SubvolumeKind.TRASH
    ]
    for path in owned:
        read_marker(path)
        _check_unused(path, layout)
    for path in owned:
        trashed = pool / str(_new_trash_name(owner_uid))
        log_command("mv", "--no-clobber", path, trashed)
        rename_new(path, trashed)
    _sync(pool)


def _new_trash_name(owner_uid: str) -> SubvolumeName:
    # Random, so that no counter is needed; the rename never replaces an existing name.
    return SubvolumeName(owner_uid, SubvolumeKind.TRASH, secrets.token_hex(8))


def ensure_trash_emptied(layout: Layout, project_uid: str) -> None:
    """Destroy all trash of the pool, nested subvolumes first. btrfs reclaims the space afterwards."""
    pool = _mounted_pool(layout, project_uid)
    for name in list_subvolumes(pool):
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
