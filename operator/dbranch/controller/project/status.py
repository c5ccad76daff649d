"""The findings about a project, from its agent's report and the controller's own decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.project import Project, Route
from dbranch.controller.branch.status import postgres_finding
from dbranch.controller.conditions import Findings
from dbranch.controller.routing import targets_of


def project_findings(
    project: Project, scheduled: Finding, routed: Finding, route: Route | None, branches: Iterable[Branch]
) -> Findings:
    """Return the findings in the order of the conditions."""
    return [
        (Condition.SCHEDULED, scheduled),
        (Condition.STORAGE_READY, _storage_finding(project)),
        (Condition.POSTGRES_READY, _postgres_finding(project, route, branches)),
        (Condition.ROUTED, routed),
    ]


def is_stale(project: Project, branches: Sequence[Branch]) -> bool:
    """Return True if status.routes, status.branches or PostgresReady no longer match the branches' own status.

    False before the project's first reconcile. A branch counts for `status.branches` from its own first reconcile on.
    """
    reported = find_condition(project.status, Condition.POSTGRES_READY)
    if reported is None or project.deleting:
        return False
    if project.routes != targets_of(project, branches):
        return True
    all_reconciled = all(branch.status.get("conditions") for branch in branches)
    if all_reconciled and project.status.get("branches") != len(branches):
        return True
    return bool(reported.get("reason") != _postgres_finding(project, project.route, branches).reason.value)


def _storage_finding(project: Project) -> Finding:
    reported = project.node.storage
    if reported is None:
        return Finding(Reason.CREATING_POOL, f"the pool of project {project.name} is not made yet")
    is_stopped = reported.reason == Reason.STOPPED
    if not project.running and not is_stopped and reported.done:
        return Finding(Reason.PENDING, f"project {project.name} is stopping")
    if project.running and is_stopped:
        return Finding(Reason.PENDING, f"project {project.name} is being started")
    return reported


def _postgres_finding(project: Project, route: Route | None, branches: Iterable[Branch]) -> Finding:
    """Return the finding of the routed branch or, before there is a route, of the active one."""
    name = route.branch if route else project.active_branch
    branch = next((b for b in branches if b.name == name), None)
    if branch is None:
        return Finding(Reason.PENDING, f"branch {name} of project {project.name} does not exist yet")
    finding = postgres_finding(project, branch)
    if finding.done and not project.node.initialized:
        return Finding(Reason.PENDING, f"project {project.name} is not reported as initialized yet")
    return finding
