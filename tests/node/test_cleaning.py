"""What a copy must not keep: with a real publisher and subscriber, and a superuser who tries to bring it back."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.node.machine import VERIFIERS, Node, owner_session, postgres_directory
from tests.node.majors import programs_of

from dbranch.agent.postgres import session
from dbranch.agent.postgres.cleaning import Cleaned, ensure_cleaned
from dbranch.agent.postgres.opening import ensure_opened
from dbranch.agent.postgres.password import ensure_passwords
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.origins.snapshot import ensure_snapshot
from dbranch.api import names
from dbranch.api.errors import SourceUnsafe
from dbranch.api.parameters import NEWEST_MAJOR


def sql(node: Node, endpoint: Endpoint, *queries: str, database: str = "dbranch") -> list[tuple[object, ...]]:
    """Run the queries; return the rows of the last one."""
    with owner_session(node.layout, endpoint, database, seconds=30) as connection:
        cursor = connection.cursor()
        for query in queries:
            cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def eventually(check: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until the check succeeds, `seconds` at most."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def restart(node: Node, endpoint: Endpoint) -> None:
    """Restart the Postgres of a slot and wait until it accepts connections."""
    node.stop_postgres(endpoint.slot)
    node.run_script(endpoint.slot, read_slot_start())
    assert session.await_accepting(node.layout, endpoint, 30), node.stderr_of(endpoint.slot)


@pytest.fixture
def two(up: Node) -> Iterator[tuple[Node, Node]]:
    """Return one node with two projects; whatever either starts is stopped with the first."""
    other = Node(up.layout, running=up.running)
    other.ensure_pool()
    yield up, other


# Settings that a source may have, and that a superuser of the branch sets again.
UNWANTED_SETTINGS = (
    *(
        "alter system set archive_mode = 'on'",
        "alter system set archive_command = 'touch /tmp/dbranch-archived-%f'",
    ),
    *("alter system set primary_conninfo = 'host=127.0.0.1'", "alter system set restore_command = 'false'"),
    *(
        "alter system set synchronous_standby_names = '*'",
        "alter system set synchronous_commit = 'remote_apply'",
    ),
    *(
        "alter system set max_logical_replication_workers = 8",
        "alter system set primary_slot_name = 'standby'",
    ),
)
FORCED_SETTINGS = (
    "select current_setting('archive_mode'), current_setting('primary_conninfo'), current_setting('restore_command'),"
    " current_setting('synchronous_standby_names'), current_setting('max_logical_replication_workers')"
)
REMAINING = (
    "select (select count(*) from pg_replication_slots), (select count(*) from pg_subscription),"
    " (select count(*) from pg_subscription_rel), (select count(*) from pg_replication_origin),"
    " (select count(*) from pg_prepared_xacts), pg_is_in_recovery()::int"
)
BLOCKING_TRIGGER_FUNCTION = (
    "create function waits() returns trigger language plpgsql as "
    "$$ begin perform pg_advisory_xact_lock(1); return null; end $$"
)
REPLICATION_SLOTS = "select slot_name::text, active_pid from pg_replication_slots order by 1"


def test_a_copy_of_a_subscriber_changes_nothing_at_the_publisher(two: tuple[Node, Node]) -> None:
    publisher_node, node = two
    publisher = publisher_node.start_postgres(publisher_node.create_root(wal_level="logical"))
    sql(
        *(publisher_node, publisher, "alter role postgres password 'secret'"),
        *("create table item as select generate_series(1, 1000) as id", "create table slow (like item)"),
        *("insert into slow select * from item", "create publication p for table item, slow"),
    )
    source = node.create_root(max_prepared_transactions="5", wal_level="logical")
    subscriber = node.start_postgres(source)
    address = publisher_node.address_of(publisher.slot)
    conninfo = f"host={address} port={publisher.port} user=postgres password=secret dbname=dbranch"
    synced = "select string_agg(srsubstate, '' order by srrelid::regclass::text) from pg_subscription_rel"
    with owner_session(node.layout, subscriber, "dbranch", seconds=120) as holder:
        # A table with a blocked initial copy: its sync, with its own replication slot, is running at the snapshot.
        holder.execute("select pg_advisory_lock(1)")
        sql(
            *(
                node,
                subscriber,
                "create table item (id int)",
                "create table slow (id int)",
                BLOCKING_TRIGGER_FUNCTION,
            ),
            "create trigger waits before insert on slow for each statement execute function waits()",
            "alter table slow enable always trigger waits",
            f"create subscription s connection '{conninfo}' publication p",
        )
        eventually(
            lambda: (
                sql(node, subscriber, synced) == [("rd",)]
                and len(sql(publisher_node, publisher, REPLICATION_SLOTS)) == 2
            )
        )
        sql(node, subscriber, "begin", "insert into item values (0)", "prepare transaction 'half'")
        sql(node, subscriber, "select pg_create_physical_replication_slot('standby', true)")
        for statement in UNWANTED_SETTINGS:
            sql(node, subscriber, statement)
        for signal in ("standby.signal", "recovery.signal"):
            (node.layout.branch(node.project, source) / "pgdata" / signal).touch()
        publisher_slots = sql(publisher_node, publisher, REPLICATION_SLOTS)
        copy = node.create_copy(source)
        branch = node.start_postgres(copy)
        assert ensure_cleaned(node.layout, node.project, copy, branch) == Cleaned(1, 1)
        assert sql(publisher_node, publisher, REPLICATION_SLOTS) == publisher_slots
        assert sql(node, branch, REMAINING) == [(0, 0, 0, 0, 0, 0)]
        assert sql(node, branch, FORCED_SETTINGS) == [("off", "", "", "", "0")]
        # With synchronous replication this commit would never return.
        sql(node, branch, "insert into item values (-1)")
        holder.execute("select pg_advisory_unlock(1)")
    # The source's own subscription continues, in the source only.
    eventually(lambda: sql(node, subscriber, synced) == [("rr",)])
    sql(publisher_node, publisher, "insert into slow values (1001)")
    eventually(lambda: sql(node, subscriber, "select count(*) from slow") == [(1001,)])
    assert sql(node, branch, "select count(*) from slow") == [(0,)]
    # A superuser of the branch cannot start it again.
    publisher_slots = sql(publisher_node, publisher, REPLICATION_SLOTS)
    for statement in UNWANTED_SETTINGS:
        sql(node, branch, statement)
    sql(
        *(node, branch, "set synchronous_commit = local", "select pg_reload_conf()"),
        f"create subscription s connection '{conninfo}' publication p with (connect = false, slot_name = 's')",
        *("alter subscription s enable", "alter subscription s refresh publication with (copy_data = false)"),
        "copy (select 1) to program 'touch standby.signal recovery.signal'",
    )
    restart(node, branch)
    assert sql(node, branch, FORCED_SETTINGS) == [("off", "", "", "", "0")]
    sql(node, branch, "insert into item values (-2)")
    time.sleep(1)
    workers = (
        "select count(*) from pg_stat_activity"
        " where backend_type like 'logical%' or backend_type = 'walreceiver'"
    )
    assert sql(node, branch, workers, "select pg_is_in_recovery()") == [(False,)]
    assert sql(node, branch, workers) == [(0,)]
    assert sql(publisher_node, publisher, REPLICATION_SLOTS) == publisher_slots
    assert not list(Path("/tmp").glob("dbranch-archived-*"))


CRON = {
    **{"shared_preload_libraries": "pg_cron", "cron.database_name": "dbranch"},
    "cron.use_background_workers": "on",
}


def test_jobs_of_the_source_run_in_a_copy_only_if_it_preloads_their_library(up: Node) -> None:
    library = postgres_directory().parent / "lib" / "pg_cron.so"
    assert library.exists(), "no pg_cron on this machine: apt-get install postgresql-15-cron"
    source = up.create_root(**CRON)
    main = up.start_postgres(source)
    sql(
        *(up, main, "create extension pg_cron", "create table ran (at timestamptz default now())"),
        "select cron.schedule('@reboot', 'insert into ran default values')",
        # The source's own setting is in its files, and is copied with them.
        *("alter system set shared_preload_libraries = 'auto_explain', 'pg_cron'", "checkpoint"),
    )
    restart(up, main)
    count = "select count(*) from ran"
    eventually(lambda: sql(up, main, count) == [(1,)])
    without_jobs = take_snapshot(up, source, with_jobs=False)
    with_jobs = take_snapshot(up, source, with_jobs=True)
    idle, working = up.start_postgres(without_jobs), up.start_postgres(with_jobs)
    for branch, endpoint in ((without_jobs, idle), (with_jobs, working)):
        ensure_cleaned(up.layout, up.project, branch, endpoint)
    eventually(lambda: sql(up, working, count) == [(2,)])
    sql(up, idle, "alter system set shared_preload_libraries = '$libdir/pg_cron', 'auto_explain'")
    restart(up, idle)
    time.sleep(1)
    assert sql(up, idle, count) == [(1,)]
    # The list of jobs is an ordinary table, and other preloaded libraries still are loaded.
    assert sql(up, idle, "select count(*) from cron.job") == [(1,)]
    assert sql(up, idle, "show shared_preload_libraries") == [("auto_explain",)]


def take_snapshot(node: Node, source: str, with_jobs: bool) -> str:
    """Take a snapshot of the source that itself preloads pg_cron, or not; return its UID."""
    branch = "11111111-1111-4111-8111-111111111111" if with_jobs else "22222222-2222-4222-8222-222222222222"
    settings = node.settings(branch, **CRON)
    own_parameters = {"shared_preload_libraries": "pg_cron"} if with_jobs else {}
    settings = replace(
        settings, parameters={**settings.parameters, **own_parameters}, own=frozenset(own_parameters)
    )
    assert settings.port == names.branch_port(branch)
    ensure_snapshot(node.layout, node.project, source, branch, settings, "2026-01-01T00:00:00Z")
    return branch


@pytest.fixture
def stored(up: Node) -> tuple[Node, str, Path]:
    """Return a root branch that does not run, and its PGDATA."""
    source = up.create_root()
    return up, source, up.layout.branch(up.project, source) / "pgdata"


def test_a_link_deep_inside_that_leads_outside_is_rejected_with_its_path(
    stored: tuple[Node, str, Path],
) -> None:
    node, source, pgdata = stored
    outside = node.layout.base / "outside"
    outside.mkdir()
    (outside / "16384").write_text("rows")
    database = next(path for path in sorted((pgdata / "base").iterdir()) if path.is_dir())
    deep = database / "16384"
    for target in (outside / "16384", Path("../../../marker.json")):
        deep.symlink_to(target)
        with pytest.raises(SourceUnsafe, match=f"base/{database.name}/16384 is a link"):
            node.create_copy(source)
        deep.unlink()
    # A link that stays inside is part of the copy.
    deep.symlink_to("PG_VERSION")
    assert (node.layout.branch(node.project, node.create_copy(source)) / "pgdata" / "PG_VERSION").exists()
    deep.unlink()
    deeper = pgdata / "base" / "a" / "b"
    deeper.mkdir(parents=True)
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(deeper / "nested")], check=True)
    with pytest.raises(SourceUnsafe, match="base/a/b/nested is a subvolume"):
        node.create_copy(source)
    assert observe_subvolumes(node.layout, node.project).unfinished == ()


def test_a_wal_outside_pgdata_is_rejected_with_its_path(stored: tuple[Node, str, Path]) -> None:
    node, source, pgdata = stored
    elsewhere = node.layout.base / "wal"
    (pgdata / "pg_wal").rename(pgdata / "wal")
    # Also a link that leads to another directory inside PGDATA: Postgres follows it as any link.
    for target in (elsewhere, Path("wal")):
        (pgdata / "pg_wal").symlink_to(target)
        with pytest.raises(SourceUnsafe, match="pgdata/pg_wal is a link"):
            node.create_copy(source)
        (pgdata / "pg_wal").unlink()


def test_a_database_that_does_not_allow_connections_is_cleaned_too(up: Node) -> None:
    source = up.create_root(max_prepared_transactions="5")
    main = up.start_postgres(source)
    sql(up, main, "create database closed", database="postgres")
    with owner_session(up.layout, main, "closed") as connection:
        connection.execute(
            "create subscription s connection 'host=/nowhere' publication p with (connect = false)"
        )
        connection.execute("begin; create table t (); prepare transaction 'half'")
    sql(up, main, "alter database closed allow_connections false", database="postgres")
    copy = up.create_copy(source)
    branch = up.start_postgres(copy)
    assert ensure_cleaned(up.layout, up.project, copy, branch) == Cleaned(1, 1)
    allowed = "select datallowconn from pg_database where datname = 'closed'"
    assert sql(up, branch, allowed, database="postgres") == [(False,)]


# What a tenant may have made the default of every session, the agent's too.
HOSTILE_SETTINGS = (
    "alter system set default_transaction_read_only = on",
    "alter role postgres set default_transaction_read_only = on",
    "alter database dbranch set default_transaction_read_only = on",
    "alter role postgres set search_path = hidden, pg_catalog",
    "alter role postgres set statement_timeout = '1ms'",
    "alter role postgres set lock_timeout = '1ms'",
    "alter role postgres set role = plain",
    "alter role postgres set client_encoding = latin1",
    "alter role postgres set session_preload_libraries = 'auto_explain'",
    "alter role postgres set transaction_timeout = '1ms'",
    "alter role postgres set row_security = off",
    "alter role postgres set default_transaction_isolation = serializable",
)
HIDING_OBJECTS = (
    "create schema hidden",
    "create view hidden.pg_subscription as select 1 as nothing where false",
    "create view hidden.pg_prepared_xacts as select 1 as nothing where false",
    "create function hidden.current_database() returns name language sql as $$ select 'other'::name $$",
    "create function stops() returns event_trigger language plpgsql as $$ begin"
    " if current_setting('application_name') = 'dbranch-agent' then raise 'stopped'; end if; end $$",
    "create event trigger at_login on login execute function stops()",
    "create event trigger at_statements on ddl_command_start execute function stops()",
    "alter event trigger at_login enable always",
    "alter event trigger at_statements enable always",
)


def test_a_copy_of_a_hostile_source_with_a_subscription_of_a_plain_role_is_cleaned_and_opened(
    up: Node,
) -> None:
    up.programs = programs_of(NEWEST_MAJOR)
    try:
        source = up.create_root(max_prepared_transactions="5", wal_level="logical")
        main = up.start_postgres(source)
        sql(
            *(up, main, "create role plain login", "grant pg_create_subscription to plain"),
            *("grant create on database dbranch to plain", "set role plain"),
            "create subscription s connection 'host=h password=p dbname=d' publication p with (connect = false)",
            *(
                "reset role",
                "create table item ()",
                "begin",
                "create table t ()",
                "prepare transaction 'half'",
            ),
        )
        sql(up, main, *HIDING_OBJECTS)
        # In one session: the next ones have them.
        sql(up, main, *HOSTILE_SETTINGS)
        copy = up.create_copy(source)
        branch = up.start_postgres(copy)
        assert ensure_cleaned(up.layout, up.project, copy, branch) == Cleaned(1, 1)
        marker = ensure_passwords(up.layout, up.project, copy, branch, VERIFIERS)
        assert marker.password and ensure_opened(up.layout, up.project, copy, branch).opened
    finally:
        up.tear_down()
        shutil.rmtree(up.programs.parents[1])
