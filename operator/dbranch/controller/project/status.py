"""A project's steps, from what the agent says and what the controller sees. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Reason, Step, find
from dbranch.api.project import Project, Route
from dbranch.controller.branch.status import postgres_step
from dbranch.controller.conditions import Steps
from dbranch.controller.routing import targets_of


def project_steps(
    project: Project, scheduled: Step, routed: Step, route: Route | None, branches: Iterable[Branch]
) -> Steps:
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
    told = find(project.status, Condition.POSTGRES_READY)
    if told is None or project.deleting:
        return False
    if project.routes != targets_of(project, branches):
        return True
    visited = all(branch.status.get("conditions") for branch in branches)
    if visited and project.status.get("branches") != len(branches):
        return True
    return bool(told.get("reason") != _postgres(project, project.route, branches).reason.value)


def _storage(project: Project) -> Step:
    step = project.node.storage
    if step is None:
        return Step(Reason.CREATING_POOL, f"the pool of project {project.name} is not made yet")
    if not project.running and step.reason != Reason.STOPPED and step.done:
        return Step(Reason.PENDING, f"project {project.name} is stopping")
    if project.running and step.reason == Reason.STOPPED:
        return Step(Reason.PENDING, f"project {project.name} is being started")
    return step


def _postgres(project: Project, route: Route | None, branches: Iterable[Branch]) -> Step:
    """What the active branch says of itself."""
    name = route.branch if route else project.active_branch
    branch = next((b for b in branches if b.name == name), None)
    if branch is None:
        return Step(Reason.PENDING, f"branch {name} of project {project.name} is not there yet")
    step = postgres_step(project, branch)
    if step.done and not project.node.initialized:
        return Step(Reason.PENDING, f"project {project.name} is not told to be initialized yet")
    return step
