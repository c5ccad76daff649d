"""What a branch says of its refresh: the condition Refreshed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.errors import InvalidInput
from dbranch.api.restore import Restore
from dbranch.controller.cron import check_schedule
from dbranch.controller.restore_records import RestoreRecords


def refreshed_of(branch: Branch, records: RestoreRecords) -> Finding | None:
    """Return the finding of Refreshed, by the records of all restores."""
    if branch.refresh is None:
        return None
    return refreshed_finding(branch, refreshes_of(branch, records), records.refused.get(branch.uid))


def refreshes_of(branch: Branch, records: RestoreRecords) -> list[Restore]:
    """Return the restores that the refresh of this very branch has made."""
    restores = records.of_branch(branch.namespace, branch.project, branch.name)
    return [restore for restore in restores if restore.scheduled_for == branch.uid]


def refreshed_finding(
    branch: Branch, restores: Sequence[Restore], refused: Finding | None = None
) -> Finding | None:
    """Return the finding of Refreshed; None if the branch has no refresh, or it is Paused.

    `refused`: the API server's refusal of the last run. What was said of the last one stays said while the next one
    is under way, and after its DBRestore is gone.
    """
    if branch.refresh is None:
        return None
    try:
        check_schedule(branch.refresh)
    except InvalidInput as error:
        text = f"the refresh of branch {branch.name}: {str(error)[:100]}; it is not refreshed"
        return Finding(Reason.INVALID_SCHEDULE, f"{text}; correct spec.refresh")
    if not branch.refresh.active:
        return None
    if refused:
        return refused
    last = last_finished(restores)
    if last and last.failure:
        # Of a project it is only a warning; here nothing was replaced because of it.
        is_low = last.failure.reason == Reason.POOL_LOW
        return Finding(Reason.POOL_FULL, last.failure.message) if is_low else last.failure
    reported = Finding.from_dict(find_condition(branch.status, Condition.REFRESHED))
    if last is None and reported and reported.reason not in (Reason.INVALID_SCHEDULE, Reason.OBJECT_REFUSED):
        return reported
    return Finding(Reason.ON_SCHEDULE, f"branch {branch.name} is refreshed by its schedule")


def last_finished(restores: Sequence[Restore]) -> Restore | None:
    """Return the last restore of a refresh that is finished."""
    finished = [restore for restore in restores if restore.finished]
    return max(finished, key=lambda restore: restore.object_name, default=None)
