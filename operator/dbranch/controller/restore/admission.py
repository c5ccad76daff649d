"""Whether a restore may begin, and with what: else what it waits for, or why it never will. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import RestoreSourceKind, Undo
from dbranch.api.expiry import parse_time
from dbranch.api.project import Project
from dbranch.api.restore import Restore, RestoreSource
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.scheduling import NodeFacts, not_reporting_finding

# Restores of a branch that may wait for their turn.
MAX_WAITING: Final = 5
# Restores that may run at once on a node: each is a second Postgres beside that of its branch.
MAX_RUNNING_ON_NODE: Final = 2


@dataclass(frozen=True)
class Admitted:
    """The restore may begin. `source`: what is copied; `undo`: what becomes of the old data."""

    source: RestoreSource
    undo: Undo


@dataclass(frozen=True)
class Waiting:
    """It waits for what may still come."""

    finding: Finding


@dataclass(frozen=True)
class Rejected:
    """It never begins."""

    finding: Finding


def admit(facts: RestoreFacts, now: datetime) -> Admitted | Waiting | Rejected:
    """Decide about a restore that has not begun. `now`: of the API server."""
    decision = _admit(facts)
    if isinstance(decision, Waiting) and now >= deadline_of(facts.restore, now):
        text = f"restore {facts.restore.object_name} waited for {facts.restore.starting_deadline}"
        cause = decision.finding.message.partition(";")[0]
        return Rejected(
            Finding(Reason.STARTING_DEADLINE_EXCEEDED, f"{text}: {cause}; nothing was done; make another one")
        )
    return decision


def deadline_of(restore: Restore, now: datetime) -> datetime:
    """Return until when a restore may wait."""
    return (parse_time(restore.created) or now) + timedelta(seconds=restore.starting_deadline_seconds)


def turn(restore: Restore) -> tuple[str, str]:
    """Return by what the restores of a branch are ordered: the earliest is done first."""
    return restore.created or "", restore.uid


def undo_of(facts: RestoreFacts, project: Project, branch: Branch) -> Undo:
    """Return what becomes of the old data: as the restore says, else its branch, else the project."""
    default = Undo.KEEP if project.undo.keeps else Undo.DISCARD
    return facts.restore.undo or branch.undo or default


def origin_of(restore: Restore, branch: Branch | None) -> tuple[str | None, str | None]:
    """Return the branch, or else the DBSnapshot, whose data is asked for: without a name, the branch's own origin."""
    if restore.source or restore.source_snapshot or branch is None:
        return restore.source, restore.source_snapshot
    return branch.source, branch.source_snapshot


def _admit(facts: RestoreFacts) -> Admitted | Waiting | Rejected:
    restore, project, branch = facts.restore, facts.project, facts.branch
    subject = f"restore {restore.object_name}"
    if project is None or project.deleting:
        fact = "does not exist" if project is None else "is being deleted"
        text = f"project {restore.project} {fact}; {subject} waits; apply the DBProject {restore.project}"
        return Waiting(Finding(Reason.BRANCH_NOT_FOUND, text))
    if branch is None or branch.deleting:
        fact = "does not exist in" if branch is None else "is being deleted from"
        text = f'branch "{restore.branch}" {fact} project {project.name}; {subject} waits; make that branch'
        return Waiting(Finding(Reason.BRANCH_NOT_FOUND, text))
    if branch.protected and restore.scheduled_for != branch.uid:
        return Rejected(protected_finding(restore, branch))
    if origin_of(restore, branch) == (None, None):
        text = f"branch {branch.name} is the root and has no origin; nothing was done"
        return Rejected(
            Finding(Reason.NO_SOURCE, f"{text}; name spec.source or spec.sourceSnapshot in another DBRestore")
        )
    queued = _queued(facts, branch)
    if queued:
        return queued
    if not project.running:
        text = f"project {project.name} is stopped; {subject} waits until it runs; dbranch resume --all"
        return Waiting(Finding(Reason.PROJECT_STOPPED, text))
    not_ready = _not_ready(facts, project, branch)
    if not_ready:
        return Waiting(not_ready)
    source = _source(facts, project, branch)
    if isinstance(source, Finding):
        return Waiting(source)
    undo = undo_of(facts, project, branch)
    storage = project.node.storage
    if undo == Undo.KEEP and storage and storage.reason == Reason.POOL_LOW:
        text = f"the pool of project {project.name} is almost full; {subject} would keep the old data"
        return Rejected(Finding(Reason.POOL_LOW, f"{text}; free space, or use undo: Discard"))
    if undo == Undo.KEEP and facts.undo and facts.own_undo is None:
        text = f"DBSnapshot {facts.undo.object_name} exists and is not this restore's; {subject} waits"
        return Waiting(Finding(Reason.OBJECT_REFUSED, f"{text}; delete it"))
    if facts.refused:
        return Waiting(facts.refused)
    return Admitted(source, undo)


def protected_finding(restore: Restore, branch: Branch) -> Finding:
    """Return the finding of a restore of a protected branch."""
    text = f"branch {branch.name} is protected; restore {restore.object_name} changed nothing"
    return Finding(Reason.PROTECTED, f"{text}; run dbranch unprotect {branch.name}, then make another one")


def _queued(facts: RestoreFacts, branch: Branch) -> Waiting | Rejected | None:
    """Return why it is not this restore's turn; None if it is."""
    restore = facts.restore
    waiting = [other for other in facts.queue if branch.restore is None or other.uid != branch.restore.uid]
    earlier = [other for other in waiting if other.uid != restore.uid and turn(other) < turn(restore)]
    subject = f"restore {restore.object_name}"
    if len(earlier) >= MAX_WAITING:
        text = f"branch {branch.name} has {MAX_WAITING} restores that wait; {subject} is not done"
        return Rejected(Finding(Reason.QUEUE_FULL, f"{text}; make it again later"))
    first = branch.restore.name if branch.restore else _first(earlier)
    if first:
        text = f"restore {first} of branch {branch.name} comes first; {subject} waits for its turn"
        return Waiting(Finding(Reason.QUEUED, f"{text}; nothing is to be done"))
    if facts.busy >= MAX_RUNNING_ON_NODE:
        text = f"node {branch.node_name} is busy with other restores; {subject} waits for its turn"
        return Waiting(Finding(Reason.QUEUED, f"{text}; nothing is to be done"))
    return None


def _first(earlier: Sequence[Restore]) -> str | None:
    return min(earlier, key=turn).object_name if earlier else None


def _not_ready(facts: RestoreFacts, project: Project, branch: Branch) -> Finding | None:
    """Return what the branch or its node is still missing."""
    subject = f"restore {facts.restore.object_name}"
    if branch.node_name is None or branch.node.snapshot_time is None:
        text = f"branch {branch.name} of project {project.name} is not stored yet; {subject} waits"
        return Finding(Reason.BRANCH_NOT_READY, f"{text}; see its conditions")
    node = facts.node or NodeFacts(branch.node_name, exists=False)
    not_reporting = not_reporting_finding(node)
    if not_reporting:
        fact = not_reporting.message.partition(";")[0]
        return Finding(Reason.NODE_NOT_READY, f"{fact}; {subject} waits; bring the node back")
    if names.FEATURE_RESTORES not in node.features:
        text = f"the agent of node {node.name} is of a release without restores; {subject} waits"
        return Finding(Reason.AGENT_TOO_OLD, f"{text}; see the rollout of the DaemonSet dbranch-agent")
    return None


def _source(facts: RestoreFacts, project: Project, branch: Branch) -> RestoreSource | Finding:
    """Return what is copied, or what is missing of it."""
    name, snapshot_name = origin_of(facts.restore, branch)
    subject = f"restore {facts.restore.object_name}"
    if snapshot_name:
        snapshot = facts.snapshot
        if snapshot is None or snapshot.project != project.name or snapshot.deleting:
            text = f'snapshot "{snapshot_name}" does not exist in project {project.name}; {subject} waits'
            return Finding(Reason.SOURCE_NOT_FOUND, f"{text}; see dbranch snapshot list")
        if not snapshot.node.stored or snapshot.node_name != branch.node_name:
            text = f'snapshot "{snapshot_name}" of project {project.name} is not stored yet; {subject} waits'
            return Finding(Reason.SOURCE_NOT_READY, f"{text}; see its conditions")
        return RestoreSource(RestoreSourceKind.SNAPSHOT, snapshot.object_name, snapshot.uid)
    source = facts.source
    if source is None or source.deleting or source.uid == branch.uid:
        text = f'source "{name}" does not exist in project {project.name}; {subject} waits'
        return Finding(Reason.SOURCE_NOT_FOUND, f"{text}; make that branch")
    if source.node.snapshot_time is None or source.node_name != branch.node_name:
        text = f'source "{name}" of project {project.name} is not stored yet; {subject} waits'
        return Finding(Reason.SOURCE_NOT_READY, f"{text}; see its conditions")
    return RestoreSource(RestoreSourceKind.BRANCH, source.name, source.uid)
