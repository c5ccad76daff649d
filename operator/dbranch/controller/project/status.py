"""A project's steps, from what the agent says and what the controller sees. Pure."""

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
    """The steps in the order in which they are taken."""
    return [
        (Condition.SCHEDULED, scheduled),
        (Condition.STORAGE_READY, _storage(project)),
        (Condition.POSTGRES_READY, _postgres(project, route, branches)),
        (Condition.ROUTED, routed),
    ]


def is_outdated(project: Project, branches: Sequence[Branch]) -> bool:
    """Whether the project's status tells something else of its branches than they say themselves.

    Never before the project's own first visit; of a branch, not before that branch's.
    """
    told = find_condition(project.status, Condition.POSTGRES_READY)
    if told is None or project.deleting:
        return False
    if project.routes != targets_of(project, branches):
        return True
    visited = all(branch.status.get("conditions") for branch in branches)
    if visited and project.status.get("branches") != len(branches):
        return True
    return bool(told.get("reason") != _postgres(project, project.route, branches).reason.value)


def _storage(project: Project) -> Finding:
    step = project.node.storage
    if step is None:
        return Finding(Reason.CREATING_POOL, f"the pool of project {project.name} is not made yet")
    if not project.running and step.reason != Reason.STOPPED and step.done:
        return Finding(Reason.PENDING, f"project {project.name} is stopping")
    if project.running and step.reason == Reason.STOPPED:
        return Finding(Reason.PENDING, f"project {project.name} is being started")
    return step


def _postgres(project: Project, route: Route | None, branches: Iterable[Branch]) -> Finding:
    """What the active branch says of itself."""
    name = route.branch if route else project.active_branch
    branch = next((b for b in branches if b.name == name), None)
    if branch is None:
        return Finding(Reason.PENDING, f"branch {name} of project {project.name} is not there yet")
    step = postgres_finding(project, branch)
    if step.done and not project.node.initialized:
        return Finding(Reason.PENDING, f"project {project.name} is not told to be initialized yet")
    return step
