"""The owner's password in a running branch: the verifier that the controller drew, never the password."""

from __future__ import annotations

from psycopg import sql

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.effect import ensure_password_version
from dbranch.api.scram import version_of
from dbranch.runtime.logs import log_command


def ensure_password(
    layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint, verifier: str
) -> str:
    """The owner's role has this verifier, on disk, and the marker says so; returns the verifier's version.

    The marker comes last: what is cut off between the two is done again.
    """
    version = version_of(verifier)
    role = sql.Identifier(endpoint.user)
    with session.connect(layout, endpoint) as there:
        # The statement holds the verifier: it stays out of the tenant's log.
        there.execute("set log_statement = none; set log_min_duration_statement = -1")
        there.execute("set synchronous_commit = on")
        log_command("psql", "-c", f"alter role {endpoint.user} password '…'")
        there.execute(sql.SQL("alter role {} password {}").format(role, sql.Literal(verifier)))
    ensure_password_version(layout, project_uid, branch_uid, version)
    return version
