"""Dumps as people have them: packed, UTF-16, cut off, damaged."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable

import pytest
from backports import zstd

from dbranch_cli.dump_stream import DamagedDump, Dump, PrefixedStream, read_prefix

SQL = (
    "create table märz (n int);\ncopy märz from stdin;\n" + "".join(f"{n}\n" for n in range(30000)) + "\\.\n"
).encode()
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


class Slow(io.BytesIO):
    """A pipe that returns a few bytes at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 1, 1013))


def read(data: bytes) -> tuple[str, bytes]:
    dump = Dump(Slow(data))
    whole = dump.prefix
    assert len(whole) <= 512
    while piece := dump.read(4096):
        whole += piece
    return dump.packing, whole


def test_a_plain_dump_stays_as_it_is() -> None:
    assert read(SQL) == ("", SQL)
    assert read(b"") == ("", b"")
    assert read(b"PGDMP\x01\x0e\x00\x04\x08")[1] == b"PGDMP\x01\x0e\x00\x04\x08"


@pytest.mark.parametrize("name", PACKERS)
def test_a_packed_dump_is_unpacked(name: str) -> None:
    pack = PACKERS[name]
    assert read(pack(SQL)) == (name, SQL)
    # Several members, as `cat a.gz b.gz` makes them, and a last block that is filled up with zeros.
    assert read(pack(SQL) + pack(b"select 1;\n") + bytes(4096)) == (name, SQL + b"select 1;\n")
    assert read(pack(b"")) == (name, b"")


@pytest.mark.parametrize("name", PACKERS)
def test_a_packed_dump_that_is_cut_off_or_damaged(name: str) -> None:
    packed = PACKERS[name](SQL)
    for length in (len(packed) - 1, len(packed) * 6 // 10, 12):
        with pytest.raises(DamagedDump, match=f"it is cut off: its {name} ends too early"):
            read(packed[:length])
    second = PACKERS[name](SQL)
    with pytest.raises(DamagedDump, match="cut off"):
        read(packed + second[: len(second) // 2])
    with pytest.raises(DamagedDump):
        read(packed[: len(packed) // 2] + bytes(64) + packed[len(packed) // 2 + 64 :])
    with pytest.raises(DamagedDump, match="damaged"):
        read(packed + b"rubbish that is no member")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_becomes_utf_8(encoding: str) -> None:
    wide = SQL.decode().encode(encoding)
    assert read(wide) == ("UTF-16", SQL)
    assert read(codecs.BOM_UTF16_BE + SQL.decode().encode("utf-16-be")) == ("UTF-16", SQL)
    assert read(gzip.compress(wide)) == ("gzip, UTF-16", SQL)
    with pytest.raises(DamagedDump, match="UTF-16 is damaged or cut off"):
        read(wide[:-1])


def test_the_byte_order_mark_of_utf_8_is_left_out() -> None:
    assert read(codecs.BOM_UTF8 + SQL) == ("", SQL)
    assert read(gzip.compress(codecs.BOM_UTF8 + b"select 1;")) == ("gzip", b"select 1;")


def test_a_prefix_that_arrives_in_pieces() -> None:
    source = Slow(bytes(range(256)) * 8)
    prefix = read_prefix(source)
    assert len(prefix) == 512
    joined = PrefixedStream(prefix, source)
    whole = b""
    while piece := joined.read(100):
        whole += piece
    assert whole == bytes(range(256)) * 8
