"""The agent's metrics, as Prometheus reads them from `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from dbranch.runtime.http import Response

_START_BUCKETS_SECONDS: Final = (0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

# Nobody reads the second series that each histogram would have: the time at which it was created.
disable_created_metrics()  # type: ignore[no-untyped-call]

SlotOrigin = Literal["warm", "new"]
RestoreStep = Literal["prepare", "switch"]
_RESTORE_OUTCOMES: Final = ("Done", "Failed", "Canceled")


class AgentMetrics:
    """The metrics of one node's agent.

    `warm_slots_limit`: warm slots of each class that the agent keeps at least; `warm_slots_maximum`: of all classes.
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
            "Warm slots of each class that the agent keeps at least (agent.warmSlots).",
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
        self._warm_slot_targets = Gauge(
            "warm_slots_target",
            "Warm slots that the agent keeps now, by class and image: more of a class that was asked for in bursts.",
            ["class", "image"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._claims = Counter(
            "claims",
            "Branches that asked for a slot of a class with warm slots, by what they got (warm, new).",
            ["slot"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._starts = Histogram(
            "branch_start_seconds",
            "From the start of a branch's reconcile to its status saying that Postgres accepts, by slot (warm, new).",
            ["slot"],
            buckets=_START_BUCKETS_SECONDS,
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._restores = Counter(
            "restores",
            "Restores in place that have ended on the node, by outcome (Done, Failed, Canceled).",
            ["outcome"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._restore_seconds = Histogram(
            "restore_seconds",
            "Restores in place, by step: prepare (beside what serves), switch (until the new data admits users).",
            ["step"],
            buckets=_START_BUCKETS_SECONDS,
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._orphans = Gauge(
            "orphans",
            "Data on the node that no object names, by kind; it is kept (project: a deleted one, until its time).",
            ["kind"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._orphan_bytes = Gauge(
            "orphan_bytes",
            "Bytes of the node's disk (of a branch or snapshot: of its pool) that orphans take, by kind.",
            ["kind"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._housekeeping_errors = Counter(
            "housekeeping_errors",
            "Things in rounds of housekeeping that failed; the rest of the round went on.",
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._disk = Gauge(
            "disk_bytes",
            "Of the node's disk under the base directory: free, and the watermarks refuse, warn, brake and stop.",
            ["of"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        self._braked = Gauge(
            "braked_branches",
            "Branches that may not write since the node's disk is almost full, by brake.",
            ["brake"],
            namespace="dbranch",
            subsystem="agent",
            registry=self._registry,
        )
        origins: tuple[SlotOrigin, ...] = ("warm", "new")
        for slot in origins:
            self._starts.labels(slot)
            self._claims.labels(slot)
        for outcome in _RESTORE_OUTCOMES:
            self._restores.labels(outcome)
        steps: tuple[RestoreStep, ...] = ("prepare", "switch")
        for step in steps:
            self._restore_seconds.labels(step)

    def set_warm_slots(
        self, free: Mapping[tuple[str, str], int], targets: Mapping[tuple[str, str], int]
    ) -> None:
        """Set the free warm slots and their targets, by class and image; remove the series of all other classes."""
        for gauge, counts in ((self._warm_slots, free), (self._warm_slot_targets, targets)):
            gauge.clear()
            for labels, count in counts.items():
                gauge.labels(*labels).set(count)

    def count_claim(self, slot: SlotOrigin) -> None:
        """Count a branch that got a slot of a class with warm slots: one that was `warm` or is `new`."""
        self._claims.labels(slot).inc()

    def set_disk(self, free: int, watermarks: Mapping[str, int], braked: Mapping[str, int]) -> None:
        """Set the free bytes of the node's disk, its watermarks by name, and the branches by their brake."""
        for name, count in {"free": free, **watermarks}.items():
            self._disk.labels(name).set(count)
        for brake, count in braked.items():
            self._braked.labels(brake).set(count)

    def observe_start(self, slot: SlotOrigin, seconds: float) -> None:
        """Count a branch whose Postgres accepts, in a slot that was `warm` or is `new`."""
        self._starts.labels(slot).observe(seconds)

    def observe_restore(self, step: RestoreStep, seconds: float) -> None:
        """Count a step of a restore that took so long."""
        self._restore_seconds.labels(step).observe(seconds)

    def count_restore(self, outcome: str) -> None:
        """Count a restore that has ended: Done, Failed or Canceled."""
        self._restores.labels(outcome).inc()

    def set_orphans(self, sizes: Mapping[str, Sequence[int]]) -> None:
        """Set the number of orphans and their bytes, by kind."""
        for kind, counts in sizes.items():
            self._orphans.labels(kind).set(len(counts))
            self._orphan_bytes.labels(kind).set(sum(counts))

    def count_housekeeping_error(self) -> None:
        """Count one thing in a round of housekeeping that failed."""
        self._housekeeping_errors.inc()

    def response(self) -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
