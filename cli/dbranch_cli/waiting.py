"""Waiting for an object: a watch, not a poll, with its steps shown as they turn.

On a terminal the step that is under way stands on a line of its own with its seconds; elsewhere
each change is one plain line. All of it goes to standard error.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dbranch.api.conditions import Condition, Reason, find_condition
from dbranch.api.enums import ConditionStatus
from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError
from dbranch_cli.failure import NOT_FOUND, STALLED, TIMED_OUT, Failure
from dbranch_cli.formatting import colorize
from dbranch_cli.objects import Body, Store, plural_for, resource_path

_STEPS = (
    Condition.SCHEDULED,
    Condition.STORAGE_READY,
    Condition.POSTGRES_READY,
    Condition.ROUTED,
    Condition.DELETION_BLOCKED,
)
_WATCH_SECONDS = 300
_TICK_SECONDS = 0.2

Goal = Callable[[Mapping[str, Any]], bool]


def current_condition(body: Mapping[str, Any], kind: Condition) -> dict[str, Any] | None:
    """A condition if it speaks of the object's present spec."""
    entry = find_condition(body.get("status"), kind)
    generation = int(body["metadata"].get("generation", 1))
    if entry is None or int(entry.get("observedGeneration", generation)) < generation:
        return None
    return entry


def has_condition(kind: Condition, status: str = ConditionStatus.TRUE) -> Goal:
    """Whether a condition has a status, for the object's present spec."""

    def check(body: Mapping[str, Any]) -> bool:
        entry = current_condition(body, kind)
        return entry is not None and entry["status"] == status

    return check


def is_stopped(body: Mapping[str, Any]) -> bool:
    entry = current_condition(body, Condition.READY)
    return entry is not None and entry["reason"] == Reason.STOPPED


def is_restarted(when: str) -> Goal:
    """Whether a Postgres that was started for this restart accepts."""

    def check(body: Mapping[str, Any]) -> bool:
        node = (body.get("status") or {}).get("node") or {}
        return node.get("restartedAt") == when and has_condition(Condition.READY)(body)

    return check


def is_routed(branch: str) -> Goal:
    """Whether every new session reaches the branch: the proxies have said so."""

    def check(body: Mapping[str, Any]) -> bool:
        route = (body.get("status") or {}).get("route") or {}
        return route.get("branch") == branch and has_condition(Condition.ROUTED)(body)

    return check


def last_reason(body: Mapping[str, Any] | None, prefer: Condition | None = None) -> str:
    """`Reason: message` of what an object waits for, for a time-out's message."""
    if body is None:
        return "nothing is known of it"
    ready = Condition.DELETION_BLOCKED if body["metadata"].get("deletionTimestamp") else Condition.READY
    for kind in (prefer, ready, Condition.READY):
        entry = find_condition(body.get("status"), kind) if kind else None
        if entry and (entry["status"] != ConditionStatus.TRUE or kind == Condition.DELETION_BLOCKED):
            return f"{entry['reason']}: {entry['message']}" if entry.get("message") else str(entry["reason"])
    if not (body.get("status") or {}).get("conditions"):
        return "no part of dbranch has said anything of it; is its controller running?"
    return "dbranch has not looked at the change yet"


@dataclass(frozen=True)
class _WatchFailed:
    """The watch's thread ended, with this error."""

    error: Exception


class ConditionPrinter:
    """The steps of one object, as they come."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty()
        self.began: dict[str, float] = {}
        self.said: dict[str, str] = {}
        # A step's seconds count from the end of the one before it.
        self.mark = time.monotonic()
        self.pending = "waiting"

    def show(self, body: Mapping[str, Any]) -> None:
        """Lines for what is new in the object's conditions."""
        self.pending = "waiting"
        for kind in _STEPS:
            entry = current_condition(body, kind)
            if entry is None:
                continue
            self.began.setdefault(kind, self.mark)
            done = entry["status"] == ConditionStatus.TRUE and kind != Condition.DELETION_BLOCKED
            said = f"{entry['status']} {entry['reason']}"
            if said != self.said.get(kind) and (done or not self.live):
                self._line(kind, entry, done)
            if done and said != self.said.get(kind):
                self.mark = time.monotonic()
            self.said[kind] = said
            if not done and self.pending == "waiting":
                self.pending = kind
        self.tick()

    def tick(self) -> None:
        """The line of the step under way, on a terminal."""
        if self.live and self.pending and not self.quiet:
            seconds = time.monotonic() - self.began.get(self.pending, self.mark)
            reason = self.said.get(self.pending, " ").split(" ")[1]
            sys.stderr.write(f"\r\x1b[K… {self.pending:<15} {reason:<20} {seconds:5.1f} s")
            sys.stderr.flush()

    def end(self) -> None:
        if self.live and self.pending and not self.quiet:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _line(self, kind: Condition, entry: Mapping[str, Any], done: bool) -> None:
        if self.quiet:
            return
        seconds = time.monotonic() - self.began[kind]
        mark = colorize("✓", "green", sys.stderr) if done and self.live else ("+" if done else "-")
        tail = f"{seconds:5.1f} s" if self.live else str(entry.get("message", ""))
        clear = "\r\x1b[K" if self.live else ""
        sys.stderr.write(f"{clear}{mark} {kind:<15} {entry['reason']:<20} {tail}".rstrip() + "\n")
        sys.stderr.flush()


def wait_for(
    store: Store,
    live: Mapping[str, Any],
    goal: Goal,
    what: str,
    timeout: float,
    *,
    prefer: Condition | None = None,
    quiet: bool = False,
) -> Body:
    """The object once it meets the goal.

    `what` is how a message names the goal ("branch x is Ready"), `prefer` the condition that a time-out
    quotes. Failures: TIMED_OUT with the last reason, STALLED, NOT_FOUND where it goes away meanwhile.
    """
    progress, last = ConditionPrinter(quiet), dict(live)
    try:
        for body in _watch_versions(store, live, timeout, progress):
            if body is None:
                raise Failure(NOT_FOUND, "Deleted", f"{what}: it was deleted meanwhile")
            last = body
            progress.show(body)
            if goal(body):
                return body
            stalled = current_condition(body, Condition.STALLED)
            if stalled is not None and stalled["status"] == ConditionStatus.TRUE:
                raise Failure(STALLED, stalled["reason"], f"{stalled['reason']}: {stalled['message']}")
    finally:
        progress.end()
    raise Failure(
        TIMED_OUT,
        "Timeout",
        f"not within {timeout:g} s: {what}; it stays and goes on by itself; at last: {last_word(last, prefer)}",
    )


def wait_deleted(store: Store, live: Mapping[str, Any], what: str, timeout: float, quiet: bool = False) -> None:
    """Returns once this very object is no more; a time-out says what holds it."""
    progress, last = ConditionPrinter(quiet), dict(live)
    try:
        for body in _watch_versions(store, live, timeout, progress):
            if body is None:
                return
            last = body
            progress.show(body)
    finally:
        progress.end()
    raise Failure(
        TIMED_OUT,
        "Timeout",
        f"not within {timeout:g} s: {what}; its deletion goes on by itself; at last: {last_word(last)}",
    )


def _watch_versions(
    store: Store, live: Mapping[str, Any], timeout: float, progress: ConditionPrinter
) -> Iterator[Body | None]:
    """Each version of this very object until the time is over; None, the last, where it is gone."""
    end = time.monotonic() + timeout
    found: queue.SimpleQueue[Body | _WatchFailed | None] = queue.SimpleQueue()
    threading.Thread(target=_list_and_watch, args=(store, dict(live), found), daemon=True).start()
    while (left := end - time.monotonic()) > 0:
        try:
            item = found.get(timeout=min(left, _TICK_SECONDS))
        except queue.Empty:
            progress.tick()
            continue
        if isinstance(item, _WatchFailed):
            raise item.error
        yield item
        if item is None:
            return


def _list_and_watch(store: Store, live: Body, found: queue.SimpleQueue[Body | _WatchFailed | None]) -> None:
    """List, then watch from there; again where the server ends the watch. Runs in a thread of its own."""
    path = resource_path(plural_for(live["kind"]), store.namespace)
    name, uid = live["metadata"]["name"], live["metadata"]["uid"]
    selector = {"fieldSelector": f"metadata.name={name}"}
    failures = 0
    while True:
        try:
            listed = store.connection.get(path, **selector)
            failures = 0
            ours = [item for item in listed["items"] if item["metadata"]["uid"] == uid]
            found.put(ours[0] if ours else None)
            if not ours:
                return
            version = {"resourceVersion": listed["metadata"]["resourceVersion"]}
            for event in store.connection.watch(path, {**selector, **version}, _WATCH_SECONDS):
                if event["type"] == "ERROR":
                    break  # an old resourceVersion: list again
                body = event["object"]
                if event["type"] == "BOOKMARK" or body["metadata"].get("uid") != uid:
                    continue
                found.put(None if event["type"] == "DELETED" else body)
                if event["type"] == "DELETED":
                    return
        except ClusterUnreachable as error:
            failures += 1
            if failures > 5:
                found.put(_WatchFailed(error))
                return
            time.sleep(0.5 * failures)
        except (ApiError, DbranchError) as error:
            found.put(_WatchFailed(error))
            return
        except (ValueError, KeyError) as error:
            found.put(_WatchFailed(ClusterUnreachable(f"the API server's watch cannot be read: {error!r}")))
            return
