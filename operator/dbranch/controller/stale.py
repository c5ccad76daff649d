"""Which projects and branches would report something else after a change: the only place that says so. Pure.

An object's report is a function of facts (`project.plan`, `branch.plan`). After a change of an object, those that
have it among their facts are planned again, from the cache, and who differs from its own status is stale. What only a
reconcile finds out (the names that are taken, the Secrets) is taken as it was reported.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot
from dbranch.controller import timing
from dbranch.controller.branch import plan as branch_plan
from dbranch.controller.branch.plan import BranchFacts, is_active, plan_branch, plan_removal
from dbranch.controller.branch.refreshed import refreshed_of
from dbranch.controller.branch.snapshotted import snapshotted_of
from dbranch.controller.cache import Cache
from dbranch.controller.keys import key_of
from dbranch.controller.limits import Limits, excess
from dbranch.controller.project import plan as project_plan
from dbranch.controller.project.plan import ProjectFacts, plan_project, reported_applied
from dbranch.controller.scheduling import missing_finalizers, needs_release
from dbranch.runtime.clock import now_rfc3339, seconds_since
from dbranch.runtime.result import Key


@dataclass(frozen=True)
class NodeChange:
    """A Node, or the agent's pod on it, has changed, or is gone."""

    node: str


@dataclass(frozen=True)
class ProxyChange:
    """A proxy's pod of a project has changed, or is gone."""

    namespace: str
    project: str


@dataclass(frozen=True)
class ConnectionChange:
    """What the connection Secrets of a project's branches hold has changed: they are outdated.

    `status.passwordVersion`, or where clients outside of the cluster connect to.
    """

    namespace: str
    project: str


# What only a reconcile finds out about a branch; Scheduled carries it.
_PROBLEMS = (
    Reason.NAME_TAKEN,
    Reason.OBJECT_REFUSED,
    Reason.WAITING_FOR_DELETION,
    Reason.RECONCILE_FAILED,
)

# Fields of the status that are columns for people only: `outdated_columns`.
_COLUMNS = frozenset({"branches", "active"})

# What Scheduled says of those behind a limit.
_PLACELESS = (Reason.LIMIT_EXCEEDED, Reason.ABOVE_LIMIT)

Change = Project | Branch | NodeChange | ProxyChange | ConnectionChange


class _Reads:
    """The cache, read once for all who are planned again together."""

    def __init__(self, cache: Cache, limits: Limits) -> None:
        self.cache, self.limits = cache, limits
        self.project = functools.cache(cache.project)
        self.branches_of = functools.cache(cache.branches_of)
        self.proxies_of = functools.cache(cache.proxies_of)
        self.node = functools.cache(cache.node)
        self.all_nodes = functools.cache(lambda: tuple(cache.all_nodes()))
        self.excess_projects = functools.cache(self._excess_projects)
        self.excess_branches = functools.cache(self._excess_branches)

    def is_excess(self, item: Project | Branch) -> bool:
        """Return True if the object comes behind the number that its namespace may have."""
        is_project = isinstance(item, Project)
        return item.uid in (self.excess_projects if is_project else self.excess_branches)(item.namespace)

    def _excess_projects(self, namespace: str) -> frozenset[str]:
        limit = self.limits.of(namespace).count("projects")
        return frozenset() if limit is None else excess(self.cache.projects_in(namespace), limit)

    def _excess_branches(self, namespace: str) -> frozenset[str]:
        limit = self.limits.of(namespace).count("branches")
        return frozenset() if limit is None else excess(self.cache.branches_in(namespace), limit)


def stale(
    changes: Sequence[Change], cache: Cache, limits: Limits | None = None, now: str | None = None
) -> set[Key]:
    """Return the keys of those who would now report something else, or whose deletion can go on.

    The cache has the changes already; of an object that is gone, `changes` has what it was. Who has reported nothing
    yet is left out: its own creation is a request for its first reconcile. `now`: RFC 3339.
    """
    now, reads = now or now_rfc3339(), _Reads(cache, limits or Limits())
    own = {key_of(change) for change in changes if isinstance(change, Project | Branch)}
    candidates = {key_of(item): item for item in _related(changes, own, reads)}
    outdated = {
        key_of(branch)
        for change in changes
        if isinstance(change, ConnectionChange)
        for branch in reads.branches_of(change.namespace, change.project)
        if not branch.deleting
    }
    return outdated | {
        key
        for key, item in candidates.items()
        # Its own event alone may be that of the failure's report.
        if _is_stale(item, reads, now) or (_has_failed(item) and (key not in own or len(changes) > 1))
    }


def outdated_columns(changes: Sequence[Change], cache: Cache) -> dict[Key, float]:
    """Return who reports an outdated column, and nothing else that is, with the seconds in which that is put right.

    Columns are for people, so they wait a moment: the number of a project's branches, since a burst of them is a few
    writes of it then; and which branch is active, since a switch leaves the processors to the first sessions.
    """
    counted = {(change.namespace, change.project) for change in changes if isinstance(change, Branch)}
    columns = {
        key_of(project): timing.BRANCH_COUNT_DELAY_SECONDS
        for namespace, name in counted
        if (project := cache.project(namespace, name))
        and not project.deleting
        and project.status.get("conditions")
        and project.status.get("branches") != len(cache.branches_of(namespace, name))
    }
    switched = {(change.namespace, change.name) for change in changes if isinstance(change, Project)}
    switched |= {(change.namespace, change.project) for change in changes if isinstance(change, ProxyChange)}
    for namespace, name in switched:
        project = cache.project(namespace, name)
        proxies = cache.proxies_of(project.uid) if project else ()
        for branch in cache.branches_of(namespace, name):
            is_reported = bool(branch.status.get("conditions")) and not branch.deleting
            if is_reported and is_active(project, branch, proxies) != branch.active:
                columns[key_of(branch)] = timing.ACTIVE_DELAY_SECONDS
    return columns


def _related(changes: Sequence[Change], own: set[Key], reads: _Reads) -> Iterator[Project | Branch]:
    """Yield those who have a changed object among their facts, and the changed objects themselves."""
    nodes = {change.node for change in changes if isinstance(change, NodeChange)}
    if nodes:
        items: list[Project | Branch] = [*reads.cache.all_projects(), *reads.cache.all_branches()]
        for item in items:
            # Of those that are bound to none, a branch of a snapshot may have waited for a newer agent.
            waits = isinstance(item, Project) or item.source_snapshot is not None
            if item.node_name in nodes or (item.node_name is None and waits):
                yield item
    yield from _displaced(changes, reads)
    # By project; True if more than single branches of it have changed.
    projects: dict[tuple[str, str], bool] = {}
    for change in changes:
        match change:
            case Branch():
                projects.setdefault((change.namespace, change.project), False)
            case Project():
                projects[change.namespace, change.name] = True
            case ProxyChange(namespace, name) | ConnectionChange(namespace, name):
                projects[namespace, name] = True
    for (namespace, name), concerns_all in projects.items():
        project = reads.project(namespace, name)
        if project:
            yield project
        for branch in reads.branches_of(namespace, name):
            # A branch that is bound depends on no sibling, unless it is to go.
            if concerns_all or branch.node_name is None or branch.deleting or key_of(branch) in own:
                yield branch


def _displaced(changes: Sequence[Change], reads: _Reads) -> Iterator[Project | Branch]:
    """Yield those of a namespace who may have got a place in it, or lost it, by what came, went or was bound."""
    projects = {change.namespace for change in changes if isinstance(change, Project)}
    branches = {change.namespace for change in changes if isinstance(change, Branch)}
    items: list[Project | Branch] = []
    for namespace in projects:
        if reads.limits.of(namespace).count("projects") is not None:
            items += reads.cache.projects_in(namespace)
    for namespace in branches:
        if reads.limits.of(namespace).count("branches") is not None:
            items += reads.cache.branches_in(namespace)
    for item in items:
        scheduled = Finding.from_dict(find_condition(item.status, Condition.SCHEDULED))
        has_no_place = scheduled is not None and scheduled.reason in _PLACELESS
        if has_no_place or reads.is_excess(item):
            yield item


def _has_failed(item: Project | Branch) -> bool:
    """Return True if the last reconcile failed: what has changed may be what it failed for."""
    types = (Condition.SCHEDULED, Condition.ROUTED, Condition.READY)
    conditions = [find_condition(item.status, condition_type) for condition_type in types]
    failed = any(c and c.get("reason") == Reason.RECONCILE_FAILED.value for c in conditions)
    return failed and not item.deleting


def _is_stale(item: Project | Branch, reads: _Reads, now: str) -> bool:
    if isinstance(item, Branch):
        return _is_branch_stale(item, reads, now)
    if item.deleting:
        if needs_release(item, reads.node(item.node_name) if item.node_name else None):
            return True
        if names.CONTROLLER_FINALIZER not in item.finalizers:
            return bool(project_plan.held_status(item, now))
        branches = reads.branches_of(item.namespace, item.name)
        waits = bool(branches) and all(branch.deleting for branch in branches)
        return not waits
    if not item.status.get("conditions"):
        return False
    facts = _project_facts(item, reads)
    plan = plan_project(facts, now)
    differing = set(plan.changes(item.status)) - _COLUMNS
    # A branch that has reported nothing yet is about to: all is written at once then.
    if not all(branch.status.get("conditions") for branch in facts.branches):
        differing &= {"nodeName", "route", "routes"}
    return bool(differing or plan.gone)


def _is_branch_stale(branch: Branch, reads: _Reads, now: str) -> bool:
    facts = _branch_facts(branch, reads)
    if branch.deleting:
        if needs_release(branch, facts.node):
            return True
        if branch.is_released:
            return bool(branch_plan.held_status(branch, now))
        return plan_removal(facts, seconds_since(branch.deleted), now).done
    if not branch.status.get("conditions"):
        return False
    if facts.node and missing_finalizers(branch, facts.node):
        return True
    return bool(set(plan_branch(facts, now).changes(branch.status)) - _COLUMNS)


def _project_facts(project: Project, reads: _Reads) -> ProjectFacts:
    """Return the facts about a project without a request."""
    return ProjectFacts(
        project,
        reads.branches_of(project.namespace, project.name),
        reads.node(project.node_name) if project.node_name else None,
        () if project.node_name else reads.all_nodes(),
        reads.proxies_of(project.uid),
        reported_applied(project),
        reads.limits.of(project.namespace),
        reads.is_excess(project),
    )


def _branch_facts(branch: Branch, reads: _Reads) -> BranchFacts:
    """Return the facts about a branch without a request."""
    project = reads.project(branch.namespace, branch.project)
    scheduled = Finding.from_dict(find_condition(branch.status, Condition.SCHEDULED))
    return BranchFacts(
        branch,
        project,
        reads.branches_of(branch.namespace, branch.project),
        reads.node(branch.node_name) if branch.node_name else None,
        reads.proxies_of(project.uid) if project else (),
        scheduled if scheduled and scheduled.reason in _PROBLEMS else None,
        reads.limits.of(branch.namespace),
        reads.is_excess(branch),
        _source_snapshot(branch, reads),
        reads.node(project.node_name) if project and project.node_name and branch.source_snapshot else None,
        _snapshots_of(branch, reads),
        snapshotted=snapshotted_of(branch, reads.cache.snapshots, reads.limits.of(branch.namespace)),
        refreshed=refreshed_of(branch, reads.cache.restores),
    )


def _source_snapshot(branch: Branch, reads: _Reads) -> Snapshot | None:
    if branch.source_snapshot is None or branch.node_name is not None:
        return None
    return reads.cache.snapshots.get(branch.namespace, branch.source_snapshot)


def _snapshots_of(branch: Branch, reads: _Reads) -> tuple[Snapshot, ...]:
    if not branch.deleting:
        return ()
    records = reads.cache.snapshots.of_project(branch.namespace, branch.project)
    return tuple(record.snapshot for record in records if record.snapshot.branch_uid == branch.uid)
