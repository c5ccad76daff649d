"""The file that a dump is written into: all or nothing, compressed as it comes, with its progress on a terminal."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from dbranch.api.quantity import format_bytes
from dbranch_cli.dump_format import DumpFormat
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation

_CHUNK_BYTES: Final = 1 << 18
_PROGRESS_SECONDS: Final = 0.5
_CLEAR_LINE: Final = "\r\x1b[K"


class DumpWriter:
    """Where a dump goes: beside FILE until it is whole, then under its name; and the progress on a terminal.

    `arguments` and `stdout` are pg_dump's. With `is_direct` it goes straight to a pipe or device.
    """

    def __init__(self, invocation: Invocation, file: str, dump_format: DumpFormat) -> None:
        self._file, self._dump_format = Path(file), dump_format
        self.is_direct = file == "-" or _is_special(self._file)
        self._live = (
            invocation.human_output and sys.stderr.isatty() and not (dump_format.is_text and file == "-")
        )
        self.arguments: list[str] = []
        self.stdout: int | IO[bytes] | None = None
        self._partial: Path | None = None
        self._output: IO[bytes] | None = None
        self._packer: _Packer | None = None
        self._stop_progress = threading.Event()
        self._progress: threading.Thread | None = None

    def __enter__(self) -> DumpWriter:
        if self._dump_format.name == "directory":
            self._partial = Path(tempfile.mkdtemp(prefix=f".{self._file.name}.", dir=self._file.parent))
            # pg_dump makes the directory itself, or takes an empty one.
            self.arguments, self.stdout = [f"--file={self._partial}"], subprocess.DEVNULL
        else:
            self._output = self._open()
            if self._dump_format.packing:
                self._packer = _Packer(self._output, self._dump_format.packing)
                self.stdout = self._packer.input
            else:
                self.stdout = self._output
        if self._live:
            self._progress = threading.Thread(target=self._show_progress, daemon=True)
            self._progress.start()
        return self

    def _open(self) -> IO[bytes]:
        if str(self._file) == "-":
            sys.stdout.flush()
            return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        try:
            if self.is_direct:
                return self._file.open("wb")
            handle, name = tempfile.mkstemp(prefix=f".{self._file.name}.", dir=self._file.parent)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._partial = Path(name)
        return os.fdopen(handle, "wb")

    def finish(self) -> int | None:
        """Give the whole dump its name; return its size in bytes, None if it went to a pipe or device."""
        try:
            if self._packer:
                self._packer.finish()
            if self._output is not None:
                self._output.flush()
                if not self.is_direct:
                    os.fsync(self._output.fileno())
            if self._partial is None:
                return None
            size = _size_of(self._partial)
            self._partial.rename(self._file)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._partial = None
        return size

    def __exit__(self, *_: object) -> None:
        self._stop_progress.set()
        if self._progress:
            self._progress.join()
        if self._packer:
            self._packer.close()
        if self._output is not None:
            self._output.close()
        if self._partial is not None:
            if self._partial.is_dir():
                shutil.rmtree(self._partial, ignore_errors=True)
            else:
                self._partial.unlink(missing_ok=True)

    def _show_progress(self) -> None:
        started = time.monotonic()
        while not self._stop_progress.wait(_PROGRESS_SECONDS):
            written = _size_of(self._partial) if self._partial else self._packer.read if self._packer else 0
            seconds = time.monotonic() - started
            sys.stderr.write(f"{_CLEAR_LINE}… {format_bytes(written)} written, {seconds:.0f} s")
            sys.stderr.flush()
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()

    def _cannot_write(self, error: OSError) -> Failure:
        message = f"cannot write {self._file}: {error.strerror or error}"
        return Failure(ExitCode.OTHER, "CannotWrite", message)


class _Packer:
    """Compresses what is written to the pipe `input`, in a thread of its own; `read`: bytes so far."""

    def __init__(self, output: IO[bytes], packing: str) -> None:
        read_end, self.input = os.pipe()
        self.read = 0
        self._output, self._error = output, list[BaseException]()
        self._thread = threading.Thread(target=self._run, args=(read_end, packing), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all is compressed. Raises what the thread could not do."""
        self.close()
        self._thread.join()
        if self._error:
            raise self._error[0]

    def close(self) -> None:
        """Close this process's end of the pipe; pg_dump's ends with it."""
        if self.input >= 0:
            os.close(self.input)
            self.input = -1

    def _run(self, read_end: int, packing: str) -> None:
        try:
            with os.fdopen(read_end, "rb") as source, _compressed(self._output, packing) as write:
                while chunk := source.read1(_CHUNK_BYTES):
                    self.read += len(chunk)
                    write(chunk)
        except BaseException as error:  # noqa: BLE001 - raised by finish
            self._error.append(error)


@contextmanager
def _compressed(output: IO[bytes], packing: str) -> Iterator[Callable[[bytes], Any]]:
    """Yield a function that writes bytes compressed; the end of the stream is written at the end."""
    compressor: Any
    if packing == "gzip":
        import zlib

        compressor = zlib.compressobj(wbits=31)
    else:
        try:
            from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
        except ImportError:
            from backports import zstd
        compressor = zstd.ZstdCompressor()
    yield lambda chunk: output.write(compressor.compress(chunk))
    output.write(compressor.flush())


def _is_special(path: Path) -> bool:
    """Return True for what exists and is neither a file nor a directory: a pipe, a device."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files of a directory."""
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.iterdir())
        return path.stat().st_size
    except OSError:
        return 0
