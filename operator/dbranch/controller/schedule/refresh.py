"""The decision about a branch's refresh: which run makes a DBRestore of its own origin. Pure.

`status.refresh.nextScheduleTime` is the memory, as with snapshots; a run is made up within an hour, and not later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from dbranch.api.branch import Branch
from dbranch.api.enums import WhenInUse
from dbranch.api.project import Project
from dbranch.api.restore import Restore
from dbranch.api.schedule import SnapshotsStatus, run_name, run_of
from dbranch.controller.cron import is_valid, last_run, next_run
from dbranch.controller.schedule.plan import CLOCK_TOLERANCE

# A run that was missed is made up within this time: later, people work with the data of the day before.
REFRESH_DEADLINE: Final = timedelta(hours=1)
# In the name of the DBRestores.
REFRESH: Final = "refresh"
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class RefreshFacts:
    """What is known of a branch with a refresh.

    `restores`: those that its refresh has made; `can_run`: its project runs and its node reports; `in_use`: sessions
    are open on it.
    """

    branch: Branch
    restores: Sequence[Restore] = ()
    can_run: bool = True
    in_use: bool = False


@dataclass(frozen=True)
class RefreshPlan:
    """`status`: of `status.refresh`; `name`: of the DBRestore to make, None for none."""

    status: SnapshotsStatus
    name: str | None = None


def plan_refresh(facts: RefreshFacts, now: datetime) -> RefreshPlan:
    """Decide about the refresh of a branch that is not being deleted. `now`: of the API server."""
    branch, schedule, status = facts.branch, facts.branch.refresh, facts.branch.refreshes
    if schedule is None:
        return RefreshPlan(SnapshotsStatus())
    if status.last and status.last > now + CLOCK_TOLERANCE:
        status = SnapshotsStatus()
    upcoming = next_run([schedule], now)
    if not schedule.active or not is_valid(schedule) or upcoming is None:
        return RefreshPlan(replace(status, next=None))
    made = [run_of(restore.object_name) or _NEVER for restore in facts.restores]
    done = max(
        (time for time in (status.last, *made) if time and time <= now + CLOCK_TOLERANCE), default=_NEVER
    )
    begin = status.next
    if begin is None or begin > upcoming > done:
        # It is new, or comes earlier than before; or the clock was ahead.
        begin = upcoming
    time = last_run(schedule, now)
    if time is None or time < begin:
        return RefreshPlan(replace(status, next=max(begin, upcoming)))
    passed = replace(status, next=upcoming)
    if time <= done:
        return RefreshPlan(replace(passed, last=time))
    if now > time + REFRESH_DEADLINE or (facts.in_use and schedule.when_in_use == WhenInUse.SKIP):
        return RefreshPlan(passed)
    if not facts.can_run:
        return RefreshPlan(status)
    return RefreshPlan(replace(passed, last=time), run_name(branch.object_name, time, REFRESH))


def is_in_use(project: Project, branch: Branch) -> bool:
    """Return True if sessions are open on the branch, as the project's proxies say."""
    entries = [entry for proxy in project.proxies for entry in proxy.branches if entry.branch == branch.name]
    return any(entry.sessions or entry.draining for entry in entries)
