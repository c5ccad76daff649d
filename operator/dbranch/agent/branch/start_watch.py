"""Threads that wait for a branch's Postgres and request its reconcile, without the delay of a readiness probe."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dbranch.agent.branch.steps.start import is_final
from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.observe import observe_slot
from dbranch.agent.timing import LONGEST_RETRY_SECONDS, START_FAILED_RETRY_SECONDS, START_WAIT_SECONDS
from dbranch.api.branch import Branch
from dbranch.runtime.backoff import Backoff

logger = logging.getLogger(__name__)

Key = tuple[str, str]


class StartWatcher:
    """Waits for starting branches, in at most one thread per branch.

    A thread ends when it has requested a reconcile, which starts another one if there still is something to wait
    for, or when the branch is no longer bound in its slot. It changes and reports nothing itself.
    """

    def __init__(self, layout: Layout, request: Callable[[str, str, float], None]) -> None:
        """`request(namespace, name, delay)` requests a reconcile of a DBBranch."""
        self._layout, self._request = layout, request
        self._backoff = Backoff(LONGEST_RETRY_SECONDS)
        self._changed = threading.Condition()
        # By namespace and name of the DBBranch: the slot, and the event that stops its thread.
        self._threads: dict[Key, tuple[str, threading.Event]] = {}

    def start(self, branch: Branch, endpoint: Endpoint) -> None:
        """Start a thread for the branch's slot, unless there is one; stop its thread for another slot."""
        key, stop = (branch.namespace, branch.object_name), threading.Event()
        with self._changed:
            existing = self._threads.get(key)
            if existing and existing[0] == endpoint.slot:
                return
            if existing:
                existing[1].set()
            self._threads[key] = endpoint.slot, stop
        args = (key, branch.uid, endpoint, stop)
        threading.Thread(target=self._run, args=args, daemon=True, name=endpoint.slot).start()

    def stop(self, branch: Branch) -> None:
        """Stop the branch's thread, if there is one."""
        with self._changed:
            existing = self._threads.pop((branch.namespace, branch.object_name), None)
            self._changed.notify_all()
        if existing:
            existing[1].set()

    def wait_idle(self, timeout: float) -> bool:
        """Block until no branch is starting, `timeout` seconds at most; return True if none is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._threads, timeout)

    def _run(self, key: Key, branch_uid: str, endpoint: Endpoint, stop: threading.Event) -> None:
        delay: float | None
        try:
            delay = self._wait(branch_uid, endpoint, stop)
            self._backoff.succeed(key)
        except Exception:
            logger.exception("slot %s", endpoint.slot)
            delay = self._backoff.fail(key, START_FAILED_RETRY_SECONDS, endpoint.slot, time.monotonic())
        with self._changed:
            if self._threads.get(key, ("", None))[1] is not stop:
                return
            # Requested first: between the two the branch must not seem idle.
            if delay is not None:
                self._request(*key, delay)
            del self._threads[key]
            self._changed.notify_all()

    def _wait(self, branch_uid: str, endpoint: Endpoint, stop: threading.Event) -> float | None:
        """Wait until a reconcile is due, and return the delay for it; None if there is nothing more to wait for."""
        while not stop.is_set():
            if session.await_accepting(self._layout, endpoint, START_WAIT_SECONDS):
                return 0.0
            slot = observe_slot(self._layout, endpoint.slot)
            if slot.branch_uid != branch_uid:
                return None
            if is_final(slot.start_blocked_by) or slot.bind_not_propagated:
                return 0.0
        return None
