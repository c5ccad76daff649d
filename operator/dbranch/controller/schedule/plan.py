"""The decision about a branch's schedules of snapshots: facts -> a run, what goes, status.snapshots. Pure.

`status.snapshots.nextScheduleTime` is the memory: runs before it are done with, the last one from it on is due. The
name of a run's snapshot follows from the branch and the minute, so that one that was ordered, and whose status was
not written any more, is known again. All runs of a branch are late by the same time, which follows from its UID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from dbranch.api.branch import Branch
from dbranch.api.expiry import parse_time
from dbranch.api.schedule import Kept, Schedule, SnapshotsStatus, run_name, run_of
from dbranch.api.snapshot import Snapshot
from dbranch.controller.cron import is_valid, last_run, next_run, shortest_interval
from dbranch.controller.schedule.keep import order_of, plan_keep, shrinking, surplus
from dbranch.controller.snapshot_records import SnapshotRecord

# Runs are spread over this part of the time between two of them, but not over more than that: who schedules something
# for three o'clock does not want it at five.
_SPREAD: Final = 0.1
_MAX_SPREAD: Final = timedelta(minutes=10)
# The agent looks every few seconds whether something was written; for so long a run waits for its word.
WORD_TIME: Final = timedelta(seconds=45)
# Behind creates and restores a run waits for so long at most.
MAX_WAIT: Final = timedelta(minutes=5)
# So long a snapshot that was ordered is waited for before its run is written into the status without it.
_REPORT_TIME: Final = timedelta(minutes=1)
# The clocks of several API servers differ by less than this. What lies further ahead was of a clock that was wrong.
CLOCK_TOLERANCE: Final = timedelta(hours=1)
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class ScheduleFacts:
    """What is known of a branch with schedules.

    `records`: of the scheduled snapshots of this very branch. `is_stopped`: its project is, so nothing is written.
    `can_take`: the branch is stored, and its node reports. `has_room`: the limits allow one more. `node_free`:
    nothing goes before it on the node. `considered`: of the runs until then this process has found nothing to take.
    """

    branch: Branch
    records: Sequence[SnapshotRecord] = ()
    is_stopped: bool = False
    can_take: bool = True
    has_room: bool = True
    node_free: bool = True
    considered: datetime | None = None


@dataclass(frozen=True)
class Run:
    """A snapshot to make. `time`: as the schedules have it."""

    name: str
    schedules: tuple[str, ...]
    time: datetime


@dataclass(frozen=True)
class SchedulePlan:
    """`waits`: a run is due and something goes before it. `late`: since when one is due that is not taken.

    `shrinking`: of which schedules fewer snapshots will be kept, newly.
    """

    status: SnapshotsStatus
    run: Run | None = None
    surplus: tuple[Snapshot, ...] = ()
    considered: datetime | None = None
    waits: bool = False
    late: datetime | None = None
    shrinking: tuple[Kept, ...] = ()


def delay_of(branch: Branch, schedules: Sequence[Schedule]) -> timedelta:
    """Return how much later than its schedules say a branch's runs come."""
    interval = shortest_interval(schedules)
    if interval is None:
        return timedelta()
    digest = hashlib.sha256(branch.uid.encode()).digest()
    fraction = int.from_bytes(digest[:4], "big") / 2**32
    return timedelta(seconds=int(min(interval * _SPREAD, _MAX_SPREAD).total_seconds() * fraction))


def plan_schedules(facts: ScheduleFacts, now: datetime) -> SchedulePlan:
    """Decide about a branch that is not being deleted. `now`: of the API server."""
    branch = facts.branch
    keep = plan_keep(branch.snapshots, branch.runs.keep, facts.records, now)
    plan = _plan_runs(facts, now)
    return replace(
        plan,
        status=replace(plan.status, keep=keep),
        surplus=tuple(surplus(keep, facts.records)),
        shrinking=tuple(shrinking(branch.runs.keep, keep)),
    )


def _plan_runs(facts: ScheduleFacts, now: datetime) -> SchedulePlan:
    branch = facts.branch
    schedules = [s for s in branch.snapshots if s.active and is_valid(s)]
    delay = delay_of(branch, schedules)
    clock = now - delay
    status = _without_future(branch.runs, clock)
    upcoming = next_run(schedules, clock)
    ordered = _last_ordered(facts, clock)
    if ordered and (status.last is None or _time_of(ordered) > status.last):
        status = _reported(status, ordered, next_run(schedules, _time_of(ordered)), now)
    status = replace(status, succeeded=_succeeded(facts, status))
    if upcoming is None:
        return SchedulePlan(replace(status, next=None))
    considered = facts.considered if facts.considered and facts.considered <= clock else None
    times = (status.last, considered, _time_of(ordered) if ordered else None)
    done = max((time for time in times if time), default=_NEVER)
    begin = status.next
    # It is new; or a schedule is that comes earlier, or the clock was ahead. But not if that one has been done: then
    # the clock is a little behind.
    if begin is None or begin > upcoming > done:
        begin = upcoming
    begun = {s.name: time for s in schedules if (time := last_run(s, clock)) and time >= begin}
    # If no schedule has a time from then until now, it was of one that there is no more.
    status = replace(status, next=begin if begun else max(begin, upcoming))
    due = {name: time for name, time in begun.items() if time > done}
    plan = SchedulePlan(status)
    return _plan_due(facts, plan, due, delay, now) if due and not facts.is_stopped else plan


def _plan_due(
    facts: ScheduleFacts, plan: SchedulePlan, due: dict[str, datetime], delay: timedelta, now: datetime
) -> SchedulePlan:
    """Plan the last of the runs that are due, with the schedules of all of them."""
    time = max(due.values())
    since = time + delay
    if not facts.can_take or _is_unfinished(facts):
        return replace(plan, late=since)
    if not _was_written(facts):
        return plan if now < since + WORD_TIME else replace(plan, considered=time)
    if not facts.has_room:
        return replace(plan, late=since)
    if not facts.node_free and now < since + MAX_WAIT:
        return replace(plan, waits=True, late=since)
    run = Run(run_name(facts.branch.object_name, time), tuple(sorted(due)), time)
    return replace(plan, run=run, late=since)


def _without_future(status: SnapshotsStatus, clock: datetime) -> SnapshotsStatus:
    """Return the status without a last run that is still to come: the clock was wrong, and is right again."""
    if status.last is None or status.last <= clock + CLOCK_TOLERANCE:
        return status
    return replace(status, last=None, next=None)


def _last_ordered(facts: ScheduleFacts, clock: datetime) -> SnapshotRecord | None:
    """Return the snapshot of the last run that has one."""
    ordered = [r for r in facts.records if run_of(r.snapshot.object_name)]
    return max((r for r in ordered if _time_of(r) <= clock + CLOCK_TOLERANCE), key=_time_of, default=None)


def _time_of(record: SnapshotRecord) -> datetime:
    return run_of(record.snapshot.object_name) or _NEVER


def _reported(
    status: SnapshotsStatus,
    ordered: SnapshotRecord,
    following: datetime | None,
    now: datetime,
) -> SnapshotsStatus:
    """Return the status with the run that was ordered last, once its snapshot is there: one write for both."""
    due = parse_time(ordered.snapshot.origin_time) or now
    if not (ordered.at_rest or ordered.snapshot.deleting or now > due + _REPORT_TIME or now < due):
        return status
    return replace(status, last=_time_of(ordered), next=following)


def _succeeded(facts: ScheduleFacts, status: SnapshotsStatus) -> datetime | None:
    """Return the time of the last snapshot that is stored; written with the run that it is of, or later."""
    last = _last_stored(facts.records)
    if last is None or status.last is None or _time_of(last) > status.last:
        return status.succeeded
    return parse_time(last.snapshot.node.snapshot_time) or status.succeeded


def _last_stored(records: Sequence[SnapshotRecord]) -> SnapshotRecord | None:
    return max((r for r in records if r.snapshot.node.stored), key=order_of, default=None)


def _is_unfinished(facts: ScheduleFacts) -> bool:
    """Return True if a snapshot that was ordered is still to be taken: another one would wait for the same."""
    return any(
        not r.at_rest and not r.snapshot.deleting and not r.snapshot.node.stored for r in facts.records
    )


def _was_written(facts: ScheduleFacts) -> bool:
    """Return True unless it is known that nothing was written since the last scheduled snapshot."""
    last = _last_stored(facts.records)
    if last is None or last.snapshot.node.transaction is None:
        return True
    return (facts.branch.node.transaction or 0) > last.snapshot.node.transaction
