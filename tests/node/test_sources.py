"""Branches of sources that do not answer as they should: made all the same, within the time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tests.node.world import World

from dbranch.effect.session import Endpoint, connect

# Seconds: the CHECKPOINT's ten, and what a visit takes besides on a busy machine.
LIMIT = 40.0


def postmaster(world: World, branch: str) -> int:
    return world.node.running[world.branch(branch)["status"]["node"]["slot"]].pid


def processes(world: World, branch: str) -> dict[int, str]:
    """The processes of a branch's Postgres: PID -> its title."""
    top, found = postmaster(world, branch), {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            title = (path.parent / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if int(fields[1]) == top or path.parent.name == str(top):
            found[int(path.parent.name)] = title
    return found


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            # One of a Postgres that was killed may have been ended meanwhile.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def hanging_checkpoint(world: World) -> Iterator[None]:
    with stopped([pid for pid, title in processes(world, "main").items() if "checkpointer" in title]):
        yield


@contextmanager
def standing_still(world: World) -> Iterator[None]:
    with stopped(list(processes(world, "main"))):
        yield


@contextmanager
def out_of_connections(world: World) -> Iterator[None]:
    node = world.branch("main")["status"]["node"]
    endpoint = Endpoint(node["slot"], node["port"], "postgres", 15)
    with ExitStack() as held:
        # The agent is a superuser: its reserved connections are used up as well.
        for _ in range(10):
            held.enter_context(connect(world.node.layout, endpoint, seconds=60))
        yield


@contextmanager
def killed(world: World) -> Iterator[None]:
    """A postmaster that was killed; its children still live."""
    children = [pid for pid in processes(world, "main") if pid != postmaster(world, "main")]
    with stopped(children):
        os.kill(postmaster(world, "main"), signal.SIGKILL)
        yield


@pytest.mark.parametrize("trouble", [hanging_checkpoint, standing_still, out_of_connections, killed])
def test_a_branch_of_a_source_in_trouble(world: World, trouble: Callable[[World], ExitStack[None]]) -> None:
    world.make_project(parameters={"max_connections": "10", "superuser_reserved_connections": "3"})
    world.agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    with trouble(world):
        world.make_branch("copy", "main")
        began = time.monotonic()
        while (world.branch("copy")["status"].get("node", {}).get("postgres") or {}).get(
            "reason"
        ) != "Accepting":
            assert time.monotonic() - began < LIMIT, world.branch("copy")["status"]
            world.visit()
    assert world.sql("copy", "select count(*) from item") == [(1000,)]
    world.agent()
    assert world.sql("main", "select count(*) from item") == [(1000,)]
