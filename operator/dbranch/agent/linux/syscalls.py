"""System calls that Python does not offer: openat2, renameat2, syncfs, mount, umount, fstrim, and the immutable flag.

Sources: openat2(2), renameat2(2), syncfs(2), mount(2), umount2(2), fstrim(8), ioctl_iflags(2). openat2 has one number
everywhere.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_OPENAT2: Final = 437

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100

_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_BIND: Final = 4096
_UMOUNT_NOFOLLOW: Final = 8

_FITRIM: Final = 0xC0185879

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_IMMUTABLE_FL: Final = 0x10


def _check(result: int, path: str | Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return result


def openat2(
    directory: int, path: str, flags: int, resolve: int = RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
) -> int:
    """Open `path` beneath the open `directory`, never through a symbolic link and never out of it.

    Returns a descriptor. Raises OSError with ELOOP if a part of the path is a symbolic link, EXDEV if it leads out.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    return _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        ),
        path,
    )


def rename_new(old: Path, new: Path) -> None:
    """Rename `old` to `new`. Raises FileExistsError if `new` exists; the check and the rename are one step."""
    rename_new_at(_AT_FDCWD, old, _AT_FDCWD, new)


def rename_new_at(old_directory: int, old: str | Path, new_directory: int, new: str | Path) -> None:
    """Rename `old` in one open directory to `new` in another, as `rename_new` does (RENAME_NOREPLACE)."""
    _renameat2(old_directory, old, new_directory, new, _RENAME_NOREPLACE)


def exchange(one: Path, other: Path) -> None:
    """Exchange the names of two that exist, in one step: at no moment is either name missing (RENAME_EXCHANGE)."""
    _renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)


def _renameat2(old_directory: int, old: str | Path, new_directory: int, new: str | Path, flags: int) -> None:
    _check(
        _libc.renameat2(
            ctypes.c_int(old_directory),
            ctypes.c_char_p(os.fsencode(old)),
            ctypes.c_int(new_directory),
            ctypes.c_char_p(os.fsencode(new)),
            ctypes.c_uint(flags),
        ),
        new,
    )


def syncfs(path: Path) -> None:
    """Write everything of the filesystem that holds `path` to disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(directory), path)
    finally:
        os.close(directory)


def trim(point: Path) -> None:
    """Discard what is free in the filesystem mounted at `point`, now, so that a sparse image under it shrinks."""
    whole = struct.pack("=QQQ", 0, 2**64 - 1, 0)
    directory = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(directory, _FITRIM, bytearray(whole), True)
    finally:
        os.close(directory)


def mount_tmpfs(point: Path, options: str) -> None:
    """Mount a tmpfs with these options (tmpfs(5)) at `point`, with nosuid, nodev and noexec."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    arguments = (b"tmpfs", os.fsencode(point), b"tmpfs", ctypes.c_ulong(flags), options.encode())
    _check(_libc.mount(*arguments), point)


def bind_at(source: Path, point: Path) -> None:
    """Mount the directory `source` at `point` as well (MS_BIND)."""
    arguments = (os.fsencode(source), os.fsencode(point), None, ctypes.c_ulong(_MS_BIND), None)
    _check(_libc.mount(*arguments), point)


def unmount_at(point: Path) -> None:
    """Unmount the topmost mount at `point`, never lazily. Raises OSError with EBUSY if it is in use."""
    _check(_libc.umount2(os.fsencode(point), ctypes.c_int(_UMOUNT_NOFOLLOW)), point)


def set_immutable(path: Path, immutable: bool) -> bool:
    """Set or clear the immutable flag of a directory.

    Returns False if the filesystem has no such flag or the process may not set it.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = array.array("l", [0])
        fcntl.ioctl(directory, _FS_IOC_GETFLAGS, flags, True)
        desired = flags[0] | _FS_IMMUTABLE_FL if immutable else flags[0] & ~_FS_IMMUTABLE_FL
        if desired != flags[0]:
            flags[0] = desired
            fcntl.ioctl(directory, _FS_IOC_SETFLAGS, flags)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise
    finally:
        os.close(directory)
    return True
