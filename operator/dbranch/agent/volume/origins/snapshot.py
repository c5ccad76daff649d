"""A branch as a snapshot of its source, a branch or a snapshot, cleaned offline."""

from __future__ import annotations

from pathlib import Path

from dbranch.agent.layout import MARKER, Layout
from dbranch.agent.linux import btrfs
from dbranch.agent.volume import tenant
from dbranch.agent.volume.effect import (
    destroy,
    marker_of,
    mounted_pool,
    read_any_marker,
    read_marker,
    rename_to_branch,
    write_new_files,
)
from dbranch.agent.volume.marker import FROM_BRANCH, FROM_SNAPSHOT, Marker, Origin, SnapshotMarker
from dbranch.agent.volume.quotas import create_subvolume
from dbranch.agent.volume.settings import Settings
from dbranch.api.errors import DataLost


def check_source(layout: Layout, project_uid: str, source_uid: str) -> None:
    """Look whether the source can be copied, before anything is done to it. Raises as `ensure_snapshot` does."""
    source = layout.branch(project_uid, source_uid)
    source_marker(source)
    tenant.check_self_contained(source, source)


def source_marker(source: Path) -> Marker | SnapshotMarker:
    """Read the marker of a source; raise DataLost if there is no subvolume with one."""
    marker = read_any_marker(source) if btrfs.is_subvolume(source) else None
    if marker is None:
        raise DataLost(f"source {source.name} has no subvolume with a marker at {source}; nothing is copied")
    return marker


def ensure_snapshot(
    layout: Layout, project_uid: str, source_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """Create the branch as a snapshot of its source, cleaned offline, durable; return its marker.

    No-op if the branch exists. `now`: RFC 3339, kept as `snapshotTime`; where the source is a snapshot, its time is
    kept in place of it: the branch has the rows as of that. Raises SourceUnsafe (with the path) if the
    source holds data outside its subvolume, DataLost if the source's subvolume is missing.
    """
    mounted_pool(layout, project_uid)
    source, branch = layout.branch(project_uid, source_uid), layout.branch(project_uid, branch_uid)
    if branch.exists():
        return marker_of(branch)
    snapshot = layout.new_snapshot(project_uid, branch_uid)
    read_marker(snapshot)
    destroy(snapshot)
    of_source = source_marker(source)
    if isinstance(of_source, SnapshotMarker):
        data = of_source.data
        origin = Origin(FROM_SNAPSHOT, source_uid, data.snapshot_time)
    else:
        data, origin = of_source, Origin(FROM_BRANCH, source_uid, now)
    create_subvolume(snapshot, source)
    try:
        # The source's marker goes first: a snapshot that is cut off here must never pass for a branch.
        (snapshot / MARKER).unlink()
        # The source may have changed since `check_source`.
        tenant.check_self_contained(snapshot, source)
        tenant.ensure_cleaned_offline(snapshot)
        floor = max(data.prepared_floor, tenant.max_prepared_of_server(snapshot))
        marker = Marker(
            project_uid,
            branch_uid,
            settings.names.role,
            origin,
            origin.time,
            data.major,
            cleaned=False,
            prepared_floor=floor,
            password=data.password,
            verifiers=data.verifiers,
            verifiers_of=data.verifiers_of,
            image=data.image,
            names=settings.names,
            superuser=data.superuser,
            initdb_settings=data.initdb_settings,
        )
        write_new_files(snapshot, marker, settings)
    except Exception:
        destroy(snapshot)
        raise
    return rename_to_branch(snapshot, branch)
