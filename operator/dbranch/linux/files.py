"""Reading and writing beneath directories that a tenant may write, without following a link of theirs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dbranch.linux.calls import openat2


@contextmanager
def opened_directory(path: Path, beneath: str | None = None) -> Iterator[int]:
    """A descriptor of a directory of root's; with `beneath`, of one below it that a tenant may own.

    FileNotFoundError where it is missing; OSError (ELOOP, EXDEV, ENOTDIR) where something else is there.
    """
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if beneath is None:
            yield top
            return
        below = openat2(top, beneath, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield below
        finally:
            os.close(below)
    finally:
        os.close(top)


def read_beneath(directory: int, path: str, limit: int = 2**20) -> str | None:
    """The text of a small regular file beneath the open directory; None where it is missing or none."""
    try:
        handle = openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(limit).decode(errors="replace")


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """The file of root's has this text, whole or not at all, and on disk. Others may have it open."""
    begun = path.with_name(f".{path.name}.new")
    begun.unlink(missing_ok=True)
    handle = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    begun.rename(path)
