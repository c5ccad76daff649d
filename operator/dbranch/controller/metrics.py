"""The controller's metrics, as Prometheus reads them from `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from dbranch.runtime.http import Response

_RECONCILE_BUCKETS_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_HELD_BUCKETS_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)

# Nobody reads the second series that each metric would have: the time at which it was created.
disable_created_metrics()  # type: ignore[no-untyped-call]


class ControllerMetrics:
    """The metrics of the controller's process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "reconcile_seconds",
            "Seconds that a reconcile took, by kind of object.",
            ["kind"],
            buckets=_RECONCILE_BUCKETS_SECONDS,
            namespace="dbranch",
            subsystem="controller",
            registry=self._registry,
        )
        self._errors = Counter(
            "reconcile_errors_total",
            "Reconciles that failed and are retried, by kind of object.",
            ["kind"],
            namespace="dbranch",
            subsystem="controller",
            registry=self._registry,
        )

        self._refused = Counter(
            "objects_refused_total",
            "Objects that the API server refused (quota, admission, validation), by kind; each retry counts.",
            ["kind"],
            namespace="dbranch",
            subsystem="controller",
            registry=self._registry,
        )

        self._expired = Counter(
            "branches_expired_total",
            "DBBranches that were deleted since their time had come.",
            namespace="dbranch",
            registry=self._registry,
        )

        self._restored = Counter(
            "restores_ended_total",
            "Restores that have ended, by phase: Complete, Failed, Rejected.",
            ["phase"],
            namespace="dbranch",
            subsystem="controller",
            registry=self._registry,
        )
        self._held_seconds = Histogram(
            "restore_held_seconds",
            "How long new sessions through the project's endpoint were held by a restore.",
            buckets=_HELD_BUCKETS_SECONDS,
            namespace="dbranch",
            subsystem="controller",
            registry=self._registry,
        )

    def watch_snapshots(self, states: Iterable[str], count: Callable[[str], int]) -> None:
        """Serve the number of snapshots by state. `count`: called with each state when the metrics are read."""
        gauge = Gauge(
            "snapshots",
            "DBSnapshots by state: ready, pending, stalled, deleting.",
            ["state"],
            namespace="dbranch",
            registry=self._registry,
        )
        for state in states:
            gauge.labels(state).set_function(partial(count, state))

    def watch_schedules(self, late: Callable[[], float]) -> None:
        """Serve the number of branches whose schedules are late. `late`: called when the metrics are read."""
        gauge = Gauge(
            "schedules_late",
            "Branches of which a scheduled snapshot is due since 15 minutes or more, and not taken.",
            namespace="dbranch",
            registry=self._registry,
        )
        gauge.set_function(late)

    def watch_expiry(self, states: Iterable[str], count: Callable[[str], int]) -> None:
        """Serve the number of branches by expiry. `count`: called with each state when the metrics are read."""
        gauge = Gauge(
            "branches",
            "DBBranches by expiry: never, blocked, later, soon (within a day), overdue (expired for 15 minutes).",
            ["expiry"],
            namespace="dbranch",
            registry=self._registry,
        )
        for state in states:
            gauge.labels(state).set_function(partial(count, state))

    def expired(self) -> None:
        """Count a branch that was deleted since its time had come."""
        self._expired.inc()

    def watch_restores(self, phases: Iterable[str], count: Callable[[str], int]) -> None:
        """Serve the number of restores by phase. `count`: called with each phase when the metrics are read."""
        gauge = Gauge(
            "restores",
            "DBRestores that exist, by phase: Pending, Running, Complete, Failed, Rejected.",
            ["phase"],
            namespace="dbranch",
            registry=self._registry,
        )
        for phase in phases:
            gauge.labels(phase).set_function(partial(count, phase))

    def restored(self, phase: str, held_seconds: float | None) -> None:
        """Count a restore that has ended in this phase. `held_seconds`: how long new sessions were held."""
        self._restored.labels(phase).inc()
        if held_seconds is not None:
            self._held_seconds.observe(held_seconds)

    def refused(self, kind: str) -> None:
        """Count an object of this kind that the API server refused."""
        self._refused.labels(kind).inc()

    @contextmanager
    def reconcile(self, kind: str) -> Iterator[None]:
        """Count the reconcile of an object of this kind that runs within."""
        began = time.monotonic()
        self._errors.labels(kind)
        try:
            yield
        except Exception:
            self._errors.labels(kind).inc()
            raise
        finally:
            self._seconds.labels(kind).observe(time.monotonic() - began)

    def response(self) -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)
