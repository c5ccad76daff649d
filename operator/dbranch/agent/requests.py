"""Reconciles that are requested in the agent's process: now, or after a delay."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from dbranch.agent.timing import BUSY_RETRY_SECONDS, FAILED_RETRY_SECONDS, LONGEST_RETRY_SECONDS
from dbranch.api.errors import Busy
from dbranch.runtime.backoff import Backoff
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import Result

logger = logging.getLogger(__name__)

# Handlers of kopf reconcile beside them, in threads of kopf's.
_WORKERS: Final = 8
# A request that is due within this time keeps its object from being idle.
_SOON_SECONDS: Final = 0.5

Key = tuple[str, str]


class ReconcileRequests:
    """Requests for reconciles of one kind of object, by namespace and name; at most one per object is pending.

    They are kept in memory only: an agent that starts reconciles every object anyway. A request is no write, and
    while it is pending an event of the object still starts its handler (kopf's TemporaryError sleeps through events:
    tried). Thread-safe; the threads start with the first request.
    """

    def __init__(self, reconcile: Callable[[str, str], Result], name: str) -> None:
        """`name`: of the kind of object, in logs and threads' names."""
        self._reconcile, self._name = reconcile, name
        self._backoff = Backoff(LONGEST_RETRY_SECONDS)
        self._changed = threading.Condition()
        # When the pending requests are due, by time.monotonic().
        self._due: dict[Key, float] = {}
        self._running: set[Key] = set()
        self._threads: list[threading.Thread] = []

    def add(self, namespace: str, name: str, delay: float = 0.0) -> None:
        """Request a reconcile after `delay` seconds, unless one is pending that is due earlier."""
        key, due = (namespace, name), time.monotonic() + delay
        with self._changed:
            self._due[key] = min(due, self._due.get(key, due))
            if not self._threads:
                self._start_threads()
            self._changed.notify_all()

    def run(self, namespace: str, name: str) -> None:
        """Reconcile now, in the caller's thread, and request what the result or an exception asks for."""
        key = namespace, name
        try:
            delay = self._reconcile(namespace, name).requeue_after
        except Busy as error:
            logger.info("%s %s/%s: %s", self._name, namespace, name, error)
            delay = BUSY_RETRY_SECONDS
        except Exception as error:  # noqa: BLE001
            log_error(logger, error, f"{self._name} {namespace}/{name}")
            delay = self._backoff.fail(key, FAILED_RETRY_SECONDS, None, time.monotonic())
        else:
            self._backoff.succeed(key)
        if delay is not None:
            self.add(namespace, name, delay)

    def wait_idle(self, timeout: float) -> None:
        """Block until no request is being served or due soon, `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._is_active() and time.monotonic() < deadline:
                self._changed.wait(min(_SOON_SECONDS, max(0.0, deadline - time.monotonic())))

    def _is_active(self) -> bool:
        soon = time.monotonic() + _SOON_SECONDS
        return bool(self._running) or any(due <= soon for due in self._due.values())

    def _start_threads(self) -> None:
        self._threads = [
            threading.Thread(target=self._serve, daemon=True, name=f"{self._name}-{number}")
            for number in range(_WORKERS)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while True:
            key = self._take()
            try:
                self.run(*key)
            finally:
                with self._changed:
                    self._running.discard(key)
                    self._changed.notify_all()

    def _take(self) -> Key:
        """Wait for the first request that is due, of an object that no other thread of these reconciles."""
        with self._changed:
            while True:
                now = time.monotonic()
                free = [(due, key) for key, due in self._due.items() if key not in self._running]
                due, key = min(free, default=(None, None))
                if due is not None and key is not None and due <= now:
                    del self._due[key]
                    self._running.add(key)
                    return key
                self._changed.wait(None if due is None else due - now)
