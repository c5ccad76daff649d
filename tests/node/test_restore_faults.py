"""Restores that cannot be done, are canceled, or whose branch or project changes: the branch's own data serves on."""

from __future__ import annotations

import time
import uuid

import psycopg
import pytest
from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.machine import stopped
from tests.node.restores import Restores, make_source_and_copy, rows
from tests.node.test_snapshots import filled
from tests.node.world import World

from dbranch.agent.layout import SubvolumeKind
from dbranch.agent.linux.btrfs import is_subvolume
from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.quotas import subvolume_id
from dbranch.agent.volume.observe import observe_subvolumes


@pytest.fixture
def project(world: World) -> str:
    """A running project whose root has a table with 1,000 rows, and a branch `b` of it with one more."""
    uid = make_source_and_copy(world)
    world.sql("b", "insert into item values (0)")
    return uid


def assert_serves_on(world: World, project: str, snapshots: int = 0) -> None:
    """Assert that `b` has its own data, and that nothing of the restore is left."""
    assert rows(world, "b") == 1001
    assert world.branch("b")["status"]["node"]["generation"] == 1
    world.log_in("b")
    world.assert_consistent(project, running=2, stored=2, snapshots=snapshots)


def test_a_source_that_is_gone(world: World, restores: Restores, project: str) -> None:
    uid = restores.order("b", source="main")
    missing = {"status": {"restore": {"source": {"uid": str(uuid.uuid4())}}}}
    world.api.merge(f"{BRANCHES}/shop-b/status", missing)
    world.run_agent()
    end = restores.ends[uid]
    assert end["state"] == "Failed" and end["reason"] == "SourceNotFound" and "main" in end["message"]
    assert_serves_on(world, project)


def test_a_source_that_holds_data_elsewhere(world: World, restores: Restores, project: str) -> None:
    link = world.node.layout.branch(project, world.uid("main")) / "pgdata" / "base" / "elsewhere"
    link.symlink_to("/var/tmp")
    uid = restores.order("b", source="main")
    world.run_agent()
    assert restores.ends[uid]["state"] == "Failed" and restores.ends[uid]["reason"] == "SourceUnsafe"
    link.unlink()
    assert_serves_on(world, project)


def test_a_pool_without_room(world: World, restores: Restores, project: str) -> None:
    with filled(world.node.layout.pool(project)):
        uid = restores.order("b", source="main")
        world.run_agent()
    assert restores.ends[uid]["state"] == "Failed", restores.ends[uid]
    assert restores.ends[uid]["reason"] == "PoolFull"
    assert_serves_on(world, project)


def test_a_start_that_fails(world: World, restores: Restores, project: str) -> None:
    """The branch's own Postgres has not read the parameter with which the new one does not start."""
    slot = world.branch("b")["status"]["node"]["slot"]
    uid = restores.order("b", source="main")
    world.patch_spec("b", postgres={"parameters": {"max_connections": "many"}})
    world.run_agent()
    end = restores.ends[uid]
    assert end["state"] == "Failed" and end["reason"] == "StartFailed"
    assert "rejects its parameters" in end["message"] and "its data serves on" in end["message"]
    assert rows(world, "b") == 1001 and world.branch("b")["status"]["node"]["slot"] == slot
    assert observe_subvolumes(world.node.layout, project).unfinished == ()
    world.patch_spec("b", postgres={"parameters": {"max_connections": "50"}})
    world.run_agent()
    assert_serves_on(world, project)


def test_a_branch_that_was_closed_and_is_not_restored_is_open_again(
    world: World, restores: Restores, project: str
) -> None:
    """The agent is killed when the users are shut out, and the restore is canceled before the next one starts."""
    uid = restores.prepare("b")
    hba = world.node.layout.branch(project, world.uid("b")) / "pg_hba.conf"
    restores.set_state("b", "Switching")
    assert world.run_agent("SQL: .*pg_reload_conf") is None
    assert "not opened yet" in hba.read_text()
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        world.log_in("b")
    restores.cancel("b")
    world.run_agent()
    assert restores.ends[uid]["state"] == "Canceled"
    assert "not opened yet" not in hba.read_text()
    assert_serves_on(world, project)


def test_a_branch_that_cannot_be_closed_in_time_keeps_its_data(
    world: World, restores: Restores, project: str
) -> None:
    """Its Postgres does not load the pg_hba.conf that admits nobody: the postmaster is stopped."""
    uid = restores.prepare("b")
    postmaster = world.node.running[world.branch("b")["status"]["node"]["pod"]].pid
    restores.switches = True
    with stopped([postmaster]):
        agent = world.start_agent()
        for _ in range(600):
            if restores.answer("b").get("state") == "Failed":
                break
            if uid in restores.ends or agent.poll() is not None:
                break
            time.sleep(0.1)
    output, errors = agent.wait_for_output(120)
    assert agent.returncode == 0, (output, errors)
    assert restores.ends[uid]["state"] == "Failed" and restores.ends[uid]["reason"] == "StartFailed"
    assert_serves_on(world, project)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_canceled_restore_leaves_nothing(
    world: World, restores: Restores, project: str, prepared: bool
) -> None:
    restores.switches = False
    uid = restores.order("b", source="main")
    if prepared:
        restores.await_state("b", "Prepared")
    restores.cancel("b")
    world.run_agent()
    assert restores.ends[uid]["state"] == "Canceled"
    assert_serves_on(world, project)


def test_a_branch_is_deleted_while_it_is_restored(world: World, restores: Restores, project: str) -> None:
    restores.prepare("b", keep=False)
    world.delete_branch("b")
    world.assert_consistent(project, running=1, stored=1)


def test_a_project_is_stopped_while_a_branch_is_restored(
    world: World, restores: Restores, project: str
) -> None:
    uid = restores.prepare("b")
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"state": "Stopped"}})
    world.run_agent()
    assert restores.ends[uid]["state"] == "Canceled"
    assert world.api.find(PODS) == [] and loops_of(world.node.layout.image(project)) == ()
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"state": "Running"}})
    world.run_agent()
    assert_serves_on(world, project)


def test_after_a_restart_of_the_node_what_was_prepared_is_made_anew(
    world: World, restores: Restores, project: str
) -> None:
    uid = restores.prepare("b")
    prepared = world.node.layout.prepared.branch(project, world.uid("b"))
    number = subvolume_id(prepared)
    world.restart_node()
    for _ in range(20):
        world.run_agent(0, 4)
        is_anew = is_subvolume(prepared) and subvolume_id(prepared) != number
        if is_anew and restores.answer("b")["state"] == "Prepared":
            break
    assert is_anew, restores.answer("b")
    assert rows(world, "b") == 1001
    restores.switch(uid)
    assert rows(world, "b") == 1000
    world.assert_consistent(project, running=2, stored=2, snapshots=1)


def test_the_pod_of_what_is_prepared_is_not_taken_for_the_branchs_own(
    world: World, restores: Restores, project: str
) -> None:
    """The branch's own pod is lost meanwhile: it gets another one, and its own data in that."""
    uid = restores.prepare("b")
    pod = world.branch("b")["status"]["node"]["pod"]
    world.api.delete(f"{PODS}/{pod}")
    for _ in range(20):
        world.run_agent(0, 4)
        node = world.branch("b")["status"]["node"]
        if node.get("address") and node["pod"] != pod:
            break
    assert node["pod"] != pod and rows(world, "b") == 1001
    assert node["restore"]["state"] == "Prepared"
    assert SubvolumeKind.RESTORE in {
        n.kind for n in observe_subvolumes(world.node.layout, project).unfinished
    }
    restores.switch(uid)
    assert rows(world, "b") == 1000
    world.assert_consistent(project, running=2, stored=2, snapshots=1)
