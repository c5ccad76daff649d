"""A Postgres that runs and does not answer the agent keeps its address: "I could not ask" is not "it is down"."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from tests.node.machine import USER, owner_session, stopped
from tests.node.world import World

from dbranch.agent.postgres.session import Endpoint


def node_status(world: World, branch: str = "main") -> dict[str, Any]:
    status: dict[str, Any] = world.branch(branch)["status"]["node"]
    return status


def endpoint_of(world: World, branch: str = "main") -> Endpoint:
    node = node_status(world, branch)
    return Endpoint(node["slot"], node["port"], USER, int(node["postgresVersion"].partition(".")[0]))


def test_a_postgres_without_a_free_connection_keeps_its_address(world: World) -> None:
    world.make_project(parameters={"max_connections": "10"})
    world.run_agent()
    before = node_status(world)
    with ExitStack() as sessions:
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            while True:
                # Those that are kept for superusers, too.
                sessions.enter_context(owner_session(world.node.layout, endpoint_of(world)))
        world.run_rounds()
        full = node_status(world)
        assert full["address"] == before["address"] and full["postgresVersion"] == before["postgresVersion"]
        assert full["postgres"]["reason"] == "SessionFailed"
        assert "too many clients" in full["postgres"]["message"]
    world.run_agent()
    assert node_status(world)["postgres"]["reason"] == "Accepting"


@pytest.mark.parametrize("databases", [["postgres"], ["postgres", "template1"]])
def test_databases_that_were_dropped_are_not_needed(world: World, databases: list[str]) -> None:
    world.make_project()
    world.run_agent()
    with owner_session(world.node.layout, endpoint_of(world), "dbranch") as superuser:
        superuser.execute("alter database template1 is_template false")
        for database in databases:
            superuser.execute(f"drop database {database}")
    world.run_agent()
    assert node_status(world)["postgres"]["reason"] == "Accepting" and node_status(world)["address"]
    world.make_branch("copy", "main")
    world.run_agent()
    assert node_status(world, "copy")["postgres"]["reason"] == "Accepting"


def test_a_postgres_that_hangs_for_a_while_keeps_its_address(world: World) -> None:
    world.make_project()
    world.run_agent()
    before = node_status(world)
    pid_file = world.node.layout.data(before["slot"]) / "pgdata" / "postmaster.pid"
    postmaster = int(pid_file.read_text().split()[0])
    with stopped([postmaster]):
        world.run_agent(0, 1)
        assert node_status(world)["address"] == before["address"]
        assert node_status(world)["postgres"] == before["postgres"]
    world.run_agent()
    assert node_status(world)["postgres"]["reason"] == "Accepting"
