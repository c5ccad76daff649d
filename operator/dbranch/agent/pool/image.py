"""The pool's image file and the loop device over it. One image attached or mounted twice is a lost pool."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from dbranch.agent.linux import btrfs
from dbranch.agent.linux.command import run
from dbranch.agent.linux.loops import (
    Loop,
    clear_autoclear,
    free_loop,
    loops_of,
    loops_of_deleted,
    loops_of_inode,
)
from dbranch.agent.linux.mounting import await_released
from dbranch.agent.linux.mounts import mounts_at, mounts_of_device, read_mounts
from dbranch.api.errors import Busy, CommandFailed, PoolDamaged, PoolLost, Unsafe
from dbranch.runtime.logs import log_command

# mkfs.btrfs needs this for one device with two copies of the metadata.
MINIMUM_BYTES: Final = 128 * 2**20
_DETACH_POLL_SECONDS: Final = 0.02
_ATTACH_ATTEMPTS: Final = 10
# The smallest nodes: a commit of Postgres writes its part of btrfs' log tree in whole nodes, in both copies, and
# waits for them (measured: fdatasync takes two thirds of the time that it takes with mkfs' default of 16 KiB).
_MKFS_SIZES: Final = ("--sectorsize", 4096, "--nodesize", 4096)


def sync_directory(directory: Path) -> None:
    """Write the names that were created or removed in the directory to disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ensure_file_removed(file: Path) -> None:
    """Remove a file beside the images, durably; no-op without it."""
    if file.exists():
        log_command("rm", file)
        file.unlink()
        sync_directory(file.parent)


def ensure_image(file: Path, size: int, created: bool) -> None:
    """Create the sparse image file, at least MINIMUM_BYTES large; no-op if it exists.

    Raises PoolLost if the pool was `created` once and its image is missing: it is never created again.
    """
    # An empty file was left by a reconcile that was cut off after creating it: nothing can be on it yet.
    if file.exists() and (created or file.stat().st_size > 0):
        return
    if created:
        raise PoolLost(
            f"pool image {file} is missing; nothing is created again; "
            "bring the file back, or delete the project and restore it from a dump"
        )
    size = max(size, MINIMUM_BYTES)
    log_command("truncate", "-s", size, file)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_directory(file.parent)


def ensure_attached(file: Path, point: Path) -> str:
    """Attach the image to a loop device, or adopt the one that it has; return the device's path.

    `point`: where the pool is, or will be, mounted. Call it under the attach lock. Raises Busy if the device is being
    detached; Unsafe if the image has two devices, one that does not show the whole image, or none while another is
    mounted at `point`.
    """
    for _ in range(_ATTACH_ATTEMPTS):
        loops = loops_of(file)
        if len(loops) > 1:
            raise Unsafe(
                f"image {file} is attached to {', '.join(loop.path for loop in loops)}; "
                "nothing is mounted; detach all but the one in use with losetup -d"
            )
        if loops:
            _adopt(loops[0], file)
            return loops[0].path
        mounted = mounts_at(point)
        if mounted:
            # The image was deleted or replaced under its mount. A second device with the same filesystem would be
            # taken for the first one by the kernel.
            raise Unsafe(
                f"{point} has {mounted[-1].source} mounted, which is not of {file}; nothing is attached; "
                "bring the right file back, or stop the project"
            )
        try:
            device = free_loop()
        except OSError as error:
            raise Busy(
                f"no loop device is available for {file} ({error.strerror}); nothing is attached; "
                "detach unused ones on the node (losetup --list); it is tried again"
            ) from error
        try:
            run(["losetup", device, file])
        except CommandFailed as error:
            # Another agent took it meanwhile (with kind, nodes share the kernel's devices).
            if "busy" not in error.output.lower():
                raise
    raise Busy(f"no free loop device for {file}; it is tried again")


def _adopt(loop: Loop, file: Path) -> None:
    """Make sure that the device shows the whole image and stays; raise Unsafe or Busy otherwise."""
    partial = (
        ("read-only", loop.read_only),
        (f"from byte {loop.offset} on", loop.offset),
        (f"up to a size of {loop.size_limit} bytes", loop.size_limit),
    )
    limits = " and ".join(text for text, applies in partial if applies)
    if limits:
        raise Unsafe(
            f"{loop.path} shows the image {limits}; nothing is mounted; run losetup -d {loop.path} on the node "
            f"(image {file})"
        )
    if not loop.autoclear:
        return
    if not mounts_of_device(loop.path, read_mounts()):
        raise Busy(f"{loop.path} of {file} is being detached; it is tried again")
    # A person has detached it (`losetup -d`, `-D`) while it is mounted here, which only requests the detachment.
    log_command("losetup", "--autoclear=off", loop.path)
    clear_autoclear(loop.path)


def ensure_filesystem(file: Path, device: str, recorded_uuid: str | None) -> str:
    """Create the btrfs on the image if none was ever recorded; return its UUID.

    Raises PoolLost if it is another than `recorded_uuid`, PoolDamaged if it is missing or the image is shorter than
    its filesystem.
    """
    block = btrfs.superblock(file)
    uuid = block.uuid if block else None
    size = file.stat().st_size
    if block and size < block.total_bytes:
        raise PoolDamaged(
            f"pool image {file} has {size} bytes, its filesystem {block.total_bytes}: its end is lost; "
            "nothing is touched; bring the whole image back, or delete the project"
        )
    if recorded_uuid is not None:
        if uuid is None:
            raise PoolDamaged(
                f"pool image {file} holds no btrfs any more, it had {recorded_uuid}; nothing is created again; "
                "inspect it with btrfs rescue, or delete the project"
            )
        if uuid != recorded_uuid:
            raise PoolLost(
                f"pool image {file} holds filesystem {uuid}, not {recorded_uuid}; nothing is touched; "
                "bring the right file back"
            )
        return uuid
    if uuid is not None:
        # Created by a reconcile that was cut off before it could record it.
        return uuid
    run(["mkfs.btrfs", "--quiet", "--force", "--nodiscard", *_MKFS_SIZES, device], timeout=120)
    run(["blockdev", "--flushbufs", device])
    uuid = btrfs.superblock_uuid(file)
    if uuid is None:
        raise PoolDamaged(f"mkfs.btrfs on {device} left no filesystem in {file}; check the node's disk")
    return uuid


def ensure_grown(file: Path, device: str, point: Path, size: int) -> None:
    """Grow image, loop device and filesystem to `size` bytes, each that is smaller; nothing ever shrinks."""
    if file.stat().st_size < size:
        log_command("truncate", "-s", size, file)
        os.truncate(file, size)
    image_bytes = file.stat().st_size
    if any(loop.size < image_bytes // 512 * 512 for loop in loops_of(file)):
        run(["losetup", "--set-capacity", device])
    # btrfs uses whole sectors of 4 KiB.
    if btrfs.device_bytes(point) < image_bytes // 4096 * 4096:
        run(["btrfs", "filesystem", "resize", "max", point])


def ensure_detached(file: Path, timeout: float = 5.0) -> None:
    """Detach every loop device of this image, or of a deleted one of its name. Call it only after the unmount.

    `losetup -d` of a device in use exits with 0 and only sets autoclear, so the detachment is verified: raises Busy
    if it has not happened after `timeout` seconds, or, with nothing done, while another mount namespace holds the
    filesystem.
    """
    for loop in (*loops_of(file), *loops_of_deleted(file)):
        await_released(loop.path)
        run(["losetup", "--detach", loop.path])
        _await_detached(loop, file, timeout)


def _await_detached(loop: Loop, file: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(attached.path == loop.path for attached in loops_of_inode(loop.device, loop.inode)):
        if time.monotonic() > deadline:
            raise Busy(f"{loop.path} of {file} is still in use; nothing is deleted; it is tried again")
        time.sleep(_DETACH_POLL_SECONDS)
