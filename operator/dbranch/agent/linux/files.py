"""Reading and writing beneath directories that a tenant may write, without following a symbolic link of theirs."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dbranch.agent.linux.syscalls import openat2
from dbranch.api.errors import Busy


@contextmanager
def opened_directory(path: Path, beneath: str | None = None) -> Iterator[int]:
    """Open a directory of root's, or with `beneath` one below it that a tenant may own; yield its descriptor.

    Raises FileNotFoundError if it is missing, OSError (ELOOP, EXDEV, ENOTDIR) if it is something else.
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
    """Read at most `limit` bytes of a regular file beneath the open directory; None if there is no such file."""
    try:
        handle = openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(limit).decode(errors="replace")


def walk_beneath(
    top: int, strict: bool = False
) -> Iterator[tuple[PurePosixPath, int, list[os.DirEntry[str]]]]:
    """Yield every directory beneath the open one, itself (`.`) first: its path, a descriptor, its entries.

    The descriptor is closed before the next one is opened. Neither recursion nor a descriptor per level: a tenant's
    tree may be deeper than both allow. What cannot be read (replaced meanwhile, damaged, a path beyond the kernel's
    limit) is left out; with `strict` it raises OSError, unless it has been removed meanwhile.
    """
    pending = [PurePosixPath(".")]
    while pending:
        path = pending.pop()
        try:
            directory = openat2(top, str(path), os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError:
            if strict:
                raise
            continue
        try:
            entries = _entries(directory, strict)
            yield path, directory, entries
        finally:
            os.close(directory)
        pending += [path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _entries(directory: int, strict: bool) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        if strict:
            raise
        return []


def _move_nothing(directory: int, name: str) -> bool:
    return False


def empty_directory(
    top: int, move_away: Callable[[int, str], bool] = _move_nothing, timeout: float | None = None
) -> None:
    """Remove everything beneath the open directory, except the directories for which `move_away` returns True.

    Raises Busy if it is not empty after `timeout` seconds: somebody goes on writing.

    It is called with an open directory and a name in it, and has then moved that directory elsewhere. Directories
    deep down are moved to the top before they are emptied, so that neither depth nor length of a path matters.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while names := _names(top):
        for name in names:
            if deadline is not None and time.monotonic() > deadline:
                raise Busy("a process goes on writing into a directory that is removed; it is tried again")
            if not _is_directory(top, name):
                os.unlink(name, dir_fd=top)
            elif not move_away(top, name):
                below = openat2(top, name, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _move_up(below, top, move_away)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)


def _names(directory: int) -> list[str]:
    # Opened for each listing: btrfs does not list what was added after a directory was opened.
    reopened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(reopened)
    finally:
        os.close(reopened)


def _move_up(below: int, top: int, move_away: Callable[[int, str], bool]) -> None:
    for name in os.listdir(below):
        if not _is_directory(below, name):
            os.unlink(name, dir_fd=below)
        elif not move_away(below, name):
            os.rename(name, secrets.token_hex(8), src_dir_fd=below, dst_dir_fd=top)


def _is_directory(directory: int, name: str) -> bool:
    return stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode)


def remove_at(directory: int, name: str, timeout: float | None = None) -> None:
    """Remove `name` in the open directory, whatever it is and holds; never through a symbolic link.

    Raises Busy if that takes longer than `timeout` seconds, as `empty_directory`.
    """
    if not _is_directory(directory, name):
        os.unlink(name, dir_fd=directory)
        return
    top = openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        empty_directory(top, timeout=timeout)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=directory)


def write_atomically(path: Path, text: str, mode: int = 0o644, durable: bool = True) -> None:
    """Replace the text of a file of root's, whole or not at all, on disk when this returns. Others may have it open.

    Without `durable` it is on disk with the filesystem's next sync, and after a power cut before that may be empty.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.rename(path)
