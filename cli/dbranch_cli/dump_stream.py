"""A dump as it lies in a file: unpacked and as UTF-8; what is cut off is an error. Pure.

gzip (RFC 1952), zstd (RFC 8878), xz and bzip2 are unpacked, several members one after another, too. UTF-16, which
PowerShell's `>` writes, becomes UTF-8. A stream that ends too early or is damaged raises DamagedDump where that is
read, so that who loads it can roll back.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
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
                stream = _Unpacked(PrefixedStream(prefix, stream), compression)
                forms.append(compression.name)
                prefix = read_prefix(stream)
                break
        encoding = _wide_encoding(prefix)
        if encoding:
            stream = _Decoded(PrefixedStream(prefix, stream), encoding)
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


class PrefixedStream(io.RawIOBase):
    """A stream of bytes that were read already, followed by what remains of another stream."""

    def __init__(self, prefix: bytes, remainder: Any) -> None:
        super().__init__()
        self.prefix, self.remainder = prefix, remainder

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.prefix:
            if size < 0:
                taken, self.prefix = self.prefix, b""
                remaining: bytes = self.remainder.read()
                return taken + remaining
            taken, self.prefix = self.prefix[:size], self.prefix[size:]
            return taken
        data: bytes = self.remainder.read(size)
        return data


class _Converted:
    """A stream whose chunks are converted; `_convert` returns b"" only if it needs more, or at the end."""

    def __init__(self, source: Any) -> None:
        self._source, self._ready, self._at_end = source, b"", False

    def read(self, size: int) -> bytes:
        while not self._ready and not self._at_end:
            chunk: bytes = self._source.read(_CHUNK_BYTES)
            self._at_end = not chunk
            self._ready = self._convert(chunk)
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def _convert(self, chunk: bytes) -> bytes:
        """Return what the next chunk becomes; an empty one is the end of the source."""
        raise NotImplementedError


class _Unpacked(_Converted):
    """What a compressed stream holds."""

    def __init__(self, source: Any, compression: Compression) -> None:
        super().__init__(source)
        self._compression, self._member = compression, compression.start()
        self._has_begun = True

    def _convert(self, chunk: bytes) -> bytes:
        name, unpacked = self._compression.name, b""
        if not chunk and self._has_begun and not self._member.eof:
            raise DamagedDump(f"it is cut off: its {name} ends too early")
        try:
            while chunk:
                if self._member.eof:
                    chunk = chunk.lstrip(_PADDING)
                    if not chunk:
                        break
                    self._member, self._has_begun = self._compression.start(), True
                unpacked += self._member.decompress(chunk)
                chunk = self._member.unused_data if self._member.eof else b""
        except Exception as error:
            raise DamagedDump(f"its {name} is damaged: {error}") from error
        return unpacked


class _Decoded(_Converted):
    """A text of another encoding as UTF-8."""

    def __init__(self, source: Any, encoding: str) -> None:
        super().__init__(source)
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def _convert(self, chunk: bytes) -> bytes:
        try:
            return self._decoder.decode(chunk, final=not chunk).encode()
        except UnicodeError as error:
            raise DamagedDump(f"its UTF-16 is damaged or cut off: {error}") from error
