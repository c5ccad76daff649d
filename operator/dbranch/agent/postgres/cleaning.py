"""What a copy must not keep and only a running Postgres can give up: subscriptions, prepared transactions."""

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
from dbranch.agent.volume.effect import ensure_opened, read_marker
from dbranch.api.errors import DataLost
from dbranch.runtime.logs import log_command

# A connection that leads nowhere: DROP would otherwise remove the source's slots at the publisher.
_NOWHERE = "host=/nonexistent port=1 dbname=nowhere"


@dataclass(frozen=True)
class Cleaned:
    """What was found and taken away."""

    subscriptions: int = 0
    prepared_transactions: int = 0


def ensure_cleaned(layout: Layout, project_uid: str, branch_uid: str, endpoint: Endpoint) -> Cleaned:
    """Cleaned, so written into the marker, and Postgres open to its users; repeatable.

    Call as soon as `session.await_accepting` returned, before the branch is told to be Accepting. Where
    there is nothing to clean it costs one session and a reload (milliseconds).
    """
    marker = read_marker(layout.branch(project_uid, branch_uid))
    if marker is None:
        raise DataLost(f"branch {branch_uid} has no marker that can be read; it is not opened to users")
    if marker.cleaned:
        return Cleaned()
    subscriptions = prepared = 0
    with session.connect(layout, endpoint) as first:
        subscribed = _subscribed(first)
        waiting = first.execute("select gid, database from pg_prepared_xacts").fetchall()
    for database in subscribed:
        with _admitted(layout, endpoint, database) as there:
            subscriptions += _drop_subscriptions(there)
    for gid, database in waiting:
        with _admitted(layout, endpoint, str(database)) as there:
            log_command("psql", str(database), "-c", f"rollback prepared '{gid}'")
            there.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
            prepared += 1
    ensure_opened(layout, project_uid, branch_uid, endpoint.user)
    session.reload(layout, endpoint)
    return Cleaned(subscriptions, prepared)


@contextmanager
def _admitted(layout: Layout, endpoint: Endpoint, database: str) -> Iterator[psycopg.Connection[Any]]:
    """A session in this database, also where it admits none: nobody but the agent gets in yet."""
    change = sql.SQL("alter database {} allow_connections {}")
    name = sql.Identifier(database)
    with session.connect(layout, endpoint) as first:
        query = "select datallowconn from pg_database where datname = %s"
        row = first.execute(query, [database]).fetchone()
        closed = row is not None and not row[0]
        if closed:
            first.execute(change.format(name, sql.SQL("true")))
        try:
            with session.connect(layout, endpoint, database) as there:
                yield there
        finally:
            if closed:
                first.execute(change.format(name, sql.SQL("false")))


def _subscribed(first: psycopg.Connection[object]) -> list[str]:
    """The databases with subscriptions: pg_subscription is shared, so one session sees them all."""
    rows = first.execute(
        "select distinct d.datname from pg_subscription s join pg_database d on d.oid = s.subdbid"
    ).fetchall()
    return sorted(str(row[0]) for row in rows)  # type: ignore[index]


def _drop_subscriptions(there: psycopg.Connection[object]) -> int:
    rows = there.execute(
        "select subname from pg_subscription s join pg_database d on d.oid = s.subdbid"
        " where d.datname = current_database()"
    ).fetchall()
    for row in rows:
        name = sql.Identifier(str(row[0]))  # type: ignore[index]
        log_command("psql", "-c", f"drop subscription {row[0]}")  # type: ignore[index]
        there.execute(sql.SQL("alter subscription {} disable").format(name))
        there.execute(sql.SQL("alter subscription {} set (slot_name = none)").format(name))
        nowhere = sql.SQL("alter subscription {} connection {}")
        there.execute(nowhere.format(name, sql.Literal(_NOWHERE)))
        there.execute(sql.SQL("drop subscription {}").format(name))
    return len(rows)
