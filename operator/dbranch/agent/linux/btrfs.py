"""btrfs by its superblock and ioctls: subvolumes, sizes, damage. Sources: linux/btrfs.h, btrfs-ioctl(2)."""

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

_SUPERBLOCK_OFFSET: Final = 65536
# mkfs writes this last: until everything else is on the device, another value is here.
_MAGIC: Final = b"_BHRfS_M"
_UUID_OFFSET, _MAGIC_OFFSET, _TOTAL_OFFSET = 0x20, 0x40, 0x70
_SUBVOLUME_INODE: Final = 256

_SNAP_CREATE_V2: Final = 0x50009417
_SUBVOL_CREATE: Final = 0x5000940E
_SNAP_DESTROY: Final = 0x5000940F
_GET_SUBVOL_ROOTREF: Final = 0xD000943D
_INO_LOOKUP_USER: Final = 0xD000943E
_DEV_INFO: Final = 0xD000941E
_SUBVOL_GETFLAGS: Final = 0x80089419
_SUBVOL_SETFLAGS: Final = 0x4008941A
_GET_SUBVOL_INFO: Final = 0x81F8943C
# In struct btrfs_ioctl_get_subvol_info_args: ctransid and otransid.
_SUBVOL_INFO_BYTES: Final = 504
_CHANGED_OFFSET, _CREATED_OFFSET = 344, 352
_READ_ONLY: Final = 2
_SYNC: Final = 0x9408
_GET_DEV_STATS: Final = 0xC4089434
_ARGS: Final = struct.Struct("=q4088s")
_ARGS_V2: Final = struct.Struct("=qQQ32s4040s")


def sync_and_clean(path: Path) -> None:
    """Write the filesystem to disk, and have it begin to destroy deleted subvolumes now.

    By itself, and by syncfs, it begins with the next commit of its timer, within half a minute.
    """
    with _opened(path) as directory:
        fcntl.ioctl(directory, _SYNC)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Superblock:
    """A filesystem's UUID, and the bytes that its device has to have."""

    uuid: str
    total_bytes: int


def superblock(image: Path) -> Superblock | None:
    """Read the superblock of the btrfs in an image or device; None if it has no complete one."""
    with image.open("rb", buffering=0) as file:
        file.seek(_SUPERBLOCK_OFFSET)
        block = file.read(4096)
    if len(block) < 4096 or block[_MAGIC_OFFSET : _MAGIC_OFFSET + 8] != _MAGIC:
        return None
    uuid = uuids.UUID(bytes=block[_UUID_OFFSET : _UUID_OFFSET + 16])
    return Superblock(str(uuid), struct.unpack_from("<Q", block, _TOTAL_OFFSET)[0])


def superblock_uuid(image: Path) -> str | None:
    """Read the UUID of the btrfs in an image or device; None if it has no complete one."""
    block = superblock(image)
    return block.uuid if block else None


def in_use(device: str) -> bool:
    """Return True if the kernel has a filesystem on this device mounted, in any mount namespace.

    By the device, not by the UUID: a copied image has the same UUID.
    """
    return any(Path("/sys/fs/btrfs").glob(f"*/devices/{Path(device).name}"))


def btrfs_supported() -> bool:
    """Return True if the kernel knows btrfs now, or can load it."""
    filesystems = Path("/proc/filesystems").read_text().split()
    release = os.uname().release
    return "btrfs" in filesystems or any(
        path.exists()
        for path in (
            Path("/sys/module/btrfs"),
            *(
                Path(f"/lib/modules/{release}/kernel/fs/btrfs/btrfs.ko{suffix}")
                for suffix in ("", ".xz", ".zst", ".gz")
            ),
        )
    )


def is_subvolume(path: Path) -> bool:
    """Return True if `path` is the root of a btrfs subvolume, not a symbolic link to one."""
    try:
        stat_result = path.lstat()
    except FileNotFoundError:
        return False
    return stat_result.st_ino == _SUBVOLUME_INODE and path.is_dir() and not path.is_symlink()


def create_subvolume(path: Path) -> None:
    """Create an empty subvolume. Raises FileExistsError if the name is taken."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SUBVOL_CREATE, bytearray(_ARGS.pack(0, os.fsencode(path.name))), True)


def create_snapshot(source: Path, path: Path) -> None:
    """Create a writable snapshot. Raises FileExistsError if the name is taken (the btrfs command would nest it)."""
    with _opened(source) as source_handle, _opened(path.parent) as parent:
        create_snapshot_at(source_handle, parent, path.name)


def create_snapshot_at(source: int, directory: int, name: str) -> None:
    """Create a writable snapshot of the open subvolume `source` in an open directory, as `create_snapshot`."""
    arguments = _ARGS_V2.pack(source, 0, 0, b"", os.fsencode(name))
    fcntl.ioctl(directory, _SNAP_CREATE_V2, bytearray(arguments), True)


def is_subvolume_at(directory: int, name: str) -> bool:
    """Return True if `name` in the open directory is the root of another subvolume, as `is_subvolume`."""
    stat_result = os.lstat(name, dir_fd=directory)
    other_device = stat_result.st_dev != os.fstat(directory).st_dev
    return other_device and stat.S_ISDIR(stat_result.st_mode) and stat_result.st_ino == _SUBVOLUME_INODE


def ensure_writable_at(directory: int, name: str) -> None:
    """Clear the read-only flag of a subvolume in the open directory, which keeps it from being moved or emptied."""
    handle = openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = _flags_of(handle)
        if flags & _READ_ONLY:
            fcntl.ioctl(handle, _SUBVOL_SETFLAGS, struct.pack("=Q", flags & ~_READ_ONLY))
    finally:
        os.close(handle)


def set_read_only(path: Path) -> None:
    """Set the read-only flag of a subvolume. Nobody can write into it any more, not even root."""
    with _opened(path) as handle:
        fcntl.ioctl(handle, _SUBVOL_SETFLAGS, struct.pack("=Q", _flags_of(handle) | _READ_ONLY))


def is_read_only(path: Path) -> bool:
    """Return True if the subvolume has the read-only flag."""
    with _opened(path) as handle:
        return bool(_flags_of(handle) & _READ_ONLY)


def _flags_of(handle: int) -> int:
    flags = bytearray(8)
    fcntl.ioctl(handle, _SUBVOL_GETFLAGS, flags, True)
    return int(struct.unpack("=Q", flags)[0])


@dataclass(frozen=True)
class Transactions:
    """Transactions of the filesystem, which are numbered: that created a subvolume, and that changed it last.

    A snapshot that is taken of a subvolume does not change it; what was fsynced has (tried).
    """

    created: int
    changed: int


def transactions_of(path: Path) -> Transactions:
    """Return by which transactions a subvolume was created, and changed last."""
    page = bytearray(_SUBVOL_INFO_BYTES)
    with _opened(path) as handle:
        fcntl.ioctl(handle, _GET_SUBVOL_INFO, page, True)
    (changed,) = struct.unpack_from("=Q", page, _CHANGED_OFFSET)
    (created,) = struct.unpack_from("=Q", page, _CREATED_OFFSET)
    return Transactions(created, changed)


def destroy_subvolume(path: Path) -> None:
    """Unlink a subvolume that has no other nested in it; btrfs reclaims its space afterwards."""
    with _opened(path.parent) as parent:
        fcntl.ioctl(parent, _SNAP_DESTROY, bytearray(_ARGS.pack(0, os.fsencode(path.name))), True)


def nested_subvolumes(path: Path) -> tuple[str, ...]:
    """Return the paths, relative to `path`, of the subvolumes directly nested in this one.

    Raises OSError with ENAMETOOLONG if the path of one is longer than the kernel can return (some 3800 bytes).
    """
    with _opened(path) as handle:
        return nested_subvolumes_of(handle)


def nested_subvolumes_of(handle: int) -> tuple[str, ...]:
    """Return the paths of the subvolumes directly nested in the open one, as `nested_subvolumes`."""
    paths: list[str] = []
    minimum_tree = 0
    while True:
        page = bytearray(4096)
        struct.pack_into("=Q", page, 0, minimum_tree)
        has_next_page = False
        try:
            fcntl.ioctl(handle, _GET_SUBVOL_ROOTREF, page, True)
        except OSError as error:
            if error.errno != errno.EOVERFLOW:
                raise
            has_next_page = True
        for index in range(page[4088]):
            tree, directory = struct.unpack_from("=QQ", page, 8 + 16 * index)
            paths.append(_path_of(handle, tree, directory))
            minimum_tree = tree + 1
        if not has_next_page:
            return tuple(paths)


def _path_of(handle: int, tree: int, directory: int) -> str:
    page = bytearray(4096)
    struct.pack_into("=QQ", page, 0, directory, tree)
    fcntl.ioctl(handle, _INO_LOOKUP_USER, page, True)
    name = bytes(page[16:272]).split(b"\0", 1)[0]
    parent = bytes(page[272:]).split(b"\0", 1)[0]
    return os.fsdecode(parent + name)


def device_bytes(mountpoint: Path) -> int:
    """Return how many bytes of its (only) device the mounted filesystem uses."""
    with _opened(mountpoint) as handle:
        page = bytearray(4096)
        struct.pack_into("=Q", page, 0, 1)
        fcntl.ioctl(handle, _DEV_INFO, page, True)
    return int(struct.unpack_from("=Q", page, 32)[0])


def device_damaged(mountpoint: Path) -> bool:
    """Return True if the (only) device has returned other data than was written since its counters were reset.

    btrfs keeps the counters on the disk. Failed writes are not counted here: a full disk is no damage.
    """
    with _opened(mountpoint) as handle:
        page = bytearray(1032)
        struct.pack_into("=QQQ", page, 0, 1, 5, 0)
        fcntl.ioctl(handle, _GET_DEV_STATS, page, True)
    _, read, _, corruption, generation = struct.unpack_from("=5Q", page, 24)
    return bool(read or corruption or generation)
