"""The extents of a file on disk: FIEMAP (linux/fiemap.h)."""

from __future__ import annotations

import errno
import fcntl
import math
import struct
import time
from typing import Final

_FIEMAP: Final = 0xC020660B
_HEADER: Final = struct.Struct("=QQIIII")
_EXTENT: Final = struct.Struct("=QQQQQIIII")
_EXTENTS_A_PAGE: Final = 512
_LAST, _INLINE, _SHARED = 0x1, 0x200, 0x2000


def extent_bytes(handle: int, deadline: float = math.inf) -> tuple[int, int]:
    """Return the bytes of an open regular file's extents, and those of them that no other file shares.

    Data inline in metadata counts in the first number only. Raises OSError with E2BIG if the file has more extents
    than can be read before `deadline` (`time.monotonic()`).
    """
    total = unique = start = 0
    while True:
        page = bytearray(_HEADER.size + _EXTENTS_A_PAGE * _EXTENT.size)
        _HEADER.pack_into(page, 0, start, 2**64 - 1 - start, 0, 0, _EXTENTS_A_PAGE, 0)
        if time.monotonic() > deadline:
            raise OSError(errno.E2BIG, "too many extents")
        fcntl.ioctl(handle, _FIEMAP, page, True)
        count = _HEADER.unpack_from(page)[3]
        last = count == 0
        for index in range(count):
            offset = _HEADER.size + index * _EXTENT.size
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(page, offset)
            total += length
            if not flags & (_SHARED | _INLINE):
                unique += length
            start = logical + length
            last = bool(flags & _LAST)
        if last:
            return total, unique
