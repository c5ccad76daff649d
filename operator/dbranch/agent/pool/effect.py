"""A pool's image, loop device, filesystem and mount, set up in this order and taken down in reverse."""

from __future__ import annotations

import errno
import logging
import os
import stat
import uuid as uuids
from pathlib import Path
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import sync_and_clean
from dbranch.agent.linux.quotas import image_has_simple_quotas, simple_quotas_supported
from dbranch.agent.linux.syscalls import trim
from dbranch.agent.pool import image, mount
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.pool.records import ensure_record_removed, understood_record
from dbranch.agent.pool.tombstone import ensure_tombstone_withdrawn, names_image, read_tombstone
from dbranch.agent.volume.quotas import ensure_quotas
from dbranch.api.errors import CommandFailed, PoolLost, Unsafe
from dbranch.runtime.file_lock import held, held_temporary
from dbranch.runtime.logs import log_command

logger = logging.getLogger(__name__)
# Free in a pool and not discarded: below this it is not worth a trim.
_TRIMMED_BYTES: Final = 64 * 2**20


def ensure_base(layout: Layout) -> str:
    """Create the directories below the base directory, and return the machine ID, generated once and kept there.

    Directories of an earlier release, which let others into `slots`, get the modes of new ones.
    A node that was reinstalled under its name, or a base directory whose disk is not mounted yet, has another ID.
    """
    layout.base.mkdir(mode=0o711, parents=True, exist_ok=True)
    for directory, mode in (
        (layout.pools, 0o700),
        (layout.mounts, 0o711),
        # With a way to it everybody could read a branch's marker, and a user with the tenant's ID its data.
        (layout.slots, 0o700),
        (layout.locks, 0o700),
    ):
        directory.mkdir(mode=mode, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) != mode:
            directory.chmod(mode)
    with held(layout.attach_lock):
        if layout.machine_id.exists():
            return layout.machine_id.read_text().strip()
        machine_id = str(uuids.uuid4())
        temporary = layout.machine_id.with_suffix(".new")
        with temporary.open("w") as file:
            file.write(f"{machine_id}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(layout.machine_id)
        image.sync_directory(layout.base)
        return machine_id


def ensure_pool(
    layout: Layout,
    project_uid: str,
    size: int,
    recorded_uuid: str | None,
    recorded_machine_id: str | None,
    quotas: bool = True,
) -> str:
    """Create the pool (once), attach, mount and grow it to `size` bytes; return the filesystem's UUID.

    `recorded_uuid`, `recorded_machine_id`: `status.node.poolUUID` and `machineID`. With a `recorded_uuid` nothing
    is created: raises PoolLost if the image is missing, another machine's, or holds another filesystem, PoolDamaged
    if it holds none. `quotas`: enable simple quotas while the pool has no subvolumes. Raises Busy while something
    else holds the image, CommandFailed or OSError if a command or a system call fails, Unsafe if this kernel cannot
    mount a pool with simple quotas.
    """
    machine_id = ensure_base(layout)
    if recorded_uuid and recorded_machine_id and recorded_machine_id != machine_id:
        raise PoolLost(
            f"pool of project {project_uid} was created on the disk {recorded_machine_id}, this is {machine_id}; "
            f"nothing is created again; mount the disk that holds {layout.base}, or delete the project"
        )
    with held_temporary(layout.pool_lock(project_uid), timeout=60):
        file = layout.image(project_uid)
        image.ensure_image(file, size, created=recorded_uuid is not None)
        with held(layout.attach_lock, timeout=60):
            device = image.ensure_attached(file, layout.pool(project_uid))
        uuid = image.ensure_filesystem(file, device, recorded_uuid)
        _ensure_mounted(layout, project_uid, device)
        if quotas:
            ensure_quotas(layout.pool(project_uid))
        image.ensure_grown(file, device, layout.pool(project_uid), size)
        return uuid


def _ensure_mounted(layout: Layout, project_uid: str, device: str) -> None:
    try:
        mount.ensure_mounted(layout, project_uid, device)
    except CommandFailed as error:
        # Only now the kernel's module is loaded, which says what it has.
        if simple_quotas_supported() or not image_has_simple_quotas(layout.image(project_uid)):
            raise
        raise Unsafe(
            f"{layout.image(project_uid)} has simple quotas, and kernel {os.uname().release} of this node has none; "
            "nothing is touched; start the node with Linux 6.7 or later"
        ) from error


def ensure_trimmed(layout: Layout, project_uid: str, left: int = 0) -> int:
    """Give back to the node's disk at once what is free in the pool; return the bytes that it keeps beyond its use.

    `left`: what the last call returned; without much more than that nothing is done. By itself btrfs destroys a
    subvolume and discards its blocks within a minute or so (tried: 40 s for 3 GiB), in which kubelet evicts every pod
    of a node whose disk is short.
    """
    point, facts = layout.pool(project_uid), observe_pool(layout, project_uid)
    if not facts.mounted or facts.read_only:
        return left
    sync_and_clean(point)
    unused = _unused_bytes(layout, project_uid)
    if unused > left + _TRIMMED_BYTES:
        log_command("fstrim", point)
        trim(point)
        unused = _unused_bytes(layout, project_uid)
    return unused


def _unused_bytes(layout: Layout, project_uid: str) -> int:
    facts = observe_pool(layout, project_uid)
    return max(0, (facts.allocated_bytes or 0) - (facts.used_bytes or 0))


def ensure_pool_down(layout: Layout, project_uid: str) -> None:
    """Unmount and detach the pool, and remove its mount point.

    Raises Busy, naming what holds it, while a slot or another mount namespace uses it.
    """
    file = layout.image(project_uid)
    with held_temporary(layout.pool_lock(project_uid), timeout=60):
        mount.ensure_unmounted(layout, project_uid)
        image.ensure_detached(file)
        _remove_mount_point(layout.pool(project_uid))


def ensure_pool_removed(layout: Layout, project_uid: str) -> None:
    """Take the pool down and delete its image and record; no-op without its tombstone (`ensure_tombstone`).

    The tombstone goes last, so that a removal that is cut off anywhere is done again. An image that holds another
    filesystem than the tombstone is for is left where it is. Raises Busy as `ensure_pool_down` does, StorageUnclear
    if a newer release wrote the tombstone or the record.
    """
    tombstone = read_tombstone(layout, project_uid)
    if tombstone is None:
        if not layout.image(project_uid).exists():
            # A mount may be left of an image that somebody has deleted.
            ensure_pool_down(layout, project_uid)
        return
    understood_record(layout, project_uid)
    ensure_pool_down(layout, project_uid)
    file = layout.image(project_uid)
    with held_temporary(layout.pool_lock(project_uid), timeout=60):
        if read_tombstone(layout, project_uid) is None:
            # It has been adopted, or is wanted again, since it was read.
            return
        image.ensure_detached(file)
        if not names_image(layout, project_uid, tombstone):
            logger.warning("%s holds another filesystem than the pool to be removed; it is left alone", file)
        else:
            image.ensure_file_removed(file)
            ensure_record_removed(layout, project_uid)
        ensure_tombstone_withdrawn(layout, project_uid)


def _remove_mount_point(point: Path) -> None:
    try:
        point.rmdir()
    except OSError as error:
        # Something that is not ours is in it, or mounted at it.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
            raise
