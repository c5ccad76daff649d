"""Branches of sources that do not answer as they should are created all the same, within the time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.node.machine import children_of, stopped
from tests.node.world import World

from dbranch.agent.postgres.session import Endpoint, connect

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
            held.enter_context(connect(world.node.layout, endpoint, seconds=60))
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
