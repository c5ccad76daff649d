"""Reconciles that are requested in the process, beside those that kopf starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec

from dbranch.api.errors import DbranchError

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 2.0

P = ParamSpec("P")


class WorkQueue:
    """Runs one reconcile of an object at a time; requests that come meanwhile share one more behind it.

    The requests are kept in memory only: a process that starts reconciles every object anyway. (The annotation that
    requests a reconcile is a write, which the API server sends to everybody who watches the object.) Use it on
    kopf's event loop; the reconciles run in threads.
    """

    def __init__(self, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._retry_seconds = retry_seconds
        self._tasks: dict[tuple[str, ...], asyncio.Task[None]] = {}
        self._pending: set[tuple[str, ...]] = set()

    def add(
        self, key: tuple[str, ...], reconcile: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call `reconcile` for the object `key` from now on; retry it after a DbranchError or an OSError."""
        if key in self._tasks:
            self._pending.add(key)
            return

        async def run() -> None:
            try:
                self._pending.add(key)
                while key in self._pending:
                    self._pending.discard(key)
                    try:
                        await asyncio.to_thread(reconcile, *args, **kwargs)
                    except (DbranchError, OSError) as error:
                        logger.warning("%s: %s", "/".join(key), error)
                        self._pending.add(key)
                        await asyncio.sleep(self._retry_seconds)
            finally:
                self._pending.discard(key)
                del self._tasks[key]

        self._tasks[key] = asyncio.get_running_loop().create_task(run())
