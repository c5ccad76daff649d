"""Admission of dials to backends, so that a Postgres that does not answer is not knocked at by a crowd.

While a backend answers, MAX_UNANSWERED_DIALS sessions at once may dial it; the others wait for their turn. After a
failure one session at a time dials, with growing delays, and those that wait share its answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Collection
from typing import Final

from dbranch.proxy import timing

# Dials at once to one backend that has not begun to answer them.
MAX_UNANSWERED_DIALS: Final = 32

Address = tuple[str, int]


class Gate:
    """The dials to one backend. `failure` is why the last one got no answer, or empty."""

    def __init__(self) -> None:
        self.failure = ""
        self._dialling = 0
        self._delay = timing.MIN_KNOCK_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def in_use(self) -> bool:
        return bool(self._dialling or self._waiting)

    def enter(self) -> bool:
        """Return True if the caller may dial now; it calls `leave` then."""
        if self._room() <= 0:
            return False
        self._dialling += 1
        return True

    def _room(self) -> int:
        """Return how many more sessions may dial now."""
        if self.failure:
            return 0 if self._timer else 1 - self._dialling
        return MAX_UNANSWERED_DIALS - self._dialling

    def leave(self, failure: str | None) -> None:
        """Report a dial's end: None if the backend answered, else why not; empty if it was not brought to an end."""
        self._dialling -= 1
        if failure is None:
            self.failure, self._delay = "", timing.MIN_KNOCK_SECONDS
            if self._timer:
                self._timer.cancel()
                self._timer = None
        elif failure:
            self.failure = failure
            if not self._timer:
                delay = self._delay * random.uniform(0.7, 1.3)
                self._delay = min(2 * self._delay, timing.MAX_KNOCK_SECONDS)
                self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)
        self._wake(self._room())

    def _on_timer(self) -> None:
        self._timer = None
        self._wake(self._room())

    async def wait(self, timeout: float) -> None:
        """Wait for a turn to `enter`, for a change that `wake_all` reports, or for `timeout` seconds."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            # Whoever was woken and does not enter after all leaves its turn to nobody; so nobody waits for long.
            async with asyncio.timeout(min(timeout, timing.MAX_TURN_SECONDS)):
                await turn
        except TimeoutError:
            pass
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _wake(self, count: int) -> None:
        while self._waiting and count > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                count -= 1

    def wake_all(self) -> None:
        """Let everybody who waits decide again: the routes have changed."""
        self._wake(len(self._waiting))


class Gates:
    """The gates of the backends in the table in force."""

    def __init__(self) -> None:
        self._gates: dict[Address, Gate] = {}

    def __len__(self) -> int:
        return len(self._gates)

    def at(self, address: str, port: int) -> Gate:
        gate = self._gates.get((address, port))
        if gate is None:
            gate = self._gates[address, port] = Gate()
        return gate

    def on_change(self, addresses: Collection[Address]) -> None:
        """Forget the gates of backends that are not in `addresses`, and let everybody decide again."""
        for address, gate in tuple(self._gates.items()):
            if address not in addresses:
                del self._gates[address]
            gate.wake_all()
