"""Reading and writing beneath directories that a tenant may write, without following a symbolic link of theirs."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from dbranch.agent.linux.syscalls import openat2
from dbranch.api.errors import Busy

# What is spent on a tenant's tree: time, characters of paths that are kept, names that are read at once.
WALK_SECONDS: Final = 60.0
PENDING_LIMIT: Final = 16 * 2**20
_BATCH: Final = 1000


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


def read_beneath(directory: int, path: str, limit: int = 2**16) -> str | None:
    """Read at most `limit` bytes of a regular file beneath the open directory; None if there is no such file."""
    data = read_bytes_beneath(directory, path, limit)
    return None if data is None else data.decode(errors="replace")


def read_bytes_beneath(directory: int, path: str, limit: int) -> bytes | None:
    """Read as `read_beneath` does, undecoded."""
    try:
        handle = openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return None
        return file.read(limit)


def walk_beneath(
    top: int, strict: bool = False, seconds: float = WALK_SECONDS
) -> Iterator[tuple[PurePosixPath, int, Iterator[os.DirEntry[str]]]]:
    """Yield every directory beneath the open one, itself (`.`) first: its path, a descriptor, its entries.

    The entries are read while they are used, and the descriptor is closed before the next one is opened. Neither
    recursion nor a descriptor per level: a tenant's tree may be deeper than both allow. What cannot be read (replaced
    meanwhile, damaged, a path beyond the kernel's limit) is left out; with `strict` it raises OSError, unless it has
    been removed meanwhile. Raises OSError with E2BIG if the tree is larger than can be walked in `seconds`, or its
    directories' paths are longer together than PENDING_LIMIT.
    """
    deadline = time.monotonic() + seconds
    pending, pending_bytes = ["."], 0
    while pending:
        path = pending.pop()
        pending_bytes -= len(path)
        try:
            directory = openat2(top, path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        except OSError:
            if strict:
                raise
            continue
        below: list[str] = []
        try:
            yield PurePosixPath(path), directory, _walked(directory, path, below, strict, deadline)
        finally:
            os.close(directory)
        pending += below
        pending_bytes += sum(map(len, below))
        if pending_bytes > PENDING_LIMIT:
            raise OSError(errno.E2BIG, "too many directories", path)


def _walked(
    directory: int, path: str, below: list[str], strict: bool, deadline: float
) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a directory, and put the paths of directories among them into `below`."""
    length = 0
    try:
        for entry in entries_of(directory):
            if time.monotonic() > deadline:
                raise OSError(errno.E2BIG, "too many files", path)
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name if path == "." else f"{path}/{entry.name}")
                length += len(below[-1])
                if length > PENDING_LIMIT:
                    raise OSError(errno.E2BIG, "too many directories", path)
            yield entry
    except OSError as error:
        if strict or error.errno == errno.E2BIG:
            raise


def entries_of(directory: int) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of the open directory while it is read: a tenant may have made millions."""
    with os.scandir(directory) as entries:
        yield from entries


def _move_nothing(directory: int, name: str) -> bool:
    return False


def empty_directory(
    top: int, move_away: Callable[[int, str], bool] = _move_nothing, seconds: float = WALK_SECONDS
) -> None:
    """Remove everything beneath the open directory, except the directories for which `move_away` returns True.

    It is called with an open directory and a name in it, and has then moved that directory elsewhere. Directories
    deep down are moved to the top before they are emptied, so that neither depth nor length of a path matters.
    Raises Busy if it is not empty after `seconds`: then the next call goes on.
    """
    deadline = time.monotonic() + seconds
    while names := _names(top):
        for name in names:
            if time.monotonic() > deadline:
                raise Busy(f"a directory of more files than are removed in {seconds:g} s; it is tried again")
            if not _is_directory(top, name):
                os.unlink(name, dir_fd=top)
            elif not move_away(top, name):
                below = openat2(top, name, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _move_up(below, top, move_away, deadline)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)


def _names(directory: int) -> list[str]:
    """Return the first names in the directory, read anew; none if it is empty."""
    # Opened for each listing: btrfs does not list what was added after a directory was opened.
    reopened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return [entry.name for entry in islice(entries_of(reopened), _BATCH)]
    finally:
        os.close(reopened)


def _move_up(below: int, top: int, move_away: Callable[[int, str], bool], deadline: float) -> None:
    while names := _names(below):
        if time.monotonic() > deadline:
            raise Busy("a directory of more files than are removed in time; it is tried again")
        for name in names:
            if not _is_directory(below, name):
                os.unlink(name, dir_fd=below)
            elif not move_away(below, name):
                os.rename(name, secrets.token_hex(8), src_dir_fd=below, dst_dir_fd=top)


def _is_directory(directory: int, name: str) -> bool:
    return stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode)


def remove_at(directory: int, name: str, seconds: float = WALK_SECONDS) -> None:
    """Remove `name` in the open directory, whatever it is and holds; never through a symbolic link.

    Raises Busy if that takes longer than `seconds`, as `empty_directory`.
    """
    if not _is_directory(directory, name):
        os.unlink(name, dir_fd=directory)
        return
    top = openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        empty_directory(top, seconds=seconds)
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
