"""Locks between processes on one node, by flock on a file."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dbranch.api.errors import Busy

_POLL_SECONDS = 0.01


@contextmanager
def held(path: Path, timeout: float = 10.0) -> Iterator[int]:
    """Hold the lock file exclusively and yield its descriptor; create the file if it is missing.

    Raises Busy if another process holds the lock for `timeout` seconds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise Busy(f"{path} is locked by another process; it is tried again") from error
                time.sleep(_POLL_SECONDS)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def held_temporary(path: Path, timeout: float) -> Iterator[None]:
    """Hold a lock file as `held` does; the file exists only while the lock is held or waited for."""
    deadline = time.monotonic() + timeout
    while True:
        with held(path, max(0.0, deadline - time.monotonic())) as handle:
            # The previous holder may have removed this very file: then another file at the path is the lock.
            if not _is_at(path, handle):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        at_path, opened = path.lstat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)


def is_unlocked(path: Path) -> bool:
    """Return True if nobody holds this lock now, or the lock file does not exist."""
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
