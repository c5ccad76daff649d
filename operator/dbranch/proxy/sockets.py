"""TCP as the proxy wants it: listening, dialling, and closing so that the last word arrives."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, Final, TypeVar

P = TypeVar("P", bound=asyncio.BaseProtocol)

# A peer that is gone without a word is known after about 90 s.
_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
# Bytes that may wait for a slow peer before its partner is no longer read.
WRITE_BUFFER: Final = 128 * 1024
_BACKLOG: Final = 1024
# Seconds for a client to take what was written last and to close.
_LINGER: Final = 2.0


def listening_socket(port: int) -> socket.socket:
    """A socket on `port` of every address, IPv6 and IPv4; accepted ones inherit its options."""
    try:
        sock = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    except (OSError, ValueError):
        sock = socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)
    for level, option, value in _OPTIONS:
        sock.setsockopt(level, option, value)
    sock.setblocking(False)
    return sock


async def dial(protocol: P, address: str, port: int) -> P:
    """Connects `protocol` to a backend. Raises OSError."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: protocol, address, port)
    sock = transport.get_extra_info("socket")
    for level, option, value in _OPTIONS:
        sock.setsockopt(level, option, value)
    transport.set_write_buffer_limits(high=WRITE_BUFFER)
    return protocol


def address_of(transport: asyncio.BaseTransport) -> str:
    """The peer as `address:port`, an IPv4 peer of a dual socket without its `::ffff:`."""
    peer: Any = transport.get_extra_info("peername")
    if not peer:
        return "unknown"
    host = str(peer[0]).removeprefix("::ffff:")
    return f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"


def host_of(peer: str) -> str:
    """The address of a peer's name."""
    return peer.rpartition(":")[0]


def is_loopback(peer: str) -> bool:
    """Whether a peer's name is one of the machine (the pod) itself."""
    host = host_of(peer).strip("[]")
    return bool(host) and ipaddress.ip_address(host).is_loopback


class _Lingering(asyncio.Protocol):
    """Reads and drops until the peer closes. A close with bytes unread would be a reset, which takes
    from the peer what it has not read yet: the ErrorResponse."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LINGER, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()


def close_after_writing(transport: asyncio.Transport) -> None:
    """Ends a connection so that what was written to it arrives first."""
    if transport.is_closing():
        return
    transport.set_protocol(_Lingering(transport))
    if transport.can_write_eof():
        transport.write_eof()
        transport.resume_reading()
    else:
        transport.close()
