"""The findings about a branch, from its agent's report and the controller's own decisions. Pure."""

from __future__ import annotations

from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.project import Project
from dbranch.controller.conditions import Findings


def branch_findings(project: Project | None, branch: Branch, scheduled: Finding) -> Findings:
    """Return the findings in the order of the conditions; of an unbound branch, those after Scheduled are Pending."""
    subject = f"branch {branch.name}"
    if branch.node_name is None or project is None:
        storage = postgres = Finding(Reason.PENDING, f"{subject} waits to be bound")
    else:
        storage = branch.node.storage or Finding(
            Reason.PENDING, f"{subject} waits for the agent of node {branch.node_name}"
        )
        postgres = postgres_finding(project, branch)
        if storage.reason == Reason.DATA_LOST and branch.node.snapshot_time is None and not branch.is_root:
            # It was never stored: what is missing is its source.
            text = f"the source of {subject} was deleted before the copy was taken; nothing is lost"
            storage = postgres = Finding(
                Reason.SOURCE_DELETED, f"{text}; delete it and make it from another source"
            )
    return [
        (Condition.SCHEDULED, scheduled),
        (Condition.STORAGE_READY, storage),
        (Condition.POSTGRES_READY, postgres),
    ]


def postgres_finding(project: Project, branch: Branch) -> Finding:
    """Return the finding of PostgresReady: the agent's, or Pending while that has not acted on `spec.state` yet."""
    reported, subject = branch.node.postgres, f"branch {branch.name}"
    if reported is None:
        storage = branch.node.storage
        if storage and not storage.done:
            return storage
        return Finding(Reason.PENDING, f"{subject} has no Postgres yet")
    is_stopped = reported.reason == Reason.STOPPED
    if not should_run(project, branch) and not is_stopped:
        return Finding(Reason.PENDING, f"Postgres of {subject} is shutting down")
    if should_run(project, branch) and is_stopped:
        return Finding(Reason.PENDING, f"Postgres of {subject} is being started")
    return reported
