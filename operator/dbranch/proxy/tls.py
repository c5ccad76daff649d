"""The proxy's certificate: a mounted Secret of type kubernetes.io/tls, loaded again when its files change."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path
from typing import Any, Final

from dbranch.proxy import timing

log = logging.getLogger(__name__)

ALPN: Final = "postgresql"


class Certificate:
    """`tls.crt` and `tls.key` in `directory`, as the TLS context of a server (TLS 1.2 and later)."""

    def __init__(self, directory: Path) -> None:
        self._files = directory / "tls.crt", directory / "tls.key"
        self._context: ssl.SSLContext | None = None
        # (inode, modification time, size) of each file at the last load; None before the first check.
        self._loaded_versions: list[tuple[int, int, int]] | None = None
        self._next_check = 0.0

    def context(self) -> ssl.SSLContext | None:
        """Return the context for the current files, or None while no certificate has loaded.

        A renewal that does not load is logged once, and the previous certificate stays in use.
        """
        now = time.monotonic()
        if now < self._next_check:
            return self._context
        self._next_check = now + timing.CERTIFICATE_CHECK_SECONDS
        stat_error: OSError | None = None
        versions: list[tuple[int, int, int]] = []
        try:
            versions = [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (f.stat() for f in self._files)]
        except OSError as error:
            stat_error = error
        if versions != self._loaded_versions:
            self._loaded_versions = versions
            self._load(stat_error)
        return self._context

    def _load(self, stat_error: OSError | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([ALPN])
        try:
            if stat_error:
                raise stat_error
            context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:
            effect = "the previous certificate stays in use" if self._context else "TLS is not offered"
            log.error("certificate %s does not load (%s); %s", self._files[0], error, effect)
        else:
            self._context = context


class HandshakeQueue:
    """Turns for TLS handshakes, in the order of their ClientHellos: one begins every MIN_HANDSHAKE_SPACING_SECONDS.

    A handshake that has begun holds up no other one, however long its client takes.
    """

    def __init__(self) -> None:
        # Who leaves while it waits leaves the queue.
        self._queue = asyncio.Lock()
        # When the next one may begin (loop time).
        self._next_start = 0.0

    async def wait_turn(self) -> None:
        """Wait until a handshake may begin. The client's time limit covers the wait."""
        loop = asyncio.get_running_loop()
        async with self._queue:
            if self._next_start > loop.time():
                await asyncio.sleep(self._next_start - loop.time())
            self._next_start = loop.time() + timing.MIN_HANDSHAKE_SPACING_SECONDS


async def accept_tls(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext,
    client_hello: bytes,
    timeout: float,
) -> asyncio.Transport | None:
    """Take the server's part in a handshake of which `client_hello` was read already; None if the client has left.

    Raises OSError or SSLError if it fails, or is not over after `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    # The bytes have to reach the TLS layer after its connection_made, which start_tls queues in the loop's next step.
    loop.call_soon(loop.call_soon, _replay, transport, protocol, client_hello)
    return await loop.start_tls(transport, protocol, context, server_side=True, ssl_handshake_timeout=timeout)


def _replay(transport: asyncio.Transport, protocol: asyncio.Protocol, client_hello: bytes) -> None:
    """Feed the TLS layer with bytes that were read before it was there."""
    tls_layer: Any = transport.get_protocol()
    if tls_layer is protocol:
        return
    position = 0
    while position < len(client_hello):
        buffer = tls_layer.get_buffer(len(client_hello) - position)
        part = client_hello[position : position + len(buffer)]
        buffer[: len(part)] = part
        tls_layer.buffer_updated(len(part))
        position += len(part)
