"""An agent killed at every effect of a restore, and of its undo: the next one completes it, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

from tests.node.agent_life import SNAPSHOTS
from tests.node.restores import Restores, make_source_and_copy, rows
from tests.node.world import World

from dbranch.agent.volume.observe import observe_subvolumes


def test_kills_at_every_effect_of_a_restore_and_its_undo(
    world: World, restores: Restores, soak: bool
) -> None:
    project = make_source_and_copy(world)
    world.sql("b", "insert into item values (0)")
    generation = 1

    def restore(kill_at: int, source: str | None, snapshot: str | None, expected: int) -> Callable[[], None]:
        nonlocal generation
        uid = restores.order("b", source=source, snapshot=snapshot)
        generation += 1
        at_the_end = generation

        def check() -> None:
            assert restores.ends[uid]["state"] == "Done", restores.ends[uid]
            assert rows(world, "b") == expected
            assert world.branch("b")["status"]["node"]["generation"] == at_the_end
            world.log_in("b")
            snapshots = len(world.api.find(SNAPSHOTS))
            world.assert_consistent(project, running=2, stored=2, snapshots=snapshots)
            undo = restores.undo_name("b", uid)
            undo_uid = world.snapshot(undo.removeprefix("shop-"))["metadata"]["uid"]
            assert undo_uid in observe_subvolumes(world.node.layout, project).snapshots
            undos.append(undo)

        return check

    undos: list[str] = []
    effects: dict[str, int] = {}

    def away(kill_at: int) -> Callable[[], None]:
        return restore(kill_at, "main", None, 1000)

    def back(kill_at: int) -> Callable[[], None]:
        # What the first restore put aside: the branch's own data.
        return restore(kill_at, None, undos[0], 1001)

    for change in (away, back):
        effects[change.__name__] = world.kill_at_each_effect(change, soak)
    print(f"{effects} effects, {world.kills} kills")
    assert all(count > 20 for count in effects.values()), effects


def test_kills_between_any_two_effects_of_the_exchange(world: World, restores: Restores) -> None:
    """Whatever else is drawn: when users are shut out, when their sessions end, at the exchange and behind it."""
    project = make_source_and_copy(world)
    points = (
        "mv --exchange",
        "sync --file-system.*",
        "SQL: .*pg_reload_conf",
        "os.rename .*pg_hba",
        "btrfs property set",
        "mv --no-clobber .*restore-.*",
    )
    for point in points:
        world.sql("b", "insert into item values (0)")
        uid = restores.order("b", source="main")
        assert world.run_agent(point) is None, point
        world.run_agent()
        assert restores.ends[uid]["state"] == "Done", (point, restores.ends[uid])
        assert rows(world, "b") == 1000
        world.log_in("b")
    world.assert_consistent(project, running=2, stored=2, snapshots=len(points))
