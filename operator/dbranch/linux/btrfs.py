"""btrfs by its own calls: superblock, subvolumes, sizes. Sources: linux/btrfs.h, btrfs-ioctl(2)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dbranch.linux.calls import openat2

_SUPERBLOCK_AT: Final = 65536
# mkfs writes this one last: until everything else is on the device, another stands here.
_MAGIC: Final = b"_BHRfS_M"
_SUBVOLUME_INODE: Final = 256

_SNAP_CREATE_V2: Final = 0x50009417
_SUBVOL_CREATE: Final = 0x5000940E
_SNAP_DESTROY: Final = 0x5000940F
_GET_SUBVOL_ROOTREF: Final = 0xD000943D
_INO_LOOKUP_USER: Final = 0xD000943E
_DEV_INFO: Final = 0xD000941E
_ARGS: Final = struct.Struct("=q4088s")
_ARGS_V2: Final = struct.Struct("=qQQ32s4040s")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def superblock_uuid(image: Path) -> str | None:
    """The UUID of the btrfs in an image or device; None where no complete one is there."""
    with image.open("rb", buffering=0) as file:
        file.seek(_SUPERBLOCK_AT)
        block = file.read(4096)
    if len(block) < 4096 or block[0x40:0x48] != _MAGIC:
        return None
    return str(uuids.UUID(bytes=block[0x20:0x30]))


def in_use(uuid: str) -> bool:
    """Whether the kernel has this filesystem mounted, in whatever mount namespace."""
    return Path("/sys/fs/btrfs", uuid).exists()


def btrfs_supported() -> bool:
    """Whether the kernel knows btrfs now, or can load it."""
    known = Path("/proc/filesystems").read_text().split()
    release = os.uname().release
    return "btrfs" in known or any(
        path.exists()
        for path in (
            Path("/sys/module/btrfs"),
            *(
                Path(f"/lib/modules/{release}/kernel/fs/btrfs/btrfs.ko{end}")
                for end in ("", ".xz", ".zst", ".gz")
            ),
        )
    )


def is_subvolume(path: Path) -> bool:
    """Whether `path` is the root of a btrfs subvolume (of the pool it lies in), not a link to one."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return False
    return facts.st_ino == _SUBVOLUME_INODE and path.is_dir() and not path.is_symlink()


def create_subvolume(path: Path) -> None:
    """An empty subvolume; FileExistsError where the name is taken."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SUBVOL_CREATE, bytearray(_ARGS.pack(0, os.fsencode(path.name))), True)


def create_snapshot(source: Path, path: Path) -> None:
    """A writable snapshot; FileExistsError where the name is taken (the command line would nest)."""
    with _opened(source) as origin, _opened(path.parent) as parent:
        arguments = _ARGS_V2.pack(origin, 0, 0, b"", os.fsencode(path.name))
        fcntl.ioctl(parent, _SNAP_CREATE_V2, bytearray(arguments), True)


def destroy_subvolume_at(directory: int, name: str) -> None:
    """As `destroy_subvolume`, below an open directory that nobody can exchange meanwhile."""
    fcntl.ioctl(directory, _SNAP_DESTROY, bytearray(_ARGS.pack(0, os.fsencode(name))), True)


def nested_subvolumes_at(directory: int, name: str) -> tuple[str, ...]:
    """As `nested_subvolumes`, of the subvolume `name` below an open directory; never through a link."""
    handle = openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _nested(handle)
    finally:
        os.close(handle)


def destroy_subvolume(path: Path) -> None:
    """A subvolume that has no other nested in it, unlinked; its space is reclaimed behind this."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SNAP_DESTROY, bytearray(_ARGS.pack(0, os.fsencode(path.name))), True)


def nested_subvolumes(path: Path) -> tuple[str, ...]:
    """The paths, relative to `path`, of the subvolumes directly nested in this one."""
    with _opened(path) as handle:
        return _nested(handle)


def _nested(handle: int) -> tuple[str, ...]:
    found: list[str] = []
    least = 0
    while True:
        page = bytearray(4096)
        struct.pack_into("=Q", page, 0, least)
        more = False
        try:
            fcntl.ioctl(handle, _GET_SUBVOL_ROOTREF, page, True)
        except OSError as error:
            if error.errno != errno.EOVERFLOW:
                raise
            more = True
        for index in range(page[4088]):
            tree, directory = struct.unpack_from("=QQ", page, 8 + 16 * index)
            found.append(_name_of(handle, tree, directory))
            least = tree + 1
        if not more:
            return tuple(found)


def _name_of(handle: int, tree: int, directory: int) -> str:
    page = bytearray(4096)
    struct.pack_into("=QQ", page, 0, directory, tree)
    fcntl.ioctl(handle, _INO_LOOKUP_USER, page, True)
    name = bytes(page[16:272]).split(b"\0", 1)[0]
    parent = bytes(page[272:]).split(b"\0", 1)[0]
    return os.fsdecode(parent + name)


def device_bytes(mountpoint: Path) -> int:
    """How much of its (only) device the mounted filesystem uses, in bytes."""
    with _opened(mountpoint) as handle:
        page = bytearray(4096)
        struct.pack_into("=Q", page, 0, 1)
        fcntl.ioctl(handle, _DEV_INFO, page, True)
    return int(struct.unpack_from("=Q", page, 32)[0])
