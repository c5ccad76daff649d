"""A branch as a copy of its source, a branch or a snapshot, cleaned offline."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.layout import Layout
from dbranch.agent.volume import tenant
from dbranch.agent.volume.copies import copying, marker_of_copy, marker_of_own
from dbranch.agent.volume.effect import marker_of, mounted_pool, rename_durably, write_new_files
from dbranch.agent.volume.marker import Marker
from dbranch.agent.volume.settings import Settings


def ensure_snapshot(
    layout: Layout,
    project_uid: str,
    source_uid: str,
    branch_uid: str,
    settings: Settings,
    now: str,
    undeletes: str | None = None,
) -> Marker:
    """Create the branch as a snapshot of its source, cleaned offline, durable; return its marker.

    `undeletes`: the UID of the deleted branch of the same name whose data comes back. If the source is that data it
    stays as it is: nobody else has the replication slots and prepared transactions in it.

    No-op if the branch exists. `now`: RFC 3339, kept as `snapshotTime`; where the source is a snapshot, its time is
    kept in place of it: the branch has the rows as of that. Raises as `copies.copying` does.
    """
    mounted_pool(layout, project_uid)
    branch = layout.branch(project_uid, branch_uid)
    if branch.exists():
        return marker_of(branch)
    with copying(layout, project_uid, source_uid, branch_uid) as copy:
        if undeletes and copy.is_data_of(undeletes) and copy.data.names == settings.names:
            tenant.ensure_process_files_removed(copy.path)
            own = marker_of_own(copy, project_uid, branch_uid, source_uid)
            # It is opened as any other; and it counts its restores anew, as another DBBranch.
            marker = replace(
                own, role=settings.names.role, opened=False, generation=1, restore=None, quiet=False
            )
        else:
            tenant.ensure_cleaned_offline(copy.path)
            marker = marker_of_copy(copy, project_uid, branch_uid, source_uid, settings.names, now)
        write_new_files(copy.path, marker, settings)
    return rename_durably(copy.path, branch)
