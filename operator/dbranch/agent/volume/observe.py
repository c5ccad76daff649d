"""Facts about the subvolumes of a mounted pool. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dbranch.agent.layout import MARKER, PG_IDENT, Layout, SubvolumeKind, SubvolumeName
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.volume.marker import Marker, NewerMarker, SnapshotMarker, parse_marker
from dbranch.agent.volume.settings import superuser_in
from dbranch.agent.volume.tenant import superuser_of_initdb

AnyMarker = Marker | SnapshotMarker | NewerMarker


@dataclass(frozen=True)
class SubvolumesFacts:
    """The subvolumes at the top of a pool that dbranch created, by name, each with its marker.

    None: the marker is missing or cannot be read (that of trash is not read).
    """

    markers: Mapping[SubvolumeName, AnyMarker | None] = field(default_factory=dict)

    @property
    def branches(self) -> dict[str, Marker | NewerMarker | None]:
        """The markers of branches, by the branch's UID."""
        return {
            name.owner_uid: marker
            for name, marker in self.markers.items()
            if name.is_data and not isinstance(marker, SnapshotMarker)
        }

    @property
    def snapshots(self) -> dict[str, SnapshotMarker]:
        """The markers of snapshots, by the snapshot's UID."""
        return {
            name.owner_uid: marker
            for name, marker in self.markers.items()
            if name.is_data and isinstance(marker, SnapshotMarker)
        }

    @property
    def holds_data(self) -> bool:
        """True if any of them may be the data of a branch or snapshot, or was, or was about to be."""
        return any(name.may_hold_data for name in self.markers)

    @property
    def unfinished(self) -> tuple[SubvolumeName, ...]:
        """The subvolumes that are not the data of a branch (yet, or any more)."""
        return tuple(name for name in self.markers if not name.is_data)

    def owners_of(self, kind: SubvolumeKind) -> tuple[str, ...]:
        """Return the UIDs of those that own a subvolume of this kind."""
        return tuple(name.owner_uid for name in self.markers if name.kind == kind)

    @property
    def owners(self) -> frozenset[str]:
        """The UIDs of those that own anything that is not trash already."""
        return frozenset(
            name.owner_uid for name in self.markers if name.is_understood and name.kind != SubvolumeKind.TRASH
        )

    @property
    def of_newer_release(self) -> tuple[SubvolumeName, ...]:
        """The subvolumes that only a newer release understands, by their name or by their marker."""
        return tuple(
            name
            for name, marker in self.markers.items()
            if not name.is_understood or isinstance(marker, NewerMarker)
        )


def observe_subvolumes(layout: Layout, project_uid: str) -> SubvolumesFacts:
    """Read the subvolumes of a project's pool; none if the pool is not mounted."""
    pool = layout.pool(project_uid)
    if not _is_mounted(pool):
        return SubvolumesFacts()
    return SubvolumesFacts(
        {
            name: None if name.kind == SubvolumeKind.TRASH else marker_at(pool / str(name))
            for name in list_subvolumes(pool)
        }
    )


def list_subvolumes(pool: Path) -> Iterator[SubvolumeName]:
    """Yield the names, sorted, of the subvolumes at the top of a mounted pool that dbranch created."""
    for path in sorted(pool.iterdir()):
        name = SubvolumeName.parse(path.name)
        if name is not None and is_subvolume(path):
            yield name


def _is_mounted(pool: Path) -> bool:
    mounts = mounts_at(pool)
    return bool(mounts) and mounts[-1].fstype == "btrfs"


def observe_marker(layout: Layout, project_uid: str, branch_uid: str) -> Marker | NewerMarker | None:
    """Read the marker of one branch, however many the pool holds; None if there is no such branch (yet)."""
    marker = _observe_marker(layout, project_uid, branch_uid)
    return None if isinstance(marker, SnapshotMarker) else marker


def observe_snapshot_marker(
    layout: Layout, project_uid: str, snapshot_uid: str
) -> SnapshotMarker | NewerMarker | None:
    """Read the marker of one snapshot; None if there is no such snapshot (yet)."""
    marker = _observe_marker(layout, project_uid, snapshot_uid)
    return None if isinstance(marker, Marker) else marker


def _observe_marker(layout: Layout, project_uid: str, owner_uid: str) -> AnyMarker | None:
    path = layout.branch(project_uid, owner_uid)
    if not _is_mounted(layout.pool(project_uid)) or not is_subvolume(path):
        return None
    return marker_at(path)


def marker_at(subvolume: Path) -> AnyMarker | None:
    """Read the marker of a subvolume; None if it is missing or cannot be read.

    Where it names no superuser (the first release wrote it), pg_ident.conf does, which only the agent writes.
    """
    try:
        marker = parse_marker((subvolume / MARKER).read_text())
        if isinstance(marker, Marker) and not marker.superuser:
            return replace(marker, superuser=superuser_in((subvolume / PG_IDENT).read_text()))
    except (OSError, UnicodeDecodeError):
        return None
    return marker


def observe_initdb_done(layout: Layout, project_uid: str, branch_uid: str) -> bool:
    """Return True if `initdb.sh` has made everything in the root branch's area."""
    area = layout.initdb_area(project_uid, branch_uid)
    try:
        # The first release left no name. There is none either when the script is cut off: then it runs again.
        done = bool(superuser_of_initdb(area))
    except OSError:
        return False
    # The promotion writes the marker, removes the script's own file, and renames last.
    return done or marker_at(area) is not None
