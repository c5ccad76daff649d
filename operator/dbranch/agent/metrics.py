"""What the agent counts, as Prometheus reads it on `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_STARTS: Final = (0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

# A second series a histogram, with the time of its birth, would say nothing here.
disable_created_metrics()  # type: ignore[no-untyped-call]


class AgentMetrics:
    """The numbers of one node."""

    def __init__(self, limit: int = 0) -> None:
        self._registry = CollectorRegistry()
        self._slots = Gauge(
            "warm_slots",
            "Slots that wait for any branch, by class and image, as of the last look (a minute ago at most).",
            ["class", "image"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        Gauge(
            "warm_slots_desired",
            "Slots of each class that are to wait (agent.warmSlots).",
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        ).set(limit)
        self._starts = Histogram(
            "branch_start_seconds",
            "From the agent's first look at a branch to its Postgres accepting and told, by slot (waiting, new).",
            ["slot"],
            buckets=_STARTS,
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        for slot in ("waiting", "new"):
            self._starts.labels(slot)

    def saw(self, free: Mapping[tuple[str, str], int]) -> None:
        """The slots that wait, by class and image; a class that is used no longer has no number."""
        self._slots.clear()
        for labels, count in free.items():
            self._slots.labels(*labels).set(count)

    def started(self, slot: str, seconds: float) -> None:
        """A branch's Postgres accepts, in a slot that was `waiting` or a `new` one."""
        self._starts.labels(slot).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
