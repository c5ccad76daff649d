"""Reading and writing beneath directories that a tenant may write, without following a link of theirs."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dbranch.agent.linux.syscalls import openat2


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


def walk_beneath(
    top: int, strict: bool = False
) -> Iterator[tuple[PurePosixPath, int, list[os.DirEntry[str]]]]:
    """Every directory beneath the open one, itself (`.`) first: its path, a descriptor, its entries.

    The descriptor is closed before the next one comes. Neither recursion nor a descriptor a level: a tenant's
    tree may be deeper than both. What cannot be read (exchanged meanwhile, damaged, a path beyond the kernel's
    limit) is left out; with `strict` it is an OSError.
    """
    pending = [PurePosixPath(".")]
    while pending:
        path = pending.pop()
        try:
            directory = openat2(top, str(path), os.O_RDONLY | os.O_DIRECTORY)
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
        with os.scandir(directory) as found:
            return list(found)
    except OSError:
        if strict:
            raise
        return []


def _never(directory: int, name: str) -> bool:
    return False


def empty_directory(top: int, taken: Callable[[int, str], bool] = _never) -> None:
    """Everything beneath the open directory removed, except the directories that `taken` takes elsewhere.

    What is deep down is brought up before it is emptied, so that neither depth nor length of a path matters.
    """
    while names := _names(top):
        for name in names:
            if not _is_directory(top, name):
                os.unlink(name, dir_fd=top)
            elif not taken(top, name):
                below = openat2(top, name, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _bring_up(below, top, taken)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)


def _names(directory: int) -> list[str]:
    # Opened anew each time: btrfs does not show what came after the opening.
    again = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.listdir(again)
    finally:
        os.close(again)


def _bring_up(below: int, top: int, taken: Callable[[int, str], bool]) -> None:
    for name in os.listdir(below):
        if not _is_directory(below, name):
            os.unlink(name, dir_fd=below)
        elif not taken(below, name):
            os.rename(name, secrets.token_hex(8), src_dir_fd=below, dst_dir_fd=top)


def _is_directory(directory: int, name: str) -> bool:
    return stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode)


def remove_at(directory: int, name: str) -> None:
    """`name` in the open directory gone, whatever it is and holds; never through a link."""
    if not _is_directory(directory, name):
        os.unlink(name, dir_fd=directory)
        return
    top = openat2(directory, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        empty_directory(top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=directory)


def write_whole(path: Path, text: str, mode: int = 0o644, durable: bool = True) -> None:
    """The file of root's has this text, whole or not at all, and on disk. Others may have it open.

    `durable` False: on disk only with the filesystem's next sync, and after a power cut before that perhaps empty.
    """
    begun = path.with_name(f".{path.name}.new")
    begun.unlink(missing_ok=True)
    handle = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(handle, "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    begun.rename(path)
