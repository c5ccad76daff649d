"""Restores in place with a real Postgres: the data changes under a branch that keeps its name, port and password."""

from __future__ import annotations

import threading
from collections import Counter

import psycopg
import pytest
from tests.node.agent_life import BRANCHES, PROJECTS
from tests.node.machine import PASSWORDS
from tests.node.restores import Restores, make_source_and_copy, rows
from tests.node.test_agent import give_passwords
from tests.node.world import World

# The server ends the session of a user whose branch is restored (`admin_shutdown`). It cannot say so where the next
# statement of the user is on its way: then the connection is reset.
ADMIN_SHUTDOWN, RESET = "57P01", "server closed the connection unexpectedly"


@pytest.fixture
def project(world: World) -> str:
    """A running project whose root has a table with 1,000 rows, and a branch `b` of it with one more."""
    uid = make_source_and_copy(world, {"max_prepared_transactions": "5", "wal_level": "logical"})
    world.sql("b", "insert into item values (0)")
    return uid


def test_a_branch_gets_the_data_of_another_and_its_own_back(
    world: World, restores: Restores, project: str
) -> None:
    """What only the branch held is in its own data again: a replication slot, a prepared transaction."""
    world.sql("b", "select pg_create_logical_replication_slot('of_b', 'test_decoding')")
    world.sql("b", "begin; insert into item values (-1); prepare transaction 'of b'")
    before = world.branch("b")["status"]["node"]
    uid = restores.order("b", source="main")
    world.run_agent()
    end = restores.ends[uid]
    assert end["state"] == "Done" and end["dataTime"], end
    assert rows(world, "b") == 1000
    assert world.sql("b", "select slot_name from pg_replication_slots") == []
    assert world.sql("b", "select gid from pg_prepared_xacts") == []
    node = world.branch("b")["status"]["node"]
    assert node["generation"] == 2 and node["port"] == before["port"] and node["slot"] != before["slot"]
    assert node["sourceUID"] == world.uid("main") and node["snapshotTime"] == end["dataTime"]
    world.log_in("b")
    world.assert_consistent(project, running=2, stored=2, snapshots=1)
    undo = restores.undo_name("b", uid)
    snapshot = world.snapshot(undo.removeprefix("shop-"))["status"]["node"]
    assert snapshot["storage"]["reason"] == "Stored"
    uid = restores.order("b", snapshot=undo)
    world.run_agent()
    assert restores.ends[uid]["state"] == "Done", restores.ends
    assert world.sql("b", "select slot_name from pg_replication_slots") == [("of_b",)]
    assert world.sql("b", "select gid from pg_prepared_xacts") == [("of b",)]
    world.sql("b", "commit prepared 'of b'")
    assert rows(world, "b") == 1002
    assert world.branch("b")["status"]["node"]["generation"] == 3
    world.log_in("b")
    world.assert_consistent(project, running=2, stored=2, snapshots=2)


def test_the_root_and_a_stopped_branch_are_restored(world: World, restores: Restores, project: str) -> None:
    world.make_branch("child", "main")
    world.run_agent()
    world.patch_spec("b", state="Stopped")
    world.run_agent()
    first, second = restores.order("main", source="b"), restores.order("b", source="child", keep=False)
    world.run_agent()
    assert restores.ends[first]["state"] == restores.ends[second]["state"] == "Done", restores.ends
    # Its subscriptions and schedulers run from the next start on, since the old Postgres did their work until now.
    postgres = world.branch("main")["status"]["node"]["postgres"]
    assert postgres["reason"] == "RestartPending" and "max_logical_replication_workers" in postgres["message"]
    world.api.merge(f"{BRANCHES}/shop-main", {"metadata": {"annotations": {"dbranch.io/restartedAt": "now"}}})
    world.run_agent()
    assert world.branch("main")["status"]["node"]["postgres"]["reason"] == "Accepting"
    assert world.sql("main", "show max_logical_replication_workers") == [("4",)]
    # The root has the data of the branch at rest, its other child what it had; the branch is at rest again.
    assert rows(world, "main") == 1001 and rows(world, "child") == 1000
    node = world.branch("b")["status"]["node"]
    assert node["postgres"]["reason"] == "Stopped" and node["generation"] == 2
    world.assert_consistent(project, running=2, stored=3, snapshots=1)
    world.patch_spec("b", state="Running")
    world.run_agent()
    assert rows(world, "b") == 1000
    world.log_in("b")


class Writer(threading.Thread):
    """Moves one from a table to another in each transaction, with new sessions after each that is ended."""

    def __init__(self, world: World, branch: str) -> None:
        super().__init__(daemon=True)
        self._world, self._branch, self._stopped = world, branch, threading.Event()
        # By SQLSTATE, in a session that was admitted; and how many transactions were acknowledged.
        self.errors, self.commits = Counter[str](), 0

    def __enter__(self) -> Writer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        while not self._stopped.wait(0.001):
            node = self._world.branch(self._branch)["status"]["node"]
            try:
                connection = psycopg.connect(
                    host=self._world.node.address_of(node["pod"]),
                    port=node["port"],
                    user="app",
                    password=PASSWORDS["app"],
                    dbname="postgres",
                    autocommit=True,
                )
            except psycopg.OperationalError:
                # The proxy holds whoever comes while the branch is closed.
                continue
            with connection:
                try:
                    while not self._stopped.is_set():
                        with connection.transaction():
                            connection.execute("insert into debit values (-1)")
                            connection.execute("insert into credit values (1)")
                        self.commits += 1
                except psycopg.Error as error:
                    self.errors[error.sqlstate or str(error)] += 1


def test_transactions_are_whole_in_both_data_and_only_sessions_end(
    world: World, restores: Restores, project: str, soak: bool
) -> None:
    for table in ("debit", "credit"):
        world.sql("main", f"create table {table} (n int); alter table {table} owner to app")
    world.make_branch("busy", "main")
    world.run_agent()
    uid, turns = "", 20 if soak else 3
    with Writer(world, "busy") as first, Writer(world, "busy") as second:
        for turn in range(turns):
            commits = first.commits + second.commits
            uid = restores.order("busy", source="main", keep=turn == turns - 1)
            world.run_agent()
            assert restores.ends[uid]["state"] == "Done", restores.ends[uid]
            assert first.commits + second.commits > commits
    sums = "select coalesce((select sum(n) from debit), 0) + coalesce((select sum(n) from credit), 0)"
    assert world.sql("busy", sums) == [(0,)]
    for writer in (first, second):
        assert all(text == ADMIN_SHUTDOWN or RESET in text for text in writer.errors), writer.errors
        assert writer.errors.total() <= turns
    undo = restores.undo_name("busy", uid).removeprefix("shop-")
    world.make_branch_of_snapshot("old", undo)
    world.run_agent()
    assert world.sql("old", sums) == [(0,)]
    assert world.sql("old", "select count(*) > 0 from debit") == [(True,)]


def test_changes_of_the_spec_wait_and_are_in_the_new_data(
    world: World, restores: Restores, project: str
) -> None:
    """A password, a parameter, a restart and an image that change while the new data is prepared."""
    uid = restores.prepare("b")
    slot = world.branch("b")["status"]["node"]["slot"]
    assert rows(world, "b") == 1001
    give_passwords(world, project, "another")
    world.patch_spec("b", postgres={"parameters": {"work_mem": "7MB"}})
    world.api.merge(f"{BRANCHES}/shop-b", {"metadata": {"annotations": {"dbranch.io/restartedAt": "now"}}})
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"postgres": {"image": "postgres:17.1"}}})
    world.run_agent(0, 4)
    node = world.branch("b")["status"]["node"]
    assert node["slot"] == slot and node["restore"]["state"] == "Prepared"
    assert world.sql("b", "show work_mem") == [("4MB",)]
    restores.switch(uid)
    assert rows(world, "b") == 1000 and world.sql("b", "show work_mem") == [("7MB",)]
    node = world.branch("b")["status"]["node"]
    assert node["restartedAt"] == "now"
    address = world.node.address_of(node["pod"])
    access = f"host={address} port={node['port']} user=app dbname=dbranch"
    with psycopg.connect(access, password="another") as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(access, password=PASSWORDS["app"])
    world.assert_consistent(project, running=2, stored=2, snapshots=1)


def test_a_node_prepares_two_restores_at_once(world: World, restores: Restores, project: str) -> None:
    for name in ("c", "d"):
        world.make_branch(name, "main")
    world.run_agent()
    restores.switches = False
    uids = [restores.order(name, source="main", keep=False) for name in ("b", "c", "d")]
    for name in ("b", "c"):
        restores.await_state(name, "Prepared")
    assert restores.answer("d")["state"] == "Preparing" and restores.answer("d")["reason"] == "Queued"
    assert len(world.pods()) == 6
    restores.switches = True
    world.run_agent()
    assert [restores.ends[uid]["state"] for uid in uids] == ["Done"] * 3
    world.assert_consistent(project, running=4, stored=4)
