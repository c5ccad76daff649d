"""What is true of the node itself. Reads only."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import btrfs_supported
from dbranch.agent.linux.loops import loop_supported
from dbranch.agent.linux.mounts import mount_over


@dataclass(frozen=True)
class MachineFacts:
    """`machine_id`: of the disk that holds the base directory (a word that dbranch drew there once, or
    None before `ensure_base`): a node made anew, or a base directory not mounted yet, has another.
    `btrfs`, `loop`: whether the kernel offers them. `propagates`: whether a mount made below the base
    directory reaches the node (`shared:` in mountinfo). `host_free_bytes` of the base's disk.
    """

    machine_id: str | None
    btrfs: bool
    loop: bool
    propagates: bool
    host_free_bytes: int
    host_total_bytes: int


def observe_machine(layout: Layout) -> MachineFacts:
    """The node under the base directory. OSError where it cannot be read."""
    try:
        machine: str | None = layout.machine_id.read_text().strip() or None
    except FileNotFoundError:
        machine = None
    there = layout.base if layout.base.exists() else layout.base.parent
    disk = os.statvfs(there)
    mount = mount_over(there)
    return MachineFacts(
        machine_id=machine,
        btrfs=btrfs_supported(),
        loop=loop_supported(),
        propagates=mount is not None and mount.shared,
        host_free_bytes=disk.f_bavail * disk.f_frsize,
        host_total_bytes=disk.f_blocks * disk.f_frsize,
    )
