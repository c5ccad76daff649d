"""Which projects and branches would report something else after a change: the only place that says so. Pure.

An object's report is a function of facts (`project.plan`, `branch.plan`). After a change of an object, those that
have it among their facts are planned again, from the cache, and who differs from its own status is stale. What only a
reconcile finds out (the names that are taken, the Secrets) is taken as it was reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.project import Project
from dbranch.controller.branch.plan import BranchFacts, plan_branch, plan_removal
from dbranch.controller.cache import Cache
from dbranch.controller.project.plan import ProjectFacts, plan_project, reported_applied
from dbranch.controller.scheduling import needs_release
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
class PasswordChange:
    """A project's `status.passwordVersion` has changed: the connection Secrets of its branches are outdated."""

    namespace: str
    project: str


# What only a reconcile finds out about a branch; Scheduled carries it.
_PROBLEMS = (Reason.NAME_TAKEN, Reason.RECONCILE_FAILED)

Change = Project | Branch | NodeChange | ProxyChange | PasswordChange


def key_of(item: Project | Branch) -> Key:
    """Return the key of a project or branch."""
    if isinstance(item, Project):
        return Key(names.PROJECT_KIND, item.namespace, item.name)
    return Key(names.BRANCH_KIND, item.namespace, item.object_name)


def stale(changes: Sequence[Change], cache: Cache) -> set[Key]:
    """Return the keys of those who would now report something else, or whose deletion can go on.

    The cache has the changes already; of an object that is gone, `changes` has what it was. Who has reported nothing
    yet is left out: its own creation is a request for its first reconcile.
    """
    now = now_rfc3339()
    outdated = {
        key_of(branch)
        for change in changes
        if isinstance(change, PasswordChange)
        for branch in cache.branches_of(change.namespace, change.project)
        if not branch.deleting
    }
    candidates = {key_of(item): item for change in changes for item in _related(change, cache)}
    own = {key_of(change) for change in changes if isinstance(change, Project | Branch)}
    return outdated | {
        key
        for key, item in candidates.items()
        if _is_stale(item, cache, now) or (key not in own and _has_failed(item))
    }


def _related(change: Change, cache: Cache) -> Iterator[Project | Branch]:
    """Yield those who have the changed object among their facts, and the object itself."""
    match change:
        case NodeChange(node):
            items: list[Project | Branch] = [*cache.all_projects(), *cache.all_branches()]
            for item in items:
                if item.node_name == node or (item.node_name is None and isinstance(item, Project)):
                    yield item
            return
        case ProxyChange(namespace, name) | PasswordChange(namespace, name):
            pass
        case Project():
            namespace, name = change.namespace, change.name
        case Branch():
            namespace, name = change.namespace, change.project
    project = cache.project(namespace, name)
    if project:
        yield project
    for branch in cache.branches_of(namespace, name):
        # A branch that is bound depends on no sibling, unless it is to go.
        depends_on_siblings = branch.node_name is None or branch.deleting
        if depends_on_siblings or not isinstance(change, Branch) or branch.uid == change.uid:
            yield branch


def _has_failed(item: Project | Branch) -> bool:
    """Return True if the last reconcile failed: what has changed may be what it failed for."""
    conditions = (
        find_condition(item.status, Condition.SCHEDULED),
        find_condition(item.status, Condition.ROUTED),
    )
    failed = any(c and c.get("reason") == Reason.RECONCILE_FAILED.value for c in conditions)
    return failed and not item.deleting


def _is_stale(item: Project | Branch, cache: Cache, now: str) -> bool:
    if isinstance(item, Branch):
        return _is_branch_stale(item, cache, now)
    if item.deleting:
        if needs_release(item, cache.node(item.node_name) if item.node_name else None):
            return True
        can_go = not cache.branches_of(item.namespace, item.name)
        return can_go and names.CONTROLLER_FINALIZER in item.finalizers
    if not item.status.get("conditions"):
        return False
    facts = cached_project_facts(item, cache)
    plan = plan_project(facts, now)
    differing = set(plan.changes(item.status))
    # A branch that has reported nothing yet is about to change the routes: all is written at once then.
    if not all(branch.status.get("conditions") for branch in facts.branches):
        differing &= {"nodeName", "route", "routes"}
    return bool(differing or plan.gone)


def _is_branch_stale(branch: Branch, cache: Cache, now: str) -> bool:
    facts = cached_branch_facts(branch, cache)
    if branch.deleting:
        if needs_release(branch, facts.node):
            return True
        removal = plan_removal(facts, seconds_since(branch.deleted), now)
        return removal.done and names.CONTROLLER_FINALIZER in branch.finalizers
    if not branch.status.get("conditions"):
        return False
    return bool(plan_branch(facts, now).changes(branch.status))


def cached_project_facts(project: Project, cache: Cache) -> ProjectFacts:
    """Return the facts about a project without a request."""
    return ProjectFacts(
        project,
        cache.branches_of(project.namespace, project.name),
        cache.node(project.node_name) if project.node_name else None,
        () if project.node_name else tuple(cache.all_nodes()),
        cache.proxies_of(project.uid),
        reported_applied(project),
    )


def cached_branch_facts(branch: Branch, cache: Cache) -> BranchFacts:
    """Return the facts about a branch without a request."""
    project = cache.project(branch.namespace, branch.project)
    scheduled = Finding.from_dict(find_condition(branch.status, Condition.SCHEDULED))
    return BranchFacts(
        branch,
        project,
        cache.branches_of(branch.namespace, branch.project),
        cache.node(branch.node_name) if branch.node_name else None,
        cache.proxies_of(project.uid) if project else (),
        scheduled if scheduled and scheduled.reason in _PROBLEMS else None,
    )
