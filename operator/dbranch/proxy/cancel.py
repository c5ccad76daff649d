"""Delivery of CancelRequests to the backends that may own their key; no answer comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, cast

from dbranch.proxy import timing
from dbranch.proxy.routes import Backend
from dbranch.proxy.sockets import dial

log = logging.getLogger(__name__)

# Requests in flight to backends; more are dropped: a client never learns the result of a cancel anyway.
MAX_CANCELS_IN_FLIGHT: Final = 64
MAX_GUESSED_CANCELS_PER_SECOND: Final = 200


class _CancelConnection(asyncio.Protocol):
    """Writes the request; `closed` is done when the backend closes, which means that it has read the request."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._packet)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class Canceller:
    """Sends cancel requests within two limits.

    At most MAX_CANCELS_IN_FLIGHT are in flight, and at most MAX_GUESSED_CANCELS_PER_SECOND are sent for keys
    whose owner is unknown: each costs its backend a process, and anybody can send them.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        # A token bucket for guesses, and when it was last filled (loop time).
        self._guess_tokens, self._filled_at = float(MAX_GUESSED_CANCELS_PER_SECOND), 0.0
        self._tasks: set[asyncio.Task[object]] = set()

    def send(
        self, backends: Sequence[Backend], packet: bytes, guessed: bool = False
    ) -> asyncio.Task[object] | None:
        """Send `packet` to as many of `backends` as the limits allow.

        Return a task that ends when each of them has read it, or None if nothing was sent. `guessed`: it is not
        known which of the backends owns the key.
        """
        loop = asyncio.get_running_loop()
        allowed = MAX_CANCELS_IN_FLIGHT - self._in_flight
        if guessed:
            now = loop.time()
            earned = (now - self._filled_at) * MAX_GUESSED_CANCELS_PER_SECOND
            self._guess_tokens = min(MAX_GUESSED_CANCELS_PER_SECOND, self._guess_tokens + earned)
            self._filled_at = now
            allowed = min(allowed, int(self._guess_tokens))
        backends = backends[:allowed]
        if not backends:
            return None
        self._guess_tokens -= len(backends) if guessed else 0
        self._in_flight += len(backends)
        task = loop.create_task(self._deliver_to_all(backends, packet))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _deliver_to_all(self, backends: Sequence[Backend], packet: bytes) -> object:
        try:
            # A failure is worth a warning only if the backend owns the key.
            level = logging.WARNING if len(backends) == 1 else logging.DEBUG
            return await asyncio.gather(*(_deliver(backend, packet, level) for backend in backends))
        finally:
            self._in_flight -= len(backends)


async def _deliver(backend: Backend, packet: bytes, log_level: int) -> None:
    connection = _CancelConnection(packet)
    try:
        async with asyncio.timeout(timing.CANCEL_TIMEOUT_SECONDS):
            await dial(connection, backend.address, backend.port)
            await connection.closed
    except OSError as error:  # TimeoutError is an OSError
        reason = str(error) or "timed out"
        log.log(log_level, "could not send cancel request to branch %s: %s", backend.branch, reason)
    finally:
        if connection.transport:
            connection.transport.abort()
