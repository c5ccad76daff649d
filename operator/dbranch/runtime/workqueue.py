"""Visits that the news of other objects ask for, beside those that kopf makes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec

from dbranch.api.errors import DbranchError

logger = logging.getLogger(__name__)

# Seconds after which a visit that failed is made again.
_PAUSE = 2.0

P = ParamSpec("P")


class WorkQueue:
    """One at a time for each object, and behind it one more for whatever has asked meanwhile: a burst costs few.

    In this process only: who starts visits everything anyway. (A poke, which an annotation makes of it, is a write
    that goes to everybody who watches.) Everything is called on kopf's loop; the visits run in threads.
    """

    def __init__(self, pause: float = _PAUSE) -> None:
        self._pause = pause
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._again: set[tuple[str, str]] = set()

    def ask(self, key: tuple[str, str], call: Callable[P, object], *args: P.args, **more: P.kwargs) -> None:
        """`call` is called for the object `key`, from now on; a DbranchError of it or an OSError: later once more."""
        if key in self._tasks:
            self._again.add(key)
            return

        async def visits() -> None:
            try:
                self._again.add(key)
                while key in self._again:
                    self._again.discard(key)
                    try:
                        await asyncio.to_thread(call, *args, **more)
                    except (DbranchError, OSError) as error:
                        logger.warning("%s/%s: %s", *key, error)
                        self._again.add(key)
                        await asyncio.sleep(self._pause)
            finally:
                self._again.discard(key)
                del self._tasks[key]

        self._tasks[key] = asyncio.get_running_loop().create_task(visits())
