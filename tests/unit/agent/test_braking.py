"""Who may not write any more while the node's disk fills, and who may again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbranch.agent.pool.braking import BrakeChange, Writer, plan_brake
from dbranch.agent.pool.space import Space, check_space, pool_finding, watermarks_of
from dbranch.agent.volume.brake import Brake
from dbranch.api.conditions import MESSAGE_LIMIT, Reason

MIB, GIB = 2**20, 2**30
WATERMARKS = watermarks_of(100 * GIB, 10 * GIB)
READ_ONLY, STOPPED = Brake.READ_ONLY, Brake.STOPPED
ROOT, SLOW, FAST = Writer("r", True, 50 * MIB), Writer("s", False, 2 * MIB), Writer("f", False, 60 * MIB)


@pytest.mark.parametrize(
    ("writers", "brakes", "change"),
    [
        ((), {}, None),
        # Nobody writes: it is something else that fills the disk.
        ((replace(FAST, bytes_per_second=100.0),), {}, None),
        ((ROOT, SLOW, FAST), {}, BrakeChange("f", READ_ONLY)),
        # A copy comes before a root that writes about as fast, and not before one that writes far more.
        ((replace(ROOT, bytes_per_second=100 * MIB), FAST), {}, BrakeChange("f", READ_ONLY)),
        ((replace(ROOT, bytes_per_second=200 * MIB), FAST), {}, BrakeChange("r", READ_ONLY)),
        ((ROOT, SLOW, FAST), {"f": READ_ONLY}, BrakeChange("r", READ_ONLY)),
        ((SLOW, FAST), {"f": READ_ONLY, "s": READ_ONLY}, None),
    ],
)
def test_below_the_watermark_the_fastest_writer_is_braked(
    writers: tuple[Writer, ...], brakes: dict[str, Brake], change: BrakeChange | None
) -> None:
    assert plan_brake(WATERMARKS, WATERMARKS.brake - 1, writers, brakes) == change
    assert plan_brake(WATERMARKS, WATERMARKS.brake, writers, brakes) is None


def test_below_the_last_watermark_only_who_goes_on_writing_is_stopped() -> None:
    free, brakes = WATERMARKS.stop - 1, {"f": READ_ONLY, "s": READ_ONLY}
    assert plan_brake(WATERMARKS, free, (ROOT, FAST), {}) == BrakeChange("f", READ_ONLY)
    assert plan_brake(WATERMARKS, free, (ROOT, SLOW, FAST), brakes) == BrakeChange("f", STOPPED)
    assert plan_brake(WATERMARKS, WATERMARKS.stop, (SLOW, FAST), brakes) is None
    assert plan_brake(WATERMARKS, free, (SLOW,), {"f": STOPPED, "s": READ_ONLY}) == BrakeChange("s", STOPPED)
    assert plan_brake(WATERMARKS, free, (), brakes) is None


def test_what_was_restrained_is_lifted_one_by_one_in_reverse() -> None:
    brakes = {"a": READ_ONLY, "b": STOPPED}
    assert plan_brake(WATERMARKS, WATERMARKS.warn - 1, (), brakes) is None
    for step in (BrakeChange("b", READ_ONLY), None):
        assert plan_brake(WATERMARKS, WATERMARKS.warn, (), brakes) == step
        brakes["b"] = READ_ONLY
    for uid in ("a", "b"):
        assert plan_brake(WATERMARKS, WATERMARKS.refuse - 1, (), brakes) is None
        assert plan_brake(WATERMARKS, WATERMARKS.refuse, (), brakes) == BrakeChange(uid, None)
        del brakes[uid]
    assert plan_brake(WATERMARKS, WATERMARKS.refuse, (), brakes) is None


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.sampled_from([0, 20, 50, 200]), min_size=1, max_size=5),
    defiant=st.sets(st.integers(0, 4)),
    free=st.integers(WATERMARKS.stop - GIB, WATERMARKS.brake + GIB),
)
def test_a_disk_that_fills_comes_to_rest_and_recovers(rates: list[int], defiant: set[int], free: int) -> None:
    """Writers write until they are restrained, or in spite of that; then room is made."""
    brakes: dict[str, Brake] = {}
    changes: list[BrakeChange] = []

    def run(rounds: int) -> None:
        nonlocal free
        for _ in range(rounds):
            writers = []
            for number, rate in enumerate(rates):
                brake = brakes.get(str(number))
                writes = brake is None or (brake is READ_ONLY and number in defiant)
                # Who is stopped has no Postgres.
                if brake is not STOPPED:
                    writers.append(Writer(str(number), number == 0, rate * MIB if writes else 0.0))
            free -= int(sum(writer.bytes_per_second for writer in writers))
            change = plan_brake(WATERMARKS, free, writers, brakes)
            if change:
                # Nobody's brake changes by more than one step, and of those who write nobody is spared for another.
                assert change.brake is not STOPPED or brakes[change.uid] is READ_ONLY
                changes.append(change)
                brakes.pop(change.uid, None)
                brakes.update({change.uid: change.brake} if change.brake else {})

    lowest = min(free, WATERMARKS.stop)
    run(600)
    writing = {str(number) for number, rate in enumerate(rates) if rate}
    assert set(brakes) == writing
    assert {uid for uid, brake in brakes.items() if brake is STOPPED} == {str(n) for n in defiant} & writing
    # It came to rest within a round for each stage of each writer, and nothing oscillated.
    stages = sum(1 + (brakes[uid] is STOPPED) for uid in writing)
    assert len(changes) == len(set(changes)) == stages
    assert free >= lowest - (stages + 1) * sum(rates) * MIB
    free, changes[:] = WATERMARKS.refuse + 100 * GIB, []
    rates[:] = [0] * len(rates)
    run(20)
    assert brakes == {}


def test_the_watermarks_are_above_kubelets_threshold_on_every_disk() -> None:
    for total in (4 * GIB, 100 * GIB, 2**40, 16 * 2**40):
        for eviction in (0, total // 20, total // 10, total * 15 // 100):
            watermarks = watermarks_of(total, eviction)
            refuse, warn, brake, stop = vars(watermarks).values()
            assert refuse > warn > brake > stop > eviction
            assert refuse - eviction <= 32 * GIB


def test_the_stages_are_reported() -> None:
    def space(free: int) -> Space:
        return Space(50 * GIB, 40 * GIB, 100 * GIB, free, 10 * GIB)

    assert check_space(space(WATERMARKS.refuse), "branch a") is None
    refused = check_space(space(WATERMARKS.refuse - 1), "branch a")
    assert refused and refused.reason == Reason.NODE_DISK_LOW and "20Gi are needed" in refused.message
    assert pool_finding(space(WATERMARKS.refuse), "shop").reason == Reason.POOL_MOUNTED
    low, lower = (pool_finding(space(free), "shop" * 7) for free in (WATERMARKS.warn, WATERMARKS.warn - 1))
    assert low.reason == lower.reason == Reason.POOL_LOW and low.message != lower.message
    assert "less than 17.5Gi" in lower.message and len(lower.message) <= MESSAGE_LIMIT
