"""One session: a client, its backend, and the ways in which the two end.

Bytes between them are only forwarded; no message is counted. The backend's last bytes (at most wire.TAIL_BYTES)
are kept, so that a message boundary can be found when the proxy has to send an ErrorResponse of its own.
"""

from __future__ import annotations

import asyncio
import logging

from dbranch.proxy import sqlstate, timing, wire
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.routes import Backend, Drain, End, Fate, Reject, Stay, Table, decide_fate, is_still_routed
from dbranch.proxy.sockets import close_after_writing
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger("dbranch.session")


class Session:
    """A client's session from its startup packet to its end.

    client, server: the transports to the client and to the backend.
    backend: set while `server` is in use.
    pending_answer: set until the backend's first byte; its result is None, or why the backend is not used.
    greeting: set until the backend's first ReadyForQuery.
    tail: the backend's last bytes.
    reply_bytes: bytes of the backend since the client's last bytes.
    bytes_in, bytes_out: bytes from and to the client.
    counted_branch: the branch that the session counts under, from before its backend is dialled; or empty.
    end_reason: empty until the session has ended.
    """

    def __init__(
        self, switchboard: Switchboard, canceller: Canceller, client: asyncio.Transport, peer: str
    ) -> None:
        self.switchboard, self.canceller = switchboard, canceller
        self.loop = asyncio.get_running_loop()
        self.client, self.peer = client, peer
        self.server: asyncio.Transport | None = None
        self.backend: Backend | None = None
        self.greeting: wire.Greeting | None = None
        self.pending_answer: asyncio.Future[str | None] | None = None
        self.parameters: dict[str, str] = {}
        self.tail = b""
        self.bytes_in = self.bytes_out = self.reply_bytes = 0
        self.started_at = self.loop.time()
        self.end_reason = ""
        self.counted_branch = ""
        # The proxy wants the session to end: at the next boundary (_farewell), or with its transaction.
        self.awaiting_end = False
        # The client has shut down its sending side, or sent Terminate.
        self.half_closed = self.client_terminated = False
        # The ErrorResponse to send at the next message boundary.
        self._farewell: bytes | None = None
        self._fate: Fate = Stay()
        self._timer: asyncio.TimerHandle | None = None
        self._cancel_key: bytes | None = None
        switchboard.add_session(self)

    def count_under(self, branch: str) -> None:
        """Count the session under `branch`; empty: under none."""
        if branch != self.counted_branch:
            self.switchboard.move_session(self.counted_branch, branch)
            self.counted_branch = branch

    @property
    def draining(self) -> bool:
        """True if the session has to end: its fate is Drain or End."""
        return not isinstance(self._fate, Stay)

    # Called by the switchboard

    def obey(self, table: Table) -> None:
        """Do what `table`, now in force, means for this session."""
        if self.end_reason or self._farewell or not self.backend:
            return
        if self.pending_answer:
            # The backend has not answered yet, so the client can still be sent to another one.
            if not is_still_routed(table, self.backend):
                self._withdraw_from_backend()
            return
        fate = decide_fate(table, self.backend, greeted=self.greeting is None)
        if not (self.switchboard.shutting_down and isinstance(fate, Stay)):
            self._apply_fate(fate)

    def _withdraw_from_backend(self) -> None:
        """Give up a backend that has not answered yet; `connect` then routes the session again."""
        pending, self.pending_answer, self.backend = self.pending_answer, None, None
        if pending and not pending.done():
            pending.set_result("")

    def _apply_fate(self, fate: Fate) -> None:
        """Replace the session's fate; obey() does not call this once an End has begun."""
        if fate == self._fate:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._fate, self.awaiting_end = fate, False
        self.switchboard.update_draining(self)
        if isinstance(fate, Stay):
            return
        if isinstance(fate, End):
            self.end(fate.message, fate.hint)
            return
        self.awaiting_end = True
        self._timer = self.loop.call_later(fate.timeout, self.end, fate.message, fate.hint)
        self.check_boundary()

    def drain_for_shutdown(self) -> None:
        """Reroute (and so reject) a session without a backend's answer; drain any other one without a limit."""
        if self.pending_answer:
            self._withdraw_from_backend()
        elif self.backend and not self.draining and not self.end_reason and not self._farewell:
            message = "terminating connection: the proxy is stopping"
            self._apply_fate(Drain(timing.SHUTDOWN_DRAIN_SECONDS, message, "Connect again."))

    # Ends

    def end(self, message: str, hint: str = "") -> None:
        """Send FATAL 57P01 at the next message boundary, and close.

        A busy backend is cancelled, so that it reaches a boundary, and so that its statement does not run on and
        commit after the client has read that the session ended.
        """
        if self.end_reason or self._farewell:
            return
        if not self.backend:
            self.finish("terminated", wire.build_fatal_error(sqlstate.ADMIN_SHUTDOWN, message, hint))
            return
        if self._cancel_key and not self._is_idle():
            self.canceller.send([self.backend], wire.build_cancel_request(self._cancel_key))
        self._farewell = wire.build_fatal_error(sqlstate.ADMIN_SHUTDOWN, message, hint)
        self.awaiting_end = True
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(timing.BOUNDARY_TIMEOUT_SECONDS, self._end_within_message)
        self.check_boundary()

    def check_boundary(self) -> None:
        """End the session if it has to end and the backend's bytes so far allow it."""
        if self.end_reason:
            return
        if self._farewell:
            if self._is_at_boundary():
                self.finish("terminated", self._farewell)
        elif isinstance(self._fate, Drain) and self._is_idle():
            message, hint = self._fate.message, self._fate.hint
            self.finish("drained", wire.build_fatal_error(sqlstate.ADMIN_SHUTDOWN, message, hint))

    def _is_at_boundary(self) -> bool:
        """Return True if the backend's bytes so far end with a complete message."""
        if self.greeting and not self.greeting.ready:
            return self.greeting.is_at_boundary
        return wire.is_at_boundary(self.tail)

    def _is_idle(self) -> bool:
        """Return True if no transaction is open and no query runs.

        That is so if a ReadyForQuery has come since the client's last bytes.
        """
        if self.greeting or not self.reply_bytes:
            return False
        return wire.transaction_status(self.tail[-self.reply_bytes :]) == "I"

    def _end_within_message(self) -> None:
        """End without an ErrorResponse, which the client would read as a part of the unfinished message."""
        self.finish("terminated within a message")

    def reject(self, rejection: Reject) -> None:
        self.switchboard.metrics.count_rejection(rejection.reason)
        error = wire.build_fatal_error(rejection.sqlstate, rejection.message, rejection.hint)
        self.finish(f"rejected {rejection.sqlstate}: {rejection.message}", error)

    def finish(self, reason: str, farewell: bytes = b"") -> None:
        """Close both sides, the client's after `farewell`, and log the session's line; no-op if it has ended."""
        if self.end_reason:
            return
        self.end_reason = reason
        if self._timer:
            self._timer.cancel()
        if farewell and not self.client.is_closing():
            self.client.write(farewell)
        if self.client_terminated:
            # After Terminate the client reads nothing more.
            self.client.close()
        else:
            close_after_writing(self.client)
        if self.server:
            # Terminate is only understood by an idle backend; any other one sees the close.
            if self._is_idle() and not self.half_closed and not self.server.is_closing():
                self.server.write(wire.TERMINATE)
            self.server.close()
        if self.pending_answer and not self.pending_answer.done():
            self.pending_answer.cancel()
        self.switchboard.remove_session(self)
        self.count_under("")
        if self._cancel_key and self.switchboard.cancel_keys.get(self._cancel_key) is self:
            del self.switchboard.cancel_keys[self._cancel_key]
        self._log_end()

    def _log_end(self) -> None:
        fields = {
            "client": self.peer,
            "branch": self.backend.branch if self.backend else "",
            "user": self.parameters.get("user", ""),
            "database": self.parameters.get("database", ""),
            "seconds": round(self.loop.time() - self.started_at, 3),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "end": self.end_reason,
        }
        log.info("session", extra={"fields": fields})

    # Called by the protocols of the two sides

    def server_data_received(self, data: bytes) -> None:
        """Forward bytes of the backend to the client and keep the last of them."""
        size = len(data)
        self.bytes_out += size
        # On an idle session asynchronous messages are not added to the tail: however many come, the
        # ReadyForQuery before them stays in it.
        if not (data[0] in wire.ASYNCHRONOUS_TYPES and self._is_idle() and wire.is_only_asynchronous(data)):
            self.reply_bytes += size
            keep = wire.TAIL_BYTES
            self.tail = data[-keep:] if size >= keep else (self.tail + data)[-keep:]
        self.client.write(data)
        if self.awaiting_end:
            self.check_boundary()

    def finish_greeting(self) -> None:
        """Drop the greeting after the backend's first ReadyForQuery; from then on bytes are only forwarded."""
        assert self.greeting
        self.greeting = None

    @property
    def has_cancel_key(self) -> bool:
        return self._cancel_key is not None

    def register_cancel_key(self, key: bytes) -> None:
        self._cancel_key = key
        self.switchboard.cancel_keys[key] = self

    def client_lost(self) -> None:
        self.finish("client closed")

    def server_lost(self) -> None:
        """End the session after its backend has closed, with a FATAL unless Postgres has sent one itself."""
        if self.end_reason:
            return
        if self.half_closed or self.client_terminated:
            # A backend that got Terminate may close before its client does.
            self.finish("client closed")
        elif self._farewell and self._is_at_boundary():
            self.finish("terminated", self._farewell)
        elif wire.ends_with_fatal_error(self.tail):
            self.finish("terminated by Postgres")
        elif self._is_at_boundary():
            branch = f'branch "{self.backend.branch}"' if self.backend else "the branch"
            error = wire.build_fatal_error(
                sqlstate.ADMIN_SHUTDOWN,
                f"Postgres of {branch} closed the connection",
                "It may be restarting: connect again.",
            )
            self.finish("backend lost", error)
        else:
            self.finish("backend lost within a message")
