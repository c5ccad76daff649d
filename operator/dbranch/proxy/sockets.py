"""TCP sockets of the proxy: listening, dialling, naming a peer, and closing without losing the last bytes.

A peer is named by the string `address:port`, with an IPv6 address in brackets.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, ClassVar, Final, TypeVar

from dbranch.proxy import timing
from dbranch.runtime.listening import create_listener

P = TypeVar("P", bound=asyncio.BaseProtocol)

# A peer that disappears without closing is noticed after about 90 s.
_TCP_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
# Unsent bytes to a slow peer from which on the other side of the session is no longer read.
MAX_WRITE_BUFFER_BYTES: Final = 128 * 1024
LISTEN_BACKLOG: Final = 1024
# Connections that were sent an error and have not closed yet.
MAX_LINGERING: Final = 1000


def listening_socket(port: int) -> socket.socket:
    """Return a listener for clients, whose accepted sockets inherit its TCP options."""
    sock = create_listener(port, LISTEN_BACKLOG)
    for level, option, value in _TCP_OPTIONS:
        sock.setsockopt(level, option, value)
    return sock


async def dial(protocol: P, address: str, port: int) -> P:
    """Connect `protocol` to a backend and return it. Raise OSError if the backend cannot be reached."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: protocol, address, port)
    sock = transport.get_extra_info("socket")
    for level, option, value in _TCP_OPTIONS:
        sock.setsockopt(level, option, value)
    transport.set_write_buffer_limits(high=MAX_WRITE_BUFFER_BYTES)
    return protocol


async def adopt(protocol: asyncio.Protocol, sock: socket.socket) -> None:
    """Make a connected socket the connection of `protocol`: its descriptor is the event loop's from here on.

    Raise OSError if the loop cannot take it; the connection is closed then.
    """
    try:
        await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
    finally:
        # uvloop notes the socket after connection_made. If the connection is lost before, uvloop closes its number,
        # and `sock` does so again when it is collected: by then it may be another connection's.
        sock.detach()


def peer_of(transport: asyncio.BaseTransport) -> str:
    """Return the peer's `address:port`, without the `::ffff:` of an IPv4 peer of a dual-stack socket."""
    peername: Any = transport.get_extra_info("peername")
    if not peername:
        return "unknown"
    host = str(peername[0]).removeprefix("::ffff:")
    return f"[{host}]:{peername[1]}" if ":" in host else f"{host}:{peername[1]}"


def peer_host(peer: str) -> str:
    """Return the address part of `address:port`.

    >>> peer_host("192.0.2.7:40000"), peer_host("[2001:db8::7]:40000")
    ('192.0.2.7', '[2001:db8::7]')
    """
    return peer.rpartition(":")[0]


def is_loopback(peer: str) -> bool:
    """Return True if a peer's `address:port` is an address of the pod's own loopback interface."""
    host = peer_host(peer).strip("[]")
    return bool(host) and ipaddress.ip_address(host).is_loopback


class _Lingering(asyncio.Protocol):
    """Reads and discards until the peer closes, or aborts after LINGER_SECONDS.

    Closing with bytes unread would send a reset, which makes the peer lose what it has not read yet: the
    ErrorResponse. At most MAX_LINGERING connections do so; for one more, the oldest is aborted.
    """

    _all: ClassVar[dict[_Lingering, None]] = {}

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(timing.LINGER_SECONDS, transport.abort)
        if len(self._all) >= MAX_LINGERING:
            oldest = next(iter(self._all))
            del self._all[oldest]
            oldest._transport.abort()
        self._all[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._all.pop(self, None)


def close_after_writing(transport: asyncio.Transport) -> None:
    """Close a connection after everything that was written to it has arrived; no-op if it is closing."""
    if transport.is_closing():
        return
    transport.set_protocol(_Lingering(transport))
    if transport.can_write_eof():
        transport.write_eof()
        transport.resume_reading()
    else:
        transport.close()
