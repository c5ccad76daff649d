"""Mounting and unmounting of pools, never lazily."""

from __future__ import annotations

import os
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.linux.command import run
from dbranch.agent.linux.loops import loops_of, loops_of_deleted
from dbranch.agent.linux.mounting import unmount
from dbranch.agent.linux.mounts import mounts_at, mounts_of_device, read_mounts
from dbranch.api.errors import Busy, Unsafe

_OPTIONS: Final = "nosuid,nodev,noexec,noatime,discard=async"


def ensure_mounted(layout: Layout, project_uid: str, device: str) -> None:
    """Mount the device's btrfs at the pool's mount point. Raises Unsafe if something else is mounted there."""
    point = layout.pool(project_uid)
    mounts = mounts_at(point)
    if mounts:
        if len(mounts) > 1 or mounts[0].fstype != "btrfs" or not mounts_of_device(device, mounts):
            raise Unsafe(
                f"{point} has {', '.join(m.source for m in mounts)} mounted, not {device}; "
                "nothing is touched; unmount it"
            )
        return
    point.mkdir(mode=0o700, exist_ok=True)
    run(["mount", "-t", "btrfs", "-o", _OPTIONS, device, point])
    # Pods must not look in: each has its own branch bind-mounted into its slot.
    point.chmod(0o700)


def ensure_unmounted(layout: Layout, project_uid: str) -> None:
    """Unmount the pool, wherever its image is attached.

    Raises Busy, naming the slots, while a branch is bind-mounted anywhere, and Unsafe if something that is not the
    pool is mounted at the pool's mount point: it stays.
    """
    point, file = layout.pool(project_uid), layout.image(project_uid)
    mounts = read_mounts()
    pool_mounts = mounts_at(point, mounts)
    if not pool_mounts:
        return
    loops = {os.path.realpath(loop.path) for loop in (*loops_of(file), *loops_of_deleted(file))}
    foreign = [m.source for m in pool_mounts if os.path.realpath(m.source) not in loops]
    if foreign:
        raise Unsafe(
            f"{point} has {', '.join(foreign)} mounted, which is not the pool; nothing is touched; unmount it"
        )
    devices = {m.device for m in pool_mounts if m.fstype == "btrfs"}
    bind_mounts = sorted(m.point for m in mounts if m.device in devices and m.point != str(point))
    if bind_mounts:
        raise Busy(f"pool {point} is in use at {', '.join(bind_mounts)}; it stays mounted; it is tried again")
    for _ in pool_mounts:
        unmount(point)
