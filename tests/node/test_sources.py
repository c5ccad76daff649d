"""Branches of sources that do not answer as they should are created all the same, within the time limit."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.node.machine import children_of, owner_session, stopped
from tests.node.world import World

from dbranch.agent.linux import btrfs
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.copies import check_source

# The CHECKPOINT's ten seconds, and what reconciles take besides on a busy machine.
TIMEOUT_SECONDS = 40.0


def postmaster(world: World, branch: str) -> int:
    return world.node.running[world.branch(branch)["status"]["node"]["slot"]].pid


@contextmanager
def hanging_checkpoint(world: World) -> Iterator[None]:
    with stopped(
        [pid for pid, title in children_of(postmaster(world, "main")).items() if "checkpointer" in title]
    ):
        yield


@contextmanager
def stopped_processes(world: World) -> Iterator[None]:
    with stopped([postmaster(world, "main"), *children_of(postmaster(world, "main"))]):
        yield


@contextmanager
def out_of_connections(world: World) -> Iterator[None]:
    node = world.branch("main")["status"]["node"]
    endpoint = Endpoint(node["slot"], node["port"], "postgres", 15)
    with ExitStack() as held:
        # The agent is a superuser: the reserved connections are used up as well.
        for _ in range(10):
            held.enter_context(owner_session(world.node.layout, endpoint))
        yield


@contextmanager
def killed(world: World) -> Iterator[None]:
    """Kill the postmaster while its children still live."""
    with stopped(children_of(postmaster(world, "main"))):
        os.kill(postmaster(world, "main"), signal.SIGKILL)
        yield


@pytest.mark.parametrize("trouble", [hanging_checkpoint, stopped_processes, out_of_connections, killed])
def test_a_branch_of_a_source_in_trouble(world: World, trouble: Callable[[World], ExitStack[None]]) -> None:
    world.make_project(parameters={"max_connections": "10", "superuser_reserved_connections": "3"})
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    with trouble(world):
        world.make_branch("copy", "main")
        started = time.monotonic()
        while (world.branch("copy")["status"].get("node", {}).get("postgres") or {}).get(
            "reason"
        ) != "Accepting":
            assert time.monotonic() - started < TIMEOUT_SECONDS, world.branch("copy")["status"]
            world.run_rounds()
    assert world.sql("copy", "select count(*) from item") == [(1000,)]
    world.run_agent()
    assert world.sql("main", "select count(*) from item") == [(1000,)]


def snapshots_of(world: World) -> list[str]:
    """Return the effects of the last agent that took a snapshot."""
    return [effect for effect in world.effects if "btrfs subvolume snapshot" in effect]


def checkpoints(world: World) -> object:
    return world.sql("main", "select checkpoints_req from pg_stat_bgwriter")[0][0]


def test_a_source_that_cannot_be_copied_is_looked_at_and_left_alone(world: World) -> None:
    """No snapshot, no CHECKPOINT, no pod; when the reason is gone, one of each."""
    project = world.make_project()
    world.run_agent()
    pgdata = world.node.layout.branch(project, world.uid("main")) / "pgdata"
    database = next(path for path in sorted((pgdata / "base").iterdir()) if path.is_dir())
    outside, before = world.node.layout.base / "outside", checkpoints(world)
    outside.mkdir()
    tablespace, link, nested = pgdata / "pg_tblspc" / "16999", database / "16999", pgdata / "nested"
    tablespace.symlink_to(outside)
    world.make_branch("copy", "main")
    for path, make_next in (
        (tablespace, lambda: link.symlink_to(outside / "16999")),
        (link, lambda: btrfs.create_subvolume(nested)),
        (nested, lambda: None),
    ):
        world.run_rounds()
        storage = world.branch("copy")["status"]["node"]["storage"]
        assert storage["reason"] == "SourceUnsafe" and path.name in storage["message"]
        assert snapshots_of(world) == []
        if path is nested:
            btrfs.destroy_subvolume(path)
        else:
            path.unlink()
        make_next()
    assert checkpoints(world) == before and len(world.pods()) == 1 == len(world.warm_pods())
    world.run_agent()
    assert len(snapshots_of(world)) == 1
    world.assert_consistent(project, running=2, stored=2)


def test_directories_that_come_and_go_do_not_reject_a_source(world: World) -> None:
    """Directories that come and go while they are walked are no reason to reject it."""
    project = world.make_project()
    world.run_agent()
    base = world.node.layout.branch(project, world.uid("main")) / "pgdata" / "base"
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in range(50):
                (base / f"t{number}").mkdir()
            for number in range(50):
                (base / f"t{number}").rmdir()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(200):
            check_source(world.node.layout, project, world.uid("main"))
    finally:
        stop.set()
        changing.join()
