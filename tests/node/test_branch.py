"""Branches with a real Postgres: initdb, snapshots, bind mounts, cleaning, sizes, deletion."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.node.machine import OWNER, Node, children_of, owner_session, stopped

from dbranch.agent.layout import LOCK
from dbranch.agent.postgres import session
from dbranch.agent.postgres.cleaning import Cleaned, ensure_cleaned
from dbranch.agent.postgres.opening import ensure_opened
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.observe import observe_slot, observe_slots
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.marker import Marker, Role
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api.errors import Busy, DataLost, InvalidInput, NotAccepting, SourceUnsafe, SqlFailed
from dbranch.runtime.file_lock import is_unlocked


def sql(node: Node, endpoint: Endpoint, query: str, database: str = "postgres") -> list[tuple[object, ...]]:
    with owner_session(node.layout, endpoint, database, seconds=30) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def main(up: Node) -> tuple[Node, str, Endpoint]:
    """Return a running root branch with a table of one row, in the superuser's own database."""
    branch = up.create_root(max_prepared_transactions="5", wal_level="logical")
    endpoint = up.start_postgres(branch)
    sql(up, endpoint, "create table item (name text)")
    sql(up, endpoint, "insert into item values ('first')")
    return up, branch, endpoint


def test_initdb_creates_the_requested_database(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, endpoint = main
    assert sql(node, endpoint, "select datname from pg_database where datname = 'dbranch'")
    query = "select current_setting('data_checksums'), current_setting('server_encoding'), current_setting('fsync')"
    assert sql(node, endpoint, query) == [("on", "UTF8", "on")]
    stored = sql(node, endpoint, "select rolpassword from pg_authid where rolname = 'postgres'")
    assert str(stored[0][0]).startswith("SCRAM-SHA-256$4096:")
    marker = observe_subvolumes(node.layout, node.project).branches[branch]
    assert isinstance(marker, Marker) and marker.role is Role.ROOT and marker.cleaned


def test_a_snapshot_of_a_running_source_is_isolated_both_ways(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, endpoint = main
    assert session.checkpoint(node.layout, endpoint, 10)
    copy = node.create_copy(branch)
    sql(node, endpoint, "insert into item values ('later')")
    copy_endpoint = node.start_postgres(copy)
    ensure_cleaned(node.layout, node.project, copy, copy_endpoint)
    assert sql(node, copy_endpoint, "select name from item") == [("first",)]
    sql(node, copy_endpoint, "delete from item")
    assert sql(node, endpoint, "select count(*) from item") == [(2,)]
    assert node.take_snapshot(branch, copy).owner_uid == copy
    assert observe_slot(node.layout, copy_endpoint.slot).branch_uid == copy


def test_the_sessions_of_a_reconcile_share_a_connection(main: tuple[Node, str, Endpoint]) -> None:
    node, _, endpoint = main
    backend = "select pg_backend_pid()"
    with session.shared_connections():
        first = sql_default(node, endpoint, backend)
        assert sql_default(node, endpoint, backend) == first
        with session.connect(node.layout, endpoint) as outer:
            assert outer.value(backend) == first
            assert sql_default(node, endpoint, backend) != first
        with pytest.raises(SqlFailed):
            sql_default(node, endpoint, "select 1/0")
        # One that failed is not used again.
        assert sql_default(node, endpoint, backend) != first
        assert sql_default(node, endpoint, backend, "template1") != first
    count = "select count(*) from pg_stat_activity where application_name = 'dbranch-agent'"
    eventually(lambda: sql_default(node, endpoint, count) == 1)


def sql_default(node: Node, endpoint: Endpoint, query: str, database: str | None = None) -> object:
    """Return the first value, in a session with the agent's ordinary time limit."""
    with session.connect(node.layout, endpoint, database) as connection:
        return connection.value(query)


def test_sizes(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, endpoint = main
    session.checkpoint(node.layout, endpoint, 10)
    copy = node.create_copy(branch)
    sizes = observe_sizes(node.layout, node.project, copy)
    assert sizes and sizes.logical_bytes > 5 * 2**20 and sizes.unique_bytes < 2**20
    assert observe_sizes(node.layout, node.project, node.project) is None


def test_a_copy_opens_only_after_it_is_cleaned(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, endpoint = main
    sql(
        node,
        endpoint,
        "create subscription s connection 'host=/nowhere' publication p with (connect = false, slot_name = 'theirs')",
    )
    with owner_session(node.layout, endpoint) as connection:
        connection.execute("begin")
        connection.execute("insert into item values ('prepared')")
        connection.execute("prepare transaction 'half'")
    sql(node, endpoint, "select pg_create_physical_replication_slot('standby', true)")
    copy = node.create_copy(branch)
    files = node.layout.branch(node.project, copy)
    assert list((files / "pgdata" / "pg_replslot").iterdir()) == []
    assert "host" not in (files / "pg_hba.conf").read_text()
    copy_endpoint = node.start_postgres(copy)
    assert ensure_cleaned(node.layout, node.project, copy, copy_endpoint) == Cleaned(1, 1)
    assert ensure_cleaned(node.layout, node.project, copy, copy_endpoint) == Cleaned()
    assert "host" not in (files / "pg_hba.conf").read_text()
    assert ensure_opened(node.layout, node.project, copy, copy_endpoint).opened
    assert "host" in (files / "pg_hba.conf").read_text()
    remaining = "select (select count(*) from pg_subscription), (select count(*) from pg_prepared_xacts)"
    assert sql(node, copy_endpoint, remaining) == [(0, 0)]
    assert sql(node, endpoint, remaining) == [(1, 1)]
    assert sql(node, copy_endpoint, "show max_logical_replication_workers") == [("0",)]
    assert sql(node, endpoint, "select count(*) from pg_replication_slots") == [(1,)]


def test_alter_system_cannot_override_the_forced_parameters(main: tuple[Node, str, Endpoint]) -> None:
    node, _, endpoint = main
    for setting in ("fsync = off", "full_page_writes = off", "archive_mode = on"):
        sql(node, endpoint, f"alter system set {setting}")
    node.stop_postgres(endpoint.slot)
    node.run_script(endpoint.slot, read_slot_start())
    assert session.await_accepting(node.layout, endpoint, 30)
    query = "select current_setting('fsync'), current_setting('full_page_writes'), current_setting('archive_mode')"
    assert sql(node, endpoint, query) == [("on", "on", "off")]


def test_a_second_postgres_on_one_branch_waits(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, endpoint = main
    with pytest.raises(Busy, match="already"):
        slot.ensure_slot(node.layout, "slot-b", OWNER)
        slot.ensure_bound(node.layout, "slot-b", node.project, branch)
    first = node.running[endpoint.slot]
    rival = node.run_script(endpoint.slot, read_slot_start())
    node.running[endpoint.slot] = first
    try:
        eventually(lambda: "another container holds the lock" in node.stderr_of(endpoint.slot))
        assert sql(node, endpoint, "select 1") == [(1,)]
    finally:
        rival.terminate()
        assert rival.wait(10) == 0


def test_a_second_postgres_in_another_slot_waits_also_for_the_children_of_a_killed_one(
    main: tuple[Node, str, Endpoint],
) -> None:
    node, branch, endpoint = main
    # Bound by hand: the agent refuses that.
    slot.ensure_slot(node.layout, "slot-b", OWNER)
    subvolume_path = node.layout.branch(node.project, branch)
    subprocess.run(["mount", "--bind", subvolume_path, node.layout.data("slot-b")], check=True)
    node.run_script("slot-b", read_slot_start())
    eventually(lambda: "another container holds the lock" in node.stderr_of("slot-b"))
    first = node.running.pop(endpoint.slot)
    with stopped(children_of(first.pid)):
        first.kill()
        first.wait()
        # The script checks once a second.
        time.sleep(2.5)
        assert "starting" not in node.stderr_of("slot-b")
        assert not list(node.layout.run("slot-b").glob(".s.PGSQL.*"))
    second = replace(endpoint, slot="slot-b")
    assert session.await_accepting(node.layout, second, 30), node.stderr_of("slot-b")
    assert sql(node, second, "select name from item") == [("first",)]


def test_a_wait_that_is_canceled_lets_go_of_the_mount(main: tuple[Node, str, Endpoint]) -> None:
    node, _, endpoint = main
    node.stop_postgres(endpoint.slot)
    canceled = threading.Event()
    arguments = (node.layout, endpoint, 3600, canceled.is_set)
    wait = threading.Thread(target=session.await_accepting, args=arguments, daemon=True)
    wait.start()
    eventually(lambda: has_opened(node.layout.data(endpoint.slot) / "pgdata"))
    with pytest.raises(Busy):
        slot.ensure_unbound(node.layout, endpoint.slot)
    canceled.set()
    wait.join(60)
    assert not wait.is_alive()
    slot.ensure_unbound(node.layout, endpoint.slot)


def has_opened(path: Path) -> bool:
    """True if this process has the file or directory open."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        # The one with which the directory is listed is gone.
        with suppress(FileNotFoundError):
            links.append(link.readlink())
    return path in links


def eventually(check: Callable[[], bool]) -> None:
    """Wait until the check succeeds, 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_source_with_data_outside_its_subvolume_is_rejected_with_the_path(
    main: tuple[Node, str, Endpoint],
) -> None:
    node, branch, _ = main
    pgdata = node.layout.branch(node.project, branch) / "pgdata"
    outside = node.layout.base / "outside"
    outside.mkdir()
    (pgdata / "pg_tblspc" / "16999").symlink_to(outside)
    with pytest.raises(SourceUnsafe, match="pg_tblspc/16999"):
        node.create_copy(branch)
    (pgdata / "pg_tblspc" / "16999").unlink()
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(pgdata / "nested")], check=True)
    with pytest.raises(SourceUnsafe, match="nested"):
        node.create_copy(branch)
    assert observe_subvolumes(node.layout, node.project).unfinished == ()


def test_symbolic_links_of_a_tenant_are_not_followed(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, endpoint = main
    run = node.layout.run("slot-x")
    slot.ensure_slot(node.layout, "slot-x", OWNER)
    (run / f".s.PGSQL.{endpoint.port}").symlink_to(
        node.layout.run(endpoint.slot) / f".s.PGSQL.{endpoint.port}"
    )
    with (
        pytest.raises(NotAccepting),
        session.connect(node.layout, Endpoint("slot-x", endpoint.port, "postgres", 17)),
    ):
        pass
    kept = node.layout.base / "kept"
    kept.write_text("keep me")
    pgdata = node.layout.branch(node.project, branch) / "pgdata"
    (pgdata / "postmaster.opts").unlink()
    (pgdata / "postmaster.opts").symlink_to(os.path.relpath(pgdata / "PG_VERSION", pgdata))
    copy = node.create_copy(branch)
    assert not os.path.lexists(node.layout.branch(node.project, copy) / "pgdata" / "postmaster.opts")
    assert kept.read_text() == "keep me" and (pgdata / "PG_VERSION").exists()


def test_the_deletion_of_a_branch(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, _ = main
    copy = node.create_copy(branch)
    copy_endpoint = node.start_postgres(copy)
    with pytest.raises(Busy):
        subvolume.ensure_trashed(node.layout, node.project, copy)
    with pytest.raises(Busy):
        slot.ensure_unbound(node.layout, copy_endpoint.slot)
    node.stop_postgres(copy_endpoint.slot)
    slot.ensure_slot_removed(node.layout, copy_endpoint.slot)
    slot.ensure_slot_removed(node.layout, copy_endpoint.slot)
    assert copy_endpoint.slot not in observe_slots(node.layout)
    subvolume.ensure_trashed(node.layout, node.project, copy)
    assert copy not in observe_subvolumes(node.layout, node.project).branches
    subvolume.ensure_trash_emptied(node.layout, node.project)
    subvolume.ensure_trashed(node.layout, node.project, copy)
    assert observe_subvolumes(node.layout, node.project).unfinished == ()
    with pytest.raises(DataLost):
        node.create_copy(copy)


def test_forced_parameters_are_rejected(up: Node) -> None:
    branch = up.create_root()
    with pytest.raises(InvalidInput, match="fsync"):
        up.create_copy(branch, fsync="off")
    assert set(observe_subvolumes(up.layout, up.project).branches) == {branch}


def test_a_lock_that_a_tenant_lets_go_protects_its_data_no_less(main: tuple[Node, str, Endpoint]) -> None:
    node, branch, endpoint = main
    lock = node.layout.branch(node.project, branch) / LOCK
    assert not is_unlocked(lock)
    with owner_session(node.layout, endpoint) as connection:
        connection.execute("copy (select 1) to program 'flock --unlock 9'")
    assert is_unlocked(lock)
    # What it cannot undo is its slot's bind: with that neither is the data destroyed nor a second Postgres started.
    with pytest.raises(Busy, match=f"in use at {node.layout.data(endpoint.slot)}"):
        subvolume.ensure_trashed(node.layout, node.project, branch)
    with pytest.raises(Busy):
        slot.ensure_unbound(node.layout, endpoint.slot)
    slot.ensure_slot(node.layout, "slot-b", OWNER)
    with pytest.raises(Busy, match="is bound at"):
        slot.ensure_bound(node.layout, "slot-b", node.project, branch)
    with owner_session(node.layout, endpoint) as connection:
        assert connection.execute("select 1").fetchall() == [(1,)]
