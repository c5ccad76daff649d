"""The decision of a restore's reconcile: facts -> the next step, or the status to report. Pure.

A reconcile plans, takes the step, looks at what came of it, and plans again. So what a process finds that follows one
that was cut off behind any write is no other case: it is finished, or taken back.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import NodeRestoreState, RestorePhase, RestoreState, Undo
from dbranch.api.expiry import format_time, parse_time
from dbranch.api.restore import BranchRestore, Restore, done_before
from dbranch.controller import timing
from dbranch.controller.restore.admission import Admitted, Waiting, admit, deadline_of, protected_finding
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.restore.outcome import TAKEN_BACK, clean_up, complete, fail, let_go
from dbranch.controller.restore.steps import Json, RestorePlan, Step, labels_of, report
from dbranch.controller.routing import exchanging, is_held
from dbranch.controller.scheduling import is_abandoned

_EXCHANGED: Final = (NodeRestoreState.EXCHANGED, NodeRestoreState.DONE)


def plan_restore(facts: RestoreFacts, now: datetime) -> RestorePlan:
    """Decide about a restore. `now`: of the API server."""
    restore, branch = facts.restore, facts.branch
    if restore.finished:
        return clean_up(facts, now)
    if facts.record:
        return complete(facts, now)
    if facts.order:
        return _run(facts, facts.order, now)
    if restore.deleting:
        return let_go(facts)
    if restore.branch_uid is not None and (branch is None or branch.uid != restore.branch_uid):
        text = f"branch {restore.branch} was deleted, or made again as another one; nothing was done to that"
        return fail(facts, Finding(Reason.BRANCH_REPLACED, f"{text}; make another DBRestore"), now)
    if restore.phase == RestorePhase.RUNNING:
        text = (
            f"status.restore of branch {restore.branch} was taken away; the branch has the data that it has"
        )
        return fail(facts, Finding(Reason.CANCELED, f"{text}; make another DBRestore"), now)
    done = done_before(branch.restores, restore.object_name, restore.uid) if branch else None
    if branch and done:
        text = (
            f"a restore {restore.object_name} of branch {branch.name} was done before; nothing was done again"
        )
        finding = Finding(Reason.ALREADY_APPLIED, f"{text}; use another name")
        return report(
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
        plan = report(facts, RestorePhase.PENDING, decision.finding, now, **pinned)
        return replace(plan, requeue_after=max(1.0, min(left + 1, timing.RESTORE_WAITING_SECONDS)))
    assert not isinstance(decision, Admitted)
    return fail(facts, decision.finding, now, **pinned)


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
        plan = report(facts, RestorePhase.RUNNING, Finding(Reason.OPENING, text), now, **started)
        return replace(plan, requeue_after=waiting)
    if state in TAKEN_BACK or abandoned or is_ending:
        finding = answer.finding if answer and state == NodeRestoreState.FAILED else None
        canceled = f"restore {order.name} of branch {branch.name} was taken back; the branch has its old data"
        default = Finding(Reason.CANCELED, f"{canceled}; make another DBRestore")
        return fail(facts, finding or _objection(facts) or default, now, **started)
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
    plan = report(facts, RestorePhase.RUNNING, _progress(facts, order, branch), now, **started)
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


def _is_labelled(restore: Restore, branch: Branch) -> bool:
    return all(restore.labels.get(key) == value for key, value in labels_of(restore, branch).items())
