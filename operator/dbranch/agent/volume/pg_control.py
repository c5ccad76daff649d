"""What a database's pg_control says. A tenant may write the file: it is of fixed length, and read by offsets.

Source: src/include/catalog/pg_control.h and pg_crc32c_sb8.c of PostgreSQL. The offsets are those of 64-bit machines;
the fields up to the checksums' are the same from PostgreSQL 13 to 18.
"""

from __future__ import annotations

import struct
from typing import Final

PATH: Final = "global/pg_control"
FILE_BYTES: Final = 8192
# Of PostgreSQL 13 to 16, of 17, and of 18.
_VERSIONS: Final = frozenset({1300, 1700, 1800})
# The checksum of all bytes before it comes last, so a field more moves it (288 in 17, 292 in 18).
_CHECKSUM_OFFSETS: Final = range(280, 320, 4)
_VERSION_OFFSET, _MAX_PREPARED_OFFSET, _FLOAT_FORMAT_OFFSET = 8, 192, 208
_FLOAT_FORMAT: Final = 1234567.0
_POLYNOMIAL: Final = 0x82F63B78


class Damaged(Exception):
    """The file is no pg_control with which a Postgres would start."""


def max_prepared_transactions(data: bytes) -> int | None:
    """Return the `max_prepared_transactions` with which the server ran last; None if the version is unknown.

    Raises Damaged.
    """
    if len(data) != FILE_BYTES:
        raise Damaged(f"it has {len(data)} bytes, not {FILE_BYTES}")
    if struct.unpack_from("=I", data, _VERSION_OFFSET)[0] not in _VERSIONS:
        return None
    if not any(
        struct.unpack_from("=I", data, offset)[0] == _crc32c(data[:offset]) for offset in _CHECKSUM_OFFSETS
    ):
        raise Damaged("its checksum is wrong")
    if struct.unpack_from("=d", data, _FLOAT_FORMAT_OFFSET)[0] != _FLOAT_FORMAT:
        raise Damaged("it is of another kind of machine")
    return int(struct.unpack_from("=i", data, _MAX_PREPARED_OFFSET)[0])


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of a few bytes.

    >>> hex(_crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
