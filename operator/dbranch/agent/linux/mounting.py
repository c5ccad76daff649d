"""Mounting and unmounting, never lazily: an unmount while Postgres runs would be a PANIC."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from dbranch.agent.linux import btrfs
from dbranch.agent.linux.mounts import Mount, mounts_at
from dbranch.agent.linux.syscalls import bind_at, mount_tmpfs, unmount_at
from dbranch.api.errors import Busy
from dbranch.runtime.logs import log_command

_POLL_SECONDS: Final = 0.02


def unmount(point: Path) -> None:
    """Unmount the topmost mount at `point`. Raises Busy if it is in use; then nothing has changed."""
    log_command("umount", "--no-canonicalize", point)
    try:
        unmount_at(point)
    except OSError as error:
        if not mounts_at(point):
            return
        raise Busy(f"{point} cannot be unmounted now: {error.strerror}; it is tried again") from error


def await_released(device: str, timeout: float = 5.0) -> None:
    """Wait until the kernel has released the filesystem on a device.

    Raises Busy if another mount namespace still holds it after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while btrfs.in_use(device):
        if time.monotonic() > deadline:
            raise Busy(
                f"another mount namespace holds the filesystem on {device}; it is neither detached nor deleted; "
                f"find the process on the node by grep -l {device} /proc/*/mountinfo"
            )
        time.sleep(_POLL_SECONDS)


def bind_mount(source: Path, point: Path) -> None:
    """Mount `source` at `point` as well. The caller has checked that nothing is mounted there: bind mounts stack."""
    # By the system call, like all that a slot needs: slots are bound one after the other, and a process would take as
    # long as the rest of it.
    log_command("mount", "--bind", source, point)
    bind_at(source, point)


def is_memory(mount: Mount) -> bool:
    """Return True for what `mount_memory` mounted."""
    return (mount.fstype, mount.source) == ("tmpfs", "tmpfs")


def mount_memory(point: Path, size: int, inodes: int, owner: int) -> None:
    """Mount a directory in memory at `point`: at most `size` bytes and `inodes` files, all of the user ID `owner`.

    The caller has checked that nothing is mounted there.
    """
    options = f"size={size},nr_inodes={inodes},mode=0700,uid={owner},gid={owner}"
    log_command("mount", "-t", "tmpfs", "-o", f"{options},nosuid,nodev,noexec", "tmpfs", point)
    mount_tmpfs(point, options)
