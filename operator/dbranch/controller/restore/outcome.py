"""The end of a restore: complete, failed or let go of, and what it leaves behind. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import NodeRestoreState, RestorePhase
from dbranch.api.expiry import format_time, parse_time
from dbranch.api.snapshot import Snapshot
from dbranch.controller import timing
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.restore.steps import Json, RestorePlan, Step, report
from dbranch.controller.scheduling import is_abandoned

TAKEN_BACK: Final = (NodeRestoreState.FAILED, NodeRestoreState.CANCELED)


def complete(facts: RestoreFacts, now: datetime) -> RestorePlan:
    """Call a restore complete, as the branch's memory has it."""
    restore, branch, record = facts.restore, facts.branch, facts.record
    assert branch is not None and record is not None
    data, order = branch.data, facts.order
    of_this = data if data and data.restore == restore.object_name else None
    text = f"branch {branch.name} has the data of {record.source}"
    if record.undo_snapshot:
        text += (
            f"; what it had is in DBSnapshot {record.undo_snapshot}; dbranch undo {branch.name} takes it back"
        )
    fields: Json = {
        "branchUID": branch.uid,
        "source": record.source,
        "completionTime": record.completion_time or format_time(now),
        "startTime": restore.start_time or record.completion_time or format_time(now),
    }
    optional = {
        "sourceUID": order.source.uid if order else of_this.source_uid if of_this else None,
        "undoSnapshot": record.undo_snapshot,
        "dataTime": facts.answer.data_time if facts.answer else of_this.time if of_this else None,
        "heldSeconds": None if facts.held_seconds is None else round(facts.held_seconds, 3),
    }
    fields |= {key: value for key, value in optional.items() if value is not None}
    return report(facts, RestorePhase.COMPLETE, Finding(Reason.RESTORED, text), now, **fields)


def fail(facts: RestoreFacts, finding: Finding, now: datetime, **fields: Any) -> RestorePlan:
    """End a restore that changed nothing, or was taken back: the snapshot that waits for the old data goes first."""
    left = _undo_left(facts)
    if left:
        return left
    began = facts.order is not None or facts.restore.phase == RestorePhase.RUNNING
    phase = RestorePhase.FAILED if began else RestorePhase.REJECTED
    return report(
        facts,
        phase,
        finding,
        now,
        completionTime=format_time(now),
        undoSnapshot=None,
        **{key: value for key, value in fields.items() if key != "undoSnapshot"},
    )


def _undo_left(facts: RestoreFacts) -> RestorePlan | None:
    """Return the plan that deletes the undo snapshot, if it exists and gets no data any more.

    Of a branch that is gone nobody knows whether its data was exchanged: its agent puts the old data away, or says
    that the snapshot is lost, and then it goes (`snapshot/plan.py:has_no_maker`).
    """
    if not facts.is_undo_read:
        return RestorePlan({}, Step.READ_UNDO)
    undo, branch = facts.own_undo, facts.branch
    if undo is None or undo.deleting or undo.node.snapshot_time is not None:
        return None
    is_of_branch = branch is not None and branch.uid == undo.branch_uid
    is_lost = undo.node.storage is not None and undo.node.storage.reason == Reason.SNAPSHOT_LOST
    is_empty = undo.node_name is None or is_of_branch or is_lost
    return RestorePlan({}, Step.DELETE_UNDO) if is_empty else None


def let_go(facts: RestoreFacts) -> RestorePlan:
    """Let go of a deleted restore that is ordered of nobody."""
    left = _undo_left(facts)
    if left:
        return left
    is_held_back = names.CONTROLLER_FINALIZER in facts.restore.finalizers
    return RestorePlan({}, Step.LET_GO if is_held_back else None)


def clean_up(facts: RestoreFacts, now: datetime) -> RestorePlan:
    """Remove what a finished restore leaves behind, and the object itself once its time has come."""
    restore, branch, answer = facts.restore, facts.branch, facts.answer
    requeue = None
    if facts.order and branch and restore.phase != RestorePhase.COMPLETE:
        abandoned = facts.node is not None and is_abandoned(facts.node, branch.annotations)
        if abandoned or (answer and answer.state in TAKEN_BACK):
            return RestorePlan({}, Step.END_ORDER)
        requeue = timing.RESTORE_RUNNING_SECONDS
    surplus = surplus_copies(facts) if restore.phase == RestorePhase.COMPLETE else ()
    if surplus:
        return RestorePlan({}, Step.DELETE_COPIES, surplus=surplus)
    if names.CONTROLLER_FINALIZER in restore.finalizers:
        return RestorePlan({}, Step.LET_GO)
    ttl, completed = restore.ttl_seconds, parse_time(restore.completion_time)
    if ttl is not None and completed is not None and not restore.deleting and not facts.is_gone:
        left = (completed + timedelta(seconds=ttl) - now).total_seconds()
        if left <= 0:
            return RestorePlan({}, Step.DELETE)
        requeue = left + 1
    return RestorePlan({}, requeue_after=requeue)


def surplus_copies(facts: RestoreFacts) -> tuple[Snapshot, ...]:
    """Return the copies of former data that the branch has too many of, the oldest first.

    Protected ones do not count, and stay; so does what is being copied. Only the branch's last restore looks: an
    older one, reconciled again, deletes nothing.
    """
    branch, project = facts.branch, facts.project
    is_last = branch is not None and branch.restores and branch.restores[-1].uid == facts.restore.uid
    if project is None or project.deleting or branch is None or not is_last:
        return ()
    counted = [c for c in facts.copies if not c.protected and not c.deleting and c.branch_uid == branch.uid]
    counted.sort(key=lambda c: (c.node.generation or float("inf"), c.created or ""))
    surplus = counted[: max(0, len(counted) - project.undo.copies)]
    return tuple(c for c in surplus if c.node.stored and c.uid not in facts.in_use)
