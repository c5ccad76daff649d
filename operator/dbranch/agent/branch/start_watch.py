"""Threads that wait for a branch's Postgres and request its reconcile, without the delay of a readiness probe."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.answer import Answer
from dbranch.agent.postgres.server import observe_server
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.observe import observe_slot
from dbranch.agent.slot.start_blocks import start_block
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

    def __init__(self, layout: Layout, request: Callable[[str, str], None]) -> None:
        """`request(namespace, name)` requests a reconcile of a DBBranch."""
        self._layout, self._request = layout, request
        self._backoff = Backoff(LONGEST_RETRY_SECONDS)
        self._changed = threading.Condition()
        # By namespace and name of the DBBranch: the slot, and the event that stops its thread.
        self._threads: dict[Key, tuple[str, threading.Event]] = {}
        # Of the branches with a thread, those whose thread has failed and waits before it requests a reconcile.
        self._failed: set[Key] = set()

    def start(self, branch: Branch, endpoint: Endpoint, blocked_by: str | None = None) -> None:
        """Start a thread for the branch's slot, unless there is one; stop its thread for another slot.

        `blocked_by`: why the slot's script does not start Postgres, as it was reported.
        """
        key, stop = (branch.namespace, branch.object_name), threading.Event()
        with self._changed:
            existing = self._threads.get(key)
            if existing and existing[0] == endpoint.slot and key not in self._failed:
                return
            if existing:
                existing[1].set()
            self._failed.discard(key)
            self._threads[key] = endpoint.slot, stop
        args = (key, branch.uid, endpoint, blocked_by, stop)
        threading.Thread(target=self._run, args=args, daemon=True, name=endpoint.slot).start()

    def keep_only(self, branch: Branch, slot: str | None) -> None:
        """Stop the branch's thread unless it waits in this slot: in a slot whose pod is gone it holds the mount."""
        with self._changed:
            existing = self._threads.get((branch.namespace, branch.object_name))
        if existing and existing[0] != slot:
            self.stop(branch)

    def stop(self, branch: Branch) -> None:
        """Stop the branch's thread, if there is one."""
        with self._changed:
            key = branch.namespace, branch.object_name
            existing = self._threads.pop(key, None)
            self._failed.discard(key)
            self._changed.notify_all()
        if existing:
            existing[1].set()

    def wait_idle(self, timeout: float) -> bool:
        """Block until no branch is starting, `timeout` seconds at most; return True if none is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._threads.keys() <= self._failed, timeout)

    def _run(
        self, key: Key, branch_uid: str, endpoint: Endpoint, blocked_by: str | None, stop: threading.Event
    ) -> None:
        try:
            is_due = self._wait(branch_uid, endpoint, blocked_by, stop)
            self._backoff.succeed(key)
        except Exception:
            logger.exception("slot %s", endpoint.slot)
            is_due = True
            delay = self._backoff.fail(key, START_FAILED_RETRY_SECONDS, endpoint.slot, time.monotonic())
            with self._changed:
                if not self._is_current(key, stop):
                    return
                self._failed.add(key)
                self._changed.notify_all()
            stop.wait(delay)
        with self._changed:
            if not self._is_current(key, stop):
                return
            # Requested first: between the two the branch must not seem idle.
            if is_due:
                self._request(*key)
            del self._threads[key]
            self._failed.discard(key)
            self._changed.notify_all()

    def _is_current(self, key: Key, stop: threading.Event) -> bool:
        return self._threads.get(key, ("", None))[1] is stop

    def _wait(
        self, branch_uid: str, endpoint: Endpoint, blocked_by: str | None, stop: threading.Event
    ) -> bool:
        """Wait until a reconcile is due; return False if there is nothing more to wait for."""
        reported = start_block(blocked_by)
        while not stop.is_set():
            if session.await_accepting(self._layout, endpoint, START_WAIT_SECONDS, stop.is_set):
                return True
            slot = observe_slot(self._layout, endpoint.slot)
            if slot.branch_uid != branch_uid:
                return False
            if start_block(slot.start_blocked_by) != reported or slot.bind_not_propagated:
                return True
            if observe_server(self._layout, endpoint).answer is Answer.REFUSES:
                return True
        return False
