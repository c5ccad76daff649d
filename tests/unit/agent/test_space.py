"""The finding about a mounted pool."""

from __future__ import annotations

from dbranch.agent.pool.space import Space, pool_finding
from dbranch.api.conditions import Reason


def test_damage_is_reported_before_low_space() -> None:
    low = Space(2**30, 2**20, 2**40, 2**39)
    assert pool_finding(low, "shop", damaged=True).reason == Reason.POOL_DAMAGED
    assert pool_finding(low, "shop").reason == Reason.POOL_LOW
