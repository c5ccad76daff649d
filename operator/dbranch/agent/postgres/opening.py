"""Open a branch to users: the last thing that happens to it before it is reported to be Accepting."""

from __future__ import annotations

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.effect import ensure_hba_open, ensure_recorded
from dbranch.agent.volume.marker import Marker
from dbranch.api.errors import Busy


def ensure_opened(layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint) -> Marker:
    """Write the pg_hba.conf that admits users, see Postgres load it, and record that; return the marker.

    The marker is written last: after a crash before that this is done again.
    """
    ensure_hba_open(layout, project_uid, branch_uid)
    # A postgresql.conf that Postgres does not take leaves the time of its last load as it was. The pg_hba.conf is
    # loaded all the same.
    if not session.reload(layout, endpoint) and not session.has_rejected_settings(layout, endpoint):
        raise Busy(f"Postgres in slot {endpoint.slot} has not loaded its pg_hba.conf yet; it is tried again")
    return ensure_recorded(layout, project_uid, branch_uid, Marker.with_opened)
