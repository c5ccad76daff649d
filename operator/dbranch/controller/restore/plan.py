"""The decision of a restore's reconcile: facts -> the next step, or the status to report. Pure.

A reconcile plans, takes the step, looks at what came of it, and plans again. So what a process finds that follows one
that was cut off behind any write is no other case: it is finished, or taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Any, Final

from dbranch.api import names
from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import NodeRestoreState, RestorePhase, RestoreState, Undo
from dbranch.api.expiry import format_time, parse_time
from dbranch.api.restore import BranchRestore, Restore, done_before
from dbranch.api.snapshot import Snapshot
from dbranch.controller import timing
from dbranch.controller.conditions import report_true_conditions
from dbranch.controller.restore.admission import Admitted, Waiting, admit, deadline_of, protected_finding
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.routing import exchanging, is_held
from dbranch.controller.scheduling import is_abandoned

Json = dict[str, Any]


class Step(Enum):
    """What is done next. Each may have been done already by a process that was cut off: then it changes nothing."""

    READ_UNDO = auto()
    MAKE_UNDO = auto()
    ORDER = auto()
    # Behind the order, on which the agent works meanwhile.
    BIND_UNDO = auto()
    LABEL = auto()
    # The finalizer: from here the DBRestore cannot go before it is done.
    HOLD = auto()
    SWITCH = auto()
    CANCEL = auto()
    DELETE_UNDO = auto()
    END_ORDER = auto()
    DELETE_COPIES = auto()
    LET_GO = auto()
    DELETE = auto()


@dataclass(frozen=True)
class RestorePlan:
    """`step`: to be taken, and planned again behind it. None: `status` is reported, and an event is waited for.

    `order`: that ORDER writes. `surplus`: the snapshots that DELETE_COPIES deletes. `requeue_after`: seconds; None:
    only an event changes something.
    """

    status: Json
    step: Step | None = None
    order: BranchRestore | None = None
    surplus: tuple[Snapshot, ...] = ()
    requeue_after: float | None = None

    def changes(self, reported: Mapping[str, Any]) -> Json:
        """Return the fields that differ from the reported status."""
        return {key: value for key, value in self.status.items() if reported.get(key) != value}


_EXCHANGED: Final = (NodeRestoreState.EXCHANGED, NodeRestoreState.DONE)
_TAKEN_BACK: Final = (NodeRestoreState.FAILED, NodeRestoreState.CANCELED)


def plan_restore(facts: RestoreFacts, now: datetime) -> RestorePlan:
    """Decide about a restore. `now`: of the API server."""
    restore, branch = facts.restore, facts.branch
    if restore.finished:
        return _clean_up(facts, now)
    if facts.record:
        return _complete(facts, now)
    if facts.order:
        return _run(facts, facts.order, now)
    if restore.deleting:
        return _let_go(facts)
    if restore.branch_uid is not None and (branch is None or branch.uid != restore.branch_uid):
        text = f"branch {restore.branch} was deleted, or made again as another one; nothing was done to that"
        return _fail(facts, Finding(Reason.BRANCH_REPLACED, f"{text}; make another DBRestore"), now)
    if restore.phase == RestorePhase.RUNNING:
        text = (
            f"status.restore of branch {restore.branch} was taken away; the branch has the data that it has"
        )
        return _fail(facts, Finding(Reason.CANCELED, f"{text}; make another DBRestore"), now)
    done = done_before(branch.restores, restore.object_name, restore.uid) if branch else None
    if branch and done:
        text = (
            f"a restore {restore.object_name} of branch {branch.name} was done before; nothing was done again"
        )
        finding = Finding(Reason.ALREADY_APPLIED, f"{text}; use another name")
        return _report(
            facts,
            RestorePhase.COMPLETE,
            finding,
            now,
            completionTime=format_time(now),
            branchUID=branch.uid,
            source=done.source,
            undoSnapshot=done.undo_snapshot,
        )
    return _begin(facts, now)


def _begin(facts: RestoreFacts, now: datetime) -> RestorePlan:
    """Admit the restore, and order it: the snapshot that takes the old data comes first."""
    decision, restore, branch = admit(facts, now), facts.restore, facts.branch
    pinned: Json = {"branchUID": branch.uid} if branch and not branch.deleting else {}
    if isinstance(decision, Admitted) and branch:
        undo = facts.own_undo
        if decision.undo == Undo.KEEP and undo is None:
            # One that exists is found by that, too.
            return RestorePlan({}, Step.MAKE_UNDO)
        order = BranchRestore(
            restore.object_name, restore.uid, RestoreState.PREPARING, decision.source, decision.undo
        )
        if decision.undo == Undo.KEEP and undo:
            order = replace(order, undo_snapshot=undo.object_name, undo_uid=undo.uid)
        return RestorePlan({}, Step.ORDER, order)
    if isinstance(decision, Waiting):
        left = (deadline_of(restore, now) - now).total_seconds()
        plan = _report(facts, RestorePhase.PENDING, decision.finding, now, **pinned)
        return replace(plan, requeue_after=max(1.0, min(left + 1, timing.RESTORE_WAITING_SECONDS)))
    assert not isinstance(decision, Admitted)
    return _fail(facts, decision.finding, now, **pinned)


def _run(facts: RestoreFacts, order: BranchRestore, now: datetime) -> RestorePlan:
    """Go on with a restore that its branch's agent works on."""
    restore, branch, answer = facts.restore, facts.branch, facts.answer
    assert branch is not None
    state = answer.state if answer else None
    started: Json = {
        "branchUID": branch.uid,
        "sourceUID": order.source.uid,
        "source": order.source.text,
        "startTime": restore.start_time or format_time(now),
    }
    if order.undo_snapshot:
        started["undoSnapshot"] = order.undo_snapshot
    waiting = timing.RESTORE_RUNNING_SECONDS
    abandoned = facts.node is not None and is_abandoned(facts.node, branch.annotations)
    is_ending = facts.project is None or facts.project.deleting
    # Its agent answers no more, and removes what it has prepared with the branch.
    is_ending = is_ending or (branch.deleting and order.state != RestoreState.SWITCHING)
    if state in _EXCHANGED:
        # The branch's own reconcile writes the memory of it with the route, and that leads here again.
        if _is_held_briefly(facts):
            return _unreported(facts)
        text = f"branch {branch.name} has the new data; its sessions are let in"
        plan = _report(facts, RestorePhase.RUNNING, Finding(Reason.OPENING, text), now, **started)
        return replace(plan, requeue_after=waiting)
    if state in _TAKEN_BACK or abandoned or is_ending:
        finding = answer.finding if answer and state == NodeRestoreState.FAILED else None
        canceled = f"restore {order.name} of branch {branch.name} was taken back; the branch has its old data"
        default = Finding(Reason.CANCELED, f"{canceled}; make another DBRestore")
        return _fail(facts, finding or _objection(facts) or default, now, **started)
    if order.state == RestoreState.PREPARING:
        if _objection(facts):
            return RestorePlan({}, Step.CANCEL)
        if names.CONTROLLER_FINALIZER not in restore.finalizers:
            if order.undo_snapshot and not facts.is_undo_read:
                return RestorePlan({}, Step.READ_UNDO)
            if not _is_undo_bound(facts, branch):
                return RestorePlan({}, Step.BIND_UNDO)
        if state == NodeRestoreState.PREPARED:
            # While the proxies, which have been asked, begin to hold who comes.
            if names.CONTROLLER_FINALIZER not in restore.finalizers:
                return RestorePlan({}, Step.HOLD)
            if _is_handed_over(facts, now):
                return RestorePlan({}, Step.SWITCH)
            if facts.held_seconds is None or _is_held_briefly(facts):
                return _unreported(facts)
    if not facts.is_gone and restore.start_time and not _is_labelled(restore, branch):
        return RestorePlan({}, Step.LABEL)
    plan = _report(facts, RestorePhase.RUNNING, _progress(facts, order, branch), now, **started)
    return replace(plan, requeue_after=waiting)


def _is_held_briefly(facts: RestoreFacts) -> bool:
    """Return True if new sessions are held, and not for long: a step that lasts milliseconds is not worth a write."""
    return facts.held_seconds is not None and facts.held_seconds < timing.RESTORE_REPORTED_SECONDS


def _unreported(facts: RestoreFacts) -> RestorePlan:
    """Return the plan that leaves the status as it is, and looks again should the step last."""
    is_held = facts.held_seconds is not None
    delay = timing.RESTORE_REPORTED_SECONDS if is_held else timing.RESTORE_RUNNING_SECONDS
    return RestorePlan({}, requeue_after=delay)


def _is_undo_bound(facts: RestoreFacts, branch: Branch) -> bool:
    """Return True if the undo snapshot is bound to the branch and its node, or is not there (any more)."""
    undo = facts.own_undo
    return undo is None or (undo.node_name, undo.branch_uid) == (branch.node_name, branch.uid)


def _progress(facts: RestoreFacts, order: BranchRestore, branch: Branch) -> Finding:
    """Return the step that a running restore is at."""
    answer = facts.answer
    if order.state == RestoreState.CANCELING:
        text = f"restore {order.name} of branch {branch.name} is taken back; the old data serves"
        return Finding(Reason.STOPPING, f"{text}; nothing is to be done")
    if answer and answer.state == NodeRestoreState.PREPARED:
        text = f"the new data of branch {branch.name} is ready; new sessions are held while the two change places"
        return Finding(Reason.SWITCHING, f"{text}; nothing is to be done")
    if answer and answer.finding:
        return answer.finding
    text = f"the data of {order.source.text} is copied for branch {branch.name}; the old data serves"
    return Finding(Reason.SNAPSHOTTING, f"{text}; nothing is to be done")


def _objection(facts: RestoreFacts) -> Finding | None:
    """Return why a restore that is being prepared is taken back."""
    restore, project, branch = facts.restore, facts.project, facts.branch
    subject = f"restore {restore.object_name} was taken back"
    if restore.deleting or facts.is_gone:
        return Finding(Reason.CANCELED, f"{subject}: its DBRestore was deleted; the branch has its old data")
    if project is None or project.deleting or branch is None or branch.deleting:
        cause = f"branch {restore.branch}" if branch and branch.deleting else f"project {restore.project}"
        return Finding(Reason.CANCELED, f"{subject}: {cause} is being deleted; nothing else was done")
    if not project.running:
        text = f"{subject}: project {project.name} was stopped; the branch has its old data"
        return Finding(Reason.CANCELED, f"{text}; resume it and make another DBRestore")
    # The branch's own schedule is part of what it is.
    is_held = branch.protected and restore.scheduled_for != branch.uid
    return protected_finding(restore, branch) if is_held else None


def _is_handed_over(facts: RestoreFacts, now: datetime) -> bool:
    """Return True if no session comes to the branch any more: the proxies hold them, or have had their time."""
    project, branch = facts.project, facts.branch
    if project is None or branch is None:
        return False
    if not should_run(project, branch):
        return True
    if branch.route is None or branch.route.restore != exchanging(project, branch):
        return False
    ready = find_condition(branch.status, Condition.READY) or {}
    since = parse_time(ready.get("lastTransitionTime"))
    is_overdue = since is not None and now - since > timedelta(seconds=timing.RESTORE_HOLD_SECONDS)
    return is_held(project, branch, facts.pods) or is_overdue


def _complete(facts: RestoreFacts, now: datetime) -> RestorePlan:
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
    return _report(facts, RestorePhase.COMPLETE, Finding(Reason.RESTORED, text), now, **fields)


def _fail(facts: RestoreFacts, finding: Finding, now: datetime, **fields: Any) -> RestorePlan:
    """End a restore that changed nothing, or was taken back: the snapshot that waits for the old data goes first."""
    left = _undo_left(facts)
    if left:
        return left
    began = facts.order is not None or facts.restore.phase == RestorePhase.RUNNING
    phase = RestorePhase.FAILED if began else RestorePhase.REJECTED
    return _report(
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


def _let_go(facts: RestoreFacts) -> RestorePlan:
    """Let go of a deleted restore that is ordered of nobody."""
    left = _undo_left(facts)
    if left:
        return left
    is_held_back = names.CONTROLLER_FINALIZER in facts.restore.finalizers
    return RestorePlan({}, Step.LET_GO if is_held_back else None)


def _clean_up(facts: RestoreFacts, now: datetime) -> RestorePlan:
    """Remove what a finished restore leaves behind, and the object itself once its time has come."""
    restore, branch, answer = facts.restore, facts.branch, facts.answer
    requeue = None
    if facts.order and branch and restore.phase != RestorePhase.COMPLETE:
        abandoned = facts.node is not None and is_abandoned(facts.node, branch.annotations)
        if abandoned or (answer and answer.state in _TAKEN_BACK):
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


def failure_status(restore: Restore, finding: Finding, now: datetime) -> Json:
    """Return the status of a restore whose reconcile failed."""
    previous, types = restore.status.get("conditions") or (), (Condition.RECONCILING,)
    return {
        "conditions": report_true_conditions(previous, types, finding, restore.generation, format_time(now))
    }


def _is_labelled(restore: Restore, branch: Branch) -> bool:
    return all(restore.labels.get(key) == value for key, value in labels_of(restore, branch).items())


def labels_of(restore: Restore, branch: Branch) -> dict[str, str]:
    """Return the labels that a restore has once it has begun. Whoever else manages it (Helm) stays named."""
    return {
        names.LABEL_PROJECT: restore.project,
        names.LABEL_BRANCH: restore.branch,
        names.LABEL_BRANCH_UID: branch.uid,
        names.LABEL_MANAGED_BY: restore.labels.get(names.LABEL_MANAGED_BY, "dbranch"),
    }


def _report(
    facts: RestoreFacts, phase: RestorePhase, finding: Finding, now: datetime, **fields: Any
) -> RestorePlan:
    """Return the status to report: one condition says it all. A field that is None is removed."""
    restore = facts.restore
    types = {
        RestorePhase.COMPLETE: (Condition.COMPLETE,),
        RestorePhase.FAILED: (Condition.FAILED, Condition.STALLED),
        RestorePhase.REJECTED: (Condition.FAILED, Condition.STALLED),
    }.get(phase, (Condition.RECONCILING,))
    previous = restore.status.get("conditions") or ()
    conditions = report_true_conditions(previous, types, finding, restore.generation, format_time(now))
    return RestorePlan(
        {
            "phase": phase.value,
            "observedGeneration": restore.generation,
            "conditions": conditions,
            **fields,
        }
    )
