"""Metrics of one proxy pod, in the text format of Prometheus.

No message is delayed by them: sessions count their own bytes, and a scrape adds them up.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from dbranch.proxy.routes import Backend, Table

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_LAG_BUCKETS_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10)
_BUCKETS_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# Without this each counter has a second series with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]


class MeasuredSession(Protocol):
    """A session as the metrics see it. `counted_branch` is the branch it counts under, or empty.

    `bytes_in` came from the client, `bytes_out` went to it.
    """

    counted_branch: str
    bytes_in: int
    bytes_out: int
    end_reason: str

    @property
    def backend(self) -> Backend | None: ...

    @property
    def draining(self) -> bool: ...


class OpenConnections(Protocol):
    """Where a scrape finds the table in force and what is open now."""

    table: Table | None

    @property
    def sessions(self) -> Iterable[MeasuredSession]: ...

    @property
    def starting(self) -> Iterable[object]: ...


class Metrics:
    """The counters of one proxy pod. Series of branches that leave the table are dropped."""

    def __init__(self, connections: OpenConnections) -> None:
        self._open = connections
        self._registry = CollectorRegistry()
        # Of sessions that have ended: bytes by (branch, direction), and their number by branch.
        self._ended_bytes: collections.Counter[tuple[str, str]] = collections.Counter()
        self._ended_sessions: collections.Counter[str] = collections.Counter()
        options: dict[str, Any] = {"namespace": "dbranch", "subsystem": "proxy", "registry": self._registry}
        self._connections = Counter("connections", "Accepted connections.", **options)
        self._rejections = Counter(
            "rejections", "Connections that did not become a session, by reason.", ["reason"], **options
        )
        self._cancels = Counter(
            "cancels",
            "Cancel requests: sent to the key's owner (own), tried at several backends (tried), dropped, "
            "sent for a session that ends (stop).",
            ["result"],
            **options,
        )
        self._session_ends = Counter("session_ends", "Ended sessions, by reason.", ["reason"], **options)
        self._unconfirmed_ends = Counter(
            "ended_unconfirmed", "Sessions that ended while what they ran may have gone on.", **options
        )
        self._handshakes = Counter(
            "handshakes",
            "TLS handshakes, by result: done, failed, lost (the client left).",
            ["result"],
            **options,
        )
        self._loop_lags = Histogram(
            "loop_lag_seconds",
            "How late the event loop was, once a second: what sessions wait for.",
            buckets=_LAG_BUCKETS_SECONDS,
            **options,
        )
        self._connect_waits = Histogram(
            "connect_wait_seconds",
            "Time from the startup packet to the backend's answer.",
            buckets=_BUCKETS_SECONDS,
            **options,
        )
        self._switches = Histogram(
            "switch_seconds",
            "Time from a new active branch to the end of the last session that had to leave the old one.",
            buckets=_BUCKETS_SECONDS,
            **options,
        )
        # Set by whoever knows the log.
        self.dropped_log_lines: Callable[[], int] = lambda: 0
        self._snapshot: _Snapshot | None = None
        self._registry.register(self)

    # Events

    def count_connection(self) -> None:
        self._connections.inc()

    def count_rejection(self, reason: str) -> None:
        self._rejections.labels(reason).inc()

    def count_cancel(self, result: str) -> None:
        self._cancels.labels(result).inc()

    def count_handshake(self, result: str) -> None:
        self._handshakes.labels(result).inc()

    def observe_loop_lag(self, seconds: float) -> None:
        self._loop_lags.observe(seconds)

    def count_unconfirmed_end(self) -> None:
        self._unconfirmed_ends.inc()

    def observe_connect_wait(self, seconds: float) -> None:
        self._connect_waits.observe(seconds)

    def observe_switch(self, seconds: float) -> None:
        self._switches.observe(seconds)

    def count_session_end(self, session: MeasuredSession) -> None:
        """Add up a session that has ended and still has its `counted_branch`."""
        self._session_ends.labels(session.end_reason.partition(":")[0]).inc()
        if session.counted_branch:
            self._ended_bytes[session.counted_branch, "in"] += session.bytes_in
            self._ended_bytes[session.counted_branch, "out"] += session.bytes_out
            self._ended_sessions[session.counted_branch] += 1

    def keep_only(self, branches: set[str]) -> None:
        """Drop the counts of every branch that is not in `branches`."""
        for branch in {branch for branch, _ in self._ended_bytes} - branches:
            del self._ended_bytes[branch, "in"], self._ended_bytes[branch, "out"]
            del self._ended_sessions[branch]

    # Scrapes

    def take_snapshot(self) -> None:
        """Count what is open now, for `text`; in the event loop, as nothing else may change sessions meanwhile."""
        self._snapshot = _Snapshot(self)

    def text(self) -> bytes:
        """Return the body of `/metrics` as of the last snapshot; in any thread."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that are computed at a scrape (called by the registry)."""
        snapshot = self._snapshot
        if not snapshot:
            return
        sessions_metric = GaugeMetricFamily(
            "dbranch_proxy_sessions",
            "Sessions by branch and state (open, draining, waiting for a backend).",
            labels=["branch", "state"],
        )
        for labels, count in sorted(snapshot.open_sessions.items()):
            sessions_metric.add_metric(labels, count)
        yield sessions_metric
        bytes_metric = CounterMetricFamily(
            "dbranch_proxy_bytes",
            "Bytes of sessions by branch, in (from clients) and out (to clients).",
            labels=["branch", "direction"],
        )
        for labels, count in sorted(snapshot.bytes.items()):
            bytes_metric.add_metric(labels, count)
        yield bytes_metric
        branch_sessions_metric = CounterMetricFamily(
            "dbranch_proxy_branch_sessions", "Sessions that went to a branch.", labels=["branch"]
        )
        for branch, count in sorted(snapshot.branch_sessions.items()):
            branch_sessions_metric.add_metric([branch], count)
        yield branch_sessions_metric
        yield GaugeMetricFamily(
            "dbranch_proxy_starting_connections",
            "Connections that have not sent a complete startup packet yet.",
            value=snapshot.starting,
        )
        yield GaugeMetricFamily(
            "dbranch_proxy_route_generation",
            "Generation of status.route in force.",
            value=snapshot.generation,
        )
        lines_metric = CounterMetricFamily(
            "dbranch_proxy_log_lines_dropped", "Log lines that were dropped, since nobody read the log."
        )
        lines_metric.add_metric([], self.dropped_log_lines())
        yield lines_metric


class _Snapshot:
    """What is open at one moment, and what has ended until then."""

    def __init__(self, metrics: Metrics) -> None:
        connections = metrics._open
        self.open_sessions: collections.Counter[tuple[str, str]] = collections.Counter()
        self.bytes = collections.Counter(metrics._ended_bytes)
        self.branch_sessions = collections.Counter(metrics._ended_sessions)
        for session in connections.sessions:
            state = "draining" if session.draining else "open" if session.backend else "waiting"
            self.open_sessions[session.counted_branch, state] += 1
            if session.counted_branch:
                self.bytes[session.counted_branch, "in"] += session.bytes_in
                self.bytes[session.counted_branch, "out"] += session.bytes_out
                self.branch_sessions[session.counted_branch] += 1
        self.starting = sum(1 for _ in connections.starting)
        self.generation = connections.table.generation if connections.table else 0
