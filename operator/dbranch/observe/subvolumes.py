"""What is true of the branches on a mounted pool. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dbranch.plan.layout import Layout
from dbranch.plan.settings_files import Marker


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
    raise NotImplementedError


def observe_initdb_done(layout: Layout, project_uid: str, branch_uid: str) -> bool:
    """Whether `initdb.sh` has made everything in the root branch's area."""
    raise NotImplementedError
