"""One session: a client, its backend, and the ways in which the two end.

Bytes between them are only forwarded; no message is counted. The backend's last bytes (at most wire.TAIL_BYTES)
are kept, so that a message boundary can be found when the proxy has to send an ErrorResponse of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from dbranch.proxy import sqlstate, timing, wire
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.framing import MessageFramer
from dbranch.proxy.refusals import clip_field
from dbranch.proxy.routes import Backend, Drain, End, Fate, Reject, Stay, Table, decide_fate, is_still_routed
from dbranch.proxy.sockets import close_after_writing, peer_host
from dbranch.proxy.switchboard import Switchboard
from dbranch.proxy.teardown import Teardown

log = logging.getLogger("dbranch.session")


class Session:
    """A client's session from its startup packet to its end.

    client, server: the transports to the client and to the backend.
    backend: set while `server` is in use.
    pending_answer: set until the backend's first byte; its result is None, or why the backend is not used.
    greeting: set until the backend's first ReadyForQuery.
    teardown: set once the end has begun that the proxy wants; the client is sent why when the backend has closed.
    tail: the backend's last bytes.
    partial_message: set while an asynchronous message on an idle session is unfinished.
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
        self.teardown: Teardown | None = None
        self.parameters: dict[str, str] = {}
        self.tls_version = ""
        # That of the route by which the session was sent to its backend; 0: to none.
        self.generation = 0
        self.tail = b""
        self.partial_message: MessageFramer | None = None
        self.bytes_in = self.bytes_out = self.reply_bytes = 0
        self.started_at = self.loop.time()
        self.end_reason = ""
        self.counted_branch = ""
        # The session has to end with its transaction: the backend's bytes are checked for its end.
        self.awaiting_end = False
        # The client has shut down its sending side, or sent Terminate.
        self.half_closed = self.client_terminated = False
        self._fate: Fate = Stay()
        # When a drain ends (loop time), however many switches follow; None: the session does not drain.
        self._drain_deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.cancel_key: bytes | None = None
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
        if self.end_reason or not self.backend:
            return
        if self.pending_answer:
            # The backend has not answered yet, so the client can still be sent to another one.
            if not is_still_routed(table, self.backend):
                self._withdraw_from_backend()
            return
        fate = decide_fate(table, self.backend, greeted=self.greeting is None)
        if self.teardown:
            # It cannot stay any more, but what it still runs may have to stop now.
            if isinstance(fate, End):
                self.teardown.stop()
        elif not (self.switchboard.shutting_down and isinstance(fate, Stay)):
            self._apply_fate(fate)

    def _withdraw_from_backend(self) -> None:
        """Give up a backend that has not answered yet; `connect` then routes the session again."""
        pending, self.pending_answer, self.backend = self.pending_answer, None, None
        if pending and not pending.done():
            pending.set_result("")

    def _apply_fate(self, fate: Fate) -> None:
        """Replace the session's fate; obey() does not call this once the end has begun."""
        if fate == self._fate:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._fate = fate
        self.awaiting_end = isinstance(fate, Drain)
        self.switchboard.update_draining(self)
        match fate:
            case Stay():
                self._drain_deadline = None
            case End():
                self.end(fate.message, fate.hint)
            case Drain():
                # A further switch does not put the end off.
                deadline = self.loop.time() + fate.timeout
                self._drain_deadline = min(self._drain_deadline or deadline, deadline)
                self._timer = self.loop.call_at(self._drain_deadline, self.end, fate.message, fate.hint)
                self.check_idle()

    def drain_for_shutdown(self) -> None:
        """Reroute (and so reject) a session without a backend's answer; drain any other one without a limit."""
        if self.pending_answer:
            self._withdraw_from_backend()
        elif self.backend and not self.draining and not self.end_reason and not self.teardown:
            message = "terminating connection: the proxy is stopping"
            self._apply_fate(Drain(timing.SHUTDOWN_DRAIN_SECONDS, message, "Connect again."))

    # Ends

    def end(self, message: str, hint: str = "") -> None:
        """Cancel what the session runs, and send FATAL 57P01 when its backend has closed (`Teardown`)."""
        if self.end_reason:
            return
        if not self.backend or self.pending_answer:
            self.finish("terminated", wire.build_fatal_error(sqlstate.ADMIN_SHUTDOWN, message, hint))
            return
        if self.teardown:
            self.teardown.stop()
            return
        seems_at_rest = self._status() is not None
        self._begin_end("terminated", message, hint).stop(immediately=not seems_at_rest)

    def check_idle(self) -> None:
        """Begin the end of a draining session if it seems to have no transaction and no query.

        It may have: the last ReadyForQuery may answer the first of several requests. Those are answered, too.
        """
        if (
            isinstance(self._fate, Drain)
            and self._status() == "I"
            and not self.teardown
            and not self.end_reason
        ):
            self._begin_end("drained", self._fate.message, self._fate.hint)

    def _begin_end(self, reason: str, message: str, hint: str) -> Teardown:
        assert self.backend
        self.awaiting_end = False
        unconfirmed_hint = (
            f'What ran last may have gone on, and committed on branch "{self.backend.branch}": '
            "check before you repeat it."
        )
        self.teardown = Teardown(
            self,
            reason,
            wire.build_fatal_error(sqlstate.ADMIN_SHUTDOWN, message, hint),
            wire.build_fatal_error(sqlstate.ADMIN_SHUTDOWN, message, unconfirmed_hint),
        )
        self.teardown.begin()
        return self.teardown

    def is_at_boundary(self) -> bool:
        """Return True if the backend's bytes so far end with a complete message."""
        if self.greeting and not self.greeting.ready:
            return self.greeting.is_at_boundary
        return wire.is_at_boundary(self.tail)

    def _status(self) -> str | None:
        """Return the transaction status if the session seems to be at rest; None if it is busy.

        It seems so if a ReadyForQuery has come since the client's last bytes, and the backend has read those.
        """
        if self.greeting or not self.reply_bytes or not self.server or self.server.get_write_buffer_size():
            return None
        return wire.transaction_status(self.tail[-self.reply_bytes :])

    def reject(self, rejection: Reject) -> None:
        self.switchboard.metrics.count_rejection(rejection.reason)
        error = wire.build_fatal_error(rejection.sqlstate, rejection.message, rejection.hint)
        self.finish(f"rejected {rejection.sqlstate}: {rejection.message}", error)

    def finish(self, reason: str, farewell: bytes = b"") -> None:
        """Close both sides, the client's after `farewell`, and log the session's line; no-op if it has ended.

        A backend that still runs is sent what the client had sent, as without a proxy; but not if it is `teardown`.
        """
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
        if self.teardown:
            self.teardown.close()
        elif self.server:
            self.server.close()
        if self.pending_answer and not self.pending_answer.done():
            self.pending_answer.cancel()
        self.switchboard.remove_session(self)
        self.count_under("")
        if self.cancel_key and self.switchboard.cancel_keys.get(self.cancel_key) is self:
            del self.switchboard.cancel_keys[self.cancel_key]
        self._log_end()

    def _log_end(self) -> None:
        fields = {
            "client": self.peer,
            "branch": self.backend.branch if self.backend else "",
            "user": clip_field(self.parameters.get("user", "")),
            "database": clip_field(self.parameters.get("database", "")),
            "application_name": clip_field(self.parameters.get("application_name", "")),
            "tls": self.tls_version,
            "generation": self.generation,
            "seconds": round(self.loop.time() - self.started_at, 3),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "end": self.end_reason,
        }
        if self.backend:
            log.info("session", extra={"fields": fields})
        else:
            # No branch has answered.
            refusals = self.switchboard.refusals
            refusals.log(log, "session", peer_host(self.peer), self.loop.time(), fields)

    # Called by the protocols of the two sides

    def server_data_received(self, data: bytes) -> None:
        """Forward bytes of the backend to the client and keep the last of them."""
        size = len(data)
        self.bytes_out += size
        # On a session at rest asynchronous messages are not added to the tail: however many come, the
        # ReadyForQuery before them stays in it.
        if data[0] not in wire.ASYNCHRONOUS_TYPES or not self._is_asynchronous(data):
            # keep_tail, without a call
            self.reply_bytes += size
            keep = wire.TAIL_BYTES
            self.tail = data[-keep:] if size >= keep else (self.tail + data)[-keep:]
        self.client.write(data)
        if self.awaiting_end:
            self.check_idle()

    def keep_tail(self, data: bytes) -> None:
        """Keep the last of the bytes that the backend has sent since the client's last ones."""
        self.reply_bytes += len(data)
        self.tail = (self.tail + data)[-wire.TAIL_BYTES :]

    def _is_asynchronous(self, data: bytes) -> bool:
        """Return True if the session is at rest and `data` is asynchronous messages.

        If the last one is unfinished, the next bytes go to `_rest_of_message_received`.
        """
        if self._status() is None:
            return False
        framer = MessageFramer()
        if framer.skip_asynchronous(data):
            return False
        if not framer.is_at_boundary:
            self.partial_message = framer
            self._receive_by(self._rest_of_message_received)
        return True

    def _rest_of_message_received(self, data: bytes) -> None:
        """Forward bytes of the backend while an asynchronous message is unfinished."""
        assert self.partial_message
        answer = self.partial_message.skip_asynchronous(data)
        if answer or self.partial_message.is_at_boundary:
            self.partial_message = None
            self._receive_by(self.server_data_received)
        if answer:
            self.keep_tail(answer)
        self.bytes_out += len(data)
        self.client.write(data)
        if self.awaiting_end:
            self.check_idle()

    def _receive_by(self, method: Callable[[bytes], None]) -> None:
        """Let `method` receive the backend's bytes; a transport looks it up when it gets its protocol."""
        assert self.server
        pipe = cast(asyncio.Protocol, self.server.get_protocol())
        pipe.data_received = method  # type: ignore[method-assign, assignment]
        self.server.set_protocol(pipe)

    def finish_greeting(self) -> None:
        """Drop the greeting after the backend's first ReadyForQuery; from then on bytes are only forwarded."""
        assert self.greeting
        self.greeting = None

    def register_cancel_key(self, key: bytes) -> None:
        self.cancel_key = key
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
        elif wire.ends_with_fatal_error(self.tail):
            self.finish("terminated by Postgres")
        elif self.is_at_boundary():
            branch = f'branch "{self.backend.branch}"' if self.backend else "the branch"
            error = wire.build_fatal_error(
                sqlstate.ADMIN_SHUTDOWN,
                f"Postgres of {branch} closed the connection",
                "It may be restarting: connect again.",
            )
            self.finish("backend lost", error)
        else:
            self.finish("backend lost within a message")
