"""Plan a restore of a branch: data is prepared beside the branch's own, and exchanged with it. Pure.

The preparation is the same table of steps as a branch's life (`agent/branch/steps/`), for a second subvolume and
slot that admit no user. Everything up to the exchange can be thrown away; the exchange is the commit; what lies
behind it is done by what the marker of the branch's own data says, whether anybody still asks for it or not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from dbranch.agent.branch.actions import DeletePod
from dbranch.agent.branch.facts import Desired
from dbranch.agent.branch.plan import BranchPlan, plan_steps
from dbranch.agent.branch.stopping import remove_slots
from dbranch.agent.restore.actions import (
    Close,
    DestroyPrepared,
    EndSessions,
    Exchange,
    KeepOld,
    RestoreAction,
    TrashOld,
)
from dbranch.agent.restore.facts import RestoreFacts
from dbranch.agent.timing import (
    NO_CHECKPOINT_GRACE_SECONDS,
    RESTORE_POD_DELETION_POLL_SECONDS,
    RESTORE_QUEUED_POLL_SECONDS,
    RESTORE_SWITCH_RETRY_SECONDS,
    STORAGE_UNCLEAR_RETRY_SECONDS,
)
from dbranch.agent.volume.marker import UNDO_KEEP, Marker
from dbranch.agent.volume.restore_rules import VolumeState
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import NodeRestoreState, RestoreState
from dbranch.api.restore import BranchRestore, NodeRestore

_REFUSED: Final = (NodeRestoreState.FAILED, NodeRestoreState.CANCELED)
# What the steps say of a source or of the space: waiting does not help whoever waits for the restore.
_FINAL_REASONS: Final = frozenset(
    {
        Reason.POOL_FULL,
        Reason.NODE_DISK_LOW,
        Reason.SOURCE_UNSAFE,
        Reason.SOURCE_NOT_FOUND,
        Reason.STORAGE_UNCLEAR,
        Reason.IMAGE_INCOMPATIBLE,
    }
)


@dataclass(frozen=True)
class RestorePlan:
    """What is done next, and the answer to the branch's `status.restore` once it is done; None: none.

    `is_answered` False: the answer stays what it is. `steps`: those of the preparation, in place of `actions`.
    `holds`: the branch's own data is not touched otherwise meanwhile. `failure`: why the restore cannot be done; what
    was prepared goes next. `requeue_after`: as of a branch's plan.
    """

    actions: tuple[RestoreAction, ...] = ()
    answer: NodeRestore | None = None
    is_answered: bool = True
    steps: BranchPlan | None = None
    holds: bool = False
    failure: Finding | None = None
    requeue_after: float | None = None


def plan_restore(desired: Desired, facts: RestoreFacts) -> RestorePlan:
    """Plan towards what the branch's `status.restore` asks for; without one, towards nothing beside its own data."""
    order, reported = desired.branch.restore, desired.branch.node.restore
    answer = reported if order and reported and reported.uid == order.uid else None
    if not facts.beside.pool_mounted:
        return _plan_without_pool(desired, facts)
    if facts.volume.state is VolumeState.UNCLEAR:
        return _plan_unclear(desired, answer)
    if facts.volume.state is VolumeState.OLD:
        return _plan_behind(order, facts, answer)
    if order is None:
        return _throw_away(facts, None)
    is_refused = answer is not None and answer.state in _REFUSED
    if order.uid == facts.exchanged_by:
        return _throw_away(facts, _answer(order, NodeRestoreState.DONE, facts))
    if is_refused:
        return _throw_away(facts, answer)
    if facts.failure:
        failed = NodeRestore(order.uid, NodeRestoreState.FAILED, facts.failure)
        return _throw_away(facts, failed, is_first=True)
    if order.state == RestoreState.CANCELING or not desired.project.running:
        return _throw_away(facts, _canceled(desired, order), is_first=True)
    if _is_of_another(order, facts) or _is_unbound(facts):
        plan = _throw_away(facts, _preparing(order, _snapshotting(desired)))
        return replace(plan, requeue_after=plan.requeue_after or RESTORE_SWITCH_RETRY_SECONDS)
    return _plan_order(desired, order, facts)


def _plan_without_pool(desired: Desired, facts: RestoreFacts) -> RestorePlan:
    """Let go of the pool of a stopped project. What became of a restore is said when the pool is mounted again."""
    is_over = desired.branch.restore is None
    if desired.project.running:
        delay = None if is_over else RESTORE_QUEUED_POLL_SECONDS
        return RestorePlan(is_answered=is_over, requeue_after=delay)
    plan = _throw_away(facts, None)
    return replace(plan, is_answered=plan.is_answered and is_over)


def _plan_order(desired: Desired, order: BranchRestore, facts: RestoreFacts) -> RestorePlan:
    """Plan the preparation, and once it is complete and asked for, the exchange."""
    if facts.volume.state is VolumeState.ABSENT and not facts.has_place:
        text = (
            f"the restore of {desired.subject} waits: others are being made on its node; no action is needed"
        )
        finding = Finding(Reason.QUEUED, text)
        return RestorePlan(answer=_preparing(order, finding), requeue_after=RESTORE_QUEUED_POLL_SECONDS)
    steps = plan_steps(desired, facts.beside)
    is_due = order.state == RestoreState.SWITCHING
    if steps.steps:
        finding = step_finding(desired, steps)
        return RestorePlan(
            answer=_preparing(order, finding),
            steps=steps,
            # The route is withdrawn already: what was prepared is brought up to date, or given up within seconds.
            holds=is_due and facts.volume.state is VolumeState.COMING,
            failure=finding if finding.reason in _FINAL_REASONS else None,
            requeue_after=RESTORE_SWITCH_RETRY_SECONDS
            if is_due
            else steps.requeue_after or steps.retry_after,
        )
    if not is_due:
        return RestorePlan(answer=_answer(order, NodeRestoreState.PREPARED, facts))
    close = (Close(facts.own_slot), EndSessions(facts.own_slot)) if facts.own_slot else ()
    return RestorePlan(
        (*close, Exchange()),
        _answer(order, NodeRestoreState.EXCHANGED, facts),
        holds=True,
        requeue_after=RESTORE_SWITCH_RETRY_SECONDS,
    )


def _plan_behind(order: BranchRestore | None, facts: RestoreFacts, answer: NodeRestore | None) -> RestorePlan:
    """Plan what is left behind an exchange: the old pod ends, its slot goes, its data is kept or trashed."""
    assert facts.own is not None
    is_wanted = order is not None and order.uid == facts.exchanged_by
    exchanged = _answer(order, NodeRestoreState.EXCHANGED, facts) if order and is_wanted else answer
    # A fast shutdown: statistics and unlogged tables are in the copy. Nobody but its own grace period hurries it.
    if facts.beside.pods:
        deletions = tuple(DeletePod(pod) for pod in facts.beside.pods if not pod.terminating)
        return RestorePlan(deletions, exchanged, requeue_after=RESTORE_POD_DELETION_POLL_SECONDS)
    removals, _ = remove_slots(facts.beside)
    done_by = facts.own.restore
    is_kept = done_by is not None and done_by.undo == UNDO_KEEP
    end: RestoreAction = KeepOld(done_by.undo_uid) if done_by and is_kept else TrashOld()
    done = _answer(order, NodeRestoreState.DONE, facts) if order and is_wanted else answer
    return RestorePlan((*removals, end), done)


def _plan_unclear(desired: Desired, answer: NodeRestore | None) -> RestorePlan:
    """Touch nothing: what lies beside the branch's data is neither surely the new one nor surely the old one."""
    order = desired.branch.restore
    if order is None or (
        answer and answer.state not in (NodeRestoreState.PREPARING, NodeRestoreState.PREPARED)
    ):
        return RestorePlan(answer=answer, requeue_after=STORAGE_UNCLEAR_RETRY_SECONDS)
    text = (
        f"{desired.subject}: what lies beside its data in the pool is not clear (.restore-{desired.branch.uid}); "
        "nothing is touched; its data serves on; inspect both on the node"
    )
    failed = NodeRestore(order.uid, NodeRestoreState.FAILED, Finding(Reason.STORAGE_UNCLEAR, text))
    return RestorePlan(answer=failed, requeue_after=STORAGE_UNCLEAR_RETRY_SECONDS)


def _throw_away(facts: RestoreFacts, answer: NodeRestore | None, is_first: bool = False) -> RestorePlan:
    """Plan the end of what was prepared, in the order pods, slots, data; `answer` is given once nothing is left.

    `is_first`: it was not given yet, so also a copy that was cut off is looked for, which has another name.
    """
    removals, _ = remove_slots(facts.beside)
    if facts.beside.pods:
        deletions = (
            DeletePod(pod, NO_CHECKPOINT_GRACE_SECONDS) for pod in facts.beside.pods if not pod.terminating
        )
        delay = RESTORE_POD_DELETION_POLL_SECONDS
        return RestorePlan((*removals, *deletions), is_answered=False, requeue_after=delay)
    is_left = facts.volume.state is VolumeState.COMING or (is_first and facts.own is not None)
    destroy = (DestroyPrepared(),) if is_left else ()
    return RestorePlan((*removals, *destroy), answer)


def _is_of_another(order: BranchRestore, facts: RestoreFacts) -> bool:
    """True if what was prepared, or a pod of it, is that of another restore than the one that is asked for."""
    of_another = facts.volume.state is VolumeState.COMING and facts.volume.restore_uid != order.uid
    return of_another or any(pod.restore != order.uid for pod in facts.beside.pods)


def _is_unbound(facts: RestoreFacts) -> bool:
    """True if the node was restarted, the pod is gone, or an agent was cut off before the bind: all is made anew."""
    beside = facts.beside
    is_coming = facts.volume.state is VolumeState.COMING
    is_bound = any(pod.name in beside.bound_slots for pod in beside.pods)
    return not is_bound and (is_coming or bool(beside.pods) or bool(beside.bound_slots))


def _canceled(desired: Desired, order: BranchRestore) -> NodeRestore:
    text = f"the restore of {desired.subject} was canceled; what was prepared is gone; its data serves on"
    return NodeRestore(order.uid, NodeRestoreState.CANCELED, Finding(Reason.CANCELED, text))


def _preparing(order: BranchRestore, finding: Finding) -> NodeRestore:
    return NodeRestore(order.uid, NodeRestoreState.PREPARING, finding)


def _answer(order: BranchRestore, state: NodeRestoreState, facts: RestoreFacts) -> NodeRestore:
    """Return the answer about data that exists: beside the branch's own, or exchanged already."""
    is_exchanged = order.uid == facts.exchanged_by
    marker = facts.own if is_exchanged else facts.volume.marker
    return NodeRestore(order.uid, state, None, marker.snapshot_time if isinstance(marker, Marker) else None)


def _snapshotting(desired: Desired) -> Finding:
    return Finding(Reason.SNAPSHOTTING, f"{desired.subject}: the copy of its restore is being made")


def step_finding(desired: Desired, steps: BranchPlan) -> Finding:
    """Return the step of the preparation as the DBRestore reports it."""
    if steps.storage.reason in _FINAL_REASONS:
        return steps.storage
    if steps.storage.reason != Reason.STORED:
        return _snapshotting(desired)
    if steps.postgres and steps.postgres.reason in _FINAL_REASONS:
        return steps.postgres
    if steps.postgres and not steps.postgres.admits:
        return Finding(Reason.OPENING, steps.postgres.message)
    return Finding(
        Reason.CLEANING, f"{desired.subject}: its new data is made ready for users; the old serves on"
    )
