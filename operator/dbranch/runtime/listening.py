"""Sockets that listen on every address of the pod, of both IP families."""

from __future__ import annotations

import socket


def create_listener(port: int, backlog: int) -> socket.socket:
    """Return a non-blocking socket that listens on `port` (0: a free one) of every IPv6 and IPv4 address.

    A kernel without IPv6 gets one for IPv4. Raise OSError if the port is taken.
    """
    try:
        sock = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
        )
    except (OSError, ValueError):
        sock = socket.create_server(("0.0.0.0", port), backlog=backlog)
    sock.setblocking(False)
    return sock
