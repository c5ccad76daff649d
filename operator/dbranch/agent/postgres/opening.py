"""Open a branch to users: the last thing that happens to it before it is reported to be Accepting."""

from __future__ import annotations

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.effect import ensure_hba_open, ensure_recorded
from dbranch.agent.volume.marker import Marker


def ensure_opened(layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint) -> Marker:
    """Write the pg_hba.conf that admits users, see Postgres load it, and record that; return the marker.

    The marker is written last: after a crash before that this is done again.
    """
    ensure_hba_open(layout, project_uid, branch_uid, endpoint.user)
    session.reload(layout, endpoint)
    return ensure_recorded(layout, project_uid, branch_uid, Marker.with_opened)
