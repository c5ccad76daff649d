"""How a file lies on disk: FIEMAP (linux/fiemap.h)."""

from __future__ import annotations

import fcntl
import struct
from typing import Final

_FIEMAP: Final = 0xC020660B
_HEAD: Final = struct.Struct("=QQIIII")
_EXTENT: Final = struct.Struct("=QQQQQIIII")
_COUNT: Final = 512
_LAST, _INLINE, _SHARED = 0x1, 0x200, 0x2000


def extent_bytes(handle: int) -> tuple[int, int]:
    """Of an open regular file: the bytes that its extents hold, and those that no other file shares.

    What lies inline in metadata counts as held, and neither as shared nor as unique.
    """
    held = unique = start = 0
    while True:
        page = bytearray(_HEAD.size + _COUNT * _EXTENT.size)
        _HEAD.pack_into(page, 0, start, 2**64 - 1 - start, 0, 0, _COUNT, 0)
        fcntl.ioctl(handle, _FIEMAP, page, True)
        count = _HEAD.unpack_from(page)[3]
        last = count == 0
        for index in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(page, _HEAD.size + index * _EXTENT.size)
            held += length
            if not flags & (_SHARED | _INLINE):
                unique += length
            start = logical + length
            last = bool(flags & _LAST)
        if last:
            return held, unique
