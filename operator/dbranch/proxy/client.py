"""A client until its backend has answered: PROXY header, TLS, startup packet or cancel request."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any, Final, cast

from dbranch.proxy import wire
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.connecting import connect
from dbranch.proxy.proxy_protocol import Header, NoHeader, read_header
from dbranch.proxy.relay import ClientPipe
from dbranch.proxy.routes import Reject, cancel_candidates, reject_session
from dbranch.proxy.session import Session
from dbranch.proxy.sockets import WRITE_BUFFER, address_of, close_after_writing, host_of, is_loopback
from dbranch.proxy.switchboard import Switchboard
from dbranch.proxy.tls import ALPN

log = logging.getLogger(__name__)

# The shortest time that a client has to send its startup packet, in seconds.
_LEAST_TIME: Final = 0.1
# Bytes that a client may send ahead before its backend has answered.
_MOST_AHEAD: Final = 64 * 1024
# Backends that a cancel request is tried at whose key is not known here.
_MOST_TRIED: Final = 32


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
        # What came of a PROXY protocol header that is still to be read; None where none is.
        self._header: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        table = self.board.table
        assert table, "the proxy serves before it has read its project"
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.peer = address_of(transport)
        # The pod's own address is that of a port-forward, which sends no header.
        if table.proxy_protocol and not is_loopback(self.peer):
            self._header = b""
        self._limit = max(table.handshake_timeout, _LEAST_TIME)
        self._timer = self.loop.call_later(self._limit, self._too_slow)
        self.board.enter(self)

    def data_received(self, data: bytes) -> None:
        if self.session:
            self.ahead += data
            if len(self.ahead) > _MOST_AHEAD:
                self.transport.pause_reading()
            return
        if self._header is not None:
            match read_header(self._header + data):
                case None:
                    self._header += data
                case NoHeader(message):
                    self._turn_away(
                        "08P01", f"{message}; spec.proxy.proxyProtocol asks for one", reason="proxy_protocol"
                    )
                case Header(peer, rest):
                    self._header, self.peer = None, peer or self.peer
                    if rest:
                        self.data_received(rest)
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
                    self._turn_away(
                        "08P01", "this proxy has no certificate, so it takes no TLS", reason="tls"
                    )
            case wire.Cancel(key, packet):
                self._cancel(key, packet)
            case wire.Startup():
                self._start(event)
            case wire.Malformed(message, code):
                self._turn_away(code, message)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._entered()
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
            self.board.metrics.refused("handshake_timeout")
            self.transport.abort()
        else:
            message = f"no startup packet within {self._limit:g} s"
            self._turn_away("08P01", message, reason="handshake_timeout")

    def crowd_out(self) -> None:
        """Too many connections are silent, and this one is so for the longest."""
        self.board.metrics.refused("crowded_out")
        self.transport.abort()

    def _entered(self) -> None:
        """The start is over, one way or another."""
        self._timer.cancel()
        self.board.opening.pop(self, None)

    def _turn_away(self, code: str, message: str, hint: str = "", reason: str = "malformed") -> None:
        """Ends a connection that has not become a session. `reason`: under what it is counted."""
        self._entered()
        self.board.metrics.refused(reason)
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
                self.transport, self, context, server_side=True, ssl_handshake_timeout=self._limit
            )
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            log.info("connection", extra={"fields": {"client": self.peer, "end": f"TLS failed: {error}"}})
            if self in self.board.opening:
                self.board.metrics.refused("tls")
            self._entered()
            self.transport.abort()
            return
        if transport is None or self.transport.is_closing():
            # The connection was lost meanwhile, and nobody else is told.
            self._entered()
            return
        self._task, self._shaking = None, False
        self.encrypted = True
        self.transport = transport
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self.opening.encrypted()
        if direct and transport.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN:
            self._turn_away("08P01", f'direct TLS needs the ALPN protocol "{ALPN}"', reason="tls")

    # Cancel

    def _cancel(self, key: bytes, packet: bytes) -> None:
        """To the backend that owns the key; where nobody here has it, to each that may.

        A replica of the proxy may have the session, and the replicas do not know each other. A backend that does
        not own the key drops the request, as Postgres does with every wrong one.
        """
        self._entered()
        board = self.board
        owner, table = board.keys.get(key), board.table
        if owner and owner.place:
            places = [owner.place]
        else:
            places = cancel_candidates(table, tuple(board.by_branch), _MOST_TRIED) if table else []
        task = self.canceller.send(places, packet, guessed=owner is None)
        board.metrics.cancelled("dropped" if not task else "own" if owner else "tried")
        if task:
            # The client takes the close as "done", so it comes after the backend's.
            task.add_done_callback(lambda _: self.transport.close())
        else:
            self.transport.close()

    # The start of a session

    def _start(self, startup: wire.Startup) -> None:
        self._entered()
        board, table = self.board, self.board.table
        assert table, "the proxy serves before it has read its project"
        if table.tls_required and not self.encrypted:
            text = f"project {table.project} takes only TLS connections"
            self._turn_away("28000", text, "Connect with sslmode=require.", "tls_required")
            return
        host = host_of(self.peer)
        refusal = reject_session(table, len(board.sessions), host, board.by_address[host])
        if refusal:
            self._turn_away(refusal.code, refusal.message, refusal.hint, refusal.reason)
            return
        self.session = Session(board, self.canceller, self.transport, self.peer)
        self.session.parameters = dict(startup.parameters)
        self.ahead = startup.rest
        self._task = self.loop.create_task(connect(self.session, startup, self._hand_over))
        self._task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error and self.session:
            log.error("a session could not be started", exc_info=error)
            failed = Reject("XX000", "the proxy failed; its log says why", reason="failed")
            self.session.refuse(failed)

    def _hand_over(self) -> None:
        """The backend has begun to answer: what the client sent ahead follows, and its pipe is set."""
        session = self.session
        assert session and session.server
        self.transport.set_protocol(ClientPipe(session))
        # First resumed, then written: a full buffer of the backend's pauses it again.
        self.transport.resume_reading()
        if self.ahead:
            session.server.write(self.ahead)
            session.sent += len(self.ahead)
            self.ahead = b""
