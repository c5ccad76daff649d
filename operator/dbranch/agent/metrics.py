"""The agent's metrics, as Prometheus reads them from `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from dbranch.runtime.http import Response

_START_BUCKETS_SECONDS: Final = (0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

# Nobody reads the second series that each histogram would have: the time at which it was created.
disable_created_metrics()  # type: ignore[no-untyped-call]

SlotOrigin = Literal["warm", "new"]


class AgentMetrics:
    """The metrics of one node's agent.

    `warm_slots_limit`: warm slots of each class that the agent keeps; `warm_slots_maximum`: of all classes.
    """

    def __init__(self, warm_slots_limit: int = 0, warm_slots_maximum: int = 0) -> None:
        self._registry = CollectorRegistry()
        self._warm_slots = Gauge(
            "warm_slots",
            "Warm slots that a branch can claim, by class and image, as of the last reconcile (within a minute).",
            ["class", "image"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        Gauge(
            "warm_slots_desired",
            "Warm slots of each class that the agent keeps (agent.warmSlots).",
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        ).set(warm_slots_limit)
        Gauge(
            "warm_slots_maximum",
            "Warm slots of all classes together that the agent keeps at most (agent.maxWarmSlots).",
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        ).set(warm_slots_maximum)
        self._starts = Histogram(
            "branch_start_seconds",
            "From the start of a branch's reconcile to its status saying that Postgres accepts, by slot (warm, new).",
            ["slot"],
            buckets=_START_BUCKETS_SECONDS,
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        origins: tuple[SlotOrigin, ...] = ("warm", "new")
        for slot in origins:
            self._starts.labels(slot)

    def set_warm_slots(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Set the free warm slots, by class and image; remove the series of classes that are not in use."""
        self._warm_slots.clear()
        for labels, count in counts.items():
            self._warm_slots.labels(*labels).set(count)

    def observe_start(self, slot: SlotOrigin, seconds: float) -> None:
        """Count a branch whose Postgres accepts, in a slot that was `warm` or is `new`."""
        self._starts.labels(slot).observe(seconds)

    def response(self) -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
