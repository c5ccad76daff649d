"""Decide how many warm slots of a class a node keeps, by what was asked for lately. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from dbranch.agent.timing import (
    WARM_BURST_SECONDS,
    WARM_DEMAND_HALF_LIFE_SECONDS,
    WARM_DEMAND_HOLD_SECONDS,
)
from dbranch.api.errors import InvalidInput
from dbranch.api.quantity import parse_quantity

# Of what the node can give to pods, what the warm slots of one class may take up beyond their minimum.
_NODE_PART: Final = Decimal("0.25")
_UNBOUNDED: Final = 2**31


@dataclass(frozen=True)
class WarmLimits:
    """The chart's bounds of a node's warm slots, and what the node has.

    `minimum`: of each class in use; 0 keeps none. `burst`: of a class that was asked for in bursts; at or below
    `minimum` the number never changes. `maximum`: of all classes. `allocatable`: the node's `status.allocatable`.
    """

    minimum: int = 1
    burst: int = 0
    maximum: int = 32
    allocatable: Mapping[str, Any] = field(default_factory=dict)


def desired_slots(limits: WarmLimits, requests: Mapping[str, Any], ages: Sequence[float]) -> int:
    """Return how many warm slots a class shall have.

    `requests`: of one of its pods. `ages`: how many seconds ago a branch asked for a slot of the class. The largest
    number within WARM_BURST_SECONDS counts: in full for a time, then half as many after each half-life.
    """
    if limits.minimum < 1 or limits.burst <= limits.minimum:
        return limits.minimum
    lately = min(limits.burst, _demand(ages), _affordable(requests, limits.allocatable))
    return max(limits.minimum, lately)


def remembered_seconds(limits: WarmLimits) -> float:
    """Return the age at which even the largest burst counts for less than one slot."""
    halvings = math.log2(max(limits.burst, 1)) + 1
    return WARM_DEMAND_HOLD_SECONDS + halvings * WARM_DEMAND_HALF_LIFE_SECONDS


def _demand(ages: Sequence[float]) -> int:
    """Return the largest number of uses within a burst's time, each burst discounted by its age."""
    ordered, demand, end = sorted(ages), 0, 0
    for start, age in enumerate(ordered):
        while end < len(ordered) and ordered[end] - age <= WARM_BURST_SECONDS:
            end += 1
        halvings = max(0.0, age - WARM_DEMAND_HOLD_SECONDS) / WARM_DEMAND_HALF_LIFE_SECONDS
        demand = max(demand, int((end - start) * 0.5**halvings))
    return demand


def _affordable(requests: Mapping[str, Any], allocatable: Mapping[str, Any]) -> int:
    """Return how many pods with these requests fit into the part of the node that warm slots may take up."""
    counts = [
        int(_amount(allocatable[name]) * _NODE_PART / amount)
        for name, amount in {
            "pods": Decimal(1),
            **{key: _amount(text) for key, text in requests.items()},
        }.items()
        if name in allocatable and amount > 0
    ]
    # A node that does not say what it has bounds nothing; the kubelet still refuses what does not fit.
    return min(counts, default=_UNBOUNDED)


def _amount(text: Any) -> Decimal:
    try:
        return parse_quantity(text)
    except InvalidInput:
        # The API server refuses such a pod, and the class reports that.
        return Decimal(0)
