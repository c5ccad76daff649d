"""Slots: the directory that a Postgres pod mounts, and the bind of a branch into it."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from dbranch.agent.layout import Layout
from dbranch.agent.linux import mounting
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.files import opened_directory, remove_at
from dbranch.agent.linux.mounts import mounts_at, read_mounts
from dbranch.agent.linux.syscalls import set_immutable
from dbranch.api.errors import Busy, DataLost
from dbranch.runtime.file_lock import held
from dbranch.runtime.logs import log_command


def ensure_slot(layout: Layout, slot: str, owner: int) -> None:
    """The slot's directory: `data` empty and immutable, `run` owned by the user ID `owner`, the FIFO `wake`."""
    directory, data, run, wake = layout.slot(slot), layout.data(slot), layout.run(slot), layout.wake(slot)
    directory.mkdir(mode=0o755, exist_ok=True)
    directory.chmod(0o755)
    if not data.is_mount():
        data.mkdir(mode=0o755, exist_ok=True)
        # What is written here would be below the bind, and out of sight.
        set_immutable(data, True)
    if not run.exists():
        # Its owner first, its name last: what is cut off between the two is made again.
        begun = run.with_suffix(".new")
        with suppress(FileExistsError):
            begun.mkdir(mode=0o700)
        os.chown(begun, owner, owner, follow_symlinks=False)
        begun.rename(run)
    if not wake.exists():
        begun = wake.with_suffix(".new")
        with suppress(FileExistsError):
            os.mkfifo(begun)
        begun.chmod(0o644)
        begun.rename(wake)


def ensure_bound(layout: Layout, slot: str, project_uid: str, branch_uid: str) -> bool:
    """The branch bound at the slot's `data`, and the waiting script woken. False: it was there already.

    Busy where the slot or the branch is in use otherwise; DataLost where the branch has no subvolume.
    """
    branch = layout.branch(project_uid, branch_uid)
    if not is_subvolume(branch):
        raise DataLost(f"branch {branch_uid} has no subvolume at {branch}; nothing is started")
    return _ensure_bound(layout, slot, branch)


def ensure_initdb_bound(layout: Layout, slot: str, project_uid: str, branch_uid: str) -> bool:
    """The root branch's initdb area bound at the slot's `data`. As `ensure_bound`."""
    return _ensure_bound(layout, slot, layout.initdb_area(project_uid, branch_uid))


def _ensure_bound(layout: Layout, slot: str, subvolume: Path) -> bool:
    data, root = layout.data(slot), f"/{subvolume.name}"
    with held(layout.slots_lock):
        mounts = read_mounts()
        devices = {m.device for m in mounts_at(subvolume.parent, mounts)}
        there = mounts_at(data, mounts)
        if there:
            if len(there) == 1 and there[0].root == root and there[0].device in devices:
                return False
            raise Busy(f"slot {slot} has {there[-1].root} bound, not {root}; it is tried again")
        for other in mounts:
            if other.device in devices and other.root == root:
                raise Busy(f"{subvolume} is bound at {other.point} already; it is tried again")
        # The time of the bind: by it the script's later words are judged.
        os.utime(layout.wake(slot), follow_symlinks=False)
        mounting.bind(subvolume, data)
    _wake(layout.wake(slot))
    return True


def immutable_supported(layout: Layout) -> bool:
    """Whether a directory below `slots` can be made immutable; tried on one of its own."""
    probe = layout.slots / ".probe"
    probe.mkdir(mode=0o700, exist_ok=True)
    supported = set_immutable(probe, True) and set_immutable(probe, False)
    probe.rmdir()
    return supported


def _wake(fifo: Path) -> None:
    """Opened and closed: who reads it comes back. Nobody reads it (yet): nobody has to be woken."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise


def ensure_unbound(layout: Layout, slot: str) -> None:
    """Nothing mounted at the slot's `data`. Call only when the slot's pod object is gone. Busy while in use."""
    with held(layout.slots_lock):
        while mounts_at(layout.data(slot)):
            mounting.unmount(layout.data(slot))


def ensure_slot_removed(layout: Layout, slot: str) -> None:
    """Unbound and the directory gone. As `ensure_unbound`."""
    ensure_unbound(layout, slot)
    directory, data = layout.slot(slot), layout.data(slot)
    if not directory.exists():
        return
    if data.exists():
        set_immutable(data, False)
        # Only ever empty: what is not ours stays, and stops this.
        data.rmdir()
    log_command("rm", "-r", directory)
    with opened_directory(layout.slots) as slots:
        remove_at(slots, slot)
