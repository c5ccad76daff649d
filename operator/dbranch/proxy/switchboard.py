"""What the sessions of a proxy share: the table in force, who is where, whose cancel key is whose."""

from __future__ import annotations

import asyncio
from typing import Protocol

from dbranch.proxy.routes import Place, Table, is_newer
from dbranch.proxy.tls import Certificate


class Placed(Protocol):
    """A session as the switchboard sees it."""

    @property
    def place(self) -> Place | None: ...

    @property
    def leaving(self) -> bool: ...

    def obey(self, table: Table) -> None: ...

    def leave(self) -> None: ...

    def end(self, message: str, hint: str = "") -> None: ...


class Switchboard:
    """The table in force and the sessions under it.

    `apply` is one step of the event loop: when it returns, no session can reach a branch that the
    table does not give it, since each asks `table` again in the step in which it hands over.
    """

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.certificate = certificate
        self.table: Table | None = None
        self.sessions: set[Placed] = set()
        self.keys: dict[bytes, Placed] = {}
        self.closing = False
        self._changed = asyncio.Event()

    def apply(self, table: Table) -> bool:
        """Puts `table` in force. False: it is older than the one in force, and nothing was done."""
        if not is_newer(table, self.table):
            return False
        if table != self.table:
            self.table = table
            for session in tuple(self.sessions):
                if session.place:
                    session.obey(table)
            self._wake()
        return True

    def changed(self) -> asyncio.Event:
        """Set at the next change of the table, or when the proxy closes; ask anew after each."""
        return self._changed

    def counts(self) -> tuple[int, int]:
        """How many sessions go on where they are, and how many of the old branch are still to end."""
        placed = [s for s in self.sessions if s.place]
        draining = sum(1 for s in placed if s.leaving)
        return len(placed) - draining, draining

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
