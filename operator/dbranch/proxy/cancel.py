"""Delivery of CancelRequests to the backends that own their key, or may own it; no answer comes back.

Three classes of requests, each with room of its own, so that none can use up another's: those that an ending
session needs (`stop`: queued, never dropped), those of clients whose session this pod has (`send_own`), and
guesses, for keys whose owner is unknown (`send_guesses`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Final, TypeVar, cast

from dbranch.proxy import timing
from dbranch.proxy.routes import Backend
from dbranch.proxy.sockets import dial

log = logging.getLogger(__name__)

# Requests in flight; of guesses and of clients' own ones more are dropped: a client never learns the result.
MAX_STOPS_IN_FLIGHT_PER_BACKEND: Final = 16
MAX_OWN_IN_FLIGHT_PER_KEY: Final = 2
MAX_GUESSES_IN_FLIGHT: Final = 64
# A backend that does not answer occupies no more of the above than this.
MAX_GUESSES_IN_FLIGHT_PER_BACKEND: Final = 4
MAX_GUESSED_CANCELS_PER_SECOND: Final = 200

Address = tuple[str, int]
K = TypeVar("K", bound=Hashable)


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


class _StopQueue:
    """The requests of ending sessions that wait for room at one backend."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting: deque[tuple[bytes, Callable[[], bool], Callable[[], None]]] = deque()


class Canceller:
    """Sends cancel requests within their limits. What it remembers ends with the requests in flight."""

    def __init__(self) -> None:
        self._stops: dict[Address, _StopQueue] = {}
        self._own: Counter[bytes] = Counter()
        self._guesses: Counter[Address] = Counter()
        # A token bucket for guesses, and when it was last filled (loop time).
        self._guess_tokens, self._filled_at = float(MAX_GUESSED_CANCELS_PER_SECOND), 0.0
        self._tasks: set[asyncio.Task[object]] = set()

    # Of sessions that end

    def stop(
        self, backend: Backend, packet: bytes, is_needed: Callable[[], bool], on_sent: Callable[[], None]
    ) -> None:
        """Send `packet` as soon as there is room, unless `is_needed` is False by then; `on_sent` is called after."""
        queue = self._stops.setdefault(_address(backend), _StopQueue())
        queue.waiting.append((packet, is_needed, on_sent))
        self._send_stops(backend, queue)

    def _send_stops(self, backend: Backend, queue: _StopQueue) -> None:
        while queue.waiting and queue.in_flight < MAX_STOPS_IN_FLIGHT_PER_BACKEND:
            packet, is_needed, on_sent = queue.waiting.popleft()
            if is_needed():
                queue.in_flight += 1
                self._start(self._deliver_stop(backend, queue, packet, on_sent))
        if not queue.in_flight and self._stops.get(_address(backend)) is queue:
            del self._stops[_address(backend)]

    async def _deliver_stop(
        self, backend: Backend, queue: _StopQueue, packet: bytes, on_sent: Callable[[], None]
    ) -> None:
        try:
            # The session's end says whether it has helped.
            await _deliver(backend, packet, logging.DEBUG)
        finally:
            queue.in_flight -= 1
            on_sent()
            self._send_stops(backend, queue)

    # Of clients

    def send_own(self, backend: Backend, packet: bytes) -> asyncio.Task[object] | None:
        """Send a client's request to its session's backend.

        Return a task that ends when the backend has read it; None if MAX_OWN_IN_FLIGHT_PER_KEY are in flight.
        """
        if self._own[packet] >= MAX_OWN_IN_FLIGHT_PER_KEY:
            return None
        self._own[packet] += 1
        return self._start(self._deliver_own(backend, packet))

    async def _deliver_own(self, backend: Backend, packet: bytes) -> None:
        try:
            await _deliver(backend, packet, logging.WARNING)
        finally:
            _release(self._own, packet)

    def send_guesses(self, backends: Sequence[Backend], packet: bytes) -> asyncio.Task[object] | None:
        """Send a request whose key has no known owner to as many of `backends` as the limits allow.

        Each guess costs its backend a process, and anybody can send them. Return a task that ends when each
        backend has read its request; None if nothing was sent.
        """
        now = asyncio.get_running_loop().time()
        earned = (now - self._filled_at) * MAX_GUESSED_CANCELS_PER_SECOND
        self._guess_tokens = min(MAX_GUESSED_CANCELS_PER_SECOND, self._guess_tokens + earned)
        self._filled_at = now
        room = min(MAX_GUESSES_IN_FLIGHT - self._guesses.total(), int(self._guess_tokens))
        free = [b for b in backends if self._guesses[_address(b)] < MAX_GUESSES_IN_FLIGHT_PER_BACKEND]
        chosen = free[: max(room, 0)]
        if not chosen:
            return None
        self._guess_tokens -= len(chosen)
        for backend in chosen:
            self._guesses[_address(backend)] += 1
        return self._start(self._deliver_guesses(chosen, packet))

    async def _deliver_guesses(self, backends: Sequence[Backend], packet: bytes) -> None:
        await asyncio.gather(*(self._deliver_guess(backend, packet) for backend in backends))

    async def _deliver_guess(self, backend: Backend, packet: bytes) -> None:
        try:
            await _deliver(backend, packet, logging.DEBUG)
        finally:
            _release(self._guesses, _address(backend))

    def _start(self, delivery: Coroutine[object, object, object]) -> asyncio.Task[object]:
        task = asyncio.get_running_loop().create_task(delivery)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _address(backend: Backend) -> Address:
    return backend.address, backend.port


def _release(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


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
