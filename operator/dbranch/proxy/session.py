"""One session: a client, its backend, and how the two end.

Bytes between them are only forwarded; nothing counts messages. What the backend sent last (at most
WINDOW bytes) is kept, so that a message boundary can be found when the proxy itself has to speak.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from dbranch.proxy import wire
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.routes import (
    SHUTDOWN,
    Backend,
    Drain,
    End,
    Fate,
    Reject,
    Stay,
    Table,
    decide_fate,
    still_leads,
)
from dbranch.proxy.sockets import close_after_writing
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger("dbranch.session")

# Seconds for a busy backend to come to the end of a message, once its statement is cancelled.
_END_GRACE: Final = 5.0


class Session:
    """`client` and `server` are the transports; `place` is set from the moment a backend is used.

    `greeting` is there until the backend's first ReadyForQuery; `unanswered` until its first byte, and
    then says None, or why the backend is not used. `fresh` is how many bytes of the backend have come
    since the client's last. `how` is why the session ended, once it has.
    """

    def __init__(
        self, board: Switchboard, canceller: Canceller, client: asyncio.Transport, peer: str
    ) -> None:
        self.board, self.canceller = board, canceller
        self.loop = asyncio.get_running_loop()
        self.client, self.peer = client, peer
        self.server: asyncio.Transport | None = None
        self.place: Backend | None = None
        self.greeting: wire.Greeting | None = None
        self.unanswered: asyncio.Future[str | None] | None = None
        self.parameters: dict[str, str] = {}
        self.tail = b""
        self.sent = self.received = self.fresh = 0
        self.began = self.loop.time()
        self.how = ""
        # Set once the proxy wants the end: at the next boundary (_farewell), or the transaction's end.
        self.watching = self.half_closed = self.said_bye = False
        self._farewell: bytes | None = None
        self._fate: Fate = Stay()
        self._timer: asyncio.TimerHandle | None = None
        self._key: bytes | None = None
        # The branch under which the session is counted, from before its backend is dialled.
        self.claimed = ""
        board.add(self)

    def claim(self, branch: str) -> None:
        """Counts the session under `branch`; empty: under none."""
        if branch != self.claimed:
            self.board.count_branch(self.claimed, branch)
            self.claimed = branch

    @property
    def leaving(self) -> bool:
        return not isinstance(self._fate, Stay)

    # What the switchboard says

    def obey(self, table: Table) -> None:
        """Does what `table`, now in force, means to this session."""
        if self.how or self._farewell or not self.place:
            return
        if self.unanswered:
            # The backend has not said a word: the client can still go where it belongs now.
            if not still_leads(table, self.place):
                self._ask_again()
            return
        fate = decide_fate(table, self.place, greeted=self.greeting is None)
        if not (self.board.closing and isinstance(fate, Stay)):
            self._accept(fate)

    def _ask_again(self) -> None:
        """Takes the client back from a backend that has not answered."""
        unanswered, self.unanswered, self.place = self.unanswered, None, None
        if unanswered and not unanswered.done():
            unanswered.set_result("")

    def _accept(self, fate: Fate) -> None:
        """Takes the newest fate; one that has begun to end does not come back."""
        if fate == self._fate:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._fate, self.watching = fate, False
        self.board.mark(self)
        if isinstance(fate, Stay):
            return
        if isinstance(fate, End):
            self.end(fate.message, fate.hint)
            return
        self.watching = True
        self._timer = self.loop.call_later(fate.timeout, self.end, fate.message, fate.hint)
        self.look()

    def leave(self) -> None:
        """The proxy stops: as Drain without a limit; who calls this ends what is left."""
        if self.unanswered:
            self._ask_again()
        elif self.place and not self.leaving and not self.how and not self._farewell:
            self._accept(Drain(86400.0, "terminating connection: the proxy is stopping", "Connect again."))

    # Ends

    def end(self, message: str, hint: str = "") -> None:
        """FATAL 57P01 at the next message boundary. A busy backend is cancelled: to come to one, and
        so that its statement does not go on, and commit, behind a client that was told of the end."""
        if self.how or self._farewell:
            return
        if not self.place:
            self.finish("terminated", wire.fatal(SHUTDOWN, message, hint))
            return
        if self._key and not self._at_rest():
            self.canceller.send([self.place], wire.cancel_request(self._key))
        self._farewell = wire.fatal(SHUTDOWN, message, hint)
        self.watching = True
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(_END_GRACE, self._give_up)
        self.look()

    def look(self) -> None:
        """After bytes of the backend, while `watching`: is this where the session can end?"""
        if self.how:
            return
        if self._farewell:
            if self._at_boundary():
                self.finish("terminated", self._farewell)
        elif isinstance(self._fate, Drain) and self._at_rest():
            self.finish("drained", wire.fatal(SHUTDOWN, self._fate.message, self._fate.hint))

    def _at_boundary(self) -> bool:
        if self.greeting and not self.greeting.ready:
            return self.greeting.boundary
        return wire.at_boundary(self.tail)

    def _at_rest(self) -> bool:
        """Nothing is asked and no transaction is open: since the client's last bytes a ReadyForQuery came."""
        if self.greeting or not self.fresh:
            return False
        return wire.transaction_status(self.tail[-self.fresh :]) == "I"

    def _give_up(self) -> None:
        """No boundary in time: an ErrorResponse here would be read as part of another message."""
        self.finish("terminated within a message")

    def refuse(self, refusal: Reject) -> None:
        self.board.metrics.refused(refusal.reason)
        last = wire.fatal(refusal.code, refusal.message, refusal.hint)
        self.finish(f"refused {refusal.code}: {refusal.message}", last)

    def finish(self, how: str, last: bytes = b"") -> None:
        """Ends both sides, the client's after `last`, and writes the session's one line."""
        if self.how:
            return
        self.how = how
        if self._timer:
            self._timer.cancel()
        if last and not self.client.is_closing():
            self.client.write(last)
        if self.said_bye:
            # It waits for nothing more.
            self.client.close()
        else:
            close_after_writing(self.client)
        if self.server:
            # At rest the backend can be told to end; in the middle of anything, closing says it.
            if self._at_rest() and not self.half_closed and not self.server.is_closing():
                self.server.write(wire.TERMINATE)
            self.server.close()
        if self.unanswered and not self.unanswered.done():
            self.unanswered.cancel()
        self.board.remove(self)
        self.claim("")
        if self._key and self.board.keys.get(self._key) is self:
            del self.board.keys[self._key]
        self._report()

    def _report(self) -> None:
        fields = {
            "client": self.peer,
            "branch": self.place.branch if self.place else "",
            "user": self.parameters.get("user", ""),
            "database": self.parameters.get("database", ""),
            "seconds": round(self.loop.time() - self.began, 3),
            "bytes_in": self.sent,
            "bytes_out": self.received,
            "end": self.how,
        }
        log.info("session", extra={"fields": fields})

    # What the two sides say

    def heard(self, data: bytes) -> None:
        """Bytes of the backend: on to the client, and the last of them kept."""
        size = len(data)
        self.received += size
        # At rest what comes unasked leaves the ReadyForQuery before it in sight, however much it is.
        if not (data[0] in wire.UNASKED and self._at_rest() and wire.only_unasked(data)):
            self.fresh += size
            self.tail = data[-wire.WINDOW :] if size >= wire.WINDOW else (self.tail + data)[-wire.WINDOW :]
        self.client.write(data)
        if self.watching:
            self.look()

    def greeted(self) -> None:
        """The backend's first ReadyForQuery has come: from here on bytes are only forwarded."""
        assert self.greeting
        self.greeting = None

    @property
    def has_key(self) -> bool:
        return self._key is not None

    def own_key(self, key: bytes) -> None:
        self._key = key
        self.board.keys[key] = self

    def client_lost(self) -> None:
        self.finish("client closed")

    def server_lost(self) -> None:
        """The backend's side is closed. The client hears why, unless the backend has said so itself."""
        if self.how:
            return
        if self.half_closed or self.said_bye:
            # A backend that is told to end may be faster than its client's own close.
            self.finish("client closed")
        elif self._farewell and self._at_boundary():
            self.finish("terminated", self._farewell)
        elif wire.said_farewell(self.tail):
            self.finish("backend said why")
        elif self._at_boundary():
            where = f'branch "{self.place.branch}"' if self.place else "the branch"
            text = f"Postgres of {where} closed the connection"
            self.finish("backend lost", wire.fatal(SHUTDOWN, text, "It may be restarting: connect again."))
        else:
            self.finish("backend lost within a message")
