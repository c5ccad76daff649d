"""What ALTER SYSTEM has set in a branch: whether there is something, and the way back without a Postgres.

It stands in postgresql.auto.conf in PGDATA, which the tenant writes, and Postgres starts without that file.
"""

from __future__ import annotations

from dbranch.agent.layout import Layout
from dbranch.agent.volume import tenant
from dbranch.agent.volume.effect import check_unused, ensure_recorded, marker_of, mounted_pool
from dbranch.agent.volume.marker import Marker


def has_altered_settings(layout: Layout, project_uid: str, branch_uid: str) -> bool:
    """True if ALTER SYSTEM has set something in the branch, as far as can be seen."""
    try:
        return tenant.has_altered_settings(layout.branch(project_uid, branch_uid))
    except OSError:
        return False


def ensure_alter_system_reset(layout: Layout, project_uid: str, branch_uid: str, requested_at: str) -> Marker:
    """Undo what ALTER SYSTEM has set in the branch, durably, and record the request in its marker; return that.

    No-op if the request is recorded. Raises Busy while the branch is bound in a slot or a Postgres holds its lock.
    """
    mounted_pool(layout, project_uid)
    branch = layout.branch(project_uid, branch_uid)
    marker = marker_of(branch)
    if marker.alter_system_reset == requested_at:
        return marker
    check_unused(branch, layout)
    # The file goes first: a mark that is on disk says that it is gone.
    tenant.ensure_altered_settings_moved(branch)
    return ensure_recorded(
        layout, project_uid, branch_uid, lambda current: current.with_alter_system_reset(requested_at)
    )
