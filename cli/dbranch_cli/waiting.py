"""Wait for an object by a watch, and print its conditions as they change.

On a terminal the condition that is waited for has a line of its own with its seconds; elsewhere each change
is one plain line. All of this goes to standard error.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dbranch.api.catalog import CATALOG
from dbranch.api.conditions import Condition, Reason, find_condition
from dbranch.api.enums import ConditionStatus
from dbranch.api.errors import DbranchError
from dbranch_cli.colors import colorize
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import escape_controls
from dbranch_cli.objects import Body, Store, plural_for
from dbranch_cli.watching import follow

_SHOWN_CONDITIONS = (
    Condition.SCHEDULED,
    Condition.STORAGE_READY,
    Condition.POSTGRES_READY,
    Condition.ROUTED,
    Condition.DELETION_BLOCKED,
)
_REDRAW_SECONDS = 0.2
_CLEAR_LINE = "\r\x1b[K"

Goal = Callable[[Mapping[str, Any]], bool]


def current_condition(body: Mapping[str, Any], condition_type: Condition) -> dict[str, Any] | None:
    """Return a condition, or None if it is absent or was observed for an older generation of the spec."""
    condition = find_condition(body.get("status"), condition_type)
    generation = int(body["metadata"].get("generation", 1))
    if condition is None or int(condition.get("observedGeneration", generation)) < generation:
        return None
    return condition


def _remedy_of(condition: Mapping[str, Any]) -> str:
    """Return what to do about a condition, or an empty string if it heals by itself."""
    entry = CATALOG.get(Reason(condition["reason"]))
    return entry.remedy if entry and condition["status"] == ConditionStatus.FALSE else ""


def has_condition(condition_type: Condition, status: str = ConditionStatus.TRUE) -> Goal:
    """Return a goal: a condition has this status for the object's present spec."""

    def check(body: Mapping[str, Any]) -> bool:
        condition = current_condition(body, condition_type)
        return condition is not None and condition["status"] == status

    return check


def is_stopped(body: Mapping[str, Any]) -> bool:
    """Return whether Ready has the reason Stopped for the object's present spec."""
    condition = current_condition(body, Condition.READY)
    return condition is not None and condition["reason"] == Reason.STOPPED


def is_restarted(restarted_at: str, reset_alter_system: bool = False) -> Goal:
    """Return a goal: the branch is Ready with a Postgres that was started for this restart, and reset for it."""

    def check(body: Mapping[str, Any]) -> bool:
        node = (body.get("status") or {}).get("node") or {}
        is_reset = not reset_alter_system or node.get("alterSystemResetAt") == restarted_at
        return is_reset and node.get("restartedAt") == restarted_at and has_condition(Condition.READY)(body)

    return check


def is_routed(branch: str) -> Goal:
    """Return a goal: every proxy of the project has acknowledged the route to this branch."""

    def check(body: Mapping[str, Any]) -> bool:
        route = (body.get("status") or {}).get("route") or {}
        return route.get("branch") == branch and has_condition(Condition.ROUTED)(body)

    return check


def last_reason(body: Mapping[str, Any], primary: Condition | None = None) -> str:
    """Return `Reason: message` of the condition that an object waits for, for the message of a time-out.

    `primary` is preferred over Ready (of an object being deleted: DeletionBlocked).
    """
    ready = Condition.DELETION_BLOCKED if body["metadata"].get("deletionTimestamp") else Condition.READY
    for condition_type in (primary, ready, Condition.READY):
        condition = find_condition(body.get("status"), condition_type) if condition_type else None
        if condition and (
            condition["status"] != ConditionStatus.TRUE
            or condition_type in (Condition.DELETION_BLOCKED, Condition.RECONCILING)
        ):
            reason = str(condition["reason"])
            return f"{reason}: {condition['message']}" if condition.get("message") else reason
    if not (body.get("status") or {}).get("conditions"):
        return "no conditions reported yet; check that the dbranch controller is running"
    return "the change is not reconciled yet"


@dataclass(frozen=True)
class _WatchFailed:
    """The last item of the queue if the watching thread fails."""

    error: Exception


class Printer(Protocol):
    """What a wait shows of an object; on a terminal it has a line of its own that is drawn anew."""

    def print_changes(self, body: Mapping[str, Any]) -> None: ...

    def redraw(self) -> None: ...

    def clear(self) -> None: ...


class ConditionPrinter:
    """Prints the conditions of one object as they change."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty()
        self.started_at: dict[str, float] = {}
        self.printed: dict[str, str] = {}
        # A condition's seconds count from when the one before it became True.
        self.previous_done_at = time.monotonic()
        self.pending = "waiting"

    def print_changes(self, body: Mapping[str, Any]) -> None:
        """Print a line for each condition that has changed."""
        self.pending = "waiting"
        for condition_type in _SHOWN_CONDITIONS:
            condition = current_condition(body, condition_type)
            if condition is None:
                continue
            self.started_at.setdefault(condition_type, self.previous_done_at)
            done = (
                condition["status"] == ConditionStatus.TRUE and condition_type != Condition.DELETION_BLOCKED
            )
            state = f"{condition['status']} {condition['reason']}"
            changed = state != self.printed.get(condition_type)
            # What somebody has to mend is said at once, not when the time is over.
            if changed and (done or not self.live or _remedy_of(condition)):
                self._print_line(condition_type, condition, done)
            if done and changed:
                self.previous_done_at = time.monotonic()
            self.printed[condition_type] = state
            if not done and self.pending == "waiting":
                self.pending = condition_type
        self.redraw()

    def redraw(self) -> None:
        """Draw the line of the condition that is waited for, on a terminal."""
        if self.live and self.pending and not self.quiet:
            seconds = time.monotonic() - self.started_at.get(self.pending, self.previous_done_at)
            reason = self.printed.get(self.pending, " ").split(" ")[1]
            sys.stderr.write(f"{_CLEAR_LINE}… {self.pending:<15} {reason:<20} {seconds:5.1f} s")
            sys.stderr.flush()

    def clear(self) -> None:
        """Clear the line of the condition that is waited for."""
        if self.live and self.pending and not self.quiet:
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()

    def _print_line(self, condition_type: Condition, condition: Mapping[str, Any], done: bool) -> None:
        if self.quiet:
            return
        seconds = time.monotonic() - self.started_at[condition_type]
        sign = "+" if done else "-"
        if self.live:
            sign = colorize("✓", "green", sys.stderr) if done else colorize("!", "yellow", sys.stderr)
        detail = f"{seconds:5.1f} s" if self.live and done else str(condition.get("message", ""))
        clear = _CLEAR_LINE if self.live else ""
        line = f"{clear}{sign} {condition_type:<15} {condition['reason']:<20} {escape_controls(detail)}"
        sys.stderr.write(line.rstrip() + "\n")
        sys.stderr.flush()


def wait_for(
    store: Store,
    live: Mapping[str, Any],
    goal: Goal,
    goal_text: str,
    timeout: float,
    *,
    primary: Condition | None = None,
    quiet: bool = False,
    since: Mapping[str, Any] | None = None,
    printer: Printer | None = None,
) -> Body:
    """Return the object once it meets the goal.

    `goal_text` is the goal in messages ("branch x is Ready"), `primary` the condition that a time-out quotes,
    `timeout` in seconds. Raise Failure with TIMED_OUT and the last reason, STALLED, NOT_FOUND if the object is
    deleted meanwhile, or INTERRUPTED. `since`: the object before a request that changes no spec: what it was stalled
    by then is no answer to the request, until it has changed. `printer`: in place of that of the conditions.
    """
    before = current_condition(since, Condition.STALLED) if since else None
    printer, last = printer or ConditionPrinter(quiet), dict(live)
    try:
        for body in _watch_versions(store, live, timeout, printer):
            if body is None:
                message = f"the object was deleted while waiting until {goal_text}"
                raise Failure(ExitCode.NOT_FOUND, "Deleted", message)
            last = body
            printer.print_changes(body)
            if goal(body):
                return body
            stalled = current_condition(body, Condition.STALLED)
            if stalled != before:
                before = None
            if stalled is not None and stalled["status"] == ConditionStatus.TRUE and before is None:
                message = f"{stalled['reason']}: {stalled['message']}"
                raise Failure(ExitCode.STALLED, stalled["reason"], message)
    except KeyboardInterrupt:
        raise interrupted(f"waiting until {goal_text}; the object stays and is still reconciled") from None
    finally:
        printer.clear()
    raise Failure(
        ExitCode.TIMED_OUT,
        "Timeout",
        f"timed out after {timeout:g} s waiting until {goal_text}; the object stays and is still reconciled;"
        f" last reason: {last_reason(last, primary)}",
    )


def wait_deleted(
    store: Store, live: Mapping[str, Any], object_text: str, timeout: float, quiet: bool = False
) -> None:
    """Return once exactly this object (by its UID) does not exist any more.

    `object_text` is the object in messages ("branch x"), `timeout` in seconds. Raise Failure with TIMED_OUT and
    what blocks the deletion.
    """
    printer, last = ConditionPrinter(quiet), dict(live)
    try:
        for body in _watch_versions(store, live, timeout, printer):
            if body is None:
                return
            last = body
            printer.print_changes(body)
    except KeyboardInterrupt:
        raise interrupted(f"waiting until {object_text} is deleted; the deletion continues") from None
    finally:
        printer.clear()
    raise Failure(
        ExitCode.TIMED_OUT,
        "Timeout",
        f"timed out after {timeout:g} s waiting until {object_text} is deleted; the deletion continues;"
        f" last reason: {last_reason(last)}",
    )


def interrupted(doing: str) -> Failure:
    """Return the end of a command that was interrupted while `doing`, with what goes on in the cluster."""
    return Failure(ExitCode.INTERRUPTED, "Interrupted", f"interrupted while {doing}")


def _watch_versions(
    store: Store, live: Mapping[str, Any], timeout: float, printer: Printer
) -> Iterator[Body | None]:
    """Yield each version of exactly this object until the time-out; None, as the last, if it is deleted."""
    deadline = time.monotonic() + timeout
    versions: queue.SimpleQueue[Body | _WatchFailed | None] = queue.SimpleQueue()
    threading.Thread(target=_put_versions, args=(store, dict(live), versions), daemon=True).start()
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            version = versions.get(timeout=min(remaining, _REDRAW_SECONDS))
        except queue.Empty:
            printer.redraw()
            continue
        if isinstance(version, _WatchFailed):
            raise version.error
        yield version
        if version is None:
            return


def _put_versions(store: Store, live: Body, versions: queue.SimpleQueue[Body | _WatchFailed | None]) -> None:
    """Put each version of the object into the queue; None, as the last, if it is gone. Runs in its own thread."""
    name, uid = live["metadata"]["name"], live["metadata"]["uid"]
    selector = {"fieldSelector": f"metadata.name={name}"}
    try:
        for change in follow(store, plural_for(live["kind"]), selector, existing=[live]):
            if change.body["metadata"]["uid"] != uid:
                continue
            versions.put(None if change.deleted else change.body)
            if change.deleted:
                return
    except DbranchError as error:
        versions.put(_WatchFailed(error))
