"""Which collations of a running Postgres sort otherwise than when its indexes were built."""

from __future__ import annotations

from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.api.conditions import printable

# Databases that are looked at, and names that are returned.
_LIMIT: Final = 20
_NAME_LENGTH: Final = 40
# Since PostgreSQL 15 a database has a version of its own collation.
_DATABASES: Final = (
    "select datname, datcollversion <> pg_catalog.pg_database_collation_actual_version(oid) is true"
    " from pg_catalog.pg_database where datallowconn order by datname limit {limit}"
)
_DATABASES_BEFORE_15: Final = (
    "select datname, false from pg_catalog.pg_database where datallowconn order by datname limit {limit}"
)
# Those that an index or a partition is ordered by: initdb makes hundreds that nobody uses.
_COLLATIONS: Final = (
    "select c.collname from pg_catalog.pg_collation c"
    " where c.collversion <> pg_catalog.pg_collation_actual_version(c.oid)"
    " and (exists (select from pg_catalog.pg_index i where c.oid = any (i.indcollation::oid[]))"
    " or exists (select from pg_catalog.pg_partitioned_table p where c.oid = any (p.partcollation::oid[])))"
    " order by c.collname limit {limit}"
)


def outdated_collations(layout: Layout, endpoint: Endpoint) -> tuple[str, ...]:
    """Return the databases and collations whose recorded version is not that of the C library or ICU in the image.

    Of a database `database NAME`, of a collation `DATABASE: NAME`. Databases that admit nobody are left out. Raises
    NotAccepting or SqlFailed if Postgres cannot be asked.
    """
    query = (_DATABASES if endpoint.major >= 15 else _DATABASES_BEFORE_15).format(limit=_LIMIT)
    with session.connect(layout, endpoint) as connection:
        databases = [(str(row[0]), bool(row[1])) for row in connection.execute(query, columns=2)]
    outdated = [f"database {_shown(name)}" for name, is_outdated in databases if is_outdated]
    for name, _ in databases:
        with session.connect(layout, endpoint, name) as connection:
            rows = connection.execute(_COLLATIONS.format(limit=_LIMIT), columns=1)
        outdated += [f"{_shown(name)}: {_shown(str(row[0]))}" for row in rows]
    return tuple(outdated[:_LIMIT])


def _shown(name: str) -> str:
    """Return a name that a tenant has chosen as a part of a message."""
    return printable(name)[:_NAME_LENGTH]
