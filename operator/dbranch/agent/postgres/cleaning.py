"""Remove from a branch what a copy must not keep and only a running Postgres can drop.

That is subscriptions and prepared transactions. Replication slots are removed offline, before Postgres starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.effect import ensure_recorded, read_marker
from dbranch.agent.volume.marker import Marker
from dbranch.api.errors import DataLost
from dbranch.runtime.logs import log_command

# With the source's connection, DROP SUBSCRIPTION would drop the source's replication slot at the publisher.
_UNREACHABLE_CONNINFO = "host=/nonexistent port=1 dbname=nowhere"


@dataclass(frozen=True)
class Cleaned:
    """How many subscriptions were dropped and prepared transactions rolled back."""

    subscriptions: int = 0
    prepared_transactions: int = 0


def ensure_cleaned(layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint) -> Cleaned:
    """Clean the branch and record that in its marker; repeatable.

    Call it before the branch is opened to users. Without anything to clean it costs one session (milliseconds).
    Raises DataLost if the marker is missing.
    """
    marker = read_marker(layout.branch(project_uid, branch_uid))
    if marker is None:
        raise DataLost(f"branch {branch_uid} has no marker that can be read; it is not opened to users")
    if marker.cleaned:
        return Cleaned()
    subscriptions = prepared = 0
    with session.connect(layout, endpoint) as connection:
        databases = _databases_with_subscriptions(connection)
        transactions = connection.execute("select gid, database from pg_prepared_xacts").fetchall()
    for database in databases:
        with _connect_always(layout, endpoint, database) as connection:
            subscriptions += _drop_subscriptions(connection)
    for gid, database in transactions:
        with _connect_always(layout, endpoint, str(database)) as connection:
            log_command("psql", str(database), "-c", f"rollback prepared '{gid}'")
            connection.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
            prepared += 1
    ensure_recorded(layout, project_uid, branch_uid, Marker.with_cleaned)
    return Cleaned(subscriptions, prepared)


@contextmanager
def _connect_always(layout: Layout, endpoint: Endpoint, database: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect to the database even if it does not allow connections; only the agent can connect at this point."""
    change = sql.SQL("alter database {} allow_connections {}")
    name = sql.Identifier(database)
    with session.connect(layout, endpoint) as admin:
        query = "select datallowconn from pg_database where datname = %s"
        row = admin.execute(query, [database]).fetchone()
        closed = row is not None and not row[0]
        if closed:
            admin.execute(change.format(name, sql.SQL("true")))
        try:
            with session.connect(layout, endpoint, database) as connection:
                yield connection
        finally:
            if closed:
                admin.execute(change.format(name, sql.SQL("false")))


def _databases_with_subscriptions(connection: psycopg.Connection[object]) -> list[str]:
    """Return the databases with subscriptions; pg_subscription is shared, so any session sees all."""
    rows = connection.execute(
        "select distinct d.datname from pg_subscription s join pg_database d on d.oid = s.subdbid"
    ).fetchall()
    return sorted(str(row[0]) for row in rows)  # type: ignore[index]


def _drop_subscriptions(connection: psycopg.Connection[object]) -> int:
    """Drop the subscriptions of the connection's database; return how many."""
    rows = connection.execute(
        "select subname from pg_subscription s join pg_database d on d.oid = s.subdbid"
        " where d.datname = current_database()"
    ).fetchall()
    for row in rows:
        name = sql.Identifier(str(row[0]))  # type: ignore[index]
        log_command("psql", "-c", f"drop subscription {row[0]}")  # type: ignore[index]
        connection.execute(sql.SQL("alter subscription {} disable").format(name))
        connection.execute(sql.SQL("alter subscription {} set (slot_name = none)").format(name))
        set_conninfo = sql.SQL("alter subscription {} connection {}")
        connection.execute(set_conninfo.format(name, sql.Literal(_UNREACHABLE_CONNINFO)))
        connection.execute(sql.SQL("drop subscription {}").format(name))
    return len(rows)
