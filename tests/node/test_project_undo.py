"""A deleted project's pool stays for a time, detached; who adopts it has all its branches and snapshots."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.node.agent_life import NAMESPACES, PROJECTS
from tests.node.test_orphans import Keeper, keeper
from tests.node.world import World

from dbranch.agent.housekeeping import sweep
from dbranch.agent.linux.loops import loops_of
from dbranch.agent.pool.space import Watermarks
from dbranch.agent.pool.tombstone import read_tombstone
from dbranch.api import names
from dbranch.api.orphans import OrphanKind

__all__ = ["keeper"]


def make(world: World, keep: str = "24h") -> str:
    """Make a project with a branch and a snapshot that differ; return its UID."""
    uid = world.make_project(undo={"keep": keep})
    world.run_agent()
    world.sql("main", "create table item as select 7 as id")
    world.make_branch("b", "main")
    world.run_agent()
    world.sql("b", "insert into item values (8)")
    world.make_snapshot("before", "b")
    world.run_agent()
    world.sql("b", "delete from item")
    return uid


def let_pass(world: World, **passed: float) -> None:
    """Let the API server's clock be ahead by so much."""
    world.api.clock = lambda: datetime.now(UTC) + timedelta(**passed)


def test_a_deleted_project_comes_back_whole(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make(world)
    world.delete_project()
    assert world.api.get(f"{PROJECTS}/shop") is None
    assert layout.image(uid).exists() and loops_of(layout.image(uid)) == () and world.pods() == []
    keeper.rounds()
    assert keeper.annotation(names.AGENT_RETAINED) == uid
    (orphan,) = keeper.orphans()
    assert orphan.kind is OrphanKind.POOL and "dbranch undelete-project shop" in orphan.why
    # As `dbranch undelete-project` makes them.
    new = world.make_project(storage={"adopt": uid})
    world.make_branch("b", "main")
    world.make_snapshot("before", "b")
    world.run_agent()
    assert world.sql("main", "select id from item") == [(7,)] and world.sql("b", "select id from item") == []
    world.make_branch_of_snapshot("again", "before")
    world.run_agent()
    assert world.sql("again", "select id from item order by id") == [(7,), (8,)]
    world.log_in("b")
    # From here on nobody removes it.
    assert read_tombstone(layout, uid) is None is read_tombstone(layout, new)
    let_pass(world, days=9)
    keeper.rounds()
    assert layout.image(new).exists() and not layout.image(uid).exists()
    assert world.sql("again", "select count(*) from item") == [(2,)]


def test_it_goes_when_its_time_has_come_and_not_before(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make(world)
    world.delete_project()
    let_pass(world, hours=23)
    keeper.rounds()
    assert layout.image(uid).exists()
    let_pass(world, hours=25)
    keeper.await_gone(layout.image(uid))
    keeper.rounds()
    assert not layout.tombstone(uid).exists() and not layout.record(uid).exists() and keeper.orphans() == []


def test_an_administrator_may_remove_it_at_once(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make(world)
    world.delete_project()
    keeper.rounds()
    keeper.ask(names.ORPHAN_DELETE_PREFIX, uid)
    keeper.await_gone(layout.image(uid))


@pytest.mark.parametrize("why", ["nothing is kept", "its namespace ends"])
def test_it_goes_at_once_where_nobody_could_have_it_back(keeper: Keeper, why: str) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make(world, keep="0s" if why == "nothing is kept" else "24h")
    if why == "its namespace ends":
        world.api.merge(f"{NAMESPACES}/team", {"metadata": {"finalizers": ["kubernetes"]}})
        world.api.delete(f"{NAMESPACES}/team")
    world.delete_project()
    assert not layout.image(uid).exists() and not layout.tombstone(uid).exists()


def test_a_disk_that_is_low_takes_it_but_not_within_an_hour(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make(world)
    world.delete_project()
    full = Watermarks(2**62, 2**61, 2**60, 2**59)
    monkeypatch.setattr(sweep, "watermarks_of", lambda total, eviction: full)
    keeper.rounds()
    assert layout.image(uid).exists()
    let_pass(world, hours=2)
    keeper.await_gone(layout.image(uid))
