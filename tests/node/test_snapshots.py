"""Snapshots of running branches on a real btrfs: whole, read-only, never taken twice, sources of branches."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.node.agent_life import SNAPSHOTS
from tests.node.machine import postgres_directory
from tests.node.world import SAMPLED_KILLS, World

from dbranch.agent.layout import SubvolumeKind
from dbranch.agent.linux.btrfs import create_subvolume, is_read_only, transactions_of
from dbranch.agent.volume.effect import ensure_temporaries_destroyed
from dbranch.agent.volume.observe import observe_subvolumes


def storage_of(world: World, name: str) -> str:
    return str(world.snapshot(name)["status"]["node"]["storage"]["reason"])


def rows(world: World, branch: str) -> int:
    return int(str(world.sql(branch, "select count(*) from item")[0][0]))


@pytest.fixture
def project(world: World) -> str:
    """A running project whose root branch has a table with 1,000 rows."""
    uid = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    return uid


def test_a_snapshot_survives_its_branch_and_branches_of_it_survive_the_snapshot(
    world: World, project: str
) -> None:
    world.make_branch("b", "main")
    world.run_agent()
    world.sql("b", "insert into item values (0)")
    uid = world.make_snapshot("before", "b")
    world.run_agent()
    node = world.snapshot("before")["status"]["node"]
    assert node["storage"]["reason"] == "Stored" and node["snapshotTime"] and node["postgresVersion"]
    # As far as the whole process of a commit of btrfs lets it: a new root, the marker, and what the CHECKPOINT wrote.
    assert node["uniqueBytes"] < 0.3 * 2**20 < node["logicalBytes"]
    world.assert_consistent(project, running=2, stored=2, snapshots=1)
    marker = observe_subvolumes(world.node.layout, project).snapshots[uid]
    assert marker.snapshot == "shop-before" and marker.data.names.branch == "b"
    assert marker.data.origin.uid == world.uid("b")
    # The branch is ruined, and deleted.
    world.sql("b", "drop table item")
    world.delete_branch("b")
    world.make_branch_of_snapshot("again", "before")
    world.run_agent()
    assert rows(world, "again") == 1001
    world.log_in("again")
    remade = world.branch("again")["status"]["node"]
    assert remade["sourceUID"] == uid and remade["snapshotTime"] == node["snapshotTime"]
    world.delete_snapshot("before")
    world.assert_consistent(project, running=2, stored=2)
    assert rows(world, "again") == 1001


def test_a_snapshot_under_writes_is_consistent(world: World, project: str) -> None:
    """Each transaction moves an amount between two tables, so the sum is 0 in every consistent copy."""
    world.sql("main", "create table debit (n int)")
    world.sql("main", "create table credit (n int)")
    finished = threading.Event()

    def write() -> None:
        while not finished.is_set():
            world.sql("main", "insert into debit values (-1); insert into credit values (1)")

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for number in range(2):
            world.make_snapshot(f"s{number}", "main")
            world.run_agent()
    finally:
        finished.set()
        for writer in writers:
            writer.join()
    for number in range(2):
        world.make_branch_of_snapshot(f"b{number}", f"s{number}")
    world.run_agent()
    for number in range(2):
        sums = world.sql(f"b{number}", "select (select sum(n) from debit) + (select sum(n) from credit)")
        assert sums == [(0,)]
    slot = world.branch("b1")["status"]["node"]
    subprocess.run(
        [
            *(postgres_directory() / "pg_amcheck", "--all", "--install-missing", "--heapallindexed"),
            *("-h", world.node.layout.run(slot["slot"]), "-p", str(slot["port"]), "-U", "postgres"),
        ],
        check=True,
    )


def test_kills_at_every_effect_of_taking_and_deleting(world: World, project: str, soak: bool) -> None:
    def take(kill_at: int) -> Callable[[], None]:
        world.make_snapshot(f"s{kill_at}", "main")

        def check() -> None:
            world.assert_consistent(project, running=1, stored=1, snapshots=1)
            assert storage_of(world, f"s{kill_at}") == "Stored"
            assert world.snapshot(f"s{kill_at}")["status"]["node"]["uniqueBytes"] >= 0
            world.delete_snapshot(f"s{kill_at}")

        return check

    effects = world.kill_at_each_effect(take, soak)
    assert effects > 5

    def delete(kill_at: int) -> Callable[[], None]:
        world.make_snapshot(f"d{kill_at}", "main")
        world.run_agent()
        world.api.delete(f"{SNAPSHOTS}/shop-d{kill_at}")
        return lambda: world.assert_consistent(project, running=1, stored=1)

    deletion = world.kill_at_each_effect(delete, soak)
    # Between any two effects that matter, whatever else is drawn.
    for effect in (
        "^# btrfs subvolume snapshot",
        "os.rename .*marker",
        "^# mv --no-clobber",
    ):
        check = take(0)
        assert world.run_agent(effect) is None, effect
        world.run_agent()
        check()
    print(f"snapshot: {effects} effects, its deletion: {deletion}, {world.kills} kills")
    assert world.kills >= 2 * SAMPLED_KILLS
    assert rows(world, "main") == 1000


def test_what_cannot_be_copied_is_refused_with_its_path(world: World, project: str) -> None:
    nested = world.node.layout.branch(project, world.uid("main")) / "pgdata" / "nested"
    create_subvolume(nested)
    world.make_snapshot("unsafe", "main")
    world.run_rounds()
    storage = world.snapshot("unsafe")["status"]["node"]["storage"]
    assert storage["reason"] == "SourceUnsafe" and "nested is a subvolume of its own" in storage["message"]
    world.assert_consistent(project, running=1, stored=1)
    nested.rmdir()
    world.run_agent()
    assert storage_of(world, "unsafe") == "Stored"


def test_a_snapshot_that_is_lost_is_not_taken_again(world: World, project: str) -> None:
    uid = world.make_snapshot("lost", "main")
    world.run_agent()
    path = world.node.layout.branch(project, uid)
    subprocess.run(["btrfs", "property", "set", path, "ro", "false"], check=True)
    subprocess.run(["btrfs", "subvolume", "delete", path], check=True, stdout=subprocess.DEVNULL)
    world.run_agent()
    assert storage_of(world, "lost") == "SnapshotLost"
    assert not path.exists()
    world.delete_snapshot("lost")
    # Nor is the record of something that was done once ever taken.
    world.make_snapshot("record", "main", origin={"reason": "Deletion"})
    world.run_agent()
    assert storage_of(world, "record") == "SnapshotLost"
    world.assert_consistent(project, running=1, stored=1)
    # A restore is made behind its record, so that one is waited for; and a run of a schedule has its time.
    world.delete_snapshot("record")
    world.make_snapshot("undo", "main", origin={"reason": "Restore", "restoreUID": "r"})
    world.make_snapshot("late", "main", origin={"reason": "Schedule", "time": "2026-01-01T00:00:00Z"})
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.make_snapshot("nightly", "main", ttl="24h", origin={"reason": "Schedule", "time": now})
    world.run_rounds()
    assert "storage" not in (world.snapshot("undo")["status"].get("node") or {})
    assert storage_of(world, "late") == "SnapshotMissed" and storage_of(world, "nightly") == "Stored"
    facts = observe_subvolumes(world.node.layout, project)
    (marker,) = facts.snapshots.values()
    assert marker.snapshot == "shop-nightly" and marker.data.expiration_time > now
    assert world.snapshot("nightly")["status"]["node"]["generation"] == marker.data.generation == 1


@contextmanager
def filled(pool: Path) -> Iterator[None]:
    """Leave less room in the pool than new data needs at least, and enough for what runs."""
    filler, sync = pool / "filler", ("btrfs", "filesystem", "sync", pool)
    with filler.open("wb") as file:
        # btrfs says only after a sync what is free.
        while (free := os.statvfs(pool).f_bavail * os.statvfs(pool).f_frsize) > 56 * 2**20:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free - 48 * 2**20)
            subprocess.run(sync, check=True, stdout=subprocess.DEVNULL)
    yield
    filler.unlink()
    subprocess.run(sync, check=True, stdout=subprocess.DEVNULL)


def test_a_full_pool_takes_none_and_what_runs_goes_on(world: World, project: str) -> None:
    with filled(world.node.layout.pool(project)):
        world.make_snapshot("late", "main")
        world.run_rounds()
        assert storage_of(world, "late") == "PoolFull"
        world.sql("main", "insert into item values (0)")
    world.run_agent()
    assert storage_of(world, "late") == "Stored"


def test_a_stopped_branch_is_taken_and_a_snapshot_waits_for_a_copy_of_it(world: World, project: str) -> None:
    world.make_branch("still", "main")
    world.patch_spec("still", state="Stopped")
    world.run_agent()
    world.make_snapshot("source", "still")
    world.run_agent()
    assert storage_of(world, "source") == "Stored"
    world.make_branch_of_snapshot("late", "source")
    world.api.delete(f"{SNAPSHOTS}/shop-source")
    world.run_agent()
    assert world.api.get(f"{SNAPSHOTS}/shop-source") is None
    assert rows(world, "late") == 1000


def test_a_temporary_of_a_snapshot_is_destroyed_only_when_no_object_has_its_uid(
    world: World, project: str
) -> None:
    uid = world.make_snapshot("cut", "main")
    assert world.run_agent("^# btrfs property set") is None
    subvolumes = observe_subvolumes(world.node.layout, project)
    assert subvolumes.owners_of(SubvolumeKind.NEW) == (uid,)
    assert is_read_only(world.node.layout.new_snapshot(project, uid))
    # As housekeeping does once nothing names it: a read-only one can be destroyed, too.
    ensure_temporaries_destroyed(world.node.layout, project, uid)
    assert observe_subvolumes(world.node.layout, project).unfinished == ()
    world.run_agent()
    assert storage_of(world, "cut") == "Stored"


def test_a_scheduled_snapshot_says_by_which_transaction_it_was_taken(world: World, project: str) -> None:
    due = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.make_snapshot("run", "main", origin={"reason": "Schedule", "schedules": ["hourly"], "time": due})
    world.make_snapshot("requested", "main")
    world.run_agent()
    assert storage_of(world, "run") == "Stored"
    taken = world.snapshot("run")["status"]["node"]["transaction"]
    assert "transaction" not in world.snapshot("requested")["status"]["node"]
    world.sql("main", "insert into item values (0)")
    assert transactions_of(world.node.layout.branch(project, world.uid("main"))).changed > taken
