"""Set the owner's password in a running branch, as the SCRAM verifier from the controller, never in clear text."""

from __future__ import annotations

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.quoting import identifier
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.effect import ensure_recorded
from dbranch.agent.volume.marker import Marker
from dbranch.api.scram import version_of
from dbranch.runtime.logs import log_command


def ensure_password(
    layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint, verifier: str
) -> Marker:
    """Set the owner role's verifier and record its version in the marker; return the marker.

    The marker is written last: after a crash between the two this is done again.
    """
    version = version_of(verifier)
    with session.connect(layout, endpoint) as connection:
        # The statement holds the verifier, which must not get into the tenant's log.
        connection.execute("set log_statement = none; set log_min_duration_statement = -1")
        log_command("psql", "-c", f"alter role {endpoint.user} password '…'")
        connection.execute(f"alter role {identifier(endpoint.user)} password %s", [verifier])
    return ensure_recorded(
        layout, project_uid, branch_uid, lambda marker: marker.with_password_version(version)
    )
