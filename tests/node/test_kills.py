"""An agent killed (SIGKILL) at every single effect of its work: the next one reaches the desired state.

The effects are listed by an agent that is not killed. Real btrfs, loop devices and Postgres; a fake API server.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.world import SAMPLED_KILLS, World

from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import read_mounts
from dbranch.api import names

MIB = 2**20


def test_creation_and_deletion_of_a_project(world: World, soak: bool) -> None:
    def create(kill_at: int) -> Callable[[], None]:
        project = world.make_project()

        def check() -> None:
            world.assert_consistent(project, running=1, stored=1)
            assert world.sql("main", "select count(*) from pg_database where datname = 'dbranch'") == [(1,)]
            world.log_in("main")
            world.api.delete(f"{BRANCHES}/shop-main")
            world.run_agent()
            world.api.delete(f"{PROJECTS}/shop")
            # Killed at the effect of the same number of the deletion, too.
            if world.run_agent(kill_at) is None:
                world.run_agent()
            mounts = [m.point for m in read_mounts() if m.point.startswith(f"{world.node.layout.base}/")]
            assert mounts == [] and world.api.find(PODS) == []
            assert not world.node.layout.image(project).exists()
            assert list(world.node.layout.slots.glob("[!.]*")) == []
            assert list(world.node.layout.mounts.iterdir()) == []
            # Neither a record nor a tombstone is left.
            assert list(world.node.layout.pools.glob("[!.]*")) == []

        return check

    effects = world.kill_at_each_effect(create, soak)
    print(f"project: {effects} effects, {world.kills} kills")
    assert effects > 10 and world.kills >= SAMPLED_KILLS


def test_creation_changes_and_deletion_of_a_branch(world: World, soak: bool) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    effects: dict[str, int] = {}

    def create(kill_at: int) -> Callable[[], None]:
        world.make_branch(f"b{kill_at}", "main")

        def check() -> None:
            world.assert_consistent(project, running=2, stored=2)
            assert world.sql(f"b{kill_at}", "select count(*) from item") == [(1000,)]
            world.log_in(f"b{kill_at}")
            world.sql(f"b{kill_at}", "insert into item values (0)")
            world.api.delete(f"{BRANCHES}/shop-b{kill_at}")
            world.run_agent()

        return check

    effects["create"] = world.kill_at_each_effect(create, soak)
    world.make_branch("kept", "main")
    world.run_agent()
    world.sql("kept", "insert into item values (0)")

    def stop(kill_at: int) -> Callable[[], None]:
        world.patch_spec("kept", state="Running")
        world.run_agent()
        world.patch_spec("kept", state="Stopped")
        return lambda: world.assert_consistent(project, running=1, stored=2)

    def resume(kill_at: int) -> Callable[[], None]:
        world.patch_spec("kept", state="Stopped")
        world.run_agent()
        world.patch_spec("kept", state="Running")

        def check() -> None:
            world.assert_consistent(project, running=2, stored=2)
            assert world.sql("kept", "select count(*) from item") == [(1001,)]
            world.log_in("kept")

        return check

    def delete(kill_at: int) -> Callable[[], None]:
        world.make_branch(f"d{kill_at}", "kept")
        world.run_agent()
        world.api.delete(f"{BRANCHES}/shop-d{kill_at}")
        return lambda: world.assert_consistent(project, running=2, stored=2)

    sizes = iter(range(300, 10000, 16))

    def grow(kill_at: int) -> Callable[[], None]:
        size = next(sizes)
        world.api.merge(f"{PROJECTS}/shop", {"spec": {"storage": {"size": f"{size}Mi"}}})

        def check() -> None:
            world.assert_consistent(project, running=2, stored=2)
            total = (world.api.get(f"{PROJECTS}/shop") or {})["status"]["node"]["totalBytes"]
            assert total == size * MIB == world.node.layout.image(project).stat().st_size

        return check

    for request in (stop, resume, delete, grow):
        effects[request.__name__] = world.kill_at_each_effect(request, soak)
    print(f"{effects} effects, {world.kills} kills")
    assert world.kills >= len(effects) and all(count > 2 for count in effects.values()), effects
    assert world.sql("main", "select count(*) from item") == [(1000,)]


def test_undoing_what_alter_system_has_set(world: World, soak: bool) -> None:
    project = world.make_project()
    world.run_agent()
    pgdata = world.node.layout.branch(project, world.uid("main")) / "pgdata"
    requests = iter(range(10000))

    def undo(kill_at: int) -> Callable[[], None]:
        work_mem = f"{next(requests) + 100}MB"
        world.sql("main", f"alter system set work_mem = '{work_mem}'")
        annotation = {names.ALTER_SYSTEM_RESET_AT: f"request {work_mem}"}
        world.api.merge(f"{BRANCHES}/shop-main", {"metadata": {"annotations": annotation}})

        def check() -> None:
            world.assert_consistent(project, running=1, stored=1)
            world.log_in("main")
            assert world.sql("main", "show work_mem") == [("4MB",)]
            # However often it was begun, nothing of what was set is lost.
            assert work_mem in (pgdata / "postgresql.auto.conf.before-reset").read_text()

        return check

    # Between any two effects of the reset itself, whatever else is drawn.
    for effect in (
        "mv .*auto.conf",
        "os.rename 'postgresql.auto.conf'",
        "open .*/.marker.json.new",
        "os.rename .*marker",
    ):
        check = undo(0)
        assert world.run_agent(effect) is None
        world.run_agent()
        check()
    if soak:
        print(f"reset: {world.kill_at_each_effect(undo, soak)} effects, {world.kills} kills")


def test_stop_resume_and_deletion_of_a_project_with_branches(world: World, soak: bool) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    world.make_branch("b", "main")
    world.make_branch("stopped", "main")
    world.patch_spec("stopped", state="Stopped")
    world.run_agent()
    effects: dict[str, int] = {}

    def set_state(state: str) -> None:
        world.api.merge(f"{PROJECTS}/shop", {"spec": {"state": state}})

    def stop(kill_at: int) -> Callable[[], None]:
        set_state("Running")
        world.run_agent()
        set_state("Stopped")
        return lambda: assert_nothing_held(world, project)

    def resume(kill_at: int) -> Callable[[], None]:
        set_state("Stopped")
        world.run_agent()
        set_state("Running")

        def check() -> None:
            # Those that ran, and no others.
            world.assert_consistent(project, running=2, stored=3)
            assert world.sql("b", "select count(*) from item") == [(1000,)]
            world.log_in("b")

        return check

    def remove(kill_at: int) -> Callable[[], None]:
        if world.api.get(f"{PROJECTS}/shop"):
            world.delete_project()
        recreated = world.make_project()
        world.run_agent()
        world.make_branch("b", "main")
        world.run_agent()
        world.request_deletion()

        def check() -> None:
            assert_nothing_held(world, recreated)
            assert list(world.node.layout.pools.glob("[!.]*")) == []
            assert list(world.node.layout.slots.glob("[!.]*")) == []
            assert list(world.node.layout.mounts.iterdir()) == []
            assert world.api.find(PROJECTS) == [] == world.api.find(BRANCHES)

        return check

    for request in (stop, resume, remove):
        effects[request.__name__] = world.kill_at_each_effect(request, soak)
    print(f"{effects} effects of a project, {world.kills} kills")
    assert world.kills >= len(effects) and all(count > 2 for count in effects.values()), effects


def assert_nothing_held(world: World, project: str) -> None:
    """Assert that the project has no pod, no mount and no device."""
    layout = world.node.layout
    assert world.api.find(PODS) == [] and loops_of(layout.image(project)) == ()
    assert [m.point for m in read_mounts() if m.point.startswith(f"{layout.base}/")] == []
