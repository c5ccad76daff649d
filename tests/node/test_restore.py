"""Restores in place with a real Postgres: the data changes under a branch that keeps its name, port and password."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.node.restores import Restores
from tests.node.world import World


@pytest.fixture
def restores(world: World) -> Iterator[Restores]:
    with Restores(world) as restores:
        yield restores


@pytest.fixture
def project(world: World) -> str:
    """A running project whose root has a table with 1,000 rows, and a branch `b` of it with one more."""
    uid = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    world.make_branch("b", "main")
    world.run_agent()
    world.sql("b", "insert into item values (0)")
    return uid


def rows(world: World, branch: str) -> int:
    return int(str(world.sql(branch, "select count(*) from item")[0][0]))


def test_a_branch_gets_the_data_of_another_and_its_own_back(
    world: World, restores: Restores, project: str
) -> None:
    before = world.branch("b")["status"]["node"]
    uid = restores.order("b", source="main")
    world.run_agent()
    end = restores.ends[uid]
    assert end["state"] == "Done" and end["dataTime"], end
    assert rows(world, "b") == 1000
    node = world.branch("b")["status"]["node"]
    assert node["generation"] == 2 and node["port"] == before["port"] and node["slot"] != before["slot"]
    assert node["sourceUID"] == world.uid("main") and node["snapshotTime"] == end["dataTime"]
    world.log_in("b")
    world.assert_consistent(project, running=2, stored=2, snapshots=1)
    undo = restores.undo_name("b", uid)
    snapshot = world.snapshot(undo.removeprefix("shop-"))["status"]["node"]
    assert snapshot["storage"]["reason"] == "Stored"
    uid = restores.order("b", snapshot=undo)
    world.run_agent()
    assert restores.ends[uid]["state"] == "Done"
    assert rows(world, "b") == 1001
    assert world.branch("b")["status"]["node"]["generation"] == 3
    world.log_in("b")
    world.assert_consistent(project, running=2, stored=2, snapshots=2)
