"""The findings about a project, from its agent's report and the controller's own decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.project import Project, Route
from dbranch.controller.branch.status import postgres_finding
from dbranch.controller.conditions import Findings


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
    scheduled = Finding.from_dict(find_condition(branch.status, Condition.SCHEDULED))
    if branch.node_name is None and scheduled and scheduled.reason == Reason.LIMIT_EXCEEDED:
        return scheduled
    finding = postgres_finding(project, branch)
    if finding.done and not project.node.initialized:
        return Finding(Reason.PENDING, f"project {project.name} is not reported as initialized yet")
    slots = project.node.slots
    return slots if finding.done and slots and slots.done else finding
