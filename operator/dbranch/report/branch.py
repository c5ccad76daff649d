"""A branch's steps, from what the agent says and what the controller sees. Pure."""

from __future__ import annotations

from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Reason, Step
from dbranch.api.project import Project
from dbranch.report.project import Steps, postgres_step


def branch_steps(project: Project | None, branch: Branch, scheduled: Step) -> Steps:
    """The steps in the order in which they are taken; those after an unbound one are not known."""
    who = f"branch {branch.branch}"
    if branch.node_name is None or project is None:
        waits = Step(Reason.PENDING, f"{who} waits to be bound")
        storage = postgres = waits
    else:
        told = branch.node.storage
        storage = told or Step(Reason.PENDING, f"{who} waits for the agent of node {branch.node_name}")
        postgres = postgres_step(project, branch)
    return [
        (Condition.SCHEDULED, scheduled),
        (Condition.STORAGE_READY, storage),
        (Condition.POSTGRES_READY, postgres),
    ]
