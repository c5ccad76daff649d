"""Power cuts: the node's disk as of one moment, taken by a snapshot of an outer btrfs while clients write and
branches are created and deleted. On each copy the pool mounts, every acknowledged row is there, the indexes match
their tables, and the agent repairs everything else.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from tests.node.agent_life import BRANCHES
from tests.node.machine import Node, owner_session, postgres_directory, unmount
from tests.node.restore_pool import NEXT_DAY, Pool, check_whole, start_beside, writing
from tests.node.restore_pool import Writer as RestoreWriter
from tests.node.test_cleaning import sql
from tests.node.world import World

from dbranch.agent.layout import Layout
from dbranch.agent.pool import effect as pool
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot import effect as slot
from dbranch.agent.volume.marker import RestoreRef
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.restore_rules import VolumeState
from dbranch.agent.volume.restores import ensure_restore_finished


def run(*argv: object) -> str:
    completed = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, f"{argv}: {completed.stderr}"
    return completed.stdout.strip()


@pytest.fixture
def disk() -> Iterator[Path]:
    """An outer btrfs: a snapshot on it is what a power cut would leave."""
    with tempfile.TemporaryDirectory(prefix="dbranch-power-", dir="/var/tmp") as name:
        file, point = Path(name) / "disk.img", Path(name).resolve() / "disk"
        file.touch()
        os.truncate(file, 8 * 2**30)
        device = run("losetup", "--find", "--show", file)
        run("mkfs.btrfs", "--quiet", device)
        point.mkdir()
        run("mount", device, point)
        Path(name).chmod(0o711)
        point.chmod(0o711)
        try:
            yield point
        finally:
            unmount(str(point))
            run("losetup", "-d", device)


class Writer(threading.Thread):
    """A client that inserts rows and counts those that were acknowledged."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world, self._stopping, self.acknowledged = world, threading.Event(), 0

    def run(self) -> None:
        node = self._world.branch("main")["status"]["node"]
        endpoint = Endpoint(node["slot"], node["port"], "postgres", 15)
        with (
            suppress(psycopg.Error),
            owner_session(self._world.node.layout, endpoint) as connection,
        ):
            while not self._stopping.is_set():
                connection.execute("insert into item values (%s, repeat('x', 300))", [self.acknowledged + 1])
                self.acknowledged += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def cut_power(disk: Path, base: Path, number: int) -> Path:
    """Snapshot what a power cut now would leave of the disk under `base`."""
    copy = disk / f"cut-{number}"
    run("btrfs", "subvolume", "snapshot", base, copy)
    return copy


def check_indexes(world: World, branch: str) -> None:
    """Compare every index of the branch with its table."""
    node = world.branch(branch)["status"]["node"]
    run(
        *(postgres_directory() / "pg_amcheck", "--all", "--install-missing", "--heapallindexed"),
        *("-h", world.node.layout.run(node["slot"]), "-p", node["port"], "-U", "postgres"),
    )


@contextmanager
def powered(disk: Path) -> Iterator[tuple[World, str, Writer]]:
    """A node on this disk with a project, and a client that writes into it all the time."""
    base = disk / "base"
    run("btrfs", "subvolume", "create", base)
    base.chmod(0o711)
    node = Node(Layout(base))
    pool.ensure_base(node.layout)
    try:
        world = World(node)
        project = world.make_project(storage={"size": "1Gi"})
        world.run_agent()
        world.sql("main", "create table item (id int primary key, filler text)")
        writer = Writer(world)
        writer.start()
        yield world, project, writer
        writer.stop()
        world.kubelet.stop()
    finally:
        node.tear_down()


@contextmanager
def restarted(copy: Path) -> Iterator[World]:
    """The node after a power cut that left `copy`: kubelet starts every pod that it knew, and the agent runs."""
    node, world = Node(Layout(copy)), None
    try:
        world = World(node)
        world.run_agent()
        yield world
    finally:
        if world:
            world.kubelet.stop()
        node.tear_down()


def check_rows(world: World, least: int) -> None:
    rows = world.sql("main", "select count(*), max(id) from item")[0]
    assert rows[0] == rows[1] and int(str(rows[0])) >= least, (rows, least)


def test_power_cuts(disk: Path, soak: bool) -> None:
    cuts: list[tuple[Path, int, int]] = []
    with powered(disk) as (world, project, writer):
        for number in range(40 if soak else 3):
            # One branch is created, another deleted, and the agent is killed somewhere on the way.
            world.make_branch(f"b{number}", "main")
            if number:
                world.api.delete(f"{BRANCHES}/shop-b{number - 1}")
            effects = world.run_agent(random.randint(1, 90))
            time.sleep(random.random() / 2)
            before = writer.acknowledged
            copy = cut_power(disk, disk / "base", number)
            cuts.append((copy, before, number))
            if effects is None:
                world.run_agent()
    assert cuts[-1][1] > 100, "hardly anything was written"
    for copy, before, number in cuts:
        with restarted(copy) as after:
            check_rows(after, before)
            after.assert_consistent(project, running=2, stored=2)
            for branch in ("main", f"b{number}"):
                check_indexes(after, branch)
    print(f"{len(cuts)} power cuts, {cuts[-1][1]} rows acknowledged at the last, none lost")


# The effect right after which the power is cut: of a creation, then of a deletion.
CREATION_EFFECTS = (r"os\.rename .*marker\.json", r"^# mv --no-clobber", r"^# sync")
DELETION_EFFECTS = (r"^# mv ", r"^# sync", r"^# btrfs subvolume delete")


def test_power_cuts_right_after_a_marker_a_rename_and_a_delete(disk: Path, soak: bool) -> None:
    cuts: list[tuple[Path, int, int]] = []
    points = [(last, 2) for last in CREATION_EFFECTS] + [(last, 1) for last in DELETION_EFFECTS]
    with powered(disk) as (world, project, writer):
        for last, branches in points * 5 if soak else points:
            world.make_branch("b", "main")
            if branches == 1:
                world.run_agent()
                world.api.delete(f"{BRANCHES}/shop-b")
            assert world.run_agent(last) is None
            before = writer.acknowledged
            cuts.append((cut_power(disk, disk / "base", len(cuts)), before, branches))
            world.run_agent()
            if branches == 2:
                world.delete_branch("b")
    tried = cuts if soak else random.sample(cuts, 3)
    for copy, before, branches in tried:
        with restarted(copy) as after:
            check_rows(after, before)
            after.assert_consistent(project, running=branches, stored=branches)
            check_indexes(after, "b" if branches == 2 else "main")
    print(f"{len(tried)} power cuts right after an effect, none lost")


# Of the taking of a snapshot: at each, the power is cut right after the effect.
SNAPSHOT_EFFECTS = (
    r"^# btrfs subvolume snapshot",
    r"os\.rename .*marker\.json",
    r"^# btrfs property set .* ro true",
    r"^# mv --no-clobber",
)


def test_power_cuts_around_the_rename_of_a_snapshot(disk: Path, soak: bool) -> None:
    cuts: list[tuple[Path, int, str]] = []
    with powered(disk) as (world, project, writer):
        for number, last in enumerate(SNAPSHOT_EFFECTS * (5 if soak else 1)):
            world.make_snapshot(f"s{number}", "main")
            assert world.run_agent(last) is None
            before = writer.acknowledged
            cuts.append((cut_power(disk, disk / "base", number), before, f"s{number}"))
            world.run_agent()
            world.delete_snapshot(f"s{number}")
    for copy, before, name in cuts if soak else random.sample(cuts, 1):
        with restarted(copy) as after:
            check_rows(after, before)
            after.assert_consistent(project, running=1, stored=1, snapshots=1)
            assert after.snapshot(name)["status"]["node"]["storage"]["reason"] == "Stored"
            after.make_branch_of_snapshot("of-snapshot", name)
            after.run_agent()
            rows = after.sql("of-snapshot", "select count(*), max(id) from item")[0]
            assert rows[0] == rows[1]
            check_indexes(after, "of-snapshot")


class CutAtCommands(logging.Handler):
    """Cuts the power before each logged command; `cuts`: when, what is left of the disk, rows acknowledged."""

    def __init__(self, disk: Path, writer: RestoreWriter) -> None:
        super().__init__()
        self._disk, self._writer = disk, writer
        self.cuts: list[tuple[str, Path, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.cut(record.getMessage())

    def cut(self, moment: str) -> None:
        before = self._writer.acknowledged
        self.cuts.append((moment, cut_power(self._disk, self._disk / "base", len(self.cuts)), before))


@pytest.fixture
def commands() -> Iterator[logging.Logger]:
    logger = logging.getLogger("dbranch.command")
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_power_cuts_around_the_exchange_of_a_restore(
    disk: Path, commands: logging.Logger, soak: bool
) -> None:
    """Both Postgres run and the old one is written to: afterwards either data is whole, and neither is lost."""
    base = disk / "base"
    run("btrfs", "subvolume", "create", base)
    base.chmod(0o711)
    node = Node(Layout(base))
    try:
        pool.ensure_base(node.layout)
        node.ensure_pool()
        restored = Pool.make(node)
        restore_ref = restored.restore_ref()
        with writing(restored) as (old, writer):
            cutter = CutAtCommands(disk, writer)
            commands.addHandler(cutter)
            restored.take(restore_ref)
            commands.removeHandler(cutter)
            start_beside(node, restored.x, "beside")
            commands.addHandler(cutter)
            restored.exchange(restore_ref)
            cutter.cut("exchanged")
            commands.removeHandler(cutter)
        node.stop_postgres(old.slot)
        slot.ensure_slot_removed(node.layout, old.slot)
        commands.addHandler(cutter)
        restored.keep()
        cutter.cut("kept")
    finally:
        node.tear_down()
    moments = [moment for moment, _, _ in cutter.cuts]
    exchange = next(number for number, moment in enumerate(moments) if "--exchange" in moment)
    # Between the exchange and its sync, and right after it, in any case.
    decisive = cutter.cuts[exchange + 1 : exchange + 3]
    tried = cutter.cuts if soak else [*decisive, random.choice(cutter.cuts[: exchange + 1]), cutter.cuts[-2]]
    for moment, copy, acknowledged in tried:
        after = Node(Layout(copy), node.project, pool_uuid=node.pool_uuid)
        try:
            after.ensure_pool()
            check_after_cut(Pool(after, restored.root, restored.x), restore_ref, acknowledged, moment)
        finally:
            after.tear_down()
    print(f"{len(tried)} power cuts around an exchange ({len(cutter.cuts)} moments), none lost")


def check_after_cut(restored: Pool, restore_ref: RestoreRef, acknowledged: int, moment: str) -> None:
    """Go on as an agent that finds no restore wanted; check the data of the branch, and of its undo snapshot."""
    node, x = restored.node, restored.x
    assert restored.state() is not VolumeState.UNCLEAR, moment
    generation = restored.marker(x).generation
    ensure_restore_finished(restored.layout, restored.project, x, NEXT_DAY)
    facts = observe_subvolumes(restored.layout, restored.project)
    assert set(facts.branches) == {restored.root, x} and facts.unfinished == (), moment
    assert set(facts.snapshots) == ({restore_ref.undo_uid} if generation == 2 else set()), moment
    if generation == 2:
        endpoint = node.start_postgres(x)
        assert sql(node, endpoint, "select count(*) from item") == [(1000,)]
        check_whole(node, endpoint, restored.path(x))
        slot.ensure_slot_removed(restored.layout, endpoint.slot)
        restored.restore(restored.restore_ref(), restore_ref.undo_uid)
    endpoint = node.start_postgres(x)
    count, last = sql(node, endpoint, "select count(*), max(id) from item")[0]
    assert count == last and int(str(count)) >= acknowledged, (moment, count, last, acknowledged)
    check_whole(node, endpoint, restored.path(x))
