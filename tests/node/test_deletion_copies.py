"""What a deleted branch leaves on a real btrfs: its whole data as a snapshot, from which it comes back as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.node.agent_life import BRANCHES, SNAPSHOTS
from tests.node.world import World

from dbranch.agent.linux.btrfs import is_read_only
from dbranch.agent.volume.observe import observe_subvolumes


@pytest.fixture
def project(world: World) -> str:
    """A running project whose root branch has a table, and a branch `b` of it."""
    uid = world.make_project(parameters={"max_prepared_transactions": "5"})
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    world.make_branch("b", "main")
    world.run_agent()
    return uid


def rows(world: World, branch: str, table: str = "item") -> int:
    return int(str(world.sql(branch, f"select count(*) from {table}")[0][0]))


def held(world: World, branch: str) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Return the prepared transactions and replication slots of a branch."""
    prepared = world.sql(branch, "select gid from pg_prepared_xacts")
    return prepared, world.sql(branch, "select slot_name::text from pg_replication_slots")


def test_a_deleted_branch_comes_back_with_all_that_only_it_held(world: World, project: str) -> None:
    world.sql("b", "insert into item values (0)")
    world.sql("b", "create unlogged table quick as select generate_series(1, 10)")
    world.sql("b", "begin; create table half (); prepare transaction 'half'")
    world.sql("b", "select pg_create_physical_replication_slot('standby', true)")
    assert world.branch("b")["status"]["node"]["opened"] is True
    kept, uid = world.keep_at_deletion("b"), world.uid("b")
    world.delete_branch("b")
    snapshot = world.snapshot(kept)
    snapshot_uid = snapshot["metadata"]["uid"]
    assert snapshot["status"]["node"]["storage"]["reason"] == "Stored"
    subvolumes = observe_subvolumes(world.node.layout, project)
    assert set(subvolumes.snapshots) == {snapshot_uid} and uid not in subvolumes.branches
    assert is_read_only(world.node.layout.branch(project, snapshot_uid))
    marker = subvolumes.snapshots[snapshot_uid]
    assert marker.data.origin.uid == uid and marker.data.expiration_time > marker.data.snapshot_time
    world.assert_consistent(project, running=1, stored=1, snapshots=1)
    remade = world.undelete("b", kept)
    # A branch of another name is a copy like all others.
    world.make_branch_of_snapshot("copy", kept)
    world.run_agent()
    assert rows(world, "b") == rows(world, "copy") == 1001
    # Its Postgres was shut down before: nothing was recovered, which would have emptied it.
    assert rows(world, "b", "quick") == 10
    assert held(world, "b") == ([("half",)], [("standby",)])
    assert held(world, "copy") == ([], [])
    world.log_in("b")
    marker_of_b = observe_subvolumes(world.node.layout, project).branches[remade]
    assert marker_of_b is not None and marker_of_b.owner_uid == remade
    # The snapshot stays for its time, and whoever was made of it does not need it.
    world.delete_snapshot(kept)
    assert rows(world, "b") == 1001
    world.assert_consistent(project, running=3, stored=3)


def test_a_snapshot_that_somebody_has_deleted_gets_no_data(world: World, project: str) -> None:
    kept = world.keep_at_deletion("b")
    world.api.merge(f"{SNAPSHOTS}/shop-{kept}", {"metadata": {"finalizers": []}})
    world.api.delete(f"{SNAPSHOTS}/shop-{kept}")
    world.delete_branch("b")
    world.assert_consistent(project, running=1, stored=1)


def test_kills_at_every_effect_of_a_deletion_that_keeps_the_data(
    world: World, project: str, soak: bool
) -> None:
    world.delete_branch("b")

    def delete(kill_at: int) -> Callable[[], None]:
        name = f"b{kill_at}"
        world.make_branch(name, "main")
        world.run_agent()
        world.sql(name, "insert into item values (0)")
        kept = world.keep_at_deletion(name)
        world.api.delete(f"{BRANCHES}/shop-{name}")

        def check() -> None:
            world.assert_consistent(project, running=1, stored=1, snapshots=1)
            assert world.snapshot(kept)["status"]["node"]["storage"]["reason"] == "Stored"
            world.undelete(name, kept)
            world.run_agent()
            assert rows(world, name) == 1001
            world.delete_branch(name)
            world.delete_snapshot(kept)

        return check

    assert world.kill_at_each_effect(delete, soak) > 5
