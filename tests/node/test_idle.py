"""A node on which nothing is asked for: agents that come and go change nothing, and an idle one writes nothing."""

from __future__ import annotations

from typing import Any

from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.world import World

from dbranch.agent.linux.mounts import read_mounts


def without_sizes(found: Any) -> Any:
    """What is told, without byte counts: a Postgres writes a little by itself, and the disk is others' too."""
    if isinstance(found, dict):
        kept = {k: v for k, v in found.items() if not k.endswith(("Bytes", "Size"))}
        return {key: without_sizes(value) for key, value in kept.items()}
    return [without_sizes(item) for item in found] if isinstance(found, list) else found


def test_agents_that_come_and_go_change_nothing(world: World, soak: bool) -> None:
    world.make_project()
    world.run_agent()
    for name in ("runs", "rests"):
        world.make_branch(name, "main")
    world.patch_spec("rests", state="Stopped")
    world.run_agent()
    world.run_agent()

    def told() -> Any:
        return without_sizes([world.api.find(path) for path in (PROJECTS, BRANCHES, PODS)])

    before, mounts, quiet, lives = (
        told(),
        sorted(m.point for m in read_mounts_of(world)),
        0,
        20 if soak else 6,
    )
    for _ in range(lives):
        world.run_agent()
        assert told() == before
        assert sorted(m.point for m in read_mounts_of(world)) == mounts
        quiet += "write to the API" not in world.effects
    # At most a size has changed now and then.
    assert quiet >= lives // 3, world.effects
    print(f"{lives} restarts: {len(mounts)} mounts as before, {quiet} of them wrote nothing at all")


def read_mounts_of(world: World) -> list[Any]:
    return [m for m in read_mounts() if m.point.startswith(f"{world.node.layout.base}/")]
