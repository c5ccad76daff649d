"""A branch as a snapshot of its source, cleaned offline."""

from __future__ import annotations

from pathlib import Path

from dbranch.agent.layout import MARKER, Layout
from dbranch.agent.linux import btrfs
from dbranch.agent.volume import tenant
from dbranch.agent.volume.effect import (
    destroy,
    marker_of,
    mounted_pool,
    read_marker,
    rename_to_branch,
    write_new_files,
)
from dbranch.agent.volume.marker import FROM_BRANCH, Marker, Origin
from dbranch.agent.volume.quotas import create_subvolume
from dbranch.agent.volume.settings import Settings
from dbranch.api.errors import DataLost


def check_source(layout: Layout, project_uid: str, source_uid: str) -> None:
    """Look whether the source can be copied, before anything is done to it. Raises as `ensure_snapshot` does."""
    source = layout.branch(project_uid, source_uid)
    _source_marker(source)
    tenant.check_self_contained(source, source)


def _source_marker(source: Path) -> Marker:
    marker = read_marker(source) if btrfs.is_subvolume(source) else None
    if marker is None:
        raise DataLost(
            f"source {source.name} has no subvolume with a marker at {source}; no branch is created"
        )
    return marker


def ensure_snapshot(
    layout: Layout, project_uid: str, source_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """Create the branch as a snapshot of its source, cleaned offline, durable; return its marker.

    No-op if the branch exists. `now`: RFC 3339, kept as `snapshotTime`. Raises SourceUnsafe (with the path) if the
    source holds data outside its subvolume, DataLost if the source's subvolume is missing.
    """
    mounted_pool(layout, project_uid)
    source, branch = layout.branch(project_uid, source_uid), layout.branch(project_uid, branch_uid)
    if branch.exists():
        return marker_of(branch)
    snapshot = layout.new_snapshot(project_uid, branch_uid)
    read_marker(snapshot)
    destroy(snapshot)
    source_marker = _source_marker(source)
    create_subvolume(snapshot, source)
    try:
        # The source's marker goes first: a snapshot that is cut off here must never pass for a branch.
        (snapshot / MARKER).unlink()
        # The source may have changed since `check_source`.
        tenant.check_self_contained(snapshot, source)
        tenant.ensure_cleaned_offline(snapshot)
        floor = max(source_marker.prepared_floor, tenant.max_prepared_of_server(snapshot))
        marker = Marker(
            project_uid,
            branch_uid,
            settings.names.role,
            Origin(FROM_BRANCH, source_uid, now),
            now,
            source_marker.major,
            cleaned=False,
            prepared_floor=floor,
            password=source_marker.password,
            verifiers=source_marker.verifiers,
            verifiers_of=source_marker.verifiers_of,
            image=source_marker.image,
            names=settings.names,
            superuser=source_marker.superuser,
            initdb_settings=source_marker.initdb_settings,
        )
        write_new_files(snapshot, marker, settings)
    except Exception:
        destroy(snapshot)
        raise
    return rename_to_branch(snapshot, branch)
