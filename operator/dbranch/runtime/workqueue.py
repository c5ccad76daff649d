"""A role's reconciles: one at a time for each object, retried with growing delays, shared fairly by namespaces."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from dbranch.api.errors import ClusterUnreachable, DbranchError
from dbranch.runtime.backoff import delay_after
from dbranch.runtime.result import Key, Result

logger = logging.getLogger(__name__)

# More than processors, since reconciles mostly wait for the API server.
_WORKERS: Final = 24
# Of the workers, those that one namespace can have at once: the others are left for everybody else.
_WORKERS_PER_NAMESPACE: Final = 18
_FIRST_RETRY_SECONDS: Final = 2.0
_LONGEST_RETRY_SECONDS: Final = 300.0
# While the API server does not answer: when it does, nobody is to wait for long.
_LONGEST_UNREACHABLE_SECONDS: Final = 10.0
# Objects that were reconciled together are not all resynced together.
_RESYNC_JITTER: Final = 0.1
# A reconcile ends within the time limits of its requests; one that does not, or a queue that starts none, is stuck.
_STUCK_SECONDS: Final = 600.0
# An object that is due within this time is not idle, and the time after which that is looked at again.
_SOON_SECONDS: Final = 0.5
_IDLE_POLL_SECONDS: Final = 0.05


@dataclass
class _Entry:
    """An object that the queue knows.

    `due`: time at which it is to be reconciled; `requested`: by an event, not because its time has come; `started`:
    time since which it is being reconciled; `attempts`: reconciles without success since the last event.
    """

    context: contextvars.Context
    due: float | None = None
    requested: bool = False
    started: float | None = None
    attempts: int = 0
    gone: bool = False


class WorkQueue:
    """Calls `reconcile(key, resync)` in threads. `resync`: no event asked for it, its time has come.

    The requests are kept in memory only: a process that starts reconciles every object anyway. After an exception of
    any kind a reconcile is retried, first after two seconds, at last every five minutes (ten seconds, if the API
    server does not answer); the same goes for one that returns an unfinished Result. An event starts that over.
    `on_failure(key, error)` is called in a thread after each exception.

    It works on the event loop that calls `start`; `add` before that is remembered. `add` and `wait_idle` may be
    called from other threads, all else only on the loop.
    """

    def __init__(
        self,
        reconcile: Callable[[Key, bool], Result],
        resync_seconds: float,
        on_failure: Callable[[Key, Exception], None] = lambda key, error: None,
        workers: int = _WORKERS,
        workers_per_namespace: int = _WORKERS_PER_NAMESPACE,
        first_retry_seconds: float = _FIRST_RETRY_SECONDS,
    ) -> None:
        self._reconcile, self._on_failure, self._resync_seconds = reconcile, on_failure, resync_seconds
        self._workers, self._workers_per_namespace = workers, workers_per_namespace
        self._first_retry_seconds = first_retry_seconds
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="reconcile")
        self._entries: dict[Key, _Entry] = {}
        # Whose time has come, in that order.
        self._ready: dict[Key, None] = {}
        # (time, key) of those that wait, a heap; an entry whose `due` is another one is left over.
        self._times: list[tuple[float, Key]] = []
        self._running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakeup: asyncio.TimerHandle | None = None
        self._progress = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Guards `_loop` and `_early`: what was added before the loop was known.
        self._start_lock, self._started = threading.Lock(), threading.Event()
        self._early: dict[Key, None] = {}

    def start(self) -> None:
        """Begin to reconcile, on the running event loop."""
        with self._start_lock:
            self._loop = asyncio.get_running_loop()
            early, self._early = self._early, {}
        for key in early:
            self._add(key, contextvars.copy_context())
        self._started.set()

    def add(self, key: Key) -> None:
        """Reconcile the object as soon as may be, once more if it is being reconciled now; an event asks for it."""
        with self._start_lock:
            loop = self._loop
            if loop is None:
                self._early[key] = None
                return
        if _is_running_here(loop):
            self._add(key, contextvars.copy_context())
        else:
            # A loop that has ended reconciles no more. Nothing of the calling thread's context is passed on: it may
            # be that of another object's reconcile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._add, key, contextvars.Context())

    def wait_idle(self, kind: str, timeout: float) -> bool:
        """Block a thread until no object of `kind` is reconciled or due soon, `timeout` seconds at most.

        Return True if none is.
        """
        deadline = time.monotonic() + timeout
        if not self._started.wait(max(0.0, timeout)) or self._loop is None:
            return False
        # A loop that has ended reconciles no more.
        if self._loop.is_closed():
            return True
        idle = asyncio.run_coroutine_threadsafe(self._until_idle(kind, deadline), self._loop)
        # A loop that ends meanwhile never answers.
        with suppress(TimeoutError, CancelledError):
            return idle.result(max(0.0, timeout) + 1.0)
        return False

    async def _until_idle(self, kind: str, deadline: float) -> bool:
        while is_active := self._is_active(kind):
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(_IDLE_POLL_SECONDS)
        return not is_active

    def _is_active(self, kind: str) -> bool:
        soon = time.monotonic() + _SOON_SECONDS
        return any(
            entry.started is not None or (entry.due is not None and entry.due <= soon)
            for key, entry in self._entries.items()
            if key.kind == kind
        )

    def _add(self, key: Key, context: contextvars.Context) -> None:
        entry = self._entries.setdefault(key, _Entry(context))
        entry.gone, entry.requested, entry.attempts, entry.due = False, True, 0, time.monotonic()
        if entry.started is None:
            self._ready[key] = None
            self._start()

    def forget(self, key: Key) -> None:
        """Reconcile the object no more: it is gone."""
        self._ready.pop(key, None)
        entry = self._entries.get(key)
        if entry and entry.started is None:
            del self._entries[key]
        elif entry:
            entry.gone = True

    def trouble(self) -> str | None:
        """Return what is stuck, for a liveness probe; None if nothing is."""
        now = time.monotonic()
        for key, entry in self._entries.items():
            if entry.started is not None and now - entry.started > _STUCK_SECONDS:
                return f"the reconcile of {'/'.join(key)} has run for {now - entry.started:.0f} s"
        if self._ready and now - self._progress > _STUCK_SECONDS:
            return f"{len(self._ready)} objects wait, and no reconcile has begun for {_STUCK_SECONDS:.0f} s"
        return None

    def _start(self) -> None:
        """Start reconciles while there are workers; of namespaces with as many running, the first request wins."""
        while self._running.total() < self._workers:
            free = [k for k in self._ready if self._running[k.namespace] < self._workers_per_namespace]
            if not free:
                break
            key = min(free, key=lambda key: self._running[key.namespace])
            del self._ready[key]
            self._running[key.namespace] += 1
            entry = self._entries[key]
            resync, entry.requested = not entry.requested, False
            entry.due, entry.started = None, time.monotonic()
            self._progress = entry.started
            task = asyncio.get_running_loop().create_task(self._run(key, entry, resync))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, key: Key, entry: _Entry, resync: bool) -> None:
        loop = asyncio.get_running_loop()
        context = entry.context.copy()
        try:
            delay = await loop.run_in_executor(
                self._executor, context.run, self._reconciled, key, resync, entry.attempts
            )
        finally:
            entry.started = None
            self._running[key.namespace] -= 1
        seconds, succeeded = delay
        if entry.requested and not entry.gone:
            self._ready[key] = None
        elif entry.gone or seconds is None:
            del self._entries[key]
        else:
            entry.attempts = 0 if succeeded else entry.attempts + 1
            entry.due = time.monotonic() + seconds
            heapq.heappush(self._times, (entry.due, key))
        self._wake()
        self._start()

    def _reconciled(self, key: Key, resync: bool, attempts: int) -> tuple[float | None, bool]:
        """Reconcile the object; return the seconds until the next time (None: never), and whether it succeeded."""
        try:
            result = self._reconcile(key, resync)
        except Exception as error:
            if isinstance(error, DbranchError | OSError):
                logger.warning("%s: %s", "/".join(key), error)
            else:
                logger.exception("%s: unexpected", "/".join(key))
            try:
                self._on_failure(key, error)
            except Exception as other:  # noqa: BLE001
                logger.warning("%s: the failure is not reported: %s", "/".join(key), other)
            unreachable = isinstance(error, ClusterUnreachable | OSError)
            longest = _LONGEST_UNREACHABLE_SECONDS if unreachable else _LONGEST_RETRY_SECONDS
            return delay_after(attempts + 1, self._first_retry_seconds, longest), False
        if result.gone:
            return None, True
        if result.unfinished:
            first = result.requeue_after or self._first_retry_seconds
            return delay_after(attempts + 1, first, result.longest or _LONGEST_RETRY_SECONDS), False
        if result.requeue_after is not None:
            return result.requeue_after, True
        return self._resync_seconds * (1 + _RESYNC_JITTER * random.uniform(-1, 1)), True

    def _wake(self) -> None:
        """Make ready whose time has come, and set the one timer to the time that comes next."""
        now = time.monotonic()
        while self._times and self._times[0][0] <= now:
            due, key = heapq.heappop(self._times)
            entry = self._entries.get(key)
            # Another time may have been set since.
            if entry and entry.started is None and entry.due == due:
                self._ready[key] = None
        if self._wakeup:
            self._wakeup.cancel()
            self._wakeup = None
        if self._times:
            self._wakeup = asyncio.get_running_loop().call_later(self._times[0][0] - now, self._on_time)

    def _on_time(self) -> None:
        self._wake()
        self._start()


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
