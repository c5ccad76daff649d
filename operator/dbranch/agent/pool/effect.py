"""The life of a pool in order: image, loop device, filesystem, mount; and the way back."""

from __future__ import annotations

import errno
import os
import uuid as uuids
from pathlib import Path

from dbranch.agent.layout import Layout
from dbranch.agent.pool import image, mount
from dbranch.api.errors import PoolLost
from dbranch.runtime.file_lock import held
from dbranch.runtime.logs import log_command


def ensure_base(layout: Layout) -> str:
    """The base directory's own directories; the machine ID, drawn once and kept in the base directory.

    A node made anew under its name, or a base directory whose disk is not mounted yet, has another one.
    """
    for directory, mode in (
        (layout.base, 0o711),
        (layout.pools, 0o700),
        (layout.mounts, 0o711),
        (layout.slots, 0o711),
        (layout.locks, 0o700),
    ):
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    with held(layout.attach_lock):
        if layout.machine_id.exists():
            return layout.machine_id.read_text().strip()
        drawn = str(uuids.uuid4())
        begun = layout.machine_id.with_suffix(".new")
        with begun.open("w") as file:
            file.write(f"{drawn}\n")
            file.flush()
            os.fsync(file.fileno())
        begun.rename(layout.machine_id)
        image.sync_directory(layout.base)
        return drawn


def ensure_pool(
    layout: Layout, project_uid: str, size: int, known_uuid: str | None, known_machine: str | None
) -> str:
    """The pool attached, made (once), mounted and as large as `size` bytes; returns the filesystem's UUID.

    `known_uuid`, `known_machine`: what `status.node` has of `poolUUID` and `machineID`. Once `known_uuid`
    is there, nothing is made any more: PoolLost where the image is missing, another machine's or holds
    another filesystem, PoolDamaged where it holds none. Busy where something else holds the
    image; CommandFailed, OSError where the node refuses.
    """
    machine = ensure_base(layout)
    if known_uuid and known_machine and known_machine != machine:
        raise PoolLost(
            f"pool of project {project_uid} was made on the disk {known_machine}, here is {machine}; "
            f"nothing is made again; mount the disk that holds {layout.base}, or delete the project"
        )
    with held(layout.attach_lock, timeout=60):
        file = layout.image(project_uid)
        image.ensure_image(file, size, made=known_uuid is not None)
        device = image.ensure_attached(file)
        uuid = image.ensure_filesystem(file, device, known_uuid)
        mount.ensure_mounted(layout, project_uid, device)
        image.ensure_grown(file, device, layout.pool(project_uid), size)
        return uuid


def ensure_pool_down(layout: Layout, project_uid: str) -> None:
    """Unmounted and detached, without its mount point. Busy (with what holds it) while a slot or another
    namespace uses it."""
    file = layout.image(project_uid)
    with held(layout.attach_lock, timeout=60):
        mount.ensure_unmounted(layout, project_uid)
        image.ensure_detached(file)
        _remove_point(layout.pool(project_uid))


def ensure_pool_removed(layout: Layout, project_uid: str) -> None:
    """Down, and then the image deleted. Busy as in `ensure_pool_down`."""
    ensure_pool_down(layout, project_uid)
    file = layout.image(project_uid)
    with held(layout.attach_lock, timeout=60):
        image.ensure_detached(file)
        if file.exists():
            log_command("rm", file)
            file.unlink()
            image.sync_directory(layout.pools)


def _remove_point(point: Path) -> None:
    try:
        point.rmdir()
    except OSError as error:
        # What somebody else put there is not ours to remove.
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
            raise
