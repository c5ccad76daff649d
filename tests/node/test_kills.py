"""An agent killed (SIGKILL) at every single effect of its work: the next one ends in the asked-for state.

The points are found by a life that is not killed. Real btrfs, loop devices and Postgres; the API is paper.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.world import SAMPLED_KILLS, World

from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import read_mounts

MIB = 2**20


def test_a_projects_making_and_its_end(world: World, soak: bool) -> None:
    def ask_make(at: int) -> Callable[[], None]:
        project = world.make_project()

        def check() -> None:
            world.assert_consistent(project, running=1, stored=1)
            assert world.sql("main", "select count(*) from pg_database where datname = 'dbranch'") == [(1,)]
            world.api.delete(f"{BRANCHES}/shop-main")
            world.run_agent()
            world.api.delete(f"{PROJECTS}/shop")
            # Killed at the same point of its end, too.
            if world.run_agent(at) is None:
                world.run_agent()
            left = [m.point for m in read_mounts() if m.point.startswith(f"{world.node.layout.base}/")]
            assert left == [] and world.api.find(PODS) == []
            assert not world.node.layout.image(project).exists()
            assert list(world.node.layout.slots.glob("[!.]*")) == []
            assert list(world.node.layout.mounts.iterdir()) == []

        return check

    effects = world.kill_at_each_effect(ask_make, soak)
    print(f"project: {effects} effects, {world.kills} kills")
    assert effects > 10 and world.kills >= SAMPLED_KILLS


def test_a_branchs_life(world: World, soak: bool) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    counted: dict[str, int] = {}

    def create(at: int) -> Callable[[], None]:
        world.make_branch(f"b{at}", "main")

        def check() -> None:
            world.assert_consistent(project, running=2, stored=2)
            assert world.sql(f"b{at}", "select count(*) from item") == [(1000,)]
            world.sql(f"b{at}", "insert into item values (0)")
            world.api.delete(f"{BRANCHES}/shop-b{at}")
            world.run_agent()

        return check

    counted["create"] = world.kill_at_each_effect(create, soak)
    world.make_branch("kept", "main")
    world.run_agent()
    world.sql("kept", "insert into item values (0)")

    def stop(at: int) -> Callable[[], None]:
        world.patch_spec("kept", state="Running")
        world.run_agent()
        world.patch_spec("kept", state="Stopped")
        return lambda: world.assert_consistent(project, running=1, stored=2)

    def resume(at: int) -> Callable[[], None]:
        world.patch_spec("kept", state="Stopped")
        world.run_agent()
        world.patch_spec("kept", state="Running")

        def check() -> None:
            world.assert_consistent(project, running=2, stored=2)
            assert world.sql("kept", "select count(*) from item") == [(1001,)]

        return check

    def delete(at: int) -> Callable[[], None]:
        world.make_branch(f"d{at}", "kept")
        world.run_agent()
        world.api.delete(f"{BRANCHES}/shop-d{at}")
        return lambda: world.assert_consistent(project, running=2, stored=2)

    sizes = iter(range(300, 10000, 16))

    def grow(at: int) -> Callable[[], None]:
        size = next(sizes)
        world.api.merge(f"{PROJECTS}/shop", {"spec": {"storage": {"size": f"{size}Mi"}}})

        def check() -> None:
            world.assert_consistent(project, running=2, stored=2)
            total = (world.api.get(f"{PROJECTS}/shop") or {})["status"]["node"]["totalBytes"]
            assert total == size * MIB == world.node.layout.image(project).stat().st_size

        return check

    for ask in (stop, resume, delete, grow):
        counted[ask.__name__] = world.kill_at_each_effect(ask, soak)
    print(f"{counted} effects, {world.kills} kills")
    assert world.kills >= len(counted) and all(count > 2 for count in counted.values()), counted
    assert world.sql("main", "select count(*) from item") == [(1000,)]


def test_a_projects_rest_and_its_end_with_branches(world: World, soak: bool) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    world.make_branch("b", "main")
    world.make_branch("rests", "main")
    world.patch_spec("rests", state="Stopped")
    world.run_agent()
    counted: dict[str, int] = {}

    def switch(state: str) -> None:
        world.api.merge(f"{PROJECTS}/shop", {"spec": {"state": state}})

    def stop(at: int) -> Callable[[], None]:
        switch("Running")
        world.run_agent()
        switch("Stopped")
        return lambda: nothing_held(world, project)

    def resume(at: int) -> Callable[[], None]:
        switch("Stopped")
        world.run_agent()
        switch("Running")

        def check() -> None:
            # Those that ran, and no others.
            world.assert_consistent(project, running=2, stored=3)
            assert world.sql("b", "select count(*) from item") == [(1000,)]

        return check

    def remove(at: int) -> Callable[[], None]:
        if world.api.get(f"{PROJECTS}/shop"):
            world.delete_project()
        made = world.make_project()
        world.run_agent()
        world.make_branch("b", "main")
        world.run_agent()
        world.request_deletion()

        def check() -> None:
            nothing_held(world, made)
            assert not world.node.layout.image(made).exists()
            assert list(world.node.layout.slots.glob("[!.]*")) == []
            assert list(world.node.layout.mounts.iterdir()) == []
            assert world.api.find(PROJECTS) == [] == world.api.find(BRANCHES)

        return check

    for ask in (stop, resume, remove):
        counted[ask.__name__] = world.kill_at_each_effect(ask, soak)
    print(f"{counted} effects of a project, {world.kills} kills")
    assert world.kills >= len(counted) and all(count > 2 for count in counted.values()), counted


def nothing_held(world: World, project: str) -> None:
    """No pod, no mount and no device of the project."""
    layout = world.node.layout
    assert world.api.find(PODS) == [] and loops_of(layout.image(project)) == ()
    assert [m.point for m in read_mounts() if m.point.startswith(f"{layout.base}/")] == []
