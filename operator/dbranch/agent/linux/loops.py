"""Loop devices, known by the (device, inode) of what they hold, not by a path.

A device is the kernel's: its node in /dev may be missing (a container's /dev shows those that were there
when it began), and is then made. Source: loop(4), linux/loop.h.
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
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_CTL_GET_FREE: Final = 0x4C82
# struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encrypt type, key size, flags, ...
_INFO: Final = struct.Struct("=QQQQQIIII64s64s32s2Q")
_AUTOCLEAR: Final = 4


@dataclass(frozen=True)
class Loop:
    """An attached loop device. `size` in bytes; `ending`: it goes away by itself at its last close."""

    path: str
    device: int
    inode: int
    size: int
    ending: bool


def _node(path: str, device: int, kind: int) -> str:
    if not Path(path).exists():
        with suppress(FileExistsError):
            os.mknod(path, kind | 0o660, device)
    return path


def loop_node(number: int) -> str:
    """The path of device `number`, its node made where it is missing."""
    return _node(f"/dev/loop{number}", os.makedev(_MAJOR, number), stat.S_IFBLK)


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
    fields = _INFO.unpack(info)
    return Loop(f"/dev/loop{number}", fields[0], fields[1], size, bool(fields[8] & _AUTOCLEAR))


def _attached() -> list[int]:
    """The numbers of the devices that hold something, as /sys says without opening any."""
    found = Path("/sys/block").glob("loop[0-9]*/loop/backing_file")
    return sorted(int(path.parts[3].removeprefix("loop")) for path in found)


def loops_of(image: Path) -> tuple[Loop, ...]:
    """The loop devices attached to this very file; none where the file is missing."""
    try:
        facts = image.stat()
    except FileNotFoundError:
        return ()
    return loops_of_inode(facts.st_dev, facts.st_ino)


def loops_of_inode(device: int, inode: int) -> tuple[Loop, ...]:
    """The loop devices attached to the file with this device and inode number."""
    loops = (_read(number) for number in _attached())
    return tuple(loop for loop in loops if loop and (loop.device, loop.inode) == (device, inode))


def loops_of_deleted(image: Path) -> tuple[Loop, ...]:
    """The loop devices attached to a file that had this (unique) name and is deleted."""
    end = f"/{image.name} (deleted)\n"
    found = []
    for number in _attached():
        try:
            text = Path(f"/sys/block/loop{number}/loop/backing_file").read_text(errors="surrogateescape")
        except OSError:
            continue
        loop = _read(number) if text.endswith(end) else None
        if loop:
            found.append(loop)
    return tuple(found)


def free_loop() -> str:
    """The path of a device that holds nothing at this moment, its node made where it is missing."""
    control = os.open(_node(_CONTROL, _CONTROL_DEVICE, stat.S_IFCHR), os.O_RDWR | os.O_CLOEXEC)
    try:
        return loop_node(fcntl.ioctl(control, _LOOP_CTL_GET_FREE))
    finally:
        os.close(control)


def loop_supported() -> bool:
    """Whether the kernel offers loop devices."""
    return Path("/sys/module/loop").exists() or Path(_CONTROL).exists() or Path("/sys/block/loop0").exists()
