"""A dump as it lies in a file: unpacked and as UTF-8; what is cut off is an error. Pure.

gzip (RFC 1952), zstd (RFC 8878), xz and bzip2 are unpacked, several members one after another, too. UTF-16, which
PowerShell's `>` writes, becomes UTF-8. A stream that ends too early or is damaged raises DamagedDump where that is
read, so that who loads it can roll back.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

from dbranch.api.errors import DbranchError

PREFIX_BYTES: Final = 512
_CHUNK_BYTES: Final = 1 << 18
# Some tools fill the last block of a compressed file up with zeros.
_PADDING: Final = b"\0"


class DamagedDump(DbranchError):
    """The dump ends too early, or its bytes are damaged; the text says which form does."""


class Decompressor(Protocol):
    """One member of a compressed file: as bz2.BZ2Decompressor."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True)
class Compression:
    """A form of compression: its name, the bytes that it begins with, and how a member of it is unpacked."""

    name: str
    magic: bytes
    start: Callable[[], Decompressor]


def _gzip() -> Decompressor:
    import zlib

    return zlib.decompressobj(wbits=31)


def _zstd() -> Decompressor:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        from backports import zstd
    started: Decompressor = zstd.ZstdDecompressor()
    return started


def _xz() -> Decompressor:
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ)


def _bzip2() -> Decompressor:
    import bz2

    return bz2.BZ2Decompressor()


COMPRESSIONS: Final = (
    Compression("gzip", b"\x1f\x8b", _gzip),
    Compression("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    Compression("xz", b"\xfd7zXZ\0", _xz),
    Compression("bzip2", b"BZh", _bzip2),
)


class Dump:
    """The bytes of a dump from a stream that is read once: `prefix`, its first 512 bytes, then `read`.

    `packing` says what the bytes were wrapped in, as "gzip" or "UTF-16"; empty if in nothing. Raises DamagedDump.
    """

    def __init__(self, source: IO[bytes]) -> None:
        forms: list[str] = []
        stream: Any = source
        prefix = read_prefix(stream)
        for compression in COMPRESSIONS:
            if prefix.startswith(compression.magic):
                stream = _Chunks(_unpacked(PrefixedStream(prefix, stream), compression))
                forms.append(compression.name)
                prefix = read_prefix(stream)
                break
        encoding = _wide_encoding(prefix)
        if encoding:
            stream = _Chunks(_decoded(PrefixedStream(prefix, stream), encoding))
            forms.append("UTF-16")
            prefix = read_prefix(stream)
        if prefix.startswith(codecs.BOM_UTF8):
            stream = PrefixedStream(prefix.removeprefix(codecs.BOM_UTF8), stream)
            prefix = read_prefix(stream)
        self.prefix, self.packing, self._stream = prefix, ", ".join(forms), stream

    def read(self, size: int) -> bytes:
        """Return at most `size` of the bytes after `prefix`; none at the end. Raises DamagedDump."""
        data: bytes = self._stream.read(size)
        return data


def read_prefix(source: Any) -> bytes:
    """Read the first 512 bytes, or fewer at the end of the stream; a pipe may return them in pieces."""
    prefix = b""
    while len(prefix) < PREFIX_BYTES and (piece := source.read(PREFIX_BYTES - len(prefix))):
        prefix += piece
    return prefix


def _wide_encoding(prefix: bytes) -> str | None:
    """Return the encoding of UTF-16, with or without a byte order mark; None for anything else."""
    if prefix.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # SQL begins with ASCII: every other byte is zero.
    if len(prefix) >= 4 and not any(prefix[1:64:2]) and all(prefix[0:64:2]):
        return "utf-16-le"
    if len(prefix) >= 4 and not any(prefix[0:64:2]) and all(prefix[1:64:2]):
        return "utf-16-be"
    return None


class PrefixedStream:
    """A stream of bytes that were read already, followed by what remains of another stream."""

    def __init__(self, prefix: bytes, remainder: Any) -> None:
        self._prefix, self._remainder = prefix, remainder

    def read(self, size: int) -> bytes:
        if self._prefix:
            taken, self._prefix = self._prefix[:size], self._prefix[size:]
            return taken
        data: bytes = self._remainder.read(size)
        return data


class _Chunks:
    """A stream of what an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._ready = chunks, b""

    def read(self, size: int) -> bytes:
        if not self._ready:
            self._ready = next((chunk for chunk in self._chunks if chunk), b"")
        data, self._ready = self._ready[:size], self._ready[size:]
        return data


def _unpacked(source: Any, compression: Compression) -> Iterator[bytes]:
    """Yield what a compressed stream holds."""
    member, name = compression.start(), compression.name
    while chunk := source.read(_CHUNK_BYTES):
        unpacked = b""
        try:
            while chunk:
                if member.eof:
                    chunk = chunk.lstrip(_PADDING)
                    if not chunk:
                        break
                    member = compression.start()
                unpacked += member.decompress(chunk)
                chunk = member.unused_data if member.eof else b""
        except Exception as error:
            raise DamagedDump(f"its {name} is damaged: {error}") from error
        yield unpacked
    if not member.eof:
        raise DamagedDump(f"it is cut off: its {name} ends too early")


def _decoded(source: Any, encoding: str) -> Iterator[bytes]:
    """Yield a text of another encoding as UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while chunk := source.read(_CHUNK_BYTES):
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise DamagedDump(f"its UTF-16 is damaged or cut off: {error}") from error
