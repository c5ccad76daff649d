"""The asyncio protocols of a session: the backend until its first ReadyForQuery, then the two forwarding ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from dbranch.proxy import sqlstate, wire
from dbranch.proxy.session import Session


class ServerStart(asyncio.Protocol):
    """The backend's side until its first ReadyForQuery.

    The result of `answered` is None once the backend has begun to answer, or why it cannot be used now.
    """

    def __init__(self, session: Session, hand_over: Callable[[], None]) -> None:
        """`hand_over` is called once, when the backend has begun to answer."""
        self.session, self._hand_over = session, hand_over
        self.answered: asyncio.Future[str | None] = session.loop.create_future()
        # The beginning of an ErrorResponse whose SQLSTATE has not come yet.
        self._held_back = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        session = self.session
        if not self.answered.done():
            data = self._held_back + data
            error = wire.first_error_sqlstate(data)
            if error == "":
                self._held_back = data
                return
            if error == sqlstate.CANNOT_CONNECT_NOW:
                self.answered.set_result("Postgres is starting or stopping")
                return
            self.answered.set_result(None)
            session.pending_answer = None
            self._hand_over()
        elif self.answered.result() is not None or session.end_reason:
            return
        greeting = session.greeting
        assert greeting
        greeting.feed(data)
        if greeting.key and not session.cancel_key:
            session.register_cancel_key(greeting.key)
        if greeting.ready:
            session.finish_greeting()
            self.transport.set_protocol(ServerPipe(session))
        session.server_data_received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_result("Postgres closed the connection")
        elif self.answered.cancelled() or self.answered.result() is None:
            self.session.server_lost()

    def pause_writing(self) -> None:
        self.session.client.pause_reading()

    def resume_writing(self) -> None:
        self.session.client.resume_reading()


class ClientPipe(asyncio.Protocol):
    """The client's side of a running session."""

    def __init__(self, session: Session) -> None:
        assert session.server
        self.session, self.server = session, session.server
        self.write = session.server.write

    def data_received(self, data: bytes) -> None:
        self.session.bytes_in += len(data)
        self.session.reply_bytes = 0
        self.session.client_terminated = data == wire.TERMINATE
        self.write(data)

    def eof_received(self) -> bool:
        # A half-close is passed on to the backend, whose answer may still come. TLS cannot half-close.
        self.session.half_closed = True
        if not self.session.client.can_write_eof() or self.server.is_closing():
            return False
        self.server.write_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.session.client_lost()

    def pause_writing(self) -> None:
        self.server.pause_reading()

    def resume_writing(self) -> None:
        self.server.resume_reading()


class ServerPipe(asyncio.Protocol):
    """The backend's side of a running session."""

    def __init__(self, session: Session) -> None:
        self.session, self.client = session, session.client
        # The hot path: without a method of this class in between.
        self.data_received = session.server_data_received  # type: ignore[method-assign]

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.session.server_lost()

    def pause_writing(self) -> None:
        self.client.pause_reading()

    def resume_writing(self) -> None:
        self.client.resume_reading()
