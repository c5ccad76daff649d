"""How much of the pool a branch takes. Reads only."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.extents import extent_bytes
from dbranch.agent.linux.files import opened_directory, walk_beneath


@dataclass(frozen=True)
class Sizes:
    """In bytes: what the branch's files hold, and the part of it that no other branch shares."""

    logical_bytes: int
    unique_bytes: int


def observe_sizes(layout: Layout, project_uid: str, branch_uid: str) -> Sizes | None:
    """Walks the branch's extents (FIEMAP; about 20 µs a file); None where there is no such branch."""
    branch = layout.branch(project_uid, branch_uid)
    if not is_subvolume(branch):
        return None
    logical = unique = 0
    with opened_directory(branch) as top:
        # By descriptors: the tenant may exchange a directory for a link at any moment.
        for _, directory, entries in walk_beneath(top):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    held, own = _bytes_of(directory, entry.name)
                    logical, unique = logical + held, unique + own
    return Sizes(logical, unique)


def _bytes_of(directory: int, name: str) -> tuple[int, int]:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return 0, 0
    try:
        return extent_bytes(handle) if stat.S_ISREG(os.fstat(handle).st_mode) else (0, 0)
    except OSError:
        return 0, 0
    finally:
        os.close(handle)
