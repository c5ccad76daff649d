"""A file that takes room on the node's disk, and gives it back in an emergency so that the agent can work."""

from __future__ import annotations

import os
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.runtime.logs import log_command

# Of the disk.
_LARGEST_PART: Final = 0.01


def ballast_size(desired: int, disk_bytes: int) -> int:
    """Return the bytes that the file should have on a disk of this size.

    >>> ballast_size(2**29, 2**32), ballast_size(2**29, 2**40)
    (42949672, 536870912)
    """
    return min(desired, int(disk_bytes * _LARGEST_PART))


def observe_ballast(layout: Layout) -> int:
    """Return the bytes of the disk that the file takes; 0 if it does not exist."""
    try:
        return layout.ballast.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def ensure_ballast(layout: Layout, size: int) -> None:
    """Create the file, `size` bytes large, unless it exists. It has its name only once it has its room."""
    if layout.ballast.exists():
        return
    temporary = layout.ballast.with_suffix(".new")
    log_command("fallocate", "-l", size, temporary)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(handle)
    temporary.rename(layout.ballast)


def ensure_ballast_released(layout: Layout) -> None:
    """Delete the file."""
    if layout.ballast.exists():
        log_command("rm", layout.ballast)
        layout.ballast.unlink()
