"""Create and remove slots (the directories that Postgres pods mount), and bind branches into them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.linux import mounting
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.files import opened_directory, remove_at
from dbranch.agent.linux.mounts import mounts_at, read_mounts
from dbranch.agent.linux.syscalls import set_immutable
from dbranch.agent.timing import SLOT_EMPTYING_TIMEOUT_SECONDS
from dbranch.api.errors import Busy, DataLost, Unsafe
from dbranch.runtime.file_lock import held
from dbranch.runtime.logs import log_command

# Of the tmpfs at `run`: a socket, its lock file, and a line of the script's.
_RUN_BYTES: Final = 2**20
_RUN_INODES: Final = 64


def ensure_slot(layout: Layout, slot: str, owner: int) -> None:
    """Create the slot's directory, and mount what it has in memory.

    It holds `data` (empty and immutable) and `run`, both mount points of root's, and the FIFO `wake`. At `run` is a
    small tmpfs of the user ID `owner`, so that nothing of the node's disk is the tenant's.
    """
    directory, data, run, wake = layout.slot(slot), layout.data(slot), layout.run(slot), layout.wake(slot)
    directory.mkdir(mode=0o755, exist_ok=True)
    directory.chmod(0o755)
    if not data.is_mount():
        data.mkdir(mode=0o755, exist_ok=True)
        # A file that is written here would be hidden by the bind mount.
        set_immutable(data, True)
    run.mkdir(mode=0o755, exist_ok=True)
    if not wake.exists():
        new_wake = wake.with_suffix(".new")
        with suppress(FileExistsError):
            os.mkfifo(new_wake)
        new_wake.chmod(0o644)
        new_wake.rename(wake)
    _ensure_run_mounted(layout, slot, owner)


def _ensure_run_mounted(layout: Layout, slot: str, owner: int) -> None:
    """Mount the tmpfs at the slot's `run`, before a branch is bound: then no Postgres has its socket there yet.

    Release 0.1.0 made `run` a directory of the disk; what is bound in such a slot keeps it until its pod is gone.
    """
    if layout.run(slot).is_mount():
        return
    with held(layout.slots_lock):
        mounts = read_mounts()
        if not mounts_at(layout.run(slot), mounts) and not mounts_at(layout.data(slot), mounts):
            mounting.mount_memory(layout.run(slot), _RUN_BYTES, _RUN_INODES, owner)


def ensure_bound(layout: Layout, slot: str, project_uid: str, branch_uid: str) -> bool:
    """Bind the branch to the slot's `data` and wake the script there; return False if it was bound already.

    Raises Busy if the slot or the branch is in use otherwise, DataLost if the branch has no subvolume.
    """
    branch = layout.branch(project_uid, branch_uid)
    if not is_subvolume(branch):
        raise DataLost(f"branch {branch_uid} has no subvolume at {branch}; nothing is started")
    return _ensure_bound(layout, slot, branch)


def ensure_initdb_bound(layout: Layout, slot: str, project_uid: str, branch_uid: str) -> bool:
    """Bind the root branch's initdb area to the slot's `data`. Otherwise as `ensure_bound`."""
    return _ensure_bound(layout, slot, layout.initdb_area(project_uid, branch_uid))


def _ensure_bound(layout: Layout, slot: str, subvolume: Path) -> bool:
    data, root = layout.data(slot), f"/{subvolume.name}"
    with held(layout.slots_lock):
        mounts = read_mounts()
        pool_devices = {mount.device for mount in mounts_at(subvolume.parent, mounts)}
        existing = mounts_at(data, mounts)
        if existing:
            if len(existing) == 1 and existing[0].root == root and existing[0].device in pool_devices:
                return False
            raise Busy(f"slot {slot} has {existing[-1].root} bound, not {root}; it is tried again")
        for mount in mounts:
            if mount.device in pool_devices and mount.root == root:
                raise Busy(f"{subvolume} is bound at {mount.point} already; it is tried again")
        # The modification time of the FIFO is the time of the bind: observe_slot compares the script's
        # later reports with it.
        os.utime(layout.wake(slot), follow_symlinks=False)
        mounting.bind_mount(subvolume, data)
    _wake(layout.wake(slot))
    return True


def immutable_supported(layout: Layout) -> bool:
    """True if a directory below `slots` can be made immutable; tried on one created for that."""
    probe = layout.slots / ".probe"
    probe.mkdir(mode=0o700, exist_ok=True)
    supported = set_immutable(probe, True) and set_immutable(probe, False)
    probe.rmdir()
    return supported


def _wake(fifo: Path) -> None:
    """Open and close the FIFO so that a blocked reader returns; do nothing without a reader."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise


def ensure_unbound(layout: Layout, slot: str) -> None:
    """Unmount everything at the slot's `data`. Call it only if the slot's pod object is gone.

    Raises Busy while a process uses it.
    """
    with held(layout.slots_lock):
        while mounts_at(layout.data(slot)):
            mounting.unmount(layout.data(slot))


def ensure_slot_removed(layout: Layout, slot: str) -> None:
    """Unbind the slot, unmount its `run` and delete its directory. Otherwise as `ensure_unbound`.

    Raises Unsafe if something of somebody else is mounted at `run`: it stays, and so does the slot.
    """
    ensure_unbound(layout, slot)
    directory, data, run = layout.slot(slot), layout.data(slot), layout.run(slot)
    with held(layout.slots_lock):
        while mounts := mounts_at(run):
            if not mounting.is_memory(mounts[-1]):
                raise Unsafe(f"{run} has {mounts[-1].source} mounted; it is left alone; unmount it")
            mounting.unmount(run)
    if not directory.exists():
        return
    if data.exists():
        set_immutable(data, False)
        # It is empty unless somebody else wrote there: then rmdir fails, and nothing is deleted.
        data.rmdir()
    log_command("rm", "-r", directory)
    with opened_directory(layout.slots) as slots:
        remove_at(slots, slot, SLOT_EMPTYING_TIMEOUT_SECONDS)
