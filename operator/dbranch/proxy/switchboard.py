"""What the sessions of a proxy share: the table in force, who is where, whose cancel key is whose."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from dbranch.api.project import BranchSessions
from dbranch.proxy.metrics import Counted, Metrics
from dbranch.proxy.routes import Table, is_newer
from dbranch.proxy.sockets import host_of
from dbranch.proxy.tls import Certificate

# Connections that have not sent a whole startup packet yet; one more, and the oldest of them goes.
MOST_OPENING: Final = 1000


class Placed(Counted, Protocol):
    """A session as the switchboard sees it."""

    peer: str

    def obey(self, table: Table) -> None: ...

    def leave(self) -> None: ...

    def end(self, message: str, hint: str = "") -> None: ...


class Opening(Protocol):
    """A connection that is not a session yet."""

    def crowd_out(self) -> None: ...


class Switchboard:
    """The table in force and the sessions under it.

    `apply` is one step of the event loop: when it returns, no session can reach a branch that the
    table does not give it, since each asks `table` again in the step in which it hands over.
    """

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.certificate = certificate
        self.table: Table | None = None
        self.sessions: set[Placed] = set()
        self.leaving: set[Placed] = set()
        # By age; a dict, since a set has no order.
        self.opening: dict[Opening, None] = {}
        self.by_address: Counter[str] = Counter()
        self.by_branch: Counter[str] = Counter()
        self.keys: dict[bytes, Placed] = {}
        self.closing = False
        # Called when nobody is left who has to leave.
        self.on_settled: Callable[[], None] | None = None
        self.metrics = Metrics(self)
        self._changed = asyncio.Event()
        self._switched: float | None = None

    def apply(self, table: Table) -> bool:
        """Puts `table` in force. False: it is older than the one in force, and nothing was done."""
        before = self.table
        if not is_newer(table, before):
            return False
        if table != before:
            self.table = table
            began = self._switched
            if before and before.active and before.active != table.active:
                began = time.monotonic()
            # Not over before every session has been asked.
            self._switched = None
            for session in tuple(self.sessions):
                if session.place:
                    session.obey(table)
            self._switched = began
            self.metrics.forget(set(table.targets))
            self._settle()
            self._wake()
        return True

    def changed(self) -> asyncio.Event:
        """Set at the next change of the table, or when the proxy closes; ask anew after each."""
        return self._changed

    # Who is here

    def enter(self, connection: Opening) -> None:
        """A connection that is not a session yet. Takes it out of `opening` itself once it is, or has gone."""
        self.metrics.connected()
        if len(self.opening) >= MOST_OPENING:
            oldest = next(iter(self.opening))
            del self.opening[oldest]
            oldest.crowd_out()
        self.opening[connection] = None

    def add(self, session: Placed) -> None:
        self.sessions.add(session)
        self.by_address[host_of(session.peer)] += 1

    def remove(self, session: Placed) -> None:
        """Takes out a session that is over."""
        if session not in self.sessions:
            return
        self.sessions.discard(session)
        _lower(self.by_address, host_of(session.peer))
        self.metrics.ended(session)
        self._has_left(session)

    def count_branch(self, before: str, after: str) -> None:
        """A session is no longer counted under branch `before`, but under `after` (either may be empty)."""
        _lower(self.by_branch, before)
        if after:
            self.by_branch[after] += 1

    def mark(self, session: Placed) -> None:
        """Notes whether the session is still to end."""
        if session.leaving:
            self.leaving.add(session)
        else:
            self._has_left(session)

    def _has_left(self, session: Placed) -> None:
        if session in self.leaving:
            self.leaving.discard(session)
            self._settle()

    def counts(self) -> tuple[BranchSessions, ...]:
        """By branch: how many sessions go on where they are, and how many are still to end."""
        staying = Counter(s.place.branch for s in self.sessions if s.place and not s.leaving)
        draining = Counter(s.place.branch for s in self.leaving if s.place)
        there = sorted(staying.keys() | draining.keys())
        return tuple(BranchSessions(b, staying[b], draining[b]) for b in there)

    def _settle(self) -> None:
        """A switch is over when nobody is left who has to leave."""
        if self.leaving:
            return
        if self._switched is not None:
            self.metrics.switched(time.monotonic() - self._switched)
            self._switched = None
        if self.on_settled:
            self.on_settled()

    # The end

    def close(self) -> None:
        """The proxy ends: who waits for a branch is refused, the others leave with their transaction."""
        self.closing = True
        self._wake()
        for session in tuple(self.sessions):
            session.leave()

    def end_all(self, message: str) -> None:
        """Tells every session that is left, and ends it."""
        for session in tuple(self.sessions):
            session.end(message, "Connect again.")

    def _wake(self) -> None:
        before, self._changed = self._changed, asyncio.Event()
        before.set()


def _lower(counter: Counter[str], key: str) -> None:
    """One less; a key at zero goes, or the keys would grow with the addresses ever seen."""
    if key in counter:
        counter[key] -= 1
        if counter[key] <= 0:
            del counter[key]
