"""Disks and pools that fill up: new branches are rejected first, running ones go on, and nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.node.agent_life import BRANCHES, PROJECTS
from tests.node.machine import Node, owner_session, unmount
from tests.node.world import World

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pool import effect as pool
from dbranch.agent.pool.ballast import observe_ballast
from dbranch.agent.pool.braking import BrakeChange
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.space_watch import SpaceWatch
from dbranch.agent.volume.brake import Brake, observe_brakes
from dbranch.api import names

MIB = 2**20
CONTEXT = NodeContext("here", "node-uid", "dbranch-nodes", "dbranch")


def fill(world: World, branch: str, limit: int, defies: bool = False) -> int:
    """Insert up to `limit` rows of an incompressible mebibyte, each committed; return how many were acknowledged.

    `defies`: as a superuser who asks for more than read-only transactions.
    """
    node = world.branch(branch)["status"]["node"]
    endpoint = Endpoint(node["slot"], node["port"], "postgres", 15)
    acknowledged = 0
    try:
        with owner_session(world.node.layout, endpoint) as connection:
            if defies:
                connection.execute("set default_transaction_read_only = off")
            connection.execute("create table if not exists filler (id serial primary key, data bytea)")
            connection.execute("alter table filler alter data set storage external")
            for _ in range(limit):
                connection.execute("insert into filler (data) values (%s)", [os.urandom(MIB)])
                acknowledged += 1
    except psycopg.Error as error:
        print(f"{branch}: {acknowledged} rows, then {error}")
    return acknowledged


def storage_finding(world: World, branch: str | None = None) -> tuple[str, str]:
    """Return reason and message of the storage of a branch, or of the project."""
    body = world.branch(branch) if branch else world.api.get(f"{PROJECTS}/shop") or {}
    finding = body["status"]["node"]["storage"]
    return finding["reason"], finding["message"]


def await_accepting(world: World, branch: str) -> None:
    """Reconcile as the resync timers do until the branch's Postgres accepts and answers."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        world.run_rounds()
        node = world.branch(branch)["status"]["node"]
        try:
            if (node.get("postgres") or {}).get("reason") == "Accepting" and world.sql(branch, "select 1"):
                return
        except (psycopg.Error, FileNotFoundError):
            # It does not answer, or is in another slot by now.
            pass
    raise AssertionError(f"not recovered: {world.branch(branch)['status']} {storage_finding(world)}")


def fill_all_but(free: int, ballast: Path) -> None:
    """Write the file until its filesystem has at most so many bytes free.

    btrfs counts as free what was deleted since the last commit, and may refuse it to a write until then.
    """
    refusals = 0
    with ballast.open("wb", buffering=0) as file:
        while (left := os.statvfs(ballast.parent)).f_bavail * left.f_frsize > free:
            try:
                file.write(os.urandom(MIB // 4))
                os.fsync(file.fileno())
            except OSError as error:
                refusals += 1
                if error.errno != errno.ENOSPC or refusals == 20:
                    raise
                os.sync()


def test_a_full_pool(world: World) -> None:
    project = world.make_project(storage={"size": "512Mi"})
    world.run_agent()
    world.make_branch("hungry", "main")
    world.run_agent()
    # In a pool that is full to the last block no Postgres starts: this file is deleted to make room for that.
    reserve, ballast = (world.node.layout.pool(project) / name for name in ("reserve", "ballast"))
    reserve.write_bytes(os.urandom(80 * MIB))
    os.sync()
    assert fill(world, "hungry", 600) > 50
    reserve.unlink()
    world.patch_spec("hungry", state="Stopped")
    await_accepting(world, "main")
    world.run_agent()
    # The space that its Postgres freed when it ended is taken by another file.
    fill_all_but(62 * MIB, ballast)
    world.make_branch("late", "main")
    world.run_rounds()
    reason, message = storage_finding(world, "late")
    assert reason == "PoolFull" and "of 512Mi free, 64Mi are needed" in message
    assert storage_finding(world)[0] == "PoolLow"
    assert fill(world, "main", 5) == 5
    ballast.unlink()
    # The branch that took the space is deleted; the others go on, the one that waited is created.
    world.api.delete(f"{BRANCHES}/shop-hungry")
    await_accepting(world, "main")
    await_accepting(world, "late")
    assert world.sql("late", "select count(*) from filler") == [(5,)]


def test_a_full_pool_that_grows_loses_nothing(world: World) -> None:
    world.make_project(storage={"size": "512Mi"})
    world.run_agent()
    rows = fill(world, "main", 600)
    assert rows > 100
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"storage": {"size": "1Gi"}}})
    await_accepting(world, "main")
    assert world.sql("main", "select count(*) from filler")[0][0] in (rows, rows + 1)
    assert fill(world, "main", 50) == 50


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 1200 MiB, as that of a node that is nearly full."""
    with tempfile.TemporaryDirectory(prefix="dbranch-disk-", dir="/var/tmp") as name:
        file, point = Path(name) / "disk.img", Path(name).resolve() / "disk"
        file.touch()
        os.truncate(file, 1200 * MIB)
        attached = subprocess.run(
            ["losetup", "--find", "--show", file], capture_output=True, text=True, check=True
        )
        device = attached.stdout.strip()
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", device], check=True)
        point.mkdir()
        subprocess.run(["mount", device, point], check=True)
        Path(name).chmod(0o711)
        point.chmod(0o711)
        try:
            yield point
        finally:
            unmount(str(point))
            subprocess.run(["losetup", "-d", device], check=True)


def test_a_full_disk_under_a_thin_image(small_disk: Path) -> None:
    node = Node(Layout(small_disk / "base"))
    pool.ensure_base(node.layout)
    world = None
    try:
        world = World(node, small_disk.with_name("api.json"))
        project = world.make_project(storage={"size": "4Gi"})
        world.run_agent()
        rows = fill(world, "main", 100)
        assert rows == 100
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 120 * MIB)
        world.make_branch("late", "main")
        world.run_rounds()
        reason, message = storage_finding(world, "late")
        assert reason == "NodeDiskLow" and "the node's disk has" in message
        # Running branches go on until there is no block left.
        rows += fill(world, "main", 400)
        assert rows > 120
        world.run_rounds()
        ballast.unlink()
        await_accepting(world, "main")
        await_accepting(world, "late")
        assert not mounts_at(node.layout.pool(project))[0].read_only
        count = world.sql("main", "select count(*) from filler")[0][0]
        assert count in (rows, rows + 1), (count, rows)
        assert fill(world, "main", 20) == 20
    finally:
        if world:
            world.kubelet.stop()
        node.tear_down()


def insert_as_user(world: World, branch: str, mebibytes: int) -> None:
    """Insert as a client does, whose session asks for nothing; raise psycopg.Error if Postgres refuses."""
    node = world.branch(branch)["status"]["node"]
    with psycopg.connect(
        host=str(world.node.layout.run(node["slot"])), port=node["port"], user="postgres", dbname="postgres"
    ) as connection:
        connection.execute("insert into filler (data) values (%s)", [os.urandom(mebibytes * MIB)])


def test_the_writer_that_fills_the_disk_is_braked_then_stopped_and_goes_on_with_room(
    small_disk: Path,
) -> None:
    node = Node(Layout(small_disk / "base"))
    pool.ensure_base(node.layout)
    world = None
    requested: list[str] = []
    metrics = AgentMetrics()

    def watch() -> SpaceWatch:
        # A new one each time, as after a restart of the agent, needs a poll more.
        return SpaceWatch(node.layout, CONTEXT, 512 * MIB, metrics, lambda _, name: requested.append(name))

    def leave_free(size: int) -> None:
        os.sync()
        disk = os.statvfs(small_disk)
        taken = other_file.stat().st_size if other_file.exists() else 0
        other_file.unlink(missing_ok=True)
        with other_file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize + taken - size)

    other_file = small_disk / "other"
    try:
        world = World(node, small_disk.with_name("api.json"))
        world.make_project(storage={"size": "4Gi"})
        world.run_agent()
        world.make_branch("copy", "main")
        world.run_agent()
        for branch in ("main", "copy"):
            assert fill(world, branch, 1) == 1
        copy = world.uid("copy")
        assert watch().check() is None and 8 * MIB < observe_ballast(node.layout) < 16 * MIB
        # Nobody writes: whatever else fills the disk, nobody is restrained.
        leave_free(150 * MIB)
        calm = watch()
        assert calm.check() is None
        leave_free(120 * MIB)
        assert calm.check() is None and observe_brakes(node.layout) == {}
        # The copy writes.
        assert fill(world, "copy", 20) == 20
        leave_free(110 * MIB)
        assert calm.check() == BrakeChange(copy, Brake.READ_ONLY) and requested == ["shop-copy"]
        world.run_rounds()
        reasons = {
            name: world.branch(name)["status"]["node"]["postgres"]["reason"] for name in ("main", "copy")
        }
        assert reasons == {"main": "Accepting", "copy": "WritesBraked"}
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            insert_as_user(world, "copy", 1)
        insert_as_user(world, "main", 1)
        leave_free(90 * MIB)
        defied = watch()
        assert defied.check() is None
        assert fill(world, "copy", 20, defies=True) == 20
        leave_free(60 * MIB)
        assert defied.check() == BrakeChange(copy, Brake.STOPPED)
        assert observe_ballast(node.layout) == 0
        world.run_rounds()
        world.run_rounds()
        assert world.branch("copy")["status"]["node"]["postgres"]["reason"] == "WriterStopped"
        assert [pod["metadata"]["labels"][names.LABEL_BRANCH] for pod in world.pods()] == ["main"]
        insert_as_user(world, "main", 1)
        # Room for each step back.
        leave_free(180 * MIB)
        assert watch().check() is None
        leave_free(210 * MIB)
        assert watch().check() == BrakeChange(copy, Brake.READ_ONLY)
        world.run_agent()
        assert world.branch("copy")["status"]["node"]["postgres"]["reason"] == "WritesBraked"
        other_file.unlink()
        assert watch().check() == BrakeChange(copy, None) and watch().check() is None
        assert observe_ballast(node.layout) > 8 * MIB and observe_brakes(node.layout) == {}
        await_accepting(world, "copy")
        insert_as_user(world, "copy", 1)
        assert world.sql("copy", "select count(*) from filler") == [(42,)]
    finally:
        if world:
            world.kubelet.stop()
        node.tear_down()
