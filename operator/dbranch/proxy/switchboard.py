"""State that all sessions of a proxy pod share: the routing table in force, the sessions, and their cancel keys."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from dbranch.api.project import BranchSessions
from dbranch.proxy.knock import Gates
from dbranch.proxy.metrics import MeasuredSession, Metrics
from dbranch.proxy.refusals import RefusalLog
from dbranch.proxy.routes import Table, may_replace
from dbranch.proxy.sockets import peer_host
from dbranch.proxy.tls import Certificate, HandshakeQueue


class RoutedSession(MeasuredSession, Protocol):
    """A session as the switchboard sees it."""

    peer: str

    def obey(self, table: Table) -> None: ...

    def drain_for_shutdown(self) -> None: ...

    def end(self, message: str, hint: str = "") -> None: ...


class StartingConnection(Protocol):
    """A connection that has not become a session yet."""

    def crowd_out(self, limit: int) -> None: ...


class Switchboard:
    """The routing table in force and the sessions under it.

    `apply` is one step of the event loop. When it returns, no session can reach a branch that the table does
    not give it, since each session reads `table` again in the step in which it hands over to its backend.
    """

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.certificate = certificate
        self.table: Table | None = None
        self.sessions: set[RoutedSession] = set()
        # The sessions that have to end: their fate is Drain or End, or the proxy shuts down.
        self.draining: set[RoutedSession] = set()
        # Oldest first; a dict, since a set has no order.
        self.starting: dict[StartingConnection, None] = {}
        self.starting_by_address: Counter[str] = Counter()
        self.sessions_by_address: Counter[str] = Counter()
        self.sessions_by_branch: Counter[str] = Counter()
        self.cancel_keys: dict[bytes, RoutedSession] = {}
        self.gates = Gates()
        self.refusals = RefusalLog()
        self.handshakes = HandshakeQueue()
        self.shutting_down = False
        # Called when the last draining session has ended.
        self.on_drained: Callable[[], None] | None = None
        self.metrics = Metrics(self)
        self._changed = asyncio.Event()
        # When the last switch began (monotonic), until its last session has ended.
        self._switch_started_at: float | None = None

    def apply(self, table: Table) -> bool:
        """Put `table` in force. Return False, with nothing done, if it is older than the one in force."""
        previous = self.table
        if not may_replace(previous, table):
            return False
        if table != previous:
            self.table = table
            started_at = self._switch_started_at
            if previous and previous.active and previous.active != table.active:
                started_at = time.monotonic()
            # The switch cannot be complete before every session has obeyed.
            self._switch_started_at = None
            for session in tuple(self.sessions):
                if session.backend:
                    session.obey(table)
            self._switch_started_at = started_at
            self.metrics.keep_only(set(table.targets))
            self._check_switch_done()
            self._notify_change()
        return True

    def change_event(self) -> asyncio.Event:
        """Return an event that is set at the next change of the table or at shutdown; get a new one after each."""
        return self._changed

    # Connections and sessions

    def add_starting(self, connection: StartingConnection) -> None:
        """Register a new connection without a startup packet, and crowd out the oldest if there are too many.

        Not the new one: then whoever opens connections and sends nothing would keep everybody out.

        The connection removes itself from `starting` when it becomes a session or is lost.
        """
        self.metrics.count_connection()
        limit = self.table.limits.handshakes if self.table else 0
        while limit and len(self.starting) >= limit:
            oldest = next(iter(self.starting))
            del self.starting[oldest]
            oldest.crowd_out(limit)
        self.starting[connection] = None

    def remove_starting(self, connection: StartingConnection, counted_host: str | None) -> None:
        """Remove a connection that is no longer starting, from those of its address, too, if it counts there."""
        self.starting.pop(connection, None)
        if counted_host is not None:
            _decrement(self.starting_by_address, counted_host)

    def add_session(self, session: RoutedSession) -> None:
        self.sessions.add(session)
        self.sessions_by_address[peer_host(session.peer)] += 1

    def remove_session(self, session: RoutedSession) -> None:
        """Remove a session that has ended; no-op if it is not registered."""
        if session not in self.sessions:
            return
        self.sessions.discard(session)
        _decrement(self.sessions_by_address, peer_host(session.peer))
        self.metrics.count_session_end(session)
        self._remove_draining(session)

    def move_session(self, old_branch: str, new_branch: str) -> None:
        """Count a session under `new_branch` instead of `old_branch` (either may be empty: none)."""
        _decrement(self.sessions_by_branch, old_branch)
        if new_branch:
            self.sessions_by_branch[new_branch] += 1

    def update_draining(self, session: RoutedSession) -> None:
        """Add the session to `draining` or remove it, as its fate says."""
        if session.draining:
            self.draining.add(session)
        else:
            self._remove_draining(session)

    def _remove_draining(self, session: RoutedSession) -> None:
        if session in self.draining:
            self.draining.discard(session)
            self._check_switch_done()

    def session_counts(self) -> tuple[BranchSessions, ...]:
        """Return for each branch how many sessions stay and how many have to end, sorted by branch."""
        staying = Counter(s.backend.branch for s in self.sessions if s.backend and not s.draining)
        draining = Counter(s.backend.branch for s in self.draining if s.backend)
        branches = sorted(staying.keys() | draining.keys())
        return tuple(BranchSessions(b, staying[b], draining[b]) for b in branches)

    def _check_switch_done(self) -> None:
        """Record the switch as done, and call `on_drained`, if no session is draining."""
        if self.draining:
            return
        if self._switch_started_at is not None:
            self.metrics.observe_switch(time.monotonic() - self._switch_started_at)
            self._switch_started_at = None
        if self.on_drained:
            self.on_drained()

    # Shutdown

    def begin_shutdown(self) -> None:
        """Reject sessions that wait for a backend, and let the others end with their transaction."""
        self.shutting_down = True
        self._notify_change()
        for session in tuple(self.sessions):
            session.drain_for_shutdown()

    def end_all(self, message: str) -> None:
        """End every open session with a FATAL `message`."""
        for session in tuple(self.sessions):
            session.end(message, "Connect again.")

    def _notify_change(self) -> None:
        targets = self.table.targets.values() if self.table else ()
        self.gates.on_change({(t.address, t.port) for t in targets if t.address and t.port})
        event, self._changed = self._changed, asyncio.Event()
        event.set()


def _decrement(counter: Counter[str], key: str) -> None:
    """Decrement `counter[key]` and delete the key at zero, so that keys do not accumulate."""
    if key in counter:
        counter[key] -= 1
        if counter[key] <= 0:
            del counter[key]
