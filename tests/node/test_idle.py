"""A node on which no spec changes: agents that restart change nothing, and an idle one writes nothing."""

from __future__ import annotations

from typing import Any

from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.world import World

from dbranch.agent.linux.mounts import read_mounts


def without_sizes(value: Any) -> Any:
    """Return objects without byte counts: Postgres writes a little by itself, and others use the disk, too."""
    if isinstance(value, dict):
        # A write of a size changes the object's version.
        ignored = ("Bytes", "Size", "resourceVersion")
        kept = {key: item for key, item in value.items() if not key.endswith(ignored)}
        return {key: without_sizes(item) for key, item in kept.items()}
    return [without_sizes(item) for item in value] if isinstance(value, list) else value


def test_agents_that_restart_change_nothing(world: World, soak: bool) -> None:
    world.make_project()
    world.run_agent()
    for name in ("running", "stopped"):
        world.make_branch(name, "main")
    world.patch_spec("stopped", state="Stopped")
    world.run_agent()
    world.run_agent()

    def objects() -> Any:
        return without_sizes([world.api.find(path) for path in (PROJECTS, BRANCHES, PODS)])

    before, mounts = objects(), sorted(mount.point for mount in read_mounts_of(world))
    without_writes, restarts = 0, 20 if soak else 6
    for _ in range(restarts):
        world.run_agent()
        assert objects() == before
        assert sorted(mount.point for mount in read_mounts_of(world)) == mounts
        without_writes += "write to the API" not in world.effects
    # Now and then a size may have changed.
    assert without_writes >= restarts // 3, world.effects
    print(
        f"{restarts} restarts: {len(mounts)} mounts as before, {without_writes} of them wrote nothing at all"
    )


def read_mounts_of(world: World) -> list[Any]:
    return [mount for mount in read_mounts() if mount.point.startswith(f"{world.node.layout.base}/")]
