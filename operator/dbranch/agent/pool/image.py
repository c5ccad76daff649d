"""The pool's image file and the loop device over it. One image attached or mounted twice is a lost pool."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dbranch.agent.linux import btrfs
from dbranch.agent.linux.command import run
from dbranch.agent.linux.loops import Loop, free_loop, loops_of, loops_of_deleted, loops_of_inode
from dbranch.agent.linux.mounting import await_released
from dbranch.api.errors import Busy, CommandFailed, PoolDamaged, PoolLost, Unsafe
from dbranch.runtime.logs import log_command

# What mkfs.btrfs needs for one device with its metadata twice.
LEAST_BYTES = 128 * 2**20
# The smallest nodes: a commit of Postgres writes its part of btrfs' log tree in whole nodes, both copies of it, and
# waits for them (measured: fdatasync takes two thirds of the time that it takes with mkfs' own 16 KiB).
_FORM = ("--sectorsize", 4096, "--nodesize", 4096)


def sync_directory(directory: Path) -> None:
    """Names made or removed in the directory are on disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ensure_image(file: Path, size: int, made: bool) -> None:
    """The sparse image file, at least LEAST_BYTES large when it is new.

    PoolLost where a pool was `made` once and its image is not there: it is never made again.
    """
    # One without its size was made by a visit that was cut off behind its name: nothing can be on it yet.
    if file.exists() and (made or file.stat().st_size > 0):
        return
    if made:
        raise PoolLost(
            f"pool image {file} is missing; nothing is made again; "
            "bring the file back, or delete the project and restore it from a dump"
        )
    size = max(size, LEAST_BYTES)
    log_command("truncate", "-s", size, file)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_directory(file.parent)


def ensure_attached(file: Path) -> str:
    """The path of the one loop device over the image; one that is there is adopted.

    To be called under the attach lock. Busy where the device is going away; Unsafe where there are two.
    """
    for _ in range(10):
        loops = loops_of(file)
        if len(loops) > 1:
            raise Unsafe(
                f"image {file} is attached to {', '.join(loop.path for loop in loops)}; "
                "nothing is mounted; detach all but the one in use with losetup -d"
            )
        if loops:
            if loops[0].ending:
                raise Busy(f"{loops[0].path} of {file} is being detached; it is tried again")
            return loops[0].path
        try:
            device = free_loop()
        except OSError as error:
            raise Busy(
                f"no loop device can be had for {file} ({error.strerror}); nothing is attached; "
                "detach what is not used on the node (losetup --list); it is tried again"
            ) from error
        try:
            run(["losetup", device, file])
        except CommandFailed as error:
            # Another agent (kind: the devices are the kernel's, not the node's) took it meanwhile.
            if "busy" not in error.output.lower():
                raise
    raise Busy(f"no free loop device for {file}; it is tried again")


def ensure_filesystem(file: Path, device: str, known_uuid: str | None) -> str:
    """The btrfs on the image, made only where none was ever recorded; returns its UUID.

    PoolLost where it is another than `known_uuid`, PoolDamaged where there is none any more or the image is
    shorter than what was made on it.
    """
    found = btrfs.superblock(file)
    uuid = found.uuid if found else None
    size = file.stat().st_size
    if found and size < found.total_bytes:
        raise PoolDamaged(
            f"pool image {file} has {size} bytes, its filesystem {found.total_bytes}: its end is lost; "
            "nothing is touched; bring the whole image back, or delete the project"
        )
    if known_uuid is not None:
        if uuid is None:
            raise PoolDamaged(
                f"pool image {file} holds no btrfs any more, it had {known_uuid}; nothing is made again; "
                f"look at it with btrfs rescue, or delete the project"
            )
        if uuid != known_uuid:
            raise PoolLost(
                f"pool image {file} holds filesystem {uuid}, not {known_uuid}; nothing is touched; "
                "bring the right file back"
            )
        return uuid
    if uuid is not None:
        # Made by a visit that was cut off before it could say so.
        return uuid
    run(["mkfs.btrfs", "--quiet", "--force", "--nodiscard", *_FORM, device], seconds=120)
    run(["blockdev", "--flushbufs", device])
    uuid = btrfs.superblock_uuid(file)
    if uuid is None:
        raise PoolDamaged(f"mkfs.btrfs on {device} left no filesystem in {file}; look at the node's disk")
    return uuid


def ensure_grown(file: Path, device: str, point: Path, size: int) -> None:
    """Image, device and filesystem, each that is behind raised to `size` bytes; nothing ever shrinks."""
    if file.stat().st_size < size:
        log_command("truncate", "-s", size, file)
        os.truncate(file, size)
    image_bytes = file.stat().st_size
    if any(loop.size < image_bytes // 512 * 512 for loop in loops_of(file)):
        run(["losetup", "--set-capacity", device])
    # btrfs uses whole sectors of 4 KiB.
    if btrfs.device_bytes(point) < image_bytes // 4096 * 4096:
        run(["btrfs", "filesystem", "resize", "max", point])


def ensure_detached(file: Path, seconds: float = 5.0) -> None:
    """No loop device holds this image, nor one of its name that was deleted. Call only when nothing of it
    is mounted here any more.

    `losetup -d` of a device in use says 0 and only marks it, so the proof is looked for: Busy without it, and
    Busy, with nothing done, while another mount namespace holds the filesystem.
    """
    for loop in (*loops_of(file), *loops_of_deleted(file)):
        await_released(loop.path)
        run(["losetup", "--detach", loop.path])
        _await_detached(loop, file, seconds)


def _await_detached(loop: Loop, file: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(left.path == loop.path for left in loops_of_inode(loop.device, loop.inode)):
        if time.monotonic() > end:
            raise Busy(f"{loop.path} of {file} is still in use; nothing is deleted; it is tried again")
        time.sleep(0.02)
