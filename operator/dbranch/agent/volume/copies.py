"""Copy a branch or a DBSnapshot, under a temporary name: so begin branches, DBSnapshots and restores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dbranch.agent.layout import MARKER, Layout
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.quotas import subvolume_id
from dbranch.agent.volume import tenant
from dbranch.agent.volume.effect import destroy, mounted_pool, read_any_marker
from dbranch.agent.volume.marker import (
    FROM_BRANCH,
    FROM_SNAPSHOT,
    BranchNames,
    Marker,
    Origin,
    SnapshotMarker,
)
from dbranch.agent.volume.quotas import create_subvolume
from dbranch.api.errors import Busy, DataLost


@dataclass(frozen=True)
class Copy:
    """A subvolume without a marker, and what the marker in it said of its source."""

    path: Path
    of_source: Marker | SnapshotMarker

    @property
    def data(self) -> Marker:
        """What the source's marker says of the data."""
        return self.of_source.data if isinstance(self.of_source, SnapshotMarker) else self.of_source

    def is_data_of(self, branch_uid: str) -> bool:
        """Return True for a snapshot of that very branch."""
        is_snapshot = isinstance(self.of_source, SnapshotMarker)
        return is_snapshot and (self.data.origin.kind, self.data.origin.uid) == (FROM_BRANCH, branch_uid)


def source_marker(source: Path) -> Marker | SnapshotMarker:
    """Read the marker of a source; raise DataLost if there is no subvolume with one."""
    marker = read_any_marker(source) if btrfs.is_subvolume(source) else None
    if marker is None:
        raise DataLost(f"source {source.name} has no subvolume with a marker at {source}; nothing is copied")
    return marker


def check_source(layout: Layout, project_uid: str, source_uid: str) -> None:
    """Look whether the source can be copied, before anything is done to it. Raises as `copying` does."""
    source = layout.branch(project_uid, source_uid)
    _check_self_contained(source_marker(source), source, source)


def _check_self_contained(of_source: Marker | SnapshotMarker, data: Path, source: Path) -> None:
    """Raise SourceUnsafe if `data`, a copy of the source or the source itself, is not all of it."""
    if not isinstance(of_source, SnapshotMarker):
        tenant.check_not_nested(source)
    tenant.check_links(data, source)


@contextmanager
def copying(layout: Layout, project_uid: str, source_uid: str, owner_uid: str) -> Iterator[Copy]:
    """Make a copy of the source that no marker calls anybody's yet; destroy it if what is done with it fails.

    Whoever calls it writes the marker, syncs, and renames the subvolume. One that an earlier call left is destroyed.
    Raises SourceUnsafe (with the path) if the source holds data outside its subvolume, DataLost if its subvolume is
    missing, StorageUnclear if a newer release wrote either, Busy if the source was exchanged meanwhile.
    """
    mounted_pool(layout, project_uid)
    source, path = layout.branch(project_uid, source_uid), layout.new_snapshot(project_uid, owner_uid)
    read_any_marker(path)
    destroy(path)
    source_marker(source)
    number = subvolume_id(source)
    create_subvolume(path, source)
    try:
        # Read from the copy: what lies beside it may be other data by now.
        of_source = source_marker(path)
        # It goes first: a copy that is cut off here must never pass for a branch.
        (path / MARKER).unlink()
        if isinstance(of_source, SnapshotMarker):
            # Nobody writes to it any more: what is nested in it can be copied after it, and is of the same moment.
            tenant.ensure_nested_copied(path, source)
        _check_self_contained(of_source, path, source)
        if subvolume_id(source) != number:
            raise Busy(f"source {source_uid} was exchanged while it was copied; it is tried again")
        yield Copy(path, of_source)
    except Exception:
        destroy(path)
        raise


def marker_of_copy(
    copy: Copy, project_uid: str, owner_uid: str, source_uid: str, branch: BranchNames, now: str
) -> Marker:
    """Return the marker of a copy, cleaned offline, that is to be a branch's data.

    `branch`: of the one that is to have it; `now`: RFC 3339. Where the source is a DBSnapshot its time is kept
    instead: the data has the rows as of that.
    """
    data = copy.data
    if isinstance(copy.of_source, SnapshotMarker):
        origin = Origin(FROM_SNAPSHOT, source_uid, data.snapshot_time, data.generation)
    else:
        origin = Origin(FROM_BRANCH, source_uid, now, data.generation)
    return Marker(
        project_uid,
        owner_uid,
        branch.role,
        origin,
        origin.time,
        data.major,
        cleaned=False,
        prepared_floor=max(data.prepared_floor, tenant.max_prepared_of_server(copy.path)),
        password=data.password,
        verifiers=data.verifiers,
        verifiers_of=data.verifiers_of,
        image=data.image,
        names=branch,
        superuser=data.superuser,
        initdb_settings=data.initdb_settings,
        lineage=data.descent,
    )


def marker_of_own(copy: Copy, project_uid: str, branch_uid: str, source_uid: str) -> Marker:
    """Return the marker of a branch's own data that comes back: as it was, but for where it comes from."""
    data = copy.data
    return replace(
        data,
        project_uid=project_uid,
        owner_uid=branch_uid,
        origin=Origin(FROM_SNAPSHOT, source_uid, data.snapshot_time, data.generation),
        lineage=data.descent,
        expiration_time="",
        prepared_floor=max(data.prepared_floor, tenant.max_prepared_of_server(copy.path)),
    )


def marker_of_snapshot(
    data: Marker, snapshot_uid: str, branch_uid: str, snapshot: str, time: str, expiration_time: str
) -> SnapshotMarker:
    """Return the marker of a DBSnapshot with the data of a branch as of `time` (RFC 3339).

    `data`: the branch's marker. `snapshot`: the name of the DBSnapshot; `expiration_time`: empty if it does not
    expire.
    """
    return SnapshotMarker(
        replace(
            data,
            owner_uid=snapshot_uid,
            origin=Origin(FROM_BRANCH, branch_uid, time, data.generation),
            snapshot_time=time,
            lineage=data.descent,
            expiration_time=expiration_time,
        ),
        snapshot,
    )
