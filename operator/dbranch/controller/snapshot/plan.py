"""The decision of a snapshot's reconcile: facts -> binding, Ready, when it expires. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import RestorePhase, SnapshotReason
from dbranch.api.expiry import format_time, parse_time, with_grace
from dbranch.api.project import Project
from dbranch.api.restore import Restore
from dbranch.api.schedule import SCHEDULE_DEADLINE
from dbranch.api.snapshot import Snapshot
from dbranch.controller.conditions import report_conditions
from dbranch.controller.limits import NO_LIMITS, NamespaceLimits, reached_snapshot_limit
from dbranch.controller.scheduling import NodeFacts, agent_too_old_finding, not_reporting_finding

Json = dict[str, Any]

# By whom a snapshot is taken; all others are records of what was done once.
_TAKEN: Final = frozenset({SnapshotReason.REQUESTED, SnapshotReason.SCHEDULE})
# Nothing but an event changes what is said of such a snapshot.
FINAL_REASONS: Final = frozenset({Reason.SNAPSHOT_LOST, Reason.SNAPSHOT_MISSED})


@dataclass(frozen=True)
class SnapshotFacts:
    """What a snapshot's reconcile knows.

    `branch`: the one of its name; `node`: the one that the snapshot is bound to, or its project if it is not bound
    yet. `siblings`: all snapshots of the project, also this one; they are counted only before it is bound.
    `is_awaited`: a restore is going on that leaves its data.
    """

    snapshot: Snapshot
    project: Project | None
    branch: Branch | None = None
    node: NodeFacts | None = None
    siblings: Sequence[Snapshot] = ()
    limits: NamespaceLimits = NO_LIMITS
    is_awaited: bool = False


@dataclass(frozen=True)
class SnapshotBinding:
    """The `status.nodeName` and `status.branchUID` to write. No branch: only a retained snapshot can be adopted."""

    node: str
    branch_uid: str | None


@dataclass(frozen=True)
class SnapshotPlan:
    """`status` has every field that the controller writes. `expires_sooner`: when it does so is new, or earlier."""

    binding: SnapshotBinding | None
    ready: Finding
    status: Json
    expires_sooner: bool = False

    def changes(self, reported: Mapping[str, Any]) -> Json:
        """Return the fields that differ from the reported status; None removes one."""
        return {key: value for key, value in self.status.items() if reported.get(key) != value}


def plan_snapshot(facts: SnapshotFacts, now: datetime) -> SnapshotPlan:
    """Decide about a snapshot that is not being deleted. `now`: of the API server."""
    snapshot = facts.snapshot
    if snapshot.origin_project_uid:
        return _plan_record_of_project(facts, now)
    binding = None
    if needs_binding(snapshot):
        bound = bind_snapshot(facts, now)
        if isinstance(bound, Finding):
            ready = bound if snapshot.node_name is None else _ready_of(facts)
        else:
            is_new = (bound.node, bound.branch_uid) != (snapshot.node_name, snapshot.branch_uid)
            binding = bound if is_new else None
            snapshot = replace(snapshot, node_name=bound.node, branch_uid=bound.branch_uid)
            ready = _ready_of(replace(facts, snapshot=snapshot))
    else:
        ready = _ready_of(facts)
    expiration, expires_sooner = expiration_of(snapshot, now)
    previous = snapshot.status.get("conditions") or ()
    fields: Json = {
        "observedGeneration": snapshot.generation,
        "conditions": report_conditions(previous, [], ready, snapshot.generation, format_time(now)),
        "expirationTime": expiration,
    }
    if binding:
        fields["nodeName"] = binding.node
        if binding.branch_uid:
            fields["branchUID"] = binding.branch_uid
    return SnapshotPlan(binding, ready, fields, expires_sooner)


def _plan_record_of_project(facts: SnapshotFacts, now: datetime) -> SnapshotPlan:
    """Decide about the record of a project that was deleted: it has no data, and goes when its pool may go.

    Its node and time were written when it was made, and never change.
    """
    snapshot = facts.snapshot
    ready = _ready_of_record(facts)
    previous = snapshot.status.get("conditions") or ()
    fields: Json = {
        "observedGeneration": snapshot.generation,
        "conditions": report_conditions(previous, [], ready, snapshot.generation, format_time(now)),
    }
    return SnapshotPlan(None, ready, fields)


def _ready_of_record(facts: SnapshotFacts) -> Finding:
    """Return the finding of Ready of the record of a deleted project: whether its pool is kept, as the agent says."""
    snapshot, project, node = facts.snapshot, facts.project, facts.node
    is_going = project is not None and project.deleting and project.uid == snapshot.origin_project_uid
    if not snapshot.expiration_time or not snapshot.node_name:
        if is_going:
            return Finding(Reason.PENDING, f"project {snapshot.project} is being deleted; its data stays")
        text = f"snapshot {snapshot.name} is a copy of the record of a deletion; no data is kept for it"
        return Finding(Reason.SNAPSHOT_LOST, f"{text}; delete it")
    subject = f"the data of deleted project {snapshot.project}"
    if node is not None and snapshot.origin_project_uid in node.retained:
        text = f"{subject} is kept on node {node.name} until {snapshot.expiration_time}"
        return Finding(
            Reason.AVAILABLE, f"{text}; dbranch undelete-project {snapshot.project} brings it back"
        )
    not_ready = _node_finding(node or NodeFacts(snapshot.node_name, exists=False))
    if not_ready and not_ready.reason == Reason.NODE_GONE:
        return not_ready
    said = Finding.from_dict(find_condition(snapshot.status, Condition.READY))
    was_kept = said is not None and said.reason in (Reason.AVAILABLE, Reason.SNAPSHOT_LOST)
    if was_kept and said is not None:
        if not_ready or node is None or not node.publishes_retained:
            # What its agent said last.
            return said
        text = f"{subject} is not kept on node {snapshot.node_name} any more: it was adopted, or removed"
        return Finding(Reason.SNAPSHOT_LOST, f"{text}; delete the record")
    text = f"{subject} is kept until {snapshot.expiration_time}"
    return Finding(Reason.PENDING, f"{text}; it can be had back when node {snapshot.node_name} says so")


def needs_binding(snapshot: Snapshot) -> bool:
    """Return True if the snapshot has no node yet, or no branch and its data did not come without one.

    The record of a deleted project has neither.
    """
    if snapshot.origin_project_uid:
        return False
    return snapshot.node_name is None or (snapshot.branch_uid is None and not snapshot.node.stored)


def bind_snapshot(facts: SnapshotFacts, now: datetime) -> SnapshotBinding | Finding:
    """Bind a snapshot to its project's node and to one very branch, or say what it waits for.

    A scheduled one is bound to the branch that it was made for, and only for a while after its time.
    """
    snapshot, project, branch, node = facts.snapshot, facts.project, facts.branch, facts.node
    subject = f"snapshot {snapshot.name}"
    if branch and branch.node_name and _is_left_by(snapshot, branch):
        # The controller was cut off between making it and binding it.
        return SnapshotBinding(branch.node_name, branch.uid)
    if is_missed(snapshot, now) or snapshot.reason not in _TAKEN:
        # Who makes a record binds it, too.
        return awaited_finding(snapshot) if facts.is_awaited else _record_finding(snapshot)
    if project is None or project.deleting:
        fact = "does not exist" if project is None else "is being deleted"
        text = f"project {snapshot.project} {fact}; nothing is taken; apply the DBProject {snapshot.project}"
        return Finding(Reason.PROJECT_NOT_FOUND, text)
    if project.node_name is None:
        text = f"project {project.name} is bound to no node yet; {subject} is taken later"
        return Finding(Reason.BRANCH_NOT_READY, text)
    not_ready = _node_finding(node or NodeFacts(project.node_name, exists=False))
    if not_ready:
        return not_ready
    too_old = agent_too_old_finding(node, subject) if node else None
    if too_old:
        return too_old
    if branch is None or branch.deleting:
        if project.adopt and snapshot.node_name is None:
            # What the adopted pool retains may be this very snapshot; the agent finds it by its name.
            return SnapshotBinding(project.node_name, None)
        fact = "does not exist in" if branch is None else "is being deleted from"
        text = f'branch "{snapshot.branch}" {fact} project {project.name}; nothing is taken'
        return Finding(Reason.BRANCH_NOT_FOUND, f"{text}; make that branch, or the snapshot of another one")
    if not project.running:
        text = f"project {project.name} is stopped; {subject} is taken when it runs; dbranch resume"
        return Finding(Reason.BRANCH_NOT_READY, text)
    if branch.node.snapshot_time is None:
        text = f"branch {branch.name} is not stored yet; {subject} is taken when it is"
        return Finding(Reason.BRANCH_NOT_READY, text)
    made_for = snapshot.labels.get(names.LABEL_BRANCH_UID)
    if snapshot.reason == SnapshotReason.SCHEDULE and made_for != branch.uid:
        text = (
            f"branch {branch.name} of {subject} was deleted, and made again as another one; nothing is taken"
        )
        return Finding(Reason.BRANCH_NOT_FOUND, f"{text}; delete it")
    return _limit_finding(facts, branch) or SnapshotBinding(project.node_name, branch.uid)


def has_no_maker(snapshot: Snapshot, branch: Branch | None, restore: Restore | None) -> bool:
    """Return True if a snapshot was made for a restore that went before it was ordered, so that no data can come.

    `branch`: of its name, None if that does not exist; `restore`: the one that it was made for, None if that does
    not exist. One that was bound may get its data by the branch's deletion; where that did not come, and the restore
    was taken back, nothing is lost.
    """
    is_awaited = restore is not None and not restore.finished
    if snapshot.reason != SnapshotReason.RESTORE or is_awaited or snapshot.deleting:
        return False
    if snapshot.node.snapshot_time is not None:
        return False
    if snapshot.node.storage is not None:
        is_taken_back = restore is not None and restore.phase == RestorePhase.FAILED
        return is_taken_back and snapshot.node.storage.reason == Reason.SNAPSHOT_LOST
    if branch is None or branch.uid != snapshot.origin_branch_uid:
        return snapshot.node_name is None
    is_ordered = branch.restore is not None and branch.restore.uid == snapshot.restore_uid
    return not is_ordered and all(record.uid != snapshot.restore_uid for record in branch.restores)


def is_missed(snapshot: Snapshot, now: datetime) -> bool:
    """Return True if a scheduled snapshot is not taken any more: its time is too long ago, or was never said."""
    due = parse_time(snapshot.origin_time)
    return snapshot.reason == SnapshotReason.SCHEDULE and (due is None or now > due + SCHEDULE_DEADLINE)


def _is_left_by(snapshot: Snapshot, branch: Branch) -> bool:
    """Return True if the branch is being deleted, and leaves its data to the snapshot."""
    is_record = snapshot.reason == SnapshotReason.DELETION and snapshot.origin_branch_uid == branch.uid
    return is_record and branch.deleting


def _limit_finding(facts: SnapshotFacts, branch: Branch) -> Finding | None:
    """Return the finding of a snapshot that comes behind a limit. Those that are bound have their places."""
    others = [snapshot for snapshot in facts.siblings if snapshot.uid != facts.snapshot.uid]
    limit = reached_snapshot_limit(branch.uid, others, facts.limits)
    if limit is None:
        return None
    is_project = limit == "snapshotsPerProject"
    subject = f"project {facts.snapshot.project}" if is_project else f"branch {branch.name}"
    fact = f"{subject} has as many as {facts.limits.path(limit)} of the dbranch chart allows"
    text = f"snapshot {facts.snapshot.name} is not taken: {fact}: {facts.limits.count(limit)}"
    return Finding(Reason.LIMIT_EXCEEDED, f"{text}; delete one, or set a ttl")


def awaited_finding(snapshot: Snapshot) -> Finding:
    """Return the finding of a record that gets the data which a restore or deletion leaves: nothing is taken."""
    text = f"snapshot {snapshot.name} gets the data that a {snapshot.reason} of branch {snapshot.branch} replaces"
    return Finding(Reason.PENDING, f"{text}; it comes when that is done")


def _record_finding(snapshot: Snapshot) -> Finding:
    """Return the finding of a record of something that was done once, and whose data is not there."""
    subject = f"snapshot {snapshot.name} is the record of a {snapshot.reason}"
    if snapshot.reason == SnapshotReason.SCHEDULE:
        return Finding(
            Reason.SNAPSHOT_MISSED, f"{subject} whose time has passed; nothing is taken; delete it"
        )
    return Finding(Reason.SNAPSHOT_LOST, f"{subject}, and its data is missing; nothing is taken; delete it")


def _node_finding(node: NodeFacts) -> Finding | None:
    """Return why nothing is known of a snapshot that is not taken yet; None if the node's agent reports."""
    finding = not_reporting_finding(node)
    if finding is None or finding.reason == Reason.NODE_GONE:
        return finding
    return Finding(Reason.NODE_NOT_READY, finding.message)


def _ready_of(facts: SnapshotFacts) -> Finding:
    """Return the finding of Ready of a snapshot that is bound."""
    snapshot = facts.snapshot
    storage, subject = snapshot.node.storage, f"snapshot {snapshot.name}"
    not_ready = _node_finding(facts.node or NodeFacts(snapshot.node_name or "", exists=False))
    if not_ready and not_ready.reason == Reason.NODE_GONE:
        return not_ready
    if storage and storage.reason == Reason.STORED:
        # A node that is away for a while is no reason to write all of its snapshots.
        return Finding(Reason.AVAILABLE, f"{subject} holds the data of branch {snapshot.branch}")
    if not_ready:
        return not_ready
    if storage is None and snapshot.reason in (SnapshotReason.RESTORE, SnapshotReason.DELETION):
        return awaited_finding(snapshot)
    return storage or Finding(
        Reason.SNAPSHOTTING,
        f"{subject} is being taken of branch {snapshot.branch} on node {snapshot.node_name}",
    )


def expiration_of(snapshot: Snapshot, now: datetime) -> tuple[str | None, bool]:
    """Return `status.expirationTime`, and whether it is new or earlier than it was, after a grace.

    A ttl that stood in the manifest at its creation counts from the snapshot; every other one has its grace.
    """
    ttl, taken = snapshot.lifetime, parse_time(snapshot.node.snapshot_time)
    if ttl is None or taken is None or snapshot.protected:
        return None, False
    computed, in_force = taken + ttl, parse_time(snapshot.expiration_time)
    if in_force is None and snapshot.generation == 1:
        return format_time(computed), False
    moment, is_sooner = with_grace(computed, in_force, ttl, now)
    return format_time(moment), is_sooner


def is_expired(snapshot: Snapshot, now: datetime) -> bool:
    """Return True if `status.expirationTime` has passed, and is what follows from the present spec."""
    expires = parse_time(snapshot.expiration_time)
    if expires is None or snapshot.deleting or snapshot.protected:
        return False
    return snapshot.observed_generation == snapshot.generation and expires <= now


def deletion_status(snapshot: Snapshot, now: datetime) -> Json:
    """Return the status of a snapshot whose deletion takes its time."""
    ready = Finding(Reason.DELETING, f"snapshot {snapshot.name} is being deleted")
    deletion = snapshot.node.deletion
    held = [(Condition.DELETION_BLOCKED, deletion)] if deletion else []
    previous = snapshot.status.get("conditions") or ()
    return {
        "conditions": report_conditions(previous, held, ready, snapshot.generation, format_time(now)),
        "observedGeneration": snapshot.generation,
    }


def failure_status(snapshot: Snapshot, finding: Finding, now: datetime) -> Json:
    """Return the status of a snapshot whose reconcile failed."""
    previous = snapshot.status.get("conditions") or ()
    return {"conditions": report_conditions(previous, [], finding, snapshot.generation, format_time(now))}


def labels_of(snapshot: Snapshot, binding: SnapshotBinding) -> dict[str, str]:
    """Return the labels that a bound snapshot has. Whoever else manages it (Helm) stays named."""
    labels = {
        names.LABEL_PROJECT: snapshot.project,
        names.LABEL_BRANCH: snapshot.branch,
        names.LABEL_ORIGIN: snapshot.reason.value,
        names.LABEL_MANAGED_BY: snapshot.labels.get(names.LABEL_MANAGED_BY, "dbranch"),
    }
    return labels | ({names.LABEL_BRANCH_UID: binding.branch_uid} if binding.branch_uid else {})
