"""Locks between processes of the node, and proofs that nobody holds one."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dbranch.api.errors import Busy


@contextmanager
def held(path: Path, seconds: float = 10.0) -> Iterator[int]:
    """Holds the lock file (made where it is missing) exclusively; its descriptor. Busy after `seconds`."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise Busy(f"{path} is locked by another process; it is tried again") from error
                time.sleep(0.01)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def held_temporary(path: Path, seconds: float) -> Iterator[None]:
    """As `held`, with a lock file that is there only while it is held or waited for."""
    end = time.monotonic() + seconds
    while True:
        with held(path, max(0.0, end - time.monotonic())) as handle:
            # Who held it before may have removed this very file: then another one is the lock.
            if not _is_at(path, handle):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        there, mine = path.lstat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def is_unlocked(path: Path) -> bool:
    """Whether nobody holds this lock now; a lock file that is not there is free."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
