"""The asyncio protocols of a session: its backend until the first ReadyForQuery, then the two pipes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from dbranch.proxy import wire
from dbranch.proxy.routes import CANNOT_CONNECT_NOW
from dbranch.proxy.session import Session


class ServerStart(asyncio.Protocol):
    """A backend until its first ReadyForQuery. `answered`: None, or why it cannot be used yet."""

    def __init__(self, session: Session, hand_over: Callable[[], None]) -> None:
        """`hand_over` is called when the backend has begun to answer."""
        self.session, self._hand_over = session, hand_over
        self.answered: asyncio.Future[str | None] = session.loop.create_future()
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        session = self.session
        if not self.answered.done():
            data = self._held + data
            code = wire.held_error(data)
            if code == "":
                self._held = data
                return
            if code == CANNOT_CONNECT_NOW:
                self.answered.set_result("Postgres is starting or stopping")
                return
            self.answered.set_result(None)
            session.unanswered = None
            self._hand_over()
        elif self.answered.result() is not None or session.how:
            return
        greeting = session.greeting
        assert greeting
        greeting.feed(data)
        if greeting.key and not session.has_key:
            session.own_key(greeting.key)
        if greeting.ready:
            session.greeted()
            self.transport.set_protocol(ServerPipe(session))
        session.heard(data)

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
        self.session.sent += len(data)
        self.session.fresh = 0
        self.session.said_bye = data == wire.TERMINATE
        self.write(data)

    def eof_received(self) -> bool:
        # A half-close goes on to the backend; its answer may still come. TLS has none.
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
        # What comes in goes straight to the session: the hot path.
        self.data_received = session.heard  # type: ignore[method-assign]

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.session.server_lost()

    def pause_writing(self) -> None:
        self.client.pause_reading()

    def resume_writing(self) -> None:
        self.client.resume_reading()
