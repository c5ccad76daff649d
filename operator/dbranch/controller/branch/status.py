"""A branch's steps, from what the agent says and what the controller sees. Pure."""

from __future__ import annotations

from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.project import Project
from dbranch.controller.conditions import Findings


def branch_findings(project: Project | None, branch: Branch, scheduled: Finding) -> Findings:
    """The steps in the order in which they are taken; those after an unbound one are not known."""
    who = f"branch {branch.name}"
    if branch.node_name is None or project is None:
        waits = Finding(Reason.PENDING, f"{who} waits to be bound")
        storage = postgres = waits
    else:
        told = branch.node.storage
        storage = told or Finding(Reason.PENDING, f"{who} waits for the agent of node {branch.node_name}")
        postgres = postgres_finding(project, branch)
    return [
        (Condition.SCHEDULED, scheduled),
        (Condition.STORAGE_READY, storage),
        (Condition.POSTGRES_READY, postgres),
    ]


def postgres_finding(project: Project, branch: Branch) -> Finding:
    """PostgresReady of a branch, also while its agent has not acted on a changed state yet."""
    node, who = branch.node, f"branch {branch.name}"
    step = node.postgres
    if step is None:
        failed = node.storage if node.storage and not node.storage.done else None
        return failed or Finding(Reason.PENDING, f"{who} has no Postgres yet")
    wanted = should_run(project, branch)
    if not wanted and step.reason != Reason.STOPPED:
        return Finding(Reason.PENDING, f"Postgres of {who} is shutting down")
    if wanted and step.reason == Reason.STOPPED:
        return Finding(Reason.PENDING, f"Postgres of {who} is being started")
    return step
