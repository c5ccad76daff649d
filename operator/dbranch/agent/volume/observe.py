"""What is true of the branches on a mounted pool. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dbranch.agent.layout import INITDB_DONE, INITDB_PREFIX, MARKER, PGDATA, TEMPORARY_PREFIX, Layout, is_uid
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.files import opened_directory, read_beneath
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.volume.marker import Marker, parse_marker


@dataclass(frozen=True)
class SubvolumesFacts:
    """The subvolumes of a pool. `branches`: UID -> marker (None: the marker is missing or unreadable).

    `temporary` and `initdb` hold the UIDs of what was begun and is no branch yet; `trash` the names of
    what waits to be destroyed.
    """

    branches: Mapping[str, Marker | None] = field(default_factory=dict)
    temporary: tuple[str, ...] = ()
    initdb: tuple[str, ...] = ()
    trash: tuple[str, ...] = ()


def observe_subvolumes(layout: Layout, project_uid: str) -> SubvolumesFacts:
    """The subvolumes of a project's pool; nothing where the pool is not mounted."""
    point = layout.pool(project_uid)
    there = mounts_at(point)
    if not there or there[-1].kind != "btrfs":
        return SubvolumesFacts()
    branches: dict[str, Marker | None] = {}
    temporary, initdb = [], []
    for path in sorted(point.iterdir()):
        if is_uid(path.name) and is_subvolume(path):
            branches[path.name] = _marker(path)
        elif path.name.startswith(TEMPORARY_PREFIX):
            temporary.append(path.name.removeprefix(TEMPORARY_PREFIX))
        elif path.name.startswith(INITDB_PREFIX):
            initdb.append(path.name.removeprefix(INITDB_PREFIX))
    trash = layout.trash(project_uid)
    thrown = tuple(sorted(path.name for path in trash.iterdir())) if trash.exists() else ()
    return SubvolumesFacts(branches, tuple(temporary), tuple(initdb), thrown)


def observe_marker(layout: Layout, project_uid: str, branch_uid: str) -> Marker | None:
    """The marker of one branch, however many the pool holds; None where there is no such branch (yet)."""
    there = mounts_at(layout.pool(project_uid))
    path = layout.branch(project_uid, branch_uid)
    if not there or there[-1].kind != "btrfs" or not is_subvolume(path):
        return None
    return _marker(path)


def _marker(subvolume: Path) -> Marker | None:
    try:
        return parse_marker((subvolume / MARKER).read_text())
    except (OSError, UnicodeDecodeError):
        return None


def observe_initdb_done(layout: Layout, project_uid: str, branch_uid: str) -> bool:
    """Whether `initdb.sh` has made everything in the root branch's area."""
    area = layout.initdb_area(project_uid, branch_uid)
    try:
        with opened_directory(area, PGDATA) as pgdata:
            done = read_beneath(pgdata, INITDB_DONE) is not None
    except OSError:
        return False
    # The adoption writes the marker, takes the mark of the script away, and renames last.
    return done or _marker(area) is not None
