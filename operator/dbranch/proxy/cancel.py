"""Cancel requests: each goes to the backend that owns the key, and nothing comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, cast

from dbranch.proxy.routes import Backend
from dbranch.proxy.sockets import dial

log = logging.getLogger(__name__)

# Requests to backends under way at once; more are dropped, as nobody is told how one ended anyway.
MOST: Final = 64
GUESSES: Final = 200
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
    """Sends cancel requests, at most `MOST` at once, and at most `GUESSES` a second whose owner is not known:
    each costs its backend a process, and anybody may send them."""

    def __init__(self) -> None:
        self._under_way = 0
        self._guesses, self._filled = float(GUESSES), 0.0
        self._tasks: set[asyncio.Task[object]] = set()

    def send(
        self, places: Sequence[Backend], packet: bytes, guessed: bool = False
    ) -> asyncio.Task[object] | None:
        """Sends `packet` to the backends at `places`, to as many as there is room for. The task ends when
        each of them has taken it; None: nothing was sent. `guessed`: nobody knows which of them owns the key."""
        loop = asyncio.get_running_loop()
        room = MOST - self._under_way
        if guessed:
            now = loop.time()
            self._guesses = min(GUESSES, self._guesses + (now - self._filled) * GUESSES)
            self._filled = now
            room = min(room, int(self._guesses))
        places = places[:room]
        if not places:
            return None
        self._guesses -= len(places) if guessed else 0
        self._under_way += len(places)
        task = loop.create_task(self._deliver(places, packet))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _deliver(self, places: Sequence[Backend], packet: bytes) -> object:
        try:
            # One that fails is news only where the key's owner is known.
            level = logging.WARNING if len(places) == 1 else logging.DEBUG
            return await asyncio.gather(*(_deliver(place, packet, level) for place in places))
        finally:
            self._under_way -= len(places)


async def _deliver(place: Backend, packet: bytes, level: int) -> None:
    sent = _Sent(packet)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await dial(sent, place.address, place.port)
            await sent.closed
    except OSError as error:  # a time-out is one, too
        log.log(level, "cancel request to branch %s: %s", place.branch, str(error) or "timed out")
    finally:
        if sent.transport:
            sent.transport.abort()
