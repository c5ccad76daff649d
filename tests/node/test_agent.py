"""What the agent's process does about changes of a living project: real btrfs and Postgres, the API on paper."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import Any

from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.world import World

from dbranch import names
from dbranch.cluster import path_of
from dbranch.errors import Refused
from dbranch.plan.password import verifier_of, version_of

SECRETS = path_of("v1", "secrets", "dbranch-nodes")


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


def give_password(world: World, project: str, password: str) -> str:
    """What the controller does: the verifier's Secret, then its version in the status. The verifier."""
    verifier = verifier_of(password, b"0123456789abcdef")
    body = {"metadata": {"name": names.verifier_secret(project)}}
    body["data"] = {"verifier": base64.b64encode(verifier.encode()).decode()}
    with suppress(Refused):
        world.api.create(SECRETS, body)
    world.api.merge(f"{SECRETS}/{names.verifier_secret(project)}", body)
    version = {"status": {"passwordVersion": version_of(verifier)}}
    world.api.merge(f"{PROJECTS}/shop", version)
    return verifier


def stored_password(world: World, branch: str) -> object:
    return world.sql(branch, "select rolpassword from pg_authid where rolname = 'postgres'")[0][0]


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


def test_a_new_password_reaches_every_branch(world: World) -> None:
    project = world.make_project()
    first = give_password(world, project, "first")
    world.agent()
    for name in ("runs", "rests"):
        world.make_branch(name, "main")
    world.agent()
    assert {stored_password(world, b) for b in ("main", "runs", "rests")} == {first}
    world.set("rests", state="Stopped")
    world.agent()
    second = give_password(world, project, "second")
    world.agent()
    assert {stored_password(world, b) for b in ("main", "runs")} == {second}
    world.set("rests", state="Running")
    world.make_branch("later", "runs")
    world.agent()
    assert {stored_password(world, b) for b in ("rests", "later")} == {second}


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
