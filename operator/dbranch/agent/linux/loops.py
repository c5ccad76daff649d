"""Loop devices, known by the (device, inode) of the file behind them, not by a path.

The devices are the kernel's; a node in /dev may be missing (a container's /dev has those that existed when it
started), and is then created. Source: loop(4), linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CONTROL: Final = "/dev/loop-control"
_MAJOR: Final = 7
_CONTROL_DEVICE: Final = os.makedev(10, 237)
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_CTL_GET_FREE: Final = 0x4C82
# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt type, key size, flags, ...
_INFO: Final = struct.Struct("=QQQQQIIII64s64s32s2Q")
_FLAGS: Final = 8
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4


@dataclass(frozen=True)
class Loop:
    """An attached loop device.

    `size` in bytes; `autoclear`: the kernel detaches it at its last close. `offset`, `size_limit`: where in the file
    the device begins, and how many bytes of it it shows at most (0: all), in bytes; `read_only`: it takes no writes.
    """

    path: str
    device: int
    inode: int
    size: int
    autoclear: bool
    offset: int = 0
    size_limit: int = 0
    read_only: bool = False


def _ensure_node(path: str, device: int, file_type: int) -> str:
    if not Path(path).exists():
        with suppress(FileExistsError):
            os.mknod(path, file_type | 0o660, device)
    return path


def loop_node(number: int) -> str:
    """Return the path of device `number`; create its node if it is missing."""
    return _ensure_node(f"/dev/loop{number}", os.makedev(_MAJOR, number), stat.S_IFBLK)


def _read(number: int) -> Loop | None:
    try:
        handle = os.open(loop_node(number), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.ENOENT):
            return None
        raise
    try:
        info = bytearray(_INFO.size)
        fcntl.ioctl(handle, _LOOP_GET_STATUS64, info, True)
        size = os.lseek(handle, 0, os.SEEK_END)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            return None
        raise
    finally:
        os.close(handle)
    device, inode, _, offset, size_limit, *_, flags = _INFO.unpack(info)[: _FLAGS + 1]
    autoclear, read_only = bool(flags & _AUTOCLEAR), bool(flags & _READ_ONLY)
    return Loop(f"/dev/loop{number}", device, inode, size, autoclear, offset, size_limit, read_only)


def clear_autoclear(path: str) -> None:
    """Take back the detachment that `losetup -d` requested of a device in use: its last close no longer detaches it.

    Raises OSError (ENXIO) if the device is detached already.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = bytearray(_INFO.size)
        fcntl.ioctl(handle, _LOOP_GET_STATUS64, info, True)
        fields = list(_INFO.unpack(info))
        fields[_FLAGS] &= ~_AUTOCLEAR
        fcntl.ioctl(handle, _LOOP_SET_STATUS64, _INFO.pack(*fields))
    finally:
        os.close(handle)


def _attached() -> list[int]:
    """Return the numbers of the attached devices, from /sys: no device is opened."""
    backing_files = Path("/sys/block").glob("loop[0-9]*/loop/backing_file")
    return sorted(int(path.parts[3].removeprefix("loop")) for path in backing_files)


def loops_of(image: Path) -> tuple[Loop, ...]:
    """Return the loop devices attached to this very file; none if the file is missing."""
    try:
        stat_result = image.stat()
    except FileNotFoundError:
        return ()
    return loops_of_inode(stat_result.st_dev, stat_result.st_ino)


def loops_of_inode(device: int, inode: int) -> tuple[Loop, ...]:
    """Return the loop devices attached to the file with this device and inode number."""
    loops = (_read(number) for number in _attached())
    return tuple(loop for loop in loops if loop and (loop.device, loop.inode) == (device, inode))


def loops_of_deleted(image: Path) -> tuple[Loop, ...]:
    """Return the loop devices attached to a deleted file that had this (unique) name."""
    suffix = f"/{image.name} (deleted)\n"
    loops = []
    for number in _attached():
        try:
            text = Path(f"/sys/block/loop{number}/loop/backing_file").read_text(errors="surrogateescape")
        except OSError:
            continue
        loop = _read(number) if text.endswith(suffix) else None
        if loop:
            loops.append(loop)
    return tuple(loops)


def free_loop() -> str:
    """Return the path of a device that is free at this moment; create its node if it is missing."""
    control = os.open(_ensure_node(_CONTROL, _CONTROL_DEVICE, stat.S_IFCHR), os.O_RDWR | os.O_CLOEXEC)
    try:
        return loop_node(fcntl.ioctl(control, _LOOP_CTL_GET_FREE))
    finally:
        os.close(control)


def loop_supported() -> bool:
    """Return True if the kernel offers loop devices."""
    return Path("/sys/module/loop").exists() or Path(_CONTROL).exists() or Path("/sys/block/loop0").exists()
