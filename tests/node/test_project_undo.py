"""A deleted project's pool stays for a time, detached; who adopts it has all its branches and snapshots."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from tests.node.agent_life import NAMESPACES, PROJECTS, SNAPSHOTS
from tests.node.test_orphans import EVENTS, Keeper, keeper
from tests.node.world import World

from dbranch.agent.housekeeping import sweep
from dbranch.agent.layout import Layout
from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import read_mounts
from dbranch.agent.pool import effect
from dbranch.agent.pool.space import Watermarks
from dbranch.agent.pool.tombstone import ensure_tombstone, ensure_tombstone_withdrawn, read_tombstone
from dbranch.api import names
from dbranch.api.orphans import OrphanKind

__all__ = ["keeper"]


def make(world: World, keep: str = "24h", **spec: object) -> str:
    """Make a project with a branch and a snapshot that differ; return its UID."""
    uid = world.make_project(undo={"keep": keep}, **spec)
    world.run_agent()
    world.sql("main", "create table item as select 7 as id")
    world.make_branch("b", "main")
    world.run_agent()
    world.sql("b", "insert into item values (8)")
    world.make_snapshot("before", "b")
    world.run_agent()
    world.sql("b", "delete from item")
    return uid


def make_small(world: World, **spec: object) -> str:
    """Make a project with one table; return its UID."""
    uid = world.make_project(undo={"keep": "24h"}, **spec)
    world.run_agent()
    world.sql("main", "create table item as select 7 as id")
    return uid


def let_pass(keeper: Keeper, **passed: float) -> None:
    """Let the API server's clock be ahead by so much, for an agent that has just started."""
    keeper.world.api.clock = lambda: datetime.now(UTC) + timedelta(**passed)
    keeper.start()


def undo_removed(world: World) -> list[str]:
    return [event["message"] for event in world.api.find(EVENTS) if event["reason"] == "UndoRemoved"]


def test_a_deleted_project_comes_back_whole(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make(world)
    world.sql("main", "create unlogged table scratch as select 9 as id")
    world.delete_project()
    assert world.api.get(f"{PROJECTS}/shop") is None
    assert layout.image(uid).exists() and loops_of(layout.image(uid)) == () and world.pods() == []
    keeper.rounds()
    assert keeper.annotation(names.AGENT_RETAINED) == uid
    (orphan,) = keeper.orphans()
    assert orphan.kind is OrphanKind.PROJECT and "dbranch undelete-project shop" in orphan.why
    # It is shown, and alarms nobody.
    assert keeper.metric("dbranch_agent_orphans", "project") == 1
    assert keeper.metric("dbranch_agent_orphan_bytes", "project") == layout.image(uid).stat().st_blocks * 512
    assert keeper.metric("dbranch_agent_orphans", "pool") == 0 and world.api.find(EVENTS) == []
    # As `dbranch undelete-project` makes them.
    new = world.make_project(storage={"adopt": uid})
    world.make_branch("b", "main")
    world.make_snapshot("before", "b")
    world.run_agent()
    assert world.sql("main", "select id from item") == [(7,)] and world.sql("b", "select id from item") == []
    # Its Postgres was shut down whole.
    assert world.sql("main", "select id from scratch") == [(9,)]
    world.make_branch_of_snapshot("again", "before")
    world.run_agent()
    assert world.sql("again", "select id from item order by id") == [(7,), (8,)]
    world.log_in("b")
    # From here on nobody removes it.
    assert read_tombstone(layout, uid) is None is read_tombstone(layout, new)
    let_pass(keeper, days=9)
    keeper.rounds()
    assert layout.image(new).exists() and not layout.image(uid).exists()
    assert world.sql("again", "select count(*) from item") == [(2,)]


def test_it_goes_when_its_time_has_come_and_not_before(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_small(world)
    world.delete_project()
    let_pass(keeper, hours=23)
    keeper.rounds()
    assert layout.image(uid).exists()
    let_pass(keeper, hours=25)
    keeper.await_gone(layout.image(uid))
    keeper.rounds()
    assert not layout.tombstone(uid).exists() and not layout.record(uid).exists() and keeper.orphans() == []


def test_a_clock_that_jumps_removes_nothing(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_small(world)
    world.delete_project()
    keeper.rounds(1)
    world.api.clock = lambda: datetime.now(UTC) + timedelta(days=400)
    keeper.rounds()
    assert layout.image(uid).exists() and keeper.annotation(names.AGENT_RETAINED) == uid
    world.api.clock = lambda: datetime.now(UTC)
    keeper.rounds()
    assert layout.image(uid).exists()
    # An administrator may remove it at once.
    keeper.ask(names.ORPHAN_DELETE_PREFIX, uid)
    keeper.await_gone(layout.image(uid))


def test_a_copy_of_its_record_touches_nothing(keeper: Keeper) -> None:
    """As a backup or Git applies it again, with the UID of a project that exists, or whose pool is kept."""
    world, layout = keeper.world, keeper.layout
    uid = make_small(world)
    origin = {"reason": "Deletion", "projectUID": uid, "objects": []}
    spec = {"project": "shop", "branch": "main", "ttl": "1s", "origin": origin}
    record = {"metadata": {"name": "shop-copy", "namespace": "team"}, "spec": spec}
    world.api.put(
        SNAPSHOTS, {**record, "status": {"nodeName": "n1", "expirationTime": "2020-01-01T00:00:00Z"}}
    )
    keeper.rounds()
    world.run_agent()
    assert world.sql("main", "select id from item") == [(7,)] and not layout.tombstone(uid).exists()
    assert "finalizers" not in world.api.find(SNAPSHOTS)[0]["metadata"]
    world.delete_project()
    world.api.put(
        SNAPSHOTS, {**record, "status": {"nodeName": "n1", "expirationTime": "2020-01-01T00:00:00Z"}}
    )
    keeper.rounds()
    assert layout.image(uid).exists()


def test_a_keep_that_becomes_shorter_behind_the_deletion_changes_nothing(world: World) -> None:
    layout, uid = world.node.layout, make_small(world)
    world.request_deletion()
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"undo": {"keep": "0s"}}})
    world.run_agent()
    assert world.api.get(f"{PROJECTS}/shop") is None and layout.image(uid).exists()
    tombstone = read_tombstone(layout, uid)
    assert tombstone is not None and tombstone.not_before


def test_what_is_retained_is_kept_without_an_end(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_small(world, deletionPolicy="Retain")
    world.delete_project()
    let_pass(keeper, days=9)
    keeper.rounds()
    assert layout.image(uid).exists() and not layout.tombstone(uid).exists()
    assert [orphan.kind for orphan in keeper.orphans()] == [OrphanKind.POOL]


def test_kills_at_every_effect_of_a_deletion_that_keeps_the_pool(world: World, soak: bool) -> None:
    """Also between the unmounting and what says until when it is kept."""
    layout = world.node.layout

    def delete(kill_at: int) -> Callable[[], None]:
        uid = make_small(world)
        world.request_deletion()

        def check() -> None:
            assert world.api.get(f"{PROJECTS}/shop") is None and world.pods() == []
            tombstone = read_tombstone(layout, uid)
            assert layout.image(uid).exists() and tombstone is not None and tombstone.not_before
            assert [m for m in read_mounts() if m.point.startswith(f"{layout.base}/mounts/")] == []
            layout.image(uid).unlink()
            layout.record(uid).unlink()
            layout.tombstone(uid).unlink()

        return check

    assert world.kill_at_each_effect(delete, soak) > 3


def test_it_goes_at_once_with_its_namespace(world: World) -> None:
    """Nobody could have it back."""
    layout = world.node.layout
    uid = world.make_project(undo={"keep": "24h"})
    world.run_agent()
    world.api.merge(f"{NAMESPACES}/team", {"metadata": {"finalizers": ["kubernetes"]}})
    world.api.delete(f"{NAMESPACES}/team")
    world.delete_project()
    assert not layout.image(uid).exists() and not layout.tombstone(uid).exists()


def test_a_removal_that_has_begun_ends_where_the_pool_is_wanted_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, uid = world.node.layout, make_small(world)
    world.delete_project()
    ensure_tombstone(layout, uid)
    take_down = effect.ensure_pool_down

    def adopted_meanwhile(layout: Layout, project_uid: str) -> None:
        take_down(layout, project_uid)
        ensure_tombstone_withdrawn(layout, project_uid)

    monkeypatch.setattr(effect, "ensure_pool_down", adopted_meanwhile)
    effect.ensure_pool_removed(layout, uid)
    assert layout.image(uid).exists() and layout.record(uid).exists()


def test_a_disk_that_is_low_takes_the_oldest_one_at_a_time_and_none_within_an_hour(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, layout = keeper.world, keeper.layout
    first = make_small(world)
    world.delete_project()
    other = world.for_project("other")
    second = make_small(other)
    other.delete_project()
    is_low = True

    def watermarks(total: int, eviction: int) -> Watermarks:
        return Watermarks(2**62, 2**61, 2**60, 2**59) if is_low else Watermarks(0, 0, 0, 0)

    monkeypatch.setattr(sweep, "watermarks_of", watermarks)
    keeper.rounds()
    assert layout.image(first).exists() and undo_removed(world) == []
    let_pass(keeper, hours=2)
    with monkeypatch.context() as busy:
        busy.setattr(sweep, "ensure_pool_removed", lambda layout, uid: None)
        keeper.rounds()
    # The next one waits until the first is gone.
    (said,) = undo_removed(world)
    assert "project team/shop" in said
    # The room that one has made may be enough.
    keeper.rounds(1)
    assert not layout.image(first).exists() and layout.image(second).exists()
    is_low = False
    keeper.rounds()
    assert layout.image(second).exists()
    is_low = True
    keeper.await_gone(layout.image(second))
    assert len(undo_removed(world)) == 2
