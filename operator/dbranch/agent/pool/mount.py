"""Mounting and unmounting pools and binds; never lazily."""

from __future__ import annotations

import os

from dbranch.agent.layout import Layout
from dbranch.agent.linux.command import run
from dbranch.agent.linux.mounting import unmount
from dbranch.agent.linux.mounts import Mount, mounts_at, read_mounts
from dbranch.api.errors import Busy, Unsafe

_OPTIONS = "nosuid,nodev,noexec,noatime,discard=async"


def ensure_mounted(layout: Layout, project_uid: str, device: str) -> None:
    """The device's btrfs mounted at the pool's place. Unsafe where something else is mounted there."""
    point = layout.pool(project_uid)
    there = mounts_at(point)
    if there:
        if len(there) > 1 or there[0].kind != "btrfs" or not _same_device(there[0], device):
            raise Unsafe(
                f"{point} has {', '.join(m.source for m in there)} mounted, not {device}; "
                "nothing is touched; unmount it"
            )
        return
    point.mkdir(mode=0o700, exist_ok=True)
    run(["mount", "-t", "btrfs", "-o", _OPTIONS, device, point])
    # Pods of other projects must not look in; their own branch is bound into their slot.
    point.chmod(0o700)


def _same_device(mount: Mount, device: str) -> bool:
    # btrfs shows an anonymous device number, so the path in mountinfo is what there is.
    return os.path.realpath(mount.source) == os.path.realpath(device)


def ensure_unmounted(layout: Layout, project_uid: str) -> None:
    """Nothing mounted at the pool's place. Busy, with the slots' names, while a branch is bound anywhere."""
    point = layout.pool(project_uid)
    mounts = read_mounts()
    there = mounts_at(point, mounts)
    devices = {m.device for m in there if m.kind == "btrfs"}
    bound = sorted(m.point for m in mounts if m.device in devices and m.point != str(point))
    if bound:
        raise Busy(f"pool {point} is in use at {', '.join(bound)}; it stays mounted; it is tried again")
    for _ in there:
        unmount(point)
