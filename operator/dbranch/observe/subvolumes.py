"""What is true of the branches on a mounted pool. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dbranch.linux.btrfs import is_subvolume
from dbranch.linux.files import opened_directory, read_beneath
from dbranch.linux.mounts import mounts_at
from dbranch.plan.layout import (
    INITDB_DONE,
    INITDB_PREFIX,
    MARKER,
    PGDATA,
    TEMPORARY_PREFIX,
    Layout,
    is_uid,
)
from dbranch.plan.retained import Retained, parse_retained
from dbranch.plan.settings_files import Marker, parse_marker


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


def observe_subvolumes(layout: Layout, project_uid: str, only: str | None = None) -> SubvolumesFacts:
    """The subvolumes of a project's pool; nothing where the pool is not mounted.

    `only`: of the branches just this one, so that a visit costs the same whatever their number.
    """
    point = layout.pool(project_uid)
    there = mounts_at(point)
    if not there or there[-1].kind != "btrfs":
        return SubvolumesFacts()
    branches: dict[str, Marker | None] = {}
    temporary, initdb = [], []
    for path in sorted(point.iterdir()):
        if only not in (None, path.name) and is_uid(path.name):
            continue
        if is_uid(path.name) and is_subvolume(path):
            branches[path.name] = _marker(path)
        elif path.name.startswith(TEMPORARY_PREFIX):
            temporary.append(path.name.removeprefix(TEMPORARY_PREFIX))
        elif path.name.startswith(INITDB_PREFIX):
            initdb.append(path.name.removeprefix(INITDB_PREFIX))
    trash = layout.trash(project_uid)
    thrown = tuple(sorted(path.name for path in trash.iterdir())) if trash.exists() else ()
    return SubvolumesFacts(branches, tuple(temporary), tuple(initdb), thrown)


def observe_retained(layout: Layout, project_uid: str) -> Retained | None:
    """The record of a retained pool; None where there is none that can be read."""
    try:
        return parse_retained(layout.record(project_uid).read_text())
    except (OSError, UnicodeDecodeError):
        return None


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
