"""Set the passwords of a running branch's roles, as SCRAM verifiers from the controller, never in clear text.

A tenant or a dump may set others: `observe_server` reports that, and they are set again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.quoting import identifier
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.effect import ensure_recorded
from dbranch.agent.volume.marker import Marker
from dbranch.api.scram import joined_version
from dbranch.runtime.logs import log_command


def ensure_passwords(
    layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint, verifiers: Mapping[str, str]
) -> Marker:
    """Set the project's verifiers of these roles, as far as they exist, and record their version; return the marker.

    `verifiers`: by role, in the order of `joined_version`. The marker is written last: after a crash between the two
    this is done again.
    """
    version = joined_version(*verifiers.values())
    _set_verifiers(layout, endpoint, verifiers)
    return ensure_recorded(
        layout, project_uid, branch_uid, lambda marker: marker.with_password_version(version)
    )


def ensure_own_verifiers(
    layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint, verifiers: Mapping[str, str]
) -> Marker:
    """Set a branch's own verifiers of the same passwords, as `ensure_passwords` does those of the project."""
    version = joined_version(*verifiers.values())
    _set_verifiers(layout, endpoint, verifiers)
    return ensure_recorded(layout, project_uid, branch_uid, lambda marker: marker.with_own_verifiers(version))


def choose_own(
    verifiers: Sequence[tuple[str, ...]], used_versions: Collection[str], roles: int
) -> tuple[str, ...] | None:
    """Return the first verifiers, one for each of so many roles, that no other branch has; None if none are left."""
    candidates = (own for own in verifiers if len(own) == roles)
    return next((own for own in candidates if joined_version(*own) not in used_versions), None)


def _set_verifiers(layout: Layout, endpoint: Endpoint, verifiers: Mapping[str, str]) -> None:
    with session.connect(layout, endpoint) as connection:
        # The statements hold the verifiers, which must not get into the tenant's log.
        connection.execute("set log_statement = none; set log_min_duration_statement = -1")
        for role, verifier in verifiers.items():
            if not connection.execute("select 1 from pg_catalog.pg_roles where rolname = %s", [role]):
                continue
            log_command("psql", "-c", f"alter role {role} password '…'")
            connection.execute(f"alter role {identifier(role)} password %s", [verifier])
