"""The bytes of the pool that a branch takes. Reads only."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from dbranch.agent.layout import Layout, SubvolumeKind
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.extents import extent_bytes
from dbranch.agent.linux.files import opened_directory, walk_beneath
from dbranch.agent.timing import MEASURE_SECONDS
from dbranch.agent.volume.observe import list_subvolumes
from dbranch.agent.volume.quotas import observe_written_bytes


@dataclass(frozen=True)
class Sizes:
    """In bytes: what the branch's files hold, and the part of it that is shared with no other branch.

    `written_bytes`: what it wrote and anybody still holds; None in a pool without simple quotas.
    """

    logical_bytes: int
    unique_bytes: int
    written_bytes: int | None = None


def observe_sizes(
    layout: Layout, project_uid: str, branch_uid: str, seconds: float = MEASURE_SECONDS
) -> Sizes | None:
    """Measure all that the branch or snapshot owns except trash, from its extents (FIEMAP; about 20 µs per file).

    Returns None if it has no data (yet). Raises OSError with E2BIG if it has more files and extents than are
    read within so many seconds.
    """
    deadline = time.monotonic() + seconds
    data = layout.branch(project_uid, branch_uid), layout.restore(project_uid, branch_uid)
    if not any(map(is_subvolume, data)):
        return None
    pool = layout.pool(project_uid)
    subvolumes = [
        pool / str(name)
        for name in list_subvolumes(pool)
        if name.owner_uid == branch_uid and name.kind != SubvolumeKind.TRASH
    ]
    owned = [_sizes_of(subvolume, deadline) for subvolume in subvolumes]
    written = [count for count in map(observe_written_bytes, subvolumes) if count is not None]
    return Sizes(
        sum(size.logical_bytes for size in owned),
        sum(size.unique_bytes for size in owned),
        sum(written) if written else None,
    )


def _sizes_of(subvolume: Path, deadline: float) -> Sizes:
    logical = unique = 0
    with opened_directory(subvolume) as top:
        # By descriptors: the tenant may replace a directory by a link at any moment.
        for _, directory, entries in walk_beneath(top, seconds=deadline - time.monotonic()):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    file_logical, file_unique = _bytes_of(directory, entry.name, deadline)
                    logical, unique = logical + file_logical, unique + file_unique
    return Sizes(logical, unique)


def _bytes_of(directory: int, name: str, deadline: float) -> tuple[int, int]:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return 0, 0
    try:
        return extent_bytes(handle, deadline) if stat.S_ISREG(os.fstat(handle).st_mode) else (0, 0)
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise
        return 0, 0
    finally:
        os.close(handle)
