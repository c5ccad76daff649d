"""A deletion that something on the node holds up says what that is, writes it once, and goes on by itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.node.agent_life import BRANCHES, PROJECTS
from tests.node.world import World


@contextmanager
def in_another_namespace() -> Iterator[None]:
    """Hold every mount of the moment in another mount namespace."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec cat"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def await_report(world: World, path: str) -> str:
    """Wait until an object that is being deleted says what holds it; return the message."""
    deadline = time.monotonic() + 120
    while True:
        body = world.api.get(path)
        assert body, "it is deleted, although something uses it"
        finding = (body["status"].get("node") or {}).get("deletion")
        if finding:
            assert finding["reason"] == "WaitingForAgent"
            return str(finding["message"])
        assert time.monotonic() < deadline, body["status"]
        time.sleep(0.1)


def await_gone(world: World, path: str) -> None:
    deadline = time.monotonic() + 120
    while world.api.get(path):
        assert time.monotonic() < deadline, world.api.get(path)
        time.sleep(0.1)


def version_of(world: World, path: str) -> str:
    return str((world.api.get(path) or {})["metadata"]["resourceVersion"])


def test_a_pool_that_another_mount_namespace_holds(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    file, path = world.node.layout.image(project), f"{PROJECTS}/shop"
    agent = None
    try:
        with in_another_namespace():
            world.request_deletion()
            agent = world.start_agent(0, 100000)
            message = await_report(world, path)
            assert "project shop" in message and "another mount namespace" in message
            assert "/proc/*/mountinfo" in message, "it does not say how to find who holds it"
            # The message is written once, and nothing is deleted.
            version = version_of(world, path)
            time.sleep(1.0)
            assert version_of(world, path) == version and file.exists()
        await_gone(world, path)
    finally:
        if agent:
            agent.kill()
            agent.wait_for_output()
    assert not file.exists()


def test_a_branch_with_a_process_in_its_data(world: World) -> None:
    world.make_project()
    world.run_agent()
    world.make_branch("copy", "main")
    world.run_agent()
    path = f"{BRANCHES}/shop-copy"
    data = world.node.layout.data(world.branch("copy")["status"]["node"]["slot"])
    # In the slot's bind mount, which cannot be unmounted under it.
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=data)
    agent = None
    try:
        world.api.delete(path)
        agent = world.start_agent(0, 100000)
        message = await_report(world, path)
        assert "branch copy" in message and "cannot be unmounted now" in message
        holder.communicate(b"\n")
        await_gone(world, path)
    finally:
        holder.kill()
        holder.communicate()
        if agent:
            agent.kill()
            agent.wait_for_output()
