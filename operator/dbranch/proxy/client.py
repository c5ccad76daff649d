"""A client until its backend has answered: PROXY protocol header, TLS, startup packet or cancel request."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace
from typing import Final, cast

from dbranch.proxy import sqlstate, timing, wire
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.connecting import connect
from dbranch.proxy.proxy_protocol import Header, InvalidHeader, may_begin_header, read_header
from dbranch.proxy.refusals import clip_field
from dbranch.proxy.relay import ClientPipe
from dbranch.proxy.routes import (
    Reject,
    Table,
    cancel_candidates,
    check_handshake_limit,
    check_session_limits,
    expects_header,
)
from dbranch.proxy.session import Session
from dbranch.proxy.sockets import (
    MAX_WRITE_BUFFER_BYTES,
    close_after_writing,
    is_loopback,
    peer_host,
    peer_of,
)
from dbranch.proxy.switchboard import Switchboard
from dbranch.proxy.tls import ALPN, accept_tls

log = logging.getLogger(__name__)

# Bytes that a client may send before its backend has answered; then it is no longer read.
_MAX_EARLY_BYTES: Final = 64 * 1024
# Backends at which a cancel request with an unknown key is tried.
_MAX_CANCEL_CANDIDATES: Final = 32


class ClientStart(asyncio.Protocol):
    """The client's side until its backend has answered.

    `own_branch`: the branch to whose own port the client has come, by the branch's Service. It is for that branch
    whatever its startup packet says, and as with the branch's Postgres there is neither TLS nor a PROXY header.
    """

    def __init__(self, switchboard: Switchboard, canceller: Canceller, own_branch: str | None = None) -> None:
        self.switchboard, self.canceller, self._own_branch = switchboard, canceller, own_branch
        self.loop = asyncio.get_running_loop()
        self.startup_parser = wire.StartupParser()
        self.session: Session | None = None
        # What the client sent after its startup packet, to be forwarded once the backend has answered.
        self.early_data = b""
        # The version of TLS; empty without it.
        self.tls_version = ""
        # The backend's transport, while it is not read because this client does not read.
        self.paused_server: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._in_tls_handshake = False
        # Set while a client that may begin TLS has not sent its ClientHello.
        self._tls_offered: ssl.SSLContext | None = None
        # The PROXY protocol header as far as it has come; None if no header is expected (any more).
        self._partial_header: bytes | None = None
        # A PROXY header may not come: the address is not in spec.proxy.trustedProxies.
        self._untrusted = False
        # The address that this connection counts under in starting_by_address.
        self._counted_host: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        table = self.switchboard.table
        assert table, "the proxy serves before it has read its project"
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=MAX_WRITE_BUFFER_BYTES)
        self.peer = peer_of(transport)
        self._handshake_seconds = max(table.handshake_timeout, timing.MIN_HANDSHAKE_SECONDS)
        self._timer = self.loop.call_later(self._handshake_seconds, self._on_handshake_timeout)
        self.switchboard.add_starting(self)
        # A port-forward comes from the pod's own address, and sends no header.
        if table.proxy_protocol and self._own_branch is None and not is_loopback(self.peer):
            if expects_header(table, peer_host(self.peer)):
                self._partial_header = b""
                return
            self._untrusted = True
        self._count_address(table)

    def _count_address(self, table: Table) -> bool:
        """Count the connection under its client's address; reject it and return False if that has too many."""
        host = peer_host(self.peer)
        rejection = check_handshake_limit(table, host, self.switchboard.starting_by_address[host])
        if rejection:
            self._reject(rejection)
            return False
        self.switchboard.starting_by_address[host] += 1
        self._counted_host = host
        return True

    def data_received(self, data: bytes) -> None:
        if self.session:
            self.early_data += data
            if len(self.early_data) > _MAX_EARLY_BYTES:
                self.transport.pause_reading()
            return
        if self._partial_header is not None:
            match read_header(self._partial_header + data):
                case None:
                    self._partial_header += data
                case InvalidHeader(message):
                    self._reject(
                        Reject(
                            sqlstate.PROTOCOL_VIOLATION,
                            f"{message}; spec.proxy.proxyProtocol requires one",
                            reason="proxy_protocol",
                        )
                    )
                case Header(peer, remaining):
                    self._partial_header, self.peer = None, peer or self.peer
                    table = self.switchboard.table
                    assert table, "the proxy serves before it has read its project"
                    if self._count_address(table) and remaining:
                        self.data_received(remaining)
            return
        if self._tls_offered:
            offered, self._tls_offered = self._tls_offered, None
            self._start_tls(offered, data)
            return
        if self._untrusted and may_begin_header(data):
            host = peer_host(self.peer)
            message = f"{host} is not in spec.proxy.trustedProxies, and sends a PROXY protocol header"
            self._reject(Reject(sqlstate.PROTOCOL_VIOLATION, message, reason="proxy_protocol"))
            return
        self._untrusted = False
        event = self.startup_parser.feed(data)
        if event is None:
            return
        match event:
            case wire.SslRequest():
                context = self._tls_context()
                self.transport.write(b"S" if context else b"N")
                # Its turn begins with the ClientHello: who sends none holds up nobody.
                self._tls_offered = context
            case wire.GssEncRequest():
                self.transport.write(b"N")
            case wire.DirectTls(client_hello):
                context = self._tls_context()
                if context:
                    self._start_tls(context, client_hello, direct=True)
                else:
                    message = "this port does not accept TLS: it has no certificate"
                    self._reject(Reject(sqlstate.PROTOCOL_VIOLATION, message, reason="tls"))
            case wire.CancelRequest(key, packet):
                self._cancel(key, packet)
            case wire.StartupMessage():
                self._start_session(event)
            case wire.Malformed(message, code):
                self._reject(Reject(code, message, reason="malformed"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave_starting()
        if self._task:
            self._task.cancel()
        if self.session:
            self.session.client_lost()

    def pause_writing(self) -> None:
        if self.session and self.session.server:
            self.paused_server = self.session.server
            self.paused_server.pause_reading()

    def resume_writing(self) -> None:
        if self.paused_server:
            self.paused_server.resume_reading()
            self.paused_server = None

    def _on_handshake_timeout(self) -> None:
        """Close a silent connection, and one in its TLS handshake; reject one that has sent part of a packet."""
        if self._in_tls_handshake or self._tls_offered or not self.startup_parser.has_begun:
            self.switchboard.metrics.count_rejection("handshake_timeout")
            self.transport.abort()
        else:
            message = f"no startup packet within {self._handshake_seconds:g} s"
            self._reject(Reject(sqlstate.PROTOCOL_VIOLATION, message, reason="handshake_timeout"))

    def crowd_out(self, limit: int) -> None:
        """Refuse this connection, the oldest of `limit` without a startup packet, in favour of a new one."""
        if self._in_tls_handshake or self._tls_offered:
            self.switchboard.metrics.count_rejection("crowd_out")
            self._leave_starting()
            self.transport.abort()
            return
        message = f"too many connections are not logged in on this proxy; the limit is {limit}"
        hint = "Connect again later."
        self._reject(Reject(sqlstate.TOO_MANY_CONNECTIONS, message, hint, reason="crowd_out"))

    def _leave_starting(self) -> None:
        """End the time limit of the start, which is over, and make room for another connection."""
        self._timer.cancel()
        self.switchboard.remove_starting(self, self._counted_host)
        self._counted_host = None

    def _reject(self, rejection: Reject) -> None:
        """Send an ErrorResponse and close, before the connection has become a session."""
        self._leave_starting()
        self.switchboard.metrics.count_rejection(rejection.reason)
        end = f"rejected {rejection.sqlstate}: {rejection.message}"
        self._log_refusal(end)
        self.transport.write(wire.build_fatal_error(rejection.sqlstate, rejection.message, rejection.hint))
        close_after_writing(self.transport)

    def _log_refusal(self, end: str) -> None:
        fields = {"client": self.peer, "end": clip_field(end)}
        self.switchboard.refusals.log(log, "connection", peer_host(self.peer), self.loop.time(), fields)

    # TLS

    def _tls_context(self) -> ssl.SSLContext | None:
        certificate = self.switchboard.certificate
        return certificate.context() if certificate and self._own_branch is None else None

    def _start_tls(self, context: ssl.SSLContext, client_hello: bytes, direct: bool = False) -> None:
        """Begin the TLS handshake with what was read of it. `direct`: without an SSLRequest before it."""
        self.transport.pause_reading()
        self._in_tls_handshake = True
        self._task = self.loop.create_task(self._tls_handshake(context, client_hello, direct))

    async def _tls_handshake(self, context: ssl.SSLContext, client_hello: bytes, direct: bool) -> None:
        metrics = self.switchboard.metrics
        try:
            await self.switchboard.handshakes.wait_turn()
            if self.transport.is_closing():
                self._leave_starting()
                metrics.count_handshake("lost")
                return
            transport = await accept_tls(self.transport, self, context, client_hello, self._handshake_seconds)
        except (OSError, ssl.SSLError, asyncio.CancelledError) as error:
            metrics.count_handshake("failed")
            self._log_refusal(f"TLS failed: {error}")
            if self in self.switchboard.starting:
                metrics.count_rejection("tls")
            self._leave_starting()
            self.transport.abort()
            return
        if transport is None or self.transport.is_closing():
            # The connection was lost meanwhile, and no callback says so.
            metrics.count_handshake("lost")
            self._leave_starting()
            return
        metrics.count_handshake("done")
        self._task, self._in_tls_handshake = None, False
        self.transport = transport
        ssl_object = transport.get_extra_info("ssl_object")
        self.tls_version = ssl_object.version() or "TLS"
        self.transport.set_write_buffer_limits(high=MAX_WRITE_BUFFER_BYTES)
        self.startup_parser.set_encrypted()
        if direct and ssl_object.selected_alpn_protocol() != ALPN:
            message = f'direct TLS needs the ALPN protocol "{ALPN}"'
            self._reject(Reject(sqlstate.PROTOCOL_VIOLATION, message, reason="tls"))

    # Cancel

    def _cancel(self, key: bytes, packet: bytes) -> None:
        """Send the cancel request to the backend that owns the key, or to each that may if the key is unknown.

        Another replica of the proxy may have the session, and the replicas do not know each other. A backend
        that does not own the key drops the request, as Postgres does with every wrong one.
        """
        self._leave_starting()
        switchboard = self.switchboard
        owner, table = switchboard.cancel_keys.get(key), switchboard.table
        if owner and owner.backend:
            task = self.canceller.send_own(owner.backend, packet)
        else:
            branches = tuple(switchboard.sessions_by_branch)
            backends = (
                cancel_candidates(table, branches, _MAX_CANCEL_CANDIDATES, self._own_branch) if table else []
            )
            task = self.canceller.send_guesses(backends, packet)
        switchboard.metrics.count_cancel("dropped" if not task else "own" if owner else "tried")
        if task:
            # The client takes the close as "done", so it has to come after the backend's.
            task.add_done_callback(lambda _: self.transport.close())
        else:
            self.transport.close()

    # Session start

    def _start_session(self, startup: wire.StartupMessage) -> None:
        self._leave_starting()
        switchboard, table = self.switchboard, self.switchboard.table
        assert table, "the proxy serves before it has read its project"
        # A pod that was made before spec.proxy.tls has no certificate's mount: until the rollout has replaced it,
        # it accepts what it accepted before.
        has_certificate = switchboard.certificate and self._own_branch is None
        if table.tls_required and has_certificate and not self.tls_version:
            message = f"project {table.project} accepts only TLS connections"
            hint = "Connect with sslmode=require."
            self._reject(Reject(sqlstate.INVALID_AUTHORIZATION, message, hint, reason="tls_required"))
            return
        host = peer_host(self.peer)
        address_sessions = switchboard.sessions_by_address[host]
        rejection = check_session_limits(table, len(switchboard.sessions), host, address_sessions)
        if rejection:
            self._reject(rejection)
            return
        self.session = Session(switchboard, self.canceller, self.transport, self.peer)
        self.session.parameters, self.session.tls_version = dict(startup.parameters), self.tls_version
        self.early_data = startup.remaining
        if self._own_branch is not None:
            startup = replace(startup, branch=self._own_branch)
        self._task = self.loop.create_task(connect(self.session, startup, self._hand_over))
        self._task.add_done_callback(self._on_connect_done)

    def _on_connect_done(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error and self.session:
            log.error("could not start a session", exc_info=error)
            message = "the proxy could not start the session; its log has the reason"
            self.session.reject(Reject(sqlstate.INTERNAL_ERROR, message, reason="failed"))

    def _hand_over(self) -> None:
        """Forward the client's early data to the backend, which has begun to answer, and switch to ClientPipe."""
        session = self.session
        assert session and session.server
        self.transport.set_protocol(ClientPipe(session))
        # Resume before writing: a write that fills the backend's buffer pauses reading again.
        self.transport.resume_reading()
        if self.early_data:
            session.server.write(self.early_data)
            session.bytes_in += len(self.early_data)
            self.early_data = b""
