"""Remove from a branch what a copy must not keep and only a running Postgres can drop.

That is subscriptions and prepared transactions. Replication slots are removed offline, before Postgres starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.quoting import identifier, literal
from dbranch.agent.postgres.session import Endpoint, Session
from dbranch.agent.volume.effect import ensure_recorded, read_marker
from dbranch.agent.volume.marker import Marker
from dbranch.api.errors import DataLost
from dbranch.runtime.logs import log_command

# With the source's connection, DROP SUBSCRIPTION would drop the source's replication slot at the publisher. That of
# an owner who is no superuser needs a password.
_UNREACHABLE_CONNINFO = "host=/nonexistent port=1 dbname=nowhere password=none"
# A tenant may have made any number of them, and a session's answers are bounded.
_BATCH: Final = 100


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
    subscriptions = 0
    with session.connect(layout, endpoint) as connection:
        databases = _databases_with_subscriptions(connection)
    while databases:
        for database in databases:
            with _connect_always(layout, endpoint, database) as connection:
                subscriptions += _drop_subscriptions(connection)
        with session.connect(layout, endpoint) as connection:
            databases = _databases_with_subscriptions(connection)
    prepared = _rollback_prepared_transactions(layout, endpoint)
    ensure_recorded(layout, project_uid, branch_uid, Marker.with_cleaned)
    return Cleaned(subscriptions, prepared)


@contextmanager
def _connect_always(layout: Layout, endpoint: Endpoint, database: str) -> Iterator[Session]:
    """Connect to the database even if it does not allow connections; only the agent can connect at this point."""
    change = f"alter database {identifier(database)} allow_connections"
    query = "select datallowconn from pg_catalog.pg_database where datname = %s"
    with session.connect(layout, endpoint) as admin:
        closed = not admin.value(query, [database])
        if closed:
            admin.execute(f"{change} true")
        try:
            with session.connect(layout, endpoint, database) as connection:
                yield connection
        finally:
            if closed:
                admin.execute(f"{change} false")


def _rollback_prepared_transactions(layout: Layout, endpoint: Endpoint) -> int:
    """Roll back all prepared transactions, each from its own database; return how many."""
    query = "select gid, database from pg_catalog.pg_prepared_xacts order by database, gid limit " + str(
        _BATCH
    )
    count = 0
    while True:
        with session.connect(layout, endpoint) as connection:
            transactions = connection.execute(query, columns=2)
        if not transactions:
            return count
        for database, group in groupby(transactions, key=itemgetter(1)):
            with _connect_always(layout, endpoint, str(database)) as connection:
                for gid, _ in group:
                    log_command("psql", database, "-c", f"rollback prepared '{gid}'")
                    connection.execute("rollback prepared %s", [str(gid)])
                    count += 1


def _databases_with_subscriptions(connection: Session) -> list[str]:
    """Return databases with subscriptions; pg_subscription is shared, so any session sees all."""
    rows = connection.execute(
        "select distinct d.datname from pg_catalog.pg_subscription s"
        f" join pg_catalog.pg_database d on d.oid = s.subdbid limit {_BATCH}",
        columns=1,
    )
    return sorted(str(name) for (name,) in rows)


def _drop_subscriptions(connection: Session) -> int:
    """Drop subscriptions of the session's database; return how many."""
    rows = connection.execute(
        "select subname from pg_catalog.pg_subscription s"
        " join pg_catalog.pg_database d on d.oid = s.subdbid"
        f" where d.datname = pg_catalog.current_database() limit {_BATCH}",
        columns=1,
    )
    for (subscription,) in rows:
        name = identifier(str(subscription))
        log_command("psql", "-c", f"drop subscription {subscription}")
        connection.execute(f"alter subscription {name} disable")
        connection.execute(f"alter subscription {name} set (slot_name = none)")
        connection.execute(f"alter subscription {name} connection {literal(_UNREACHABLE_CONNINFO)}")
        connection.execute(f"drop subscription {name}")
    return len(rows)
