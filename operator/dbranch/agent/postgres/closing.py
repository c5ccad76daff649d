"""Close a running branch to its users, and end their sessions, so that nothing more is written to its data.

`opening.ensure_opened` takes that back.
"""

from __future__ import annotations

import time
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import APPLICATION_NAME, Endpoint
from dbranch.agent.timing import (
    SESSIONS_END_FIRST_POLL_SECONDS,
    SESSIONS_END_LONGEST_POLL_SECONDS,
    SESSIONS_END_TIMEOUT_SECONDS,
)
from dbranch.agent.volume.effect import ensure_hba_closed
from dbranch.api.errors import Busy, NotAccepting
from dbranch.runtime.logs import log_command

# WAL senders first: they would go on as long as somebody writes.
_SESSION_TYPES: Final = ("walsender", "client backend")
# Of the given type, without the agent's: a user may take its application_name, but does not come by its socket.
_OTHERS: Final = (
    "from pg_catalog.pg_stat_activity where backend_type = %s and pid <> pg_catalog.pg_backend_pid()"
    " and not (client_addr is null and usename = %s and application_name = %s)"
)


def ensure_closed(layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint) -> None:
    """Write the pg_hba.conf that admits the agent alone, and see Postgres load it; the marker stays as it is.

    A Postgres without a socket reads the file before it accepts. Raises Busy, NotAccepting or SqlFailed where it is
    not known to have loaded it.
    """
    ensure_hba_closed(layout, project_uid, branch_uid)
    try:
        if not session.reload(layout, endpoint) and not session.has_rejected_settings(layout, endpoint):
            raise Busy(
                f"Postgres in slot {endpoint.slot} has not loaded its pg_hba.conf yet; it is tried again"
            )
    except NotAccepting as error:
        if not error.no_server:
            raise


def ensure_sessions_ended(layout: Layout, endpoint: Endpoint) -> None:
    """End all sessions but the agent's, and see none left. Call it when the branch is closed.

    Raises Busy if some remain, NotAccepting or SqlFailed if Postgres cannot be asked.
    """
    try:
        with session.connect(layout, endpoint) as connection:
            for backend_type in _SESSION_TYPES:
                params = [backend_type, endpoint.user, APPLICATION_NAME]
                deadline = time.monotonic() + SESSIONS_END_TIMEOUT_SECONDS
                delay = SESSIONS_END_FIRST_POLL_SECONDS
                terminate = f"select pg_catalog.pg_terminate_backend(pid) {_OTHERS}"
                while left := len(connection.execute(terminate, params, columns=1)):
                    log_command("psql", "-c", f"select pg_terminate_backend(pid): {backend_type}")
                    if time.monotonic() > deadline:
                        raise Busy(f"{left} sessions in slot {endpoint.slot} do not end; it is tried again")
                    time.sleep(delay)
                    delay = min(2 * delay, SESSIONS_END_LONGEST_POLL_SECONDS)
    except NotAccepting as error:
        if not error.no_server:
            raise
