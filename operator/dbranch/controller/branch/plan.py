"""The decision of a branch's reconcile: facts -> binding, findings, status; and how far its deletion may go. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch, BranchRoute, DeletionCopy
from dbranch.api.conditions import NO_PROGRESS_REASONS, Condition, Finding, Reason
from dbranch.api.enums import SnapshotReason
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot
from dbranch.controller import timing
from dbranch.controller.branch.expiry import plan_expiry
from dbranch.controller.branch.restoring import copies_for_restores, restoring_finding, restoring_status
from dbranch.controller.branch.status import branch_findings
from dbranch.controller.conditions import held_deletion_status, phase_of, ready_finding, report_conditions
from dbranch.controller.limits import NO_LIMITS, NamespaceLimits, above_finding, refused_finding
from dbranch.controller.proxy_pods import ProxyPod
from dbranch.controller.routing import is_withdrawn, laggards, plan_branch_route, service_addresses
from dbranch.controller.scheduling import (
    Binding,
    NodeFacts,
    bind_branch,
    is_abandoned,
    not_reporting_finding,
)

Json = dict[str, Any]


@dataclass(frozen=True)
class BranchFacts:
    """What a branch's reconcile knows.

    `siblings`: all branches of the project, also this one; `node`: the one that the branch is bound to; `proxies`:
    the pods of the project's proxy; `problem`: why its objects could not be applied. `limits`: of its namespace;
    `is_excess`: it comes behind the number of branches that they allow.
    `snapshot`: that spec.sourceSnapshot names, and `project_node` the project's node: known before it is bound.
    `taken`: the snapshots that are taken, or to be taken, of a branch that is being deleted; `copy`: the one that
    gets its data; `copy_problem`: why that one cannot be made.
    `snapshotted`, `refreshed`: what is said of its schedules of snapshots, and of its refresh.
    `git_manager`: Argo CD, Flux or Helm, if the branch is theirs; known to a reconcile only.
    """

    branch: Branch
    project: Project | None
    siblings: tuple[Branch, ...] = ()
    node: NodeFacts | None = None
    proxies: tuple[ProxyPod, ...] = ()
    problem: Finding | None = None
    limits: NamespaceLimits = NO_LIMITS
    is_excess: bool = False
    snapshot: Snapshot | None = None
    project_node: NodeFacts | None = None
    taken: tuple[Snapshot, ...] = ()
    snapshotted: Finding | None = None
    refreshed: Finding | None = None
    copy: DeletionCopy | None = None
    copy_problem: Finding | None = None
    git_manager: str | None = None

    @property
    def is_refused(self) -> bool:
        """True if the branch gets no place in its namespace, so nothing is made for it."""
        return self.is_excess and self.branch.node_name is None


@dataclass(frozen=True)
class BranchPlan:
    """`binding` is new; `status` has every field that the controller writes.

    `addresses`: of the pods that its own Service leads to.
    `announcements`: reasons and messages of Events that come before the status is written.
    """

    binding: Binding | None
    ready: Finding
    status: Json
    addresses: tuple[str, ...] = ()
    announcements: tuple[tuple[str, str], ...] = ()

    def changes(self, reported: Mapping[str, Any]) -> Json:
        """Return the fields that differ from the reported status, as a merge patch."""
        return _changes(self.status, reported)


@dataclass(frozen=True)
class BranchRemovalPlan:
    """How far a deletion may go. `done`: the controller lets go of the branch, which `status` says."""

    done: bool
    status: Json
    requeue_after: float | None = None

    def changes(self, reported: Mapping[str, Any]) -> Json:
        """Return the fields that differ from the reported status, as a merge patch."""
        return _changes(self.status, reported)


def plan_branch(facts: BranchFacts, now: str) -> BranchPlan:
    """Decide about a branch that is not being deleted. `now`: RFC 3339."""
    branch, project = facts.branch, facts.project
    binding, scheduled = _schedule(facts)
    fields: Json = {"nodeName": binding.node} if binding else {}
    if binding and binding.source_uid:
        fields["sourceUID"] = binding.source_uid
    bound = replace(branch, node_name=binding.node) if binding else branch
    findings = branch_findings(project, bound, scheduled)
    host = names.service_host(branch.object_name, branch.namespace)
    # No part of Ready: users connect to it.
    schedules = ((Condition.SNAPSHOTTED, facts.snapshotted), (Condition.REFRESHED, facts.refreshed))
    others = [(condition, finding) for condition, finding in schedules if finding]
    previous = branch.status.get("conditions") or ()
    route = plan_branch_route(project, bound) if project else branch.route
    available = f"branch {branch.name} accepts connections at {host}"
    ready = restoring_finding(branch, route) or ready_finding(findings, available)
    expiry = plan_expiry(branch, project, datetime.fromisoformat(now), facts.git_manager)
    findings = [*findings, *expiry.findings]
    fields |= _route_fields(route) | expiry.fields | restoring_status(branch, now)
    fields |= {
        "observedGeneration": branch.generation,
        "conditions": report_conditions(previous, [*findings, *others], ready, branch.generation, now),
        "phase": phase_of(ready),
        "active": is_active(project, branch, facts.proxies),
    }
    if branch.source_text:
        fields["source"] = branch.source_text
    if binding and facts.snapshot and _is_undeleted(branch, facts.snapshot):
        fields["undeletes"] = facts.snapshot.origin_branch_uid
    addresses = service_addresses(project, bound, route, facts.proxies) if project else ()
    return BranchPlan(binding, ready, fields, addresses, expiry.events)


def _is_undeleted(branch: Branch, snapshot: Snapshot) -> bool:
    """Return True if the snapshot has the data of a deleted branch of the same name: that goes back as it was."""
    is_record = snapshot.reason == SnapshotReason.DELETION and snapshot.origin_branch_uid is not None
    return is_record and snapshot.branch == branch.name


def _schedule(facts: BranchFacts) -> tuple[Binding | None, Finding]:
    """Return a new binding, and the finding of Scheduled."""
    branch = facts.branch
    if branch.node_name is None:
        if facts.problem or facts.is_refused:
            return None, facts.problem or refused_finding(branch, facts.limits)
        binding = bind_branch(facts.project, branch, facts.siblings, facts.snapshot, facts.project_node)
        if isinstance(binding, Finding):
            return None, binding
        return binding, _bound_finding(branch, binding.node)
    not_reporting = not_reporting_finding(facts.node or NodeFacts(branch.node_name, exists=False))
    warning = above_finding(branch, facts.limits, facts.is_excess)
    return None, facts.problem or not_reporting or warning or _bound_finding(branch, branch.node_name)


def _bound_finding(branch: Branch, node: str) -> Finding:
    return Finding(Reason.BOUND, f"branch {branch.name} is bound to node {node}")


def is_active(project: Project | None, branch: Branch, proxies: Iterable[ProxyPod]) -> bool:
    """Return `status.active`: it changes when all proxies obey the route."""
    route = project.route if project else None
    if project is None or route is None:
        return False
    if laggards(route, proxies, project.proxies):
        return branch.active
    return route.branch == branch.name


def plan_removal(facts: BranchFacts, seconds: float, now: str) -> BranchRemovalPlan:
    """Decide about a branch that is being deleted, since so many seconds.

    It waits until snapshots of it are taken, and until every proxy obeys its route, which says Deleting.
    """
    branch, project = facts.branch, facts.project
    remaining = timing.PROXIES_OBEY_TIMEOUT_SECONDS - seconds
    is_overdue = remaining < 0
    ready = Finding(Reason.DELETING, _deleting_text(branch))
    abandoned = facts.node is not None and is_abandoned(facts.node, branch.annotations)
    copies = [] if abandoned else _copies_awaited(facts)
    is_blocked = is_overdue and bool(copies)
    blocked = [(Condition.DELETION_BLOCKED, _blocked_finding(branch, min(copies)))] if is_blocked else []
    if facts.copy_problem:
        blocked = [(Condition.DELETION_BLOCKED, facts.copy_problem)]
    previous = branch.status.get("conditions") or ()
    status: Json = {
        "conditions": report_conditions(previous, blocked, ready, branch.generation, now),
        "phase": phase_of(ready),
        "release": names.RELEASE_PENDING,
        # The data may have been exchanged in the very moment of the deletion: then the restore was done.
        **restoring_status(branch, now),
    }
    if project:
        status |= _route_fields(plan_branch_route(project, branch))
    waiting = BranchRemovalPlan(False, status, None if is_overdue else remaining + 1)
    if copies or facts.copy_problem:
        return waiting
    if (
        project
        and not project.deleting
        and not is_overdue
        and not is_withdrawn(project, branch, facts.proxies)
    ):
        return waiting
    released: Json = {"release": branch.deleted}
    if facts.copy:
        # In the same write: an agent that reads the one reads the other.
        released["copy"] = {"name": facts.copy.name, "uid": facts.copy.uid}
    return BranchRemovalPlan(True, status | released)


def held_status(branch: Branch, now: str) -> Json:
    """Return the changes to the status of a branch that its agent is deleting, if that says what holds it up."""
    subject = f"branch {branch.name}"
    return held_deletion_status(subject, branch.node.deletion, branch.status, branch.generation, now)


def _route_fields(route: BranchRoute | None) -> Json:
    if route is None:
        return {}
    fields: Json = {"generation": route.generation, "state": route.state.value}
    fields |= {"address": route.address, "port": route.port} if route.address else {}
    return {"route": fields | ({"restore": route.restore} if route.restore else {})}


def _changes(status: Json, reported: Mapping[str, Any]) -> Json:
    """Return a merge patch of the fields that differ, which also removes what a field has no more."""
    changes = {key: value for key, value in status.items() if reported.get(key) != value}
    for key, value in changes.items():
        if isinstance(value, dict):
            changes[key] = {**dict.fromkeys(reported.get(key) or {}), **value}
    return changes


def _deleting_text(branch: Branch) -> str:
    """Say that the branch is being deleted, and with what: the garbage collector asks nobody."""
    owners = " and ".join(branch.foreign_owners)
    return f"branch {branch.name} is being deleted" + (f"; it is owned by {owners}" if owners else "")


def _blocked_finding(branch: Branch, copy: str) -> Finding:
    text = f"branch {branch.name} waits for {copy}, which is being made of it"
    return Finding(Reason.WAITING_FOR_AGENT, f"{text}; it goes on when that is stored; or delete {copy}")


def _copies_awaited(facts: BranchFacts) -> list[str]:
    """Return the branches and snapshots, in words, that are bound to the branch and still to be taken of it."""
    branch, project = facts.branch, facts.project
    branches = [f"branch {s.name}" for s in facts.siblings if _awaits_snapshot_of(branch, s, project)]
    # A project that is being deleted takes none any more.
    is_running = project is not None and project.running and not project.deleting
    snapshots = [
        f"snapshot {snapshot.name}"
        for snapshot in facts.taken
        # A record gets its data by the very deletion.
        if is_running
        and not snapshot.is_record
        and snapshot.awaits_data
        and snapshot.branch_uid == branch.uid
    ]
    return branches + copies_for_restores(branch, facts.siblings) + snapshots


def _awaits_snapshot_of(source: Branch, branch: Branch, project: Project | None) -> bool:
    """Return True if `branch` is bound to `source`, and its snapshot is still to be taken and can be.

    A copy that waits for space may wait for the very space that the deletion frees.
    """
    if branch.source_uid != source.uid or branch.node.snapshot_time is not None or branch.deleting:
        return False
    storage = branch.node.storage
    return project is not None and project.running and not (storage and storage.reason in NO_PROGRESS_REASONS)
