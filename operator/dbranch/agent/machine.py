"""Facts about the node itself. Reads only."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import btrfs_supported
from dbranch.agent.linux.loops import loop_supported
from dbranch.agent.linux.mounts import mount_containing


@dataclass(frozen=True)
class MachineFacts:
    """A node as it is now.

    `machine_id`: of the disk that holds the base directory; dbranch generated it there once (None before
    `ensure_base`), so a reinstalled node, or a base directory that is not mounted yet, has another. `btrfs`, `loop`:
    the kernel offers them. `propagates`: a mount below the base directory reaches the node (`shared:` in
    mountinfo). `host_free_bytes`, `host_total_bytes`: of the base directory's disk.
    """

    machine_id: str | None
    btrfs: bool
    loop: bool
    propagates: bool
    host_free_bytes: int
    host_total_bytes: int


def observe_machine(layout: Layout) -> MachineFacts:
    """Read the facts about the node under the base directory. Raises OSError if it cannot be read."""
    try:
        machine_id: str | None = layout.machine_id.read_text().strip() or None
    except FileNotFoundError:
        machine_id = None
    directory = layout.base if layout.base.exists() else layout.base.parent
    total, free = observe_disk(layout)
    mount = mount_containing(directory)
    return MachineFacts(
        machine_id=machine_id,
        btrfs=btrfs_supported(),
        loop=loop_supported(),
        propagates=mount is not None and mount.shared,
        host_free_bytes=free,
        host_total_bytes=total,
    )


def observe_disk(layout: Layout) -> tuple[int, int]:
    """Return the bytes of the disk under the base directory, and those that are free."""
    disk = os.statvfs(layout.base if layout.base.exists() else layout.base.parent)
    return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
