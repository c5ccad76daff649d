"""Cancel requests: each goes to the backend that owns the key, and nothing comes back."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from dbranch.proxy.routes import Place
from dbranch.proxy.sockets import dial

log = logging.getLogger(__name__)

# Cancel requests under way at once; more are dropped, as nobody is told how one ended anyway.
_MOST: Final = 64
_TIMEOUT: Final = 5.0


class _Sent(asyncio.Protocol):
    """Writes the request and waits until the backend closes, which says that it was looked at."""

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
    """Sends cancel requests, at most `_MOST` at once."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, place: Place, packet: bytes) -> asyncio.Task[None] | None:
        """Sends `packet` to the backend at `place`. The task ends when the backend has taken it."""
        if len(self._tasks) >= _MOST:
            log.warning("a cancel request was dropped: %d are under way", _MOST)
            return None
        task = asyncio.get_running_loop().create_task(_deliver(place, packet))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _deliver(place: Place, packet: bytes) -> None:
    sent = _Sent(packet)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await dial(sent, place.address, place.port)
            await sent.closed
    except OSError as error:  # a time-out is one, too
        log.warning("cancel request to branch %s: %s", place.branch, error or "timed out")
    finally:
        if sent.transport:
            sent.transport.abort()
