"""The asyncio protocols of a session: its start on either side, then the two pipes."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any, Final, cast

from dbranch.proxy import wire
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.routes import CANNOT_CONNECT_NOW, SHUTDOWN, Go, Place, Refuse, Wait, decide
from dbranch.proxy.session import Session
from dbranch.proxy.sockets import WRITE_BUFFER, address_of, close_after_writing, dial
from dbranch.proxy.switchboard import Switchboard
from dbranch.proxy.tls import ALPN

log = logging.getLogger(__name__)

# Seconds: for a client to send its startup packet; one attempt to reach a backend; between two; for a
# backend to answer, however late it was reached.
_START_TIMEOUT: Final = 30.0
_DIAL_TIMEOUT: Final = 5.0
_LEAST: Final = 1.0
_RETRY: Final = 0.25
# Bytes that a client may send ahead before its backend has answered.
_MOST_AHEAD: Final = 64 * 1024


class ClientStart(asyncio.Protocol):
    """A client until its backend has answered."""

    def __init__(self, board: Switchboard, canceller: Canceller) -> None:
        self.board, self.canceller = board, canceller
        self.loop = asyncio.get_running_loop()
        self.opening = wire.Opening()
        self.session: Session | None = None
        self.ahead = b""
        self.encrypted = False
        self.paused_by: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._shaking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.peer = address_of(transport)
        self._timer = self.loop.call_later(_START_TIMEOUT, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self.session:
            self.ahead += data
            if len(self.ahead) > _MOST_AHEAD:
                self.transport.pause_reading()
            return
        event = self.opening.feed(data)
        if event is None:
            return
        match event:
            case wire.AskedSsl():
                context = self.board.certificate.context() if self.board.certificate else None
                self.transport.write(b"S" if context else b"N")
                if context:
                    self._encrypt(context, b"")
            case wire.AskedGss():
                self.transport.write(b"N")
            case wire.DirectTls(first):
                context = self.board.certificate.context() if self.board.certificate else None
                if context:
                    self._encrypt(context, first)
                else:
                    self._turn_away("08P01", "this proxy has no certificate, so it takes no TLS")
            case wire.Cancel(key, packet):
                self._cancel(key, packet)
            case wire.Startup():
                self._start(event)
            case wire.Malformed(message, code):
                self._turn_away(code, message)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if self._task:
            self._task.cancel()
        if self.session:
            self.session.client_lost()

    def pause_writing(self) -> None:
        if self.session and self.session.server:
            self.paused_by = self.session.server
            self.paused_by.pause_reading()

    def resume_writing(self) -> None:
        if self.paused_by:
            self.paused_by.resume_reading()
            self.paused_by = None

    def _too_slow(self) -> None:
        if self._shaking or not self.opening.began:
            self.transport.abort()
        else:
            self._turn_away("08P01", f"no startup packet within {_START_TIMEOUT:.0f} s")

    def _turn_away(self, code: str, message: str, hint: str = "") -> None:
        """Ends a connection that has not become a session."""
        self._timer.cancel()
        log.info("connection", extra={"fields": {"client": self.peer, "end": f"refused {code}: {message}"}})
        self.transport.write(wire.fatal(code, message, hint))
        close_after_writing(self.transport)

    # TLS

    def _encrypt(self, context: ssl.SSLContext, first: bytes) -> None:
        self.transport.pause_reading()
        self._shaking = True
        self._task = self.loop.create_task(self._handshake(context, direct=bool(first)))
        if first:
            # The ClientHello is already read: it goes to the TLS layer behind connection_made, which
            # start_tls queues in the loop's next step.
            self.loop.call_soon(self.loop.call_soon, self._replay, self.transport, first)

    def _replay(self, transport: asyncio.Transport, first: bytes) -> None:
        layer: Any = transport.get_protocol()
        if layer is self:
            return
        at = 0
        while at < len(first):
            room = layer.get_buffer(len(first) - at)
            part = first[at : at + len(room)]
            room[: len(part)] = part
            layer.buffer_updated(len(part))
            at += len(part)

    async def _handshake(self, context: ssl.SSLContext, direct: bool) -> None:
        try:
            transport = await self.loop.start_tls(
                self.transport, self, context, server_side=True, ssl_handshake_timeout=_START_TIMEOUT
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            log.info("connection", extra={"fields": {"client": self.peer, "end": f"TLS failed: {error}"}})
            self._timer.cancel()
            self.transport.abort()
            return
        if transport is None:
            return
        self._task, self._shaking = None, False
        self.encrypted = True
        self.transport = transport
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.opening.encrypted()
        if direct and transport.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN:
            self._turn_away("08P01", f'direct TLS needs the ALPN protocol "{ALPN}"')

    # Cancel

    def _cancel(self, key: bytes, packet: bytes) -> None:
        owner = self.board.keys.get(key)
        task = self.canceller.send(owner.place, packet) if owner and owner.place else None
        if task:
            # The client takes the close as "done", so it comes after the backend's.
            task.add_done_callback(lambda _: self.transport.close())
        else:
            self.transport.close()

    # The start of a session

    def _start(self, startup: wire.Startup) -> None:
        self._timer.cancel()
        table = self.board.table
        if table and table.tls_required and not self.encrypted:
            self._turn_away(
                "28000",
                f"project {table.project} takes only TLS connections",
                "Connect with sslmode=require.",
            )
            return
        self.session = Session(self.board, self.canceller, self.transport, self.peer)
        self.session.parameters = dict(startup.parameters)
        self.ahead = startup.rest
        self._task = self.loop.create_task(self._connect(self.session, startup))
        self._task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error and self.session:
            log.error("a session could not be started", exc_info=error)
            self.session.refuse("XX000", "the proxy failed; its log says why")

    async def _connect(self, session: Session, startup: wire.Startup) -> None:
        """Finds the branch and its backend, waiting for either as long as `startTimeout`."""
        began, trouble = self.loop.time(), ""
        while not session.how:
            table, changed = self.board.table, self.board.changed()
            assert table, "the proxy serves before it has read its project"
            left = began + table.start_timeout - self.loop.time()
            if self.board.closing:
                session.refuse(SHUTDOWN, "the proxy is stopping", "Connect again.")
                return
            pause = left
            match decide(table, startup.branch):
                case Refuse(code, message, hint):
                    session.refuse(code, message, hint)
                    return
                case Wait(what):
                    trouble = what
                case Go() as go:
                    answer = await self._try(session, startup, go, max(left, _RETRY))
                    if answer is None:
                        return
                    if answer:
                        trouble = f'branch "{go.branch}" of project {table.project} ({answer})'
                    pause = _RETRY if answer else 0.0
            if left <= 0:
                text = f"waited {table.start_timeout:g} s for {trouble}"
                session.refuse(CANNOT_CONNECT_NOW, text, "Try again later.")
                return
            if pause:
                try:
                    async with asyncio.timeout(min(pause, left)):
                        await changed.wait()
                except TimeoutError:
                    pass

    async def _try(self, session: Session, startup: wire.Startup, go: Go, left: float) -> str | None:
        """One attempt. None: the backend answered and the session is on its way (or over). A sentence:
        it did not come about. Empty: the route changed meanwhile, so ask again at once."""
        server = ServerStart(self, session)
        try:
            async with asyncio.timeout(min(left, _DIAL_TIMEOUT)):
                await dial(server, go.address, go.port)
        except OSError as error:
            return f"{go.address}:{go.port}: {error.strerror or 'no answer'}"
        # From here to the startup packet nothing is awaited: what the table says now is what holds.
        table = self.board.table
        if not table or decide(table, startup.branch) != go or self.board.closing or session.how:
            server.transport.abort()
            return ""
        session.place = Place(go.branch, go.address, go.port, named=startup.branch is not None)
        session.server, session.greeting = server.transport, wire.Greeting()
        session.unanswered = server.answered
        server.transport.write(startup.packet)
        try:
            # Not `timeout`: that would cancel `answered` itself, which means that the session is over.
            await asyncio.wait([server.answered], timeout=max(left, _LEAST))
            if not server.answered.done():
                server.answered.set_result("no answer to the startup packet")
            answer = server.answered.result()
        except asyncio.CancelledError:
            server.transport.abort()
            raise
        if answer is not None:
            session.place = session.server = session.greeting = session.unanswered = None
            server.transport.abort()
            return answer
        return None

    def hand_over(self, session: Session) -> None:
        """The backend has begun to answer: what the client sent ahead follows, and its pipe is set."""
        assert session.server
        self.transport.set_protocol(ClientPipe(session))
        # First resumed, then written: a full buffer of the backend's pauses it again.
        self.transport.resume_reading()
        if self.ahead:
            session.server.write(self.ahead)
            session.sent += len(self.ahead)
            self.ahead = b""


class ServerStart(asyncio.Protocol):
    """A backend until its first ReadyForQuery. `answered`: None, or why it cannot be used yet."""

    def __init__(self, client: ClientStart, session: Session) -> None:
        self.client, self.session = client, session
        self.answered: asyncio.Future[str | None] = client.loop.create_future()
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
            self.client.hand_over(session)
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
