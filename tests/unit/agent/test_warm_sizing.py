"""How many warm slots of a class a node keeps, by what was asked for lately."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.agent.timing import (
    WARM_DEMAND_HALF_LIFE_SECONDS,
    WARM_DEMAND_HOLD_SECONDS,
)
from dbranch.agent.warm.demand import Demand
from dbranch.agent.warm.sizing import WarmLimits, desired_slots, remembered_seconds

LIMITS = WarmLimits(minimum=1, burst=20, maximum=32)
HOLD, HALF_LIFE = WARM_DEMAND_HOLD_SECONDS, WARM_DEMAND_HALF_LIFE_SECONDS
SMALL = {"cpu": "2m", "memory": "32Mi"}
AGES = st.lists(st.floats(0, 10_000), max_size=60)


@pytest.mark.parametrize(
    ("ages", "count"),
    [
        ([], 1),
        ([3.0], 1),
        ([0.0, 3.0], 2),
        ([float(n) for n in range(12)], 12),
        ([n / 10 for n in range(200)], 20),
        # Ten a minute for an hour are no burst of six hundred.
        ([6.0 * n for n in range(600)], 11),
        ([100.0 * n for n in range(50)], 1),
        # A burst keeps its number for a while, then half of it, then half of that.
        ([HOLD + n / 10 for n in range(12)], 12),
        ([HOLD + HALF_LIFE - 1] * 12, 6),
        ([HOLD + HALF_LIFE] * 12, 6),
        ([HOLD + 2 * HALF_LIFE] * 12, 3),
        # The larger of an old and a new one counts.
        ([1.0] * 4 + [HOLD + HALF_LIFE] * 12, 6),
    ],
)
def test_the_largest_burst_counts_and_fades(ages: list[float], count: int) -> None:
    assert desired_slots(LIMITS, SMALL, ages) == count


@given(
    ages=AGES,
    minimum=st.integers(0, 5),
    burst=st.integers(0, 30),
    seconds=st.floats(0, 5000),
    extra=st.floats(0, 100),
)
def test_the_number_stays_within_its_bounds_and_goes_with_the_demand(
    ages: list[float], minimum: int, burst: int, seconds: float, extra: float
) -> None:
    limits = WarmLimits(minimum, burst)
    count = desired_slots(limits, SMALL, ages)
    if minimum == 0 or burst <= minimum:
        assert count == minimum
    assert minimum <= count <= max(minimum, burst)
    # Not more than ever were asked for; one more use never means less, time never more.
    assert count <= max(minimum, len(ages))
    assert desired_slots(limits, SMALL, [*ages, extra]) >= count
    assert desired_slots(limits, SMALL, [age + seconds for age in ages]) <= count
    forgotten = [age + remembered_seconds(limits) for age in ages]
    assert desired_slots(limits, SMALL, forgotten) == minimum
    # What is forgotten changes nothing.
    kept = [age for age in ages if age <= remembered_seconds(limits)]
    assert desired_slots(limits, SMALL, kept) == count


def test_the_slots_of_a_class_take_up_a_quarter_of_the_node_at_most() -> None:
    ages, node = [1.0] * 30, {"cpu": "4", "memory": "16Gi", "pods": "110"}
    limits = replace(LIMITS, allocatable=node)
    assert desired_slots(limits, SMALL, ages) == 20
    assert desired_slots(limits, {"cpu": "200m"}, ages) == 5
    assert desired_slots(limits, {"cpu": "1m", "memory": "1Gi"}, ages) == 4
    assert desired_slots(replace(limits, allocatable={"pods": "40"}), SMALL, ages) == 10
    # The minimum is what an administrator has asked for.
    assert desired_slots(limits, {"cpu": "3"}, ages) == 1
    assert desired_slots(limits, {"cpu": "none"}, ages) == 20


def test_demand_remembers_by_class_and_forgets_what_is_old_or_not_in_use() -> None:
    demand = Demand()
    for now in (10.0, 20.0, 100.0):
        demand.record("a", now)
    demand.record("b", 50.0)
    assert demand.quiet_seconds(103.0) == 53.0
    assert demand.ages({"a"}, 110.0, 95.0) == {"a": [90.0, 10.0]}
    # The last one stays, by which classes are ordered; another class's are gone.
    assert demand.ages({"a", "b"}, 1000.0, 95.0) == {"a": [900.0]}
    for now in range(3000):
        demand.record("a", now)
    assert len(demand.ages({"a"}, 3000.0, 1e9)["a"]) == 1024
