"""What the agent's process does about changes of a living project: real btrfs and Postgres, the API on paper."""

from __future__ import annotations

from typing import Any

from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.world import World

from dbranch import names


def says(world: World, branch: str) -> tuple[str, str]:
    """Reason and message of its Postgres."""
    step = world.branch(branch)["status"]["node"]["postgres"]
    return step["reason"], step["message"]


def configure(world: World, **postgres: Any) -> None:
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"postgres": postgres}})
    world.agent()


def restart(world: World, branch: str, when: str) -> None:
    mark = {"metadata": {"annotations": {names.RESTARTED_AT: when}}}
    world.api.merge(f"{BRANCHES}/shop-{branch}", mark)
    world.agent()


def setting(world: World, branch: str, name: str) -> object:
    return world.sql(branch, f"select current_setting('{name}')")[0][0]


def test_parameters_apply_at_once_or_wait_for_a_restart(world: World) -> None:
    world.make_project()
    world.agent()
    pods = [pod["metadata"]["uid"] for pod in world.api.find(PODS)]
    configure(world, parameters={"shared_buffers": "16MB", "work_mem": "7MB"})
    assert says(world, "main")[0] == "Accepting" and setting(world, "main", "work_mem") == "7MB"
    configure(world, parameters={"shared_buffers": "24MB", "work_mem": "7MB"})
    reason, message = says(world, "main")
    assert reason == "RestartPending" and "shared_buffers" in message
    assert [pod["metadata"]["uid"] for pod in world.api.find(PODS)] == pods
    restart(world, "main", "2026-01-01T00:00:00Z")
    assert says(world, "main")[0] == "Accepting" and setting(world, "main", "shared_buffers") == "24MB"
    assert world.branch("main")["status"]["node"]["restartedAt"] == "2026-01-01T00:00:00Z"
    assert [pod["metadata"]["uid"] for pod in world.api.find(PODS)] != pods


def test_an_image_of_another_major_version_starts_nothing(world: World) -> None:
    project = world.make_project()
    world.agent()
    world.set("main", state="Stopped")
    world.agent()
    version = world.node.layout.branch(project, world.uid("main")) / "pgdata" / "PG_VERSION"
    right = version.read_text()
    version.write_text("9\n")
    world.set("main", state="Running")
    world.agent()
    reason, message = says(world, "main")
    assert reason == "ImageIncompatible" and f"PostgreSQL {right.strip()}" in message
    refused = world.api.find(PODS)[0]["metadata"]["uid"]
    configure(world, image="postgres:another")
    assert says(world, "main")[0] == "ImageIncompatible"
    assert world.api.find(PODS)[0]["metadata"]["uid"] != refused
    # The script that waits there looks again by itself; so does the agent's slow timer.
    version.write_text(right)
    for _ in range(10):
        world.agent()
        if says(world, "main")[0] == "Accepting":
            break
    assert says(world, "main")[0] == "Accepting"


def test_a_stopped_branch_can_be_a_source(world: World) -> None:
    project = world.make_project()
    world.agent()
    world.sql("main", "create table item as select 1 as id")
    world.set("main", state="Stopped")
    world.agent()
    world.make_branch("copy", "main")
    world.agent()
    assert world.sql("copy", "select id from item") == [(1,)]
    world.whole(project, running=1, stored=2)
