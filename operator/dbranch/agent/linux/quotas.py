"""Simple quotas of btrfs by ioctls and sysfs: groups of subvolumes, and the bytes that they are charged with.

Sources: linux/btrfs.h, linux/btrfs_tree.h, fs/btrfs/qgroup.c. A group has a level and a number. `0/<subvolume>` is
the kernel's own; it is charged for each extent that the subvolume wrote, until nobody holds that any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import uuid as uuids
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dbranch.agent.linux.files import opened_directory

_QUOTA_CTL: Final = 0xC0109428
_QGROUP_ASSIGN: Final = 0x40189429
_QGROUP_CREATE: Final = 0x4010942A
_SUBVOL_CREATE_V2: Final = 0x50009418
_SNAP_CREATE_V2: Final = 0x50009417
_TREE_SEARCH: Final = 0xD0009411
_INO_LOOKUP: Final = 0xD0009412
_FS_INFO: Final = 0x8400941F
_ENABLE_SIMPLE: Final = 4
_INHERIT: Final = 4
_ROOT_TREE, _QUOTA_TREE, _FIRST_INODE = 1, 8, 256
_ROOT_ITEM, _GROUP_INFO, _GROUP_RELATION = 132, 242, 246
_LEVEL_SHIFT: Final = 48
_MAXIMUM: Final = 2**64 - 1
_SUPERBLOCK_INCOMPAT_OFFSET: Final = 65536 + 0xBC
_SIMPLE_QUOTA: Final = 1 << 16
_SYSFS: Final = Path("/sys/fs/btrfs")


@dataclass(frozen=True)
class Groups:
    """The groups of a filesystem as of its last commit.

    `charged`: `{group: bytes}`. `parents`: `{group: those that it is a member of}`.
    """

    charged: dict[int, int]
    parents: dict[int, tuple[int, ...]]


def group_of(level: int, number: int) -> int:
    """Return the ID of a group.

    >>> group_of(1, 256) == 2**48 + 256
    True
    """
    return level << _LEVEL_SHIFT | number


def level_and_number(group: int) -> tuple[int, int]:
    """Return what `group_of` was given."""
    return group >> _LEVEL_SHIFT, group & (1 << _LEVEL_SHIFT) - 1


def simple_quotas_supported() -> bool:
    """Return True if this kernel has simple quotas (6.7 or later). The module of btrfs has to be loaded."""
    return (_SYSFS / "features" / "simple_quota").exists()


def simple_quotas_enabled(mountpoint: Path) -> bool:
    """Return True if the mounted filesystem has simple quotas."""
    page = bytearray(1024)
    with opened_directory(mountpoint) as handle:
        fcntl.ioctl(handle, _FS_INFO, page, True)
    uuid = uuids.UUID(bytes=bytes(page[16:32]))
    try:
        return (_SYSFS / str(uuid) / "qgroups" / "mode").read_text().strip() == "squota"
    except FileNotFoundError:
        return False


def image_has_simple_quotas(image: Path) -> bool:
    """Return True if the btrfs in an image has the bit by which only a kernel with simple quotas mounts it."""
    with image.open("rb", buffering=0) as file:
        file.seek(_SUPERBLOCK_INCOMPAT_OFFSET)
        bits = file.read(8)
    return len(bits) == 8 and bool(struct.unpack("<Q", bits)[0] & _SIMPLE_QUOTA)


def enable_simple_quotas(mountpoint: Path) -> None:
    """Enable simple quotas. What was written before is charged to nobody."""
    with opened_directory(mountpoint) as handle:
        fcntl.ioctl(handle, _QUOTA_CTL, bytearray(struct.pack("=QQ", _ENABLE_SIMPLE, 0)), True)


def ensure_group(path: Path, group: int) -> None:
    """Create the group; no-op if it exists."""
    try:
        _change_group(path, group, create=True)
    except FileExistsError:
        return


def remove_group(path: Path, group: int) -> None:
    """Remove the group; no-op if it is missing. Raises OSError with EBUSY while anything is charged to it."""
    try:
        _change_group(path, group, create=False)
    except FileNotFoundError:
        return


def _change_group(path: Path, group: int, create: bool) -> None:
    with opened_directory(path) as handle:
        fcntl.ioctl(handle, _QGROUP_CREATE, struct.pack("=QQ", create, group))


def ensure_member(path: Path, group: int, parent: int) -> None:
    """Make the group a member of `parent`; no-op if it is."""
    try:
        _assign(path, group, parent, add=True)
    except FileExistsError:
        return


def remove_member(path: Path, group: int, parent: int) -> None:
    """End that the group is a member of `parent`; no-op if it is none."""
    try:
        _assign(path, group, parent, add=False)
    except FileNotFoundError:
        return


def _assign(path: Path, group: int, parent: int, add: bool) -> None:
    with opened_directory(path) as handle:
        fcntl.ioctl(handle, _QGROUP_ASSIGN, struct.pack("=QQQ", add, group, parent))


def create_in_groups(path: Path, source: Path | None, groups: Sequence[int]) -> None:
    """Create a subvolume, or a writable snapshot of `source`, whose own group is a member of `groups`.

    Raises FileExistsError if the name is taken.
    """
    inherit = ctypes.create_string_buffer(
        struct.pack(f"=9Q{len(groups)}Q", 0, len(groups), 0, 0, 0, 0, 0, 0, 0, *groups)
    )
    size = 8 * (9 + len(groups))
    with opened_directory(path.parent) as parent, opened_directory(source or path.parent) as origin:
        arguments = struct.pack(
            "=qQQQQ16s4040s",
            origin if source else 0,
            0,
            _INHERIT,
            size,
            ctypes.addressof(inherit),
            b"",
            os.fsencode(path.name),
        )
        fcntl.ioctl(parent, _SNAP_CREATE_V2 if source else _SUBVOL_CREATE_V2, bytearray(arguments), True)


def subvolume_id(path: Path) -> int:
    """Return the number of the subvolume that holds the directory `path`."""
    page = bytearray(4096)
    struct.pack_into("=QQ", page, 0, 0, _FIRST_INODE)
    with opened_directory(path) as handle:
        fcntl.ioctl(handle, _INO_LOOKUP, page, True)
    return int(struct.unpack_from("=Q", page)[0])


def subvolume_exists(mountpoint: Path, number: int) -> bool:
    """Return True if the filesystem has this subvolume, also while btrfs reclaims its space."""
    return any(_search(mountpoint, _ROOT_TREE, number, number, _ROOT_ITEM))


def charged_bytes(mountpoint: Path, group: int) -> int | None:
    """Return the bytes that the group is charged with, as of the last commit; None without the group."""
    for _, offset, item in _search(mountpoint, _QUOTA_TREE, 0, 0, _GROUP_INFO, group):
        if offset == group:
            return _charged(item)
    return None


def read_groups(mountpoint: Path) -> Groups:
    """Read all groups of the filesystem."""
    charged = {
        offset: _charged(item) for _, offset, item in _search(mountpoint, _QUOTA_TREE, 0, 0, _GROUP_INFO)
    }
    parents: dict[int, tuple[int, ...]] = {}
    for group, other, _ in _search(mountpoint, _QUOTA_TREE, 0, _MAXIMUM, _GROUP_RELATION):
        # Both directions are stored; the parent's level is the higher one.
        if other > group:
            parents[group] = (*parents.get(group, ()), other)
    return Groups(charged, parents)


def _charged(item: bytes) -> int:
    return int(struct.unpack_from("<QQ", item)[1])


def _search(
    mountpoint: Path, tree: int, first: int, last: int, kind: int, offset: int | None = None
) -> Iterator[tuple[int, int, bytes]]:
    """Yield object ID, offset and contents of the items of one kind in a tree; `offset`: of this one alone."""
    key = (first, kind, offset or 0)
    end = (last, kind, _MAXIMUM if offset is None else offset)
    with opened_directory(mountpoint) as handle:
        while key <= end:
            page = bytearray(4096)
            # Any key between the two, compared as a whole, may be returned; those of another kind are skipped.
            bounds = (tree, key[0], end[0], key[2], end[2], 0, _MAXIMUM, key[1], end[1], 4096)
            struct.pack_into("=7Q3I", page, 0, *bounds)
            fcntl.ioctl(handle, _TREE_SEARCH, page, True)
            count = struct.unpack_from("=I", page, 64)[0]
            if not count:
                return
            position = 104
            for _ in range(count):
                _, number, item_offset, item_kind, size = struct.unpack_from("=QQQII", page, position)
                position += 32
                if item_kind == kind:
                    yield number, item_offset, bytes(page[position : position + size])
                position += size
            key = _next_key(number, item_kind, item_offset)


def _next_key(number: int, kind: int, offset: int) -> tuple[int, int, int]:
    if offset < _MAXIMUM:
        return number, kind, offset + 1
    return (number, kind + 1, 0) if kind < 255 else (number + 1, 0, 0)
