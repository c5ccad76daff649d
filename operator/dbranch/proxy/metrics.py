"""What the proxy counts, as Prometheus reads it on `/metrics`.

Nothing here is on the way of a message: sessions count their own bytes, and a scrape adds them up.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from dbranch.proxy.routes import Backend, Table

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_WAITS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# A second series a counter, with the time of its birth, would say nothing here.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Counted(Protocol):
    """A session as it is counted. `claimed`: the branch under which it is, if any."""

    claimed: str
    sent: int
    received: int
    how: str

    @property
    def place(self) -> Backend | None: ...

    @property
    def leaving(self) -> bool: ...


class Census(Protocol):
    """Where the sessions that are open are found."""

    table: Table | None

    @property
    def sessions(self) -> Iterable[Counted]: ...

    @property
    def opening(self) -> Iterable[object]: ...


class Metrics:
    """The counters of one proxy. Branches that are no longer in the table are forgotten."""

    def __init__(self, census: Census) -> None:
        self._census = census
        self._registry = CollectorRegistry()
        # By branch and direction: the bytes of sessions that are over.
        self._bytes: Tally[tuple[str, str]] = Tally()
        self._taken: Tally[str] = Tally()
        more: dict[str, Any] = {"namespace": "dbranch", "subsystem": "proxy", "registry": self._registry}
        self._connections = Counter("connections", "Connections that were accepted.", **more)
        self._refusals = Counter(
            "refusals", "Connections that did not become a session, by reason.", ["reason"], **more
        )
        self._cancels = Counter(
            "cancels", "Cancel requests: of an own session, tried at others, dropped.", ["result"], **more
        )
        self._ends = Counter("session_ends", "Sessions that ended, by how.", ["how"], **more)
        self._waits = Histogram(
            "connect_wait_seconds",
            "From the startup packet to the backend's answer.",
            buckets=_WAITS,
            **more,
        )
        self._switches = Histogram(
            "switch_seconds",
            "From a new active branch to the end of the last session that had to leave the old one.",
            buckets=_WAITS,
            **more,
        )
        self._registry.register(self)

    # What happens

    def connected(self) -> None:
        self._connections.inc()

    def refused(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def cancelled(self, result: str) -> None:
        self._cancels.labels(result).inc()

    def waited(self, seconds: float) -> None:
        self._waits.observe(seconds)

    def switched(self, seconds: float) -> None:
        self._switches.observe(seconds)

    def ended(self, session: Counted) -> None:
        """A session is over, and still under its branch."""
        self._ends.labels(session.how.partition(":")[0]).inc()
        if session.claimed:
            self._bytes[session.claimed, "in"] += session.sent
            self._bytes[session.claimed, "out"] += session.received
            self._taken[session.claimed] += 1

    def forget(self, branches: set[str]) -> None:
        """Keeps the numbers of `branches` only."""
        for gone in {branch for branch, _ in self._bytes} - branches:
            del self._bytes[gone, "in"], self._bytes[gone, "out"], self._taken[gone]

    # What a scrape reads

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The part that is looked up at a scrape."""
        open_: Tally[tuple[str, str]] = Tally()
        size, taken = Tally(self._bytes), Tally(self._taken)
        for session in self._census.sessions:
            state = "draining" if session.leaving else "open" if session.place else "waiting"
            open_[session.claimed, state] += 1
            if session.claimed:
                size[session.claimed, "in"] += session.sent
                size[session.claimed, "out"] += session.received
                taken[session.claimed] += 1
        sessions = GaugeMetricFamily(
            "dbranch_proxy_sessions",
            "Sessions by branch and state (open, draining, waiting for a backend).",
            labels=["branch", "state"],
        )
        for labels, count in sorted(open_.items()):
            sessions.add_metric(labels, count)
        yield sessions
        total = CounterMetricFamily(
            "dbranch_proxy_bytes",
            "Bytes of sessions by branch, in (from clients) and out (to clients).",
            labels=["branch", "direction"],
        )
        for labels, count in sorted(size.items()):
            total.add_metric(labels, count)
        yield total
        connects = CounterMetricFamily(
            "dbranch_proxy_branch_sessions", "Sessions that went to a branch.", labels=["branch"]
        )
        for branch, count in sorted(taken.items()):
            connects.add_metric([branch], count)
        yield connects
        yield GaugeMetricFamily(
            "dbranch_proxy_opening",
            "Connections without a whole startup packet yet.",
            value=sum(1 for _ in self._census.opening),
        )
        table = self._census.table
        yield GaugeMetricFamily(
            "dbranch_proxy_route_generation",
            "The generation of status.route in force.",
            value=table.generation if table else 0,
        )
