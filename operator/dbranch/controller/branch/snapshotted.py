"""What a branch says of its schedules of snapshots: the condition Snapshotted. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dbranch.api.branch import Branch
from dbranch.api.conditions import MESSAGE_LIMIT, WARNING_REASONS, Condition, Finding, Reason, find_condition
from dbranch.api.enums import SnapshotReason
from dbranch.api.errors import InvalidInput
from dbranch.controller.cron import check_schedule
from dbranch.controller.limits import NamespaceLimits, reached_snapshot_limit
from dbranch.controller.snapshot_records import SnapshotRecord, SnapshotRecords

_SCHEDULE_ROOM: Final = 100


def snapshotted_finding(
    branch: Branch,
    records: Sequence[SnapshotRecord],
    limits: NamespaceLimits,
    refused: Finding | None = None,
) -> Finding | None:
    """Return the finding of Snapshotted; None if the branch has no schedules of snapshots that are Active.

    `records`: of the project's snapshots. `refused`: the API server's refusal of the last run.
    """
    for schedule in branch.snapshots:
        try:
            check_schedule(schedule)
        except InvalidInput as error:
            text = f"schedule {schedule.name} of branch {branch.name}: {str(error)[:_SCHEDULE_ROOM]}"
            return Finding(
                Reason.INVALID_SCHEDULE, f"{text}; no snapshots are taken by it; correct spec.snapshots"
            )
    if not any(schedule.active for schedule in branch.snapshots):
        return None
    reached = reached_snapshot_limit(branch.uid, [record.snapshot for record in records], limits)
    if reached:
        is_project = reached == "snapshotsPerProject"
        subject = f"project {branch.project}" if is_project else f"branch {branch.name}"
        fact = f"{subject} has as many snapshots as {limits.path(reached)} of the dbranch chart allows"
        text = f"{fact}: {limits.count(reached)}; the schedules of branch {branch.name} take none"
        return Finding(Reason.LIMIT_EXCEEDED, f"{text}; delete some, or lower keep")
    if refused:
        return refused
    last = last_scheduled(branch, records)
    if last and last.ready and not last.ready.done and last.ready.reason in WARNING_REASONS:
        text = f"snapshot {last.snapshot.name} of branch {branch.name} was not taken: {last.ready.message}"
        return Finding(Reason.SNAPSHOT_FAILED, text[:MESSAGE_LIMIT])
    return Finding(Reason.ON_SCHEDULE, f"snapshots of branch {branch.name} are taken by its schedules")


def snapshotted_of(branch: Branch, records: SnapshotRecords, limits: NamespaceLimits) -> Finding | None:
    """Return the finding of Snapshotted, by the records of all snapshots."""
    if not branch.snapshots:
        return None
    of_project = records.of_project(branch.namespace, branch.project)
    return snapshotted_finding(branch, of_project, limits, records.refused.get(branch.uid))


def is_of_schedule(branch: Branch, record: SnapshotRecord) -> bool:
    """Return True if a schedule of this very branch has made the snapshot."""
    snapshot = record.snapshot
    # Before it is bound, the label says whose it is.
    uid = snapshot.branch_uid or record.ordered_of
    return snapshot.reason == SnapshotReason.SCHEDULE and uid == branch.uid


def last_scheduled(branch: Branch, records: Sequence[SnapshotRecord]) -> SnapshotRecord | None:
    """Return the last snapshot that a schedule of this very branch has made, taken or not."""
    own = [record for record in records if is_of_schedule(branch, record)]
    return max(own, key=lambda record: record.snapshot.object_name, default=None)


def is_reported(branch: Branch, condition_type: Condition, finding: Finding | None) -> bool:
    """Return True if the condition of the branch says that already."""
    condition = find_condition(branch.status, condition_type)
    if condition is None or finding is None:
        return condition is None and finding is None
    return (condition["reason"], condition["message"]) == (finding.reason.value, finding.as_dict()["message"])
