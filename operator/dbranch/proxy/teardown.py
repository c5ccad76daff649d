"""The end of a session that the proxy wants: the backend ends first, and only then is the client sent why.

The backend is sent nothing more: what the proxy still buffers is dropped, and its side of the connection is shut
down. A backend reads that after everything that was delivered to it, rolls back what is open, and closes. Its close
therefore proves that nothing of the session goes on or commits later, wherever in the protocol the session was:
between requests, within a pipeline, COPY, a function call, replication, or half a message. Until then its answers
still reach the client, so what has committed was answered. Statements that have to stop are cancelled until the
backend closes. If it does not close in time, the client, the log and a metric say so.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from dbranch.proxy import timing, wire
from dbranch.proxy.framing import CancelledReplies, MessageFramer
from dbranch.proxy.sockets import MAX_WRITE_BUFFER_BYTES, adopt

if TYPE_CHECKING:
    from dbranch.proxy.session import Session

log = logging.getLogger(__name__)

UNCONFIRMED: Final = "terminated, unconfirmed"
# The backend's process has closed its socket; with bytes unread in it, its kernel sends a reset.
_CLOSED_BY_PEER: Final = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class _Detached(asyncio.Protocol):
    """Protocol of the transport whose connection another transport has taken over."""


class _TeardownClient(asyncio.Protocol):
    """The client's side: what it sends is dropped."""

    def __init__(self, teardown: Teardown) -> None:
        self._teardown = teardown

    def eof_received(self) -> bool:
        return self._teardown.session.client.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        # Nobody is left to be sent anything; the backend is read to its end all the same.
        self._teardown.resume_reading()

    def pause_writing(self) -> None:
        self._teardown.pause_reading()

    def resume_writing(self) -> None:
        self._teardown.resume_reading()


class Teardown(asyncio.Protocol):
    """The backend's side of a session that ends.

    `reason` is the session's `end_reason` if the end is confirmed; `farewell` the ErrorResponse that the client
    is sent then; `unconfirmed_farewell` the one that it is sent otherwise.
    """

    def __init__(self, session: Session, reason: str, farewell: bytes, unconfirmed_farewell: bytes) -> None:
        self.session, self._reason = session, reason
        self._farewell, self._unconfirmed_farewell = farewell, unconfirmed_farewell
        self._loop = session.loop
        self._transport: asyncio.Transport | None = None
        self._replies: CancelledReplies | None = None
        self._stopping = self._paused = False
        # The client had its time to read; what it did not is dropped; something was.
        self._may_discard = self._discarding = self._discarded = False
        self._cancel_in_flight = False
        self._cancel_delay = timing.MIN_CANCEL_INTERVAL_SECONDS
        self._cancel_timer: asyncio.TimerHandle | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Take the client's and the backend's transport over, and send the backend nothing more."""
        session = self.session
        assert session.server
        if not session.greeting:
            self._follow(session.partial_message)
        elif session.greeting.is_at_boundary:
            self._replies = CancelledReplies(MessageFramer(), logging_in=True)
        session.client.set_protocol(_TeardownClient(self))
        session.client.resume_reading()
        if session.server.is_closing():
            session.server.set_protocol(self)
        else:
            self._cut_off(session.server)

    def _cut_off(self, transport: asyncio.Transport) -> None:
        """Shut down the sending side of the connection without the bytes that `transport` still buffers.

        A transport only ends after its buffer. So the socket is taken from it: the connection stays open as long
        as one descriptor does. No byte of the backend is lost between them: it stays in the kernel.
        """
        try:
            sock: socket.socket = transport.get_extra_info("socket").dup()
        except OSError as error:
            log.warning("no descriptor to end a session with (%s); what it has sent is delivered", error)
            transport.set_protocol(self)
            transport.write_eof()
            self._transport = transport
            return
        transport.set_protocol(_Detached())
        transport.abort()
        sock.setblocking(False)
        with suppress(OSError):  # The backend has closed already; reading says so.
            sock.shutdown(socket.SHUT_WR)
        self._task = self._loop.create_task(self._attach(sock))

    async def _attach(self, sock: socket.socket) -> None:
        try:
            await adopt(self, sock)
        except OSError as error:
            self._lost(error)

    def _follow(self, partial_message: MessageFramer | None) -> None:
        """Follow messages from here on if the client's position is known."""
        if partial_message:
            self._replies = CancelledReplies(partial_message)
        elif wire.is_at_boundary(self.session.tail):
            self._replies = CancelledReplies(MessageFramer())

    def stop(self, immediately: bool = True) -> None:
        """Cancel what still runs until the backend closes; give up after END_TIMEOUT_SECONDS. No-op if it runs.

        `immediately` False: the session seems to be at rest, so a cancel is sent only if the backend does not
        close by itself.
        """
        if self._stopping:
            return
        self._stopping = True
        self._timers.append(self._loop.call_later(timing.END_DISCARD_SECONDS, self._discard))
        self._timers.append(self._loop.call_later(timing.END_TIMEOUT_SECONDS, self._give_up))
        if immediately:
            self._cancel()
        else:
            self._cancel_timer = self._loop.call_later(timing.AT_REST_CANCEL_SECONDS, self._cancel)

    # Cancels

    def _cancel(self) -> None:
        session = self.session
        if self._cancel_in_flight or not session.cancel_key or not session.backend:
            return
        self._cancel_in_flight = True
        session.switchboard.metrics.count_cancel("stop")
        packet = wire.build_cancel_request(session.cancel_key)
        session.canceller.stop(session.backend, packet, self._is_cancel_needed, self._on_cancel_sent)

    def _is_cancel_needed(self) -> bool:
        return not self.session.end_reason

    def _on_cancel_sent(self) -> None:
        """Repeat the cancel: it may have come between two requests, or for the first of several."""
        self._cancel_in_flight = False
        if not self.session.end_reason:
            self._cancel_timer = self._loop.call_later(self._cancel_delay, self._cancel)
            self._cancel_delay = min(2 * self._cancel_delay, timing.MAX_CANCEL_INTERVAL_SECONDS)

    # The backend's last bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.session.end_reason:
            self._transport.abort()
        elif self.session.client.get_write_buffer_size() > MAX_WRITE_BUFFER_BYTES:
            self.pause_reading()

    def data_received(self, data: bytes) -> None:
        session = self.session
        session.bytes_out += len(data)
        # A request was answered, so the next one may have begun.
        self._cancel_delay = timing.MIN_CANCEL_INTERVAL_SECONDS
        greeting = session.greeting
        if greeting:
            greeting.feed(data)
            if greeting.key and not session.cancel_key:
                session.register_cancel_key(greeting.key)
            if greeting.ready:
                session.finish_greeting()
        session.keep_tail(data)
        forwarded = self._replies.feed(data) if self._replies else data
        if self._discarding:
            self._discarded = self._discarded or bool(forwarded)
        elif forwarded and not session.client.is_closing():
            session.client.write(forwarded)
        if not self._replies and not session.greeting:
            self._follow(None)

    def pause_reading(self) -> None:
        """Stop reading the backend, since the client does not read; or read and drop, if it had its time."""
        if self._may_discard:
            self._discarding = True
        elif self._transport:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _discard(self) -> None:
        """Read the backend whether or not the client reads: while it sends, it does not see a cancel."""
        self._may_discard = True
        if self._paused:
            self._discarding = True
            self.resume_reading()

    # The end

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def _lost(self, error: Exception | None) -> None:
        session = self.session
        if session.end_reason:
            return
        if self._discarded or not (error is None or isinstance(error, _CLOSED_BY_PEER)):
            self._finish_unconfirmed("its last answers were not read" if self._discarded else str(error))
        elif wire.ends_with_fatal_error(session.tail) and not (self._replies and self._replies.holds_back):
            session.finish("terminated by Postgres")
        elif self._is_at_boundary():
            session.finish(self._reason, self._farewell)
        else:
            # The client would read an ErrorResponse as a part of the unfinished message.
            session.finish("terminated within a message")

    def _give_up(self) -> None:
        if not self.session.end_reason:
            self._finish_unconfirmed(f"its backend has not closed within {timing.END_TIMEOUT_SECONDS:g} s")

    def _finish_unconfirmed(self, cause: str) -> None:
        session = self.session
        branch = session.backend.branch if session.backend else ""
        log.warning("session of %s on branch %s may have gone on: %s", session.peer, branch, cause)
        session.switchboard.metrics.count_unconfirmed_end()
        at_boundary = self._is_at_boundary() and not self._discarded
        session.finish(UNCONFIRMED, self._unconfirmed_farewell if at_boundary else b"")

    def _is_at_boundary(self) -> bool:
        if self._discarded:
            return False
        return self._replies.is_at_boundary if self._replies else self.session.is_at_boundary()

    def close(self) -> None:
        """Drop the backend's connection and everything that is still scheduled; the session has ended."""
        for timer in (*self._timers, self._cancel_timer):
            if timer:
                timer.cancel()
        if self._transport:
            self._transport.abort()
