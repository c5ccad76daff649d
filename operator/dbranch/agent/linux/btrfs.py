"""btrfs by its own calls: superblock, subvolumes, sizes. Sources: linux/btrfs.h, btrfs-ioctl(2)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dbranch.agent.linux.syscalls import openat2

_SUPERBLOCK_AT: Final = 65536
# mkfs writes this one last: until everything else is on the device, another stands here.
_MAGIC: Final = b"_BHRfS_M"
_UUID_AT, _MAGIC_AT, _TOTAL_AT = 0x20, 0x40, 0x70
_SUBVOLUME_INODE: Final = 256

_SNAP_CREATE_V2: Final = 0x50009417
_SUBVOL_CREATE: Final = 0x5000940E
_SNAP_DESTROY: Final = 0x5000940F
_GET_SUBVOL_ROOTREF: Final = 0xD000943D
_INO_LOOKUP_USER: Final = 0xD000943E
_DEV_INFO: Final = 0xD000941E
_SUBVOL_GETFLAGS: Final = 0x80089419
_SUBVOL_SETFLAGS: Final = 0x4008941A
_READ_ONLY: Final = 2
_GET_DEV_STATS: Final = 0xC4089434
_ARGS: Final = struct.Struct("=q4088s")
_ARGS_V2: Final = struct.Struct("=qQQ32s4040s")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Superblock:
    """What a filesystem says of itself: its UUID, and the bytes of its device that it counts on."""

    uuid: str
    total_bytes: int


def superblock(image: Path) -> Superblock | None:
    """The superblock of the btrfs in an image or device; None where no complete one is there."""
    with image.open("rb", buffering=0) as file:
        file.seek(_SUPERBLOCK_AT)
        block = file.read(4096)
    if len(block) < 4096 or block[_MAGIC_AT : _MAGIC_AT + 8] != _MAGIC:
        return None
    uuid = uuids.UUID(bytes=block[_UUID_AT : _UUID_AT + 16])
    return Superblock(str(uuid), struct.unpack_from("<Q", block, _TOTAL_AT)[0])


def superblock_uuid(image: Path) -> str | None:
    """The UUID of the btrfs in an image or device; None where no complete one is there."""
    found = superblock(image)
    return found.uuid if found else None


def in_use(device: str) -> bool:
    """Whether the kernel has a filesystem on this device mounted, in whatever mount namespace.

    By the device, not by the UUID: a copied image has the same.
    """
    return any(Path("/sys/fs/btrfs").glob(f"*/devices/{Path(device).name}"))


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


def is_subvolume_at(directory: int, name: str) -> bool:
    """As `is_subvolume`, in an open directory."""
    facts = os.lstat(name, dir_fd=directory)
    other = facts.st_dev != os.fstat(directory).st_dev
    return other and stat.S_ISDIR(facts.st_mode) and facts.st_ino == _SUBVOLUME_INODE


def ensure_writable_at(directory: int, name: str) -> None:
    """The subvolume in the open directory is not read-only: a tenant's may be, and then it cannot be moved."""
    handle = openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = bytearray(8)
        fcntl.ioctl(handle, _SUBVOL_GETFLAGS, flags, True)
        now = struct.unpack("=Q", flags)[0]
        if now & _READ_ONLY:
            fcntl.ioctl(handle, _SUBVOL_SETFLAGS, struct.pack("=Q", now & ~_READ_ONLY))
    finally:
        os.close(handle)


def destroy_subvolume(path: Path) -> None:
    """A subvolume that has no other nested in it, unlinked; its space is reclaimed behind this."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SNAP_DESTROY, bytearray(_ARGS.pack(0, os.fsencode(path.name))), True)


def nested_subvolumes(path: Path) -> tuple[str, ...]:
    """The paths, relative to `path`, of the subvolumes directly nested in this one.

    OSError with ENAMETOOLONG where one lies deeper than the kernel can say (some 3800 bytes).
    """
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


def device_damaged(mountpoint: Path) -> bool:
    """Whether the (only) device has given back something else than was written, since its counts were reset.

    btrfs keeps the counts on the disk. Writes that failed are not counted here: a full disk is no damage.
    """
    with _opened(mountpoint) as handle:
        page = bytearray(1032)
        struct.pack_into("=QQQ", page, 0, 1, 5, 0)
        fcntl.ioctl(handle, _GET_DEV_STATS, page, True)
    _, read, _, corruption, generation = struct.unpack_from("=5Q", page, 24)
    return bool(read or corruption or generation)
